"""The command line: `tfrec --help` lists the commands; progress goes to stderr, the result to stdout.

Exit code 0 = done, 1 = failed, 2 = wrong use. A mistake that the user can mend is one line without a traceback.
"""

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tfrec.cli_compare import compare, report, sweep
from tfrec.cli_options import (
    ConfigOption,
    DataOption,
    DatasetArgument,
    PictureOption,
    QuietOption,
    RunArgument,
    RunSetOption,
    SetOption,
    SplitOption,
)
from tfrec.cli_recommend import recommend
from tfrec.cli_requests import replay, skew
from tfrec.errors import UsageError, UserError, mendable

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(
    name="tfrec",
    help="From raw logs to served recommendations.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(no_args_is_help=True, help="Look at, check or cache a dataset directory.")
app.add_typer(data_app, name="data")


def main() -> None:
    """Runs the command line and turns every mistake of the user into one line and an exit code."""
    _quieten()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what Ctrl-C cleans up, a stopped job cleans up too
    try:
        app()
    except SystemExit as stop:
        if stop.code == 130:  # the click library's code of Ctrl-C
            _fail("interrupted; nothing half-written has its final name, run the same command again.", 1)
        raise
    except Exception as error:
        refused = mendable(error)
        if refused is None:
            raise
        _fail(str(refused), refused.exit_code)


def _fail(message: str, code: int) -> None:
    print(f"tfrec: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code)


def _quieten() -> None:
    """Progress of tfrec's own stages goes to stderr; notes of the libraries below do not, unless the user asked."""
    import logging

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stderr)
    for name in ("beam_jobs", "serving", "tfrec"):
        logging.getLogger(name).setLevel(logging.INFO)


def _show(*tables: "Table | str") -> None:
    from tfrec.tables import show

    show(*tables)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        import tfrec

        print(tfrec.__version__)
        raise typer.Exit


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where everything is written.")] = Path("demo"),
    users: Annotated[int, typer.Option(min=100, help="Users of the made-up shop.")] = 2500,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Training epochs at most, instead of the demo's own.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seeds the shop and the training.")] = 0,
) -> None:
    """Go the whole way on a made-up shop's logs.

    Generates, preprocesses, trains three models, evaluates, exports, serves and asks, in minutes. An interrupted demo
    goes on from its last complete stage.
    """
    from tfrec.demo import run

    run(out, users=users, epochs=epochs, seed=seed)


@app.command()
def init(
    logs: Annotated[list[Path], typer.Argument(metavar="LOGS...", help="Files of events; also of items and users.")],
    out: Annotated[Path, typer.Option(help="The configuration to write.")] = Path("tfrec.yaml"),
    column: Annotated[
        list[str] | None, typer.Option("--column", metavar="ROLE=COLUMN", help="Names a column that is not guessed.")
    ] = None,
) -> None:
    """Write a first configuration from a look at log files.

    Guesses columns, kinds and the time unit from the first rows, and comments every guess.

    Example: tfrec init events.csv items.parquet --out shop.yaml
    """
    from beam_jobs.guess import guess_config

    if out.exists():
        raise UserError(f"{out}: exists already; give another name with --out.")
    roles = dict(_role(text) for text in column or [])
    text = guess_config(logs, roles, out.stem)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    print(out)
    print(f"tfrec: read each guess in {out}, then: tfrec doctor --config {out}", file=sys.stderr)


def _role(text: str) -> tuple[str, str]:
    role, equals, name = text.partition("=")
    if not equals or not role or not name:
        raise UsageError(f"--column {text}: must look like role=column, for example user_id=CustomerID.")
    return role, name


@app.command()
def doctor(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Also check this experiment.")] = None,
    overrides: SetOption = None,
) -> None:
    """Check environment, configuration and a sample of data.

    Without --config the environment alone. Exit code 1 where something would fail.
    """
    from tfrec.doctor import examine
    from tfrec.tables import checks_table

    checks = examine(config, overrides or [])
    _show(checks_table([(check.name, check.status, check.found, check.mend) for check in checks]))
    if any(check.status == "fail" for check in checks):
        raise typer.Exit(1)


