"""The commands `tfrec sweep`, `tfrec compare` and `tfrec report`: which model is better, and what it learnt."""

from pathlib import Path
from typing import Annotated

import typer

from tfrec.cli_options import ConfigOption, DataOption, PictureOption, QuietOption, RunArgument, SetOption, SplitOption
from tfrec.errors import UsageError, UserError


def sweep(
    config: ConfigOption,
    overrides: SetOption = None,
    out: Annotated[Path | None, typer.Option(help="The sweep's directory; by default sweeps/<config's name>.")] = None,
    quiet: QuietOption = False,
) -> None:
    """Try the settings of the config's `sweep:` section, then judge the best.

    Every model gets the same budget of trials on the validation queries; its best setting is trained with several seeds
    and evaluated on the test queries. An interrupted sweep goes on where it was.

    Example: tfrec sweep --config shop.yaml --out sweeps/shop
    """
    from tfrec.sweep import sweep as start
    from tfrec.tables import rows_table, show

    found = start(config, out or Path("sweeps") / config.stem, overrides or [], progress=not quiet)
    show(rows_table(list(found.trial_rows()), found.trial_fields, title="trials"))
    if found.tested:
        show(rows_table(found.test_rows(), found.test_fields, title="test"))
    if len(found.tested) > 1:
        show(rows_table(found.difference_rows(), found.difference_fields, title="paired differences"))
    if not found.tested:
        raise UserError(f"{found.out}: every trial failed; the table says why.")


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN RUN...", help="Evaluated runs, or NAME=RUN,RUN,...: the mean over seeds."),
    ],
    split: SplitOption = "test",
    plot: PictureOption = None,
) -> None:
    """Compare evaluated runs by the paired bootstrap.

    Prints the runs side by side with their intervals, and the 95 % interval and p-value of each one's difference from
    the first. A run that was measured by another protocol is marked and shown without a difference.

    Example: tfrec compare sasrec=runs/a0,runs/a1 hstu=runs/b0,runs/b1 --plot both.svg
    """
    if len(runs) < 2:
        raise UsageError("compare: needs two runs or more.")
    from rich.markup import escape

    from tfrec.comparison import differences, measure_row, obstacles, verdict
    from tfrec.tables import change, document_table, metrics_table, rows_table, show

    first, *others = found = [measure_row(run, split) for run in runs]
    show(document_table(first.protocol, title="protocol"), metrics_table({one.name: one.document() for one in found}))
    for other in others:
        if reasons := obstacles(other, first):
            show(escape(f"! {other.name} minus {first.name}: not comparable, {'; '.join(reasons)}"))
            continue
        rows = [(name, change(one), verdict(name, one)) for name, one in differences(other, first).items()]
        columns = ("metric", "difference, 95 % interval, p-value", "")
        show(escape(f"{other.name} minus {first.name}"), rows_table(rows, columns))
    if plot is not None:
        from tfrec.charts import interval_chart, write_chart

        write_chart(plot, interval_chart(found))
        print(plot)


def report(
    run: RunArgument,
    beside: Annotated[
        list[Path] | None, typer.Option("--with", metavar="RUN", help="Also show this run. Repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.html", help="The page; by default RUN/report.html.")] = None,
    published: Annotated[
        Path | None, typer.Option(metavar="MODELS/NAME", help="Also what its newest version was checked for.")
    ] = None,
    data: DataOption = None,
) -> None:
    """Write what a run is and what it learnt as one HTML page.

    Curves, metrics with intervals, slices, calibration, norms and a map of the items' vectors before and after
    training. The page needs no network, and tells what is missing of a run that is not finished or not evaluated.

    Example: tfrec report runs/shop --with runs/other --out shop.html
    """
    from tfrec.report import write_report

    target = out or run / "report.html"
    write_report(run, target, others=beside or [], published=published, data=data)
    print(target)