@app.command()
def preprocess(
    config: ConfigOption,
    overrides: SetOption = None,
    grow_from: Annotated[
        Path | None, typer.Option("--from", metavar="OLD", help="Keep this dataset's ids and fitted parts.")
    ] = None,
    refit: Annotated[
        list[str] | None, typer.Option("--refit", metavar="FEATURE", help="Fit it anew despite --from. Repeatable.")
    ] = None,
    shared_disk: Annotated[
        bool, typer.Option("--shared-disk", help="All workers see the folder of data.out under the same path.")
    ] = False,
    beam_options: Annotated[
        list[str] | None, typer.Argument(metavar="[-- BEAM OPTIONS]", help="Passed on to Apache Beam.")
    ] = None,
) -> None:
    """Raw logs -> dataset directory, with Apache Beam.

    The same as python -m beam_jobs.preprocess.

    With --from new values come behind the old ones, whose ids never move. The logs are read whole: they hold every
    day that the new dataset is to have.

    Options behind `--` are passed on to Beam, for example
    -- --direct_running_mode=multi_processing --direct_num_workers=2

    Example: tfrec preprocess --config shop.yaml
    """
    if beam_options and not beam_options[0].startswith("-"):
        raise UsageError(f"preprocess: unexpected argument {beam_options[0]!r}; Beam's options stand behind `--`.")
    from tfrec.config import load

    parsed = load(config, overrides or [])
    from beam_jobs import preprocess as job

    print(job.run(parsed, beam_options or [], grow_from=grow_from, refit=refit or [], shared_disk=shared_disk))


@data_app.command("inspect")
def data_inspect(
    dataset: DatasetArgument,
    users: Annotated[int, typer.Option(min=0, help="Users whose histories are shown.")] = 3,
    picture: PictureOption = None,
) -> None:
    """Show features, account of rows, statistics, distributions.

    Distributions of all features, unknown rates, lengths of histories and sessions, some users with titles.

    Example: tfrec data inspect datasets/shop --picture shop.svg
    """
    import json

    from tfrec.data import Dataset
    from tfrec.inspection import dataset_tables
    from tfrec.tables import document_table, rows_table

    opened = Dataset.open(dataset)
    features = [
        (item.name, item.side, item.kind, str(item.num_codes), str(sum(item.table_sizes)))
        for item in opened.schema.features
    ]
    account = {key: value for key, value in opened.manifest.items() if key != "files"}
    statistics = json.loads((dataset / "statistics.json").read_text("utf-8"))
    _show(
        rows_table(features, ("feature", "side", "kind", "codes", "table rows"), title=str(dataset)),
        document_table(opened.schema.counts, title="counts"),
        document_table(account, title="manifest"),
        document_table(statistics, title="statistics"),
    )
    _draw(list(dataset_tables(opened, users=users)), picture, title=str(dataset))


@data_app.command("compare")
def data_compare(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="The dataset to compare with.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The dataset that is looked at.")],
    picture: PictureOption = None,
) -> None:
    """Show how far a dataset has drifted from another.

    Drift of each feature, unknown rates, new and gone users and items, events by time.

    Example: tfrec data compare datasets/may datasets/june --picture drift.svg
    """
    from tfrec.data import Dataset
    from tfrec.drift import compare_datasets
    from tfrec.inspection import comparison_tables

    found = compare_datasets(Dataset.open(old), Dataset.open(new))
    _draw(list(comparison_tables(found, str(old), str(new))), picture, title=f"{old} and {new}")


def _draw(tables: "list[Table]", picture: Path | None, *, title: str) -> None:
    """Shows tables on the terminal and, where asked, in an SVG file."""
    _show(*tables)
    if picture is not None:
        from tfrec.pictures import write_svg

        write_svg(picture, tables, title=title)
        print(picture)


@data_app.command("verify")
def data_verify(dataset: DatasetArgument) -> None:
    """Compare every file with the manifest, SHA-256 included.

    Also for a published version, MODELS/NAME/<version>.
    """
    from tfrec.manifest import verify

    manifest = verify(dataset, whole=True)
    print(f"{dataset}: {len(manifest['files'])} files as the manifest says.")


@data_app.command("cache")
def data_cache(dataset: DatasetArgument) -> None:
    """Write DATASET/cache, which NumPy alone reads.

    For training on machines without TensorFlow, and for a faster start on all.
    """
    from tfrec.data import Dataset, write_cache

    print(write_cache(Dataset.open(dataset, use_cache=False)))


@app.command()
def train(
    config: ConfigOption,
    overrides: SetOption = None,
    out: Annotated[Path | None, typer.Option(help="The run directory; by default runs/<config's name>.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare the dataset's files with their hashes first.")
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Dataset -> run directory.

    An interrupted training goes on from its last checkpoint.

    Example: tfrec train --config shop.yaml --set training.epochs=5 --out runs/shop
    """
    from tfrec.config import load

    parsed = load(config, overrides or [])
    from tfrec.training import train as start

    print(start(parsed, out or Path("runs") / config.stem, progress=not quiet, verify=verify))


app.command()(sweep)


@app.command()
def evaluate(
    run: RunArgument,
    split: SplitOption = "test",
    data: DataOption = None,
    overrides: RunSetOption = None,
) -> None:
    """Full-catalogue metrics of a run, with intervals.

    Prints a table and writes RUN/evaluation.json, of the validation split RUN/evaluation_validation.json.
    """
    from tfrec.evaluation import evaluate as measure
    from tfrec.runs import load_run
    from tfrec.tables import document_table, metrics_table

    evaluation = measure(load_run(run, data=data, overrides=overrides or []), split)
    evaluation.write(run)
    document = evaluation.document()
    _show(document_table(document["protocol"], title="protocol"), metrics_table({run.name: document}))


app.command()(compare)
app.command()(report)


@app.command()
def export(
    run: RunArgument,
    to: Annotated[Path, typer.Option(metavar="MODELS/NAME", help="Where the next version is published.")],
    index: Annotated[Literal["exact", "scann"] | None, typer.Option(help="scann also writes NAME_scann.")] = None,
    not_worse_than: Annotated[
        Path | None, typer.Option(metavar="MODELS/NAME", help="Refuse to publish a model worse than this one.")
    ] = None,
    rank_with: Annotated[
        Path | None, typer.Option(metavar="RUN", help="A ranking run that ranks what this one retrieves.")
    ] = None,
    data: DataOption = None,
    overrides: RunSetOption = None,
) -> None:
    """Run -> MODELS/NAME/<version>/, a SavedModel.

    The version is checked against the run before it gets its name.

    Example: tfrec export runs/shop --to models/shop --index scann
    """
    from tfrec.export import export as publish
    from tfrec.runs import load_run

    loaded = load_run(run, data=data, overrides=overrides or [])
    ranker = None if rank_with is None else load_run(rank_with, data=data)
    kind = index or loaded.config.index.kind
    for path in publish(loaded, to, index=kind, not_worse_than=not_worse_than, rank_with=ranker):
        print(path)


@app.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    options_metavar="[MODELS] [OPTIONS]",
)
def serve(arguments: Annotated[list[str] | None, typer.Argument(hidden=True)] = None) -> None:
    """Serve a folder of models over REST and gRPC.

    The API is TensorFlow Serving's, and so are the flags beside our own; new versions are picked up as they appear.
    """
    from serving.__main__ import run

    run(arguments or [], "tfrec serve")


@app.command()
def rollback(
    models: Annotated[list[Path], typer.Argument(metavar="MODELS/NAME...", help="Published models.")],
    to: Annotated[
        int | None, typer.Option("--to", min=0, help="The version that shall answer; default: the one before.")
    ] = None,
) -> None:
    """Let an earlier version of a model answer again.

    Later versions are renamed to <version>.withdrawn, which servers do not load; `--to` such a version brings it back.

    Example: tfrec rollback models/shop models/shop_scann
    """
    from serving.rollback import rollback as go_back

    for model in models:
        print(go_back(model, to))


app.command()(replay)
app.command()(skew)


app.command()(recommend)
