"""Trains and evaluates the rows of a table of results, resumably, and prints the table.

    python benchmarks/quality.py amazon_beauty            # every row; what is finished is not done again
    python benchmarks/quality.py amazon_beauty --rows sasrec heterrec --table-only
    python benchmarks/quality.py movielens_1m_20 --curves docs/movielens_1m_20.svg # and draws the trainings

Each row is a configuration of configs/ with overrides, trained once a seed by `tfrec train` and judged by `tfrec
evaluate` in processes of their own; a dataset that is missing is made first. Rows of a peer are made by its script in
an environment of its own (`uv venv .venv-peers && uv pip install -p .venv-peers -r
benchmarks/requirements-peers.in`). Metrics are means over seeds; intervals resample users (95 %, percentile
bootstrap) on the per-user means over seeds; differences are paired by user. The last line of stdout is one JSON
document.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

from tfrec.charts import line_charts, write_chart
from tfrec.comparison import Measured, differences, mean_over_seeds, measured_ranks
from tfrec.config import load
from tfrec.data import Dataset
from tfrec.evaluation import ranks_file
from tfrec.objectives.multi_step import MultiStep
from tfrec.ranks import Ranks
from tfrec.tables import difference_rows, markdown_table, measured_rows

ROOT = Path(__file__).parent.parent
SAMPLES = 2000


@dataclass(frozen=True)
class Row:
    """A line of the table: what is trained, with how many seeds, and what it is compared with."""

    name: str
    config: str
    seeds: int = 1
    overrides: tuple[str, ...] = ()
    against: str | None = None
    peer: tuple[str, ...] = ()
    """Arguments of `torch_sequence_models.py`, for a row that is trained by it and not by tfrec."""


@dataclass(frozen=True)
class Table:
    """The rows of a data set, and the metrics shown."""

    metrics: tuple[str, ...]
    rows: tuple[Row, ...] = field(default=())


def _ablations(config: str) -> tuple[Row, ...]:
    objective = yaml.safe_load((ROOT / "configs" / f"{config}.yaml").read_text("utf-8"))["objective"]
    kept = {key: value for key, value in objective.items() if key in MultiStep.option_names}
    changes = {
        "w/o HTFL": ("model.ablation=without_htfl",),
        "w/o MFK": ("model.ablation=without_mfk",),
        "w/o HCT": ("model.ablation=without_hct",),
        "w/o LMP": (f"objective={json.dumps({**kept, 'name': 'multi_step'})}",),
        "w/o t-LMP": ("objective.token_weight=0",),
    }
    return tuple(Row(f"heterrec {name}", config, 1, change, "heterrec") for name, change in changes.items())


def _rows(dataset: str, *models: str) -> tuple[Row, ...]:
    """Rows of one seed, each compared with SASRec."""
    return tuple(Row(model, f"{model}_{dataset}", against="sasrec") for model in models)


def _quantizers(config: str) -> tuple[Row, ...]:
    """HeterRec with other codes of the items' texts, each on a dataset of its own."""
    document = yaml.safe_load((ROOT / "configs" / f"{config}.yaml").read_text("utf-8"))
    kinds = {
        "product, 8 of 64": {"quantizer": "product", "groups": 8, "dims_per_group": 8, "codes": 64},
        "residual, 3 of 256": {"quantizer": "residual", "levels": 3, "codes": 256},
        "residual, 8 of 64": {"quantizer": "residual", "levels": 8, "codes": 64},
    }
    rows = []
    for name, options in kinds.items():
        items = [
            {key: value for key, value in feature.items() if key not in ("groups", "dims_per_group", "quantiles")}
            | (options if feature["kind"] == "text" else {})
            for feature in document["features"]["items"]
        ]
        out = f"{document['data']['out']}_{_slug(name)}"
        changes = (f"data.out={out}", f"features.items={json.dumps(items)}")
        rows.append(Row(f"heterrec, {name}", config, 1, changes, "heterrec"))
    return tuple(rows)


def _slug(name: str) -> str:
    return re.sub(r"\W+", "_", name.replace("/", ""))


def _curves_of_movielens(epochs: int, *models: str) -> tuple[Row, ...]:
    """Rows of few epochs, all trained alike, with the rating before the last held out to draw the training by."""
    changes = (
        f"training.epochs={epochs}",
        "training.length_buckets=true",
        "data.split={kind: leave_one_out}",
        "data.out=datasets/movielens_1m_validation",
    )
    return tuple(
        Row(model, f"{model}_movielens_1m", overrides=changes, against=None if model == "sasrec" else "sasrec")
        for model in models
    )


AT_10_TO_200 = tuple(f"{metric}@{k}" for metric in ("recall", "ndcg") for k in (10, 50, 100, 200))

TABLES = {
    "amazon_beauty": Table(
        AT_10_TO_200,
        (
            Row("popularity", "popularity_amazon_beauty"),
            *_rows("amazon_beauty", "gru4rec", "bert4rec", "pinnerformer"),
            Row("two_tower", "two_tower_amazon_beauty", 3, against="sasrec"),
            Row("sasrec", "sasrec_amazon_beauty", 3),
            Row("hstu", "hstu_amazon_beauty", 1, against="sasrec"),
            Row("heterrec", "heterrec_amazon_beauty", 3, against="sasrec"),
            *_ablations("heterrec_amazon_beauty"),
            *_quantizers("heterrec_amazon_beauty"),
        ),
    ),
    "online_retail": Table(
        AT_10_TO_200,
        (
            Row("popularity", "popularity_online_retail"),
            *_rows("online_retail", "gru4rec", "bert4rec", "pinnerformer"),
            Row("two_tower", "two_tower_online_retail", 3, against="sasrec"),
            Row("sasrec", "sasrec_online_retail", 3),
            *_rows("online_retail", "hstu"),
            Row("heterrec", "heterrec_online_retail", 3, against="sasrec"),
        ),
    ),
    "movielens_1m": Table(
        ("recall@10", "recall@50", "recall@200", "ndcg@10", "ndcg@50", "ndcg@200"),
        (
            Row("popularity", "popularity_movielens_1m"),
            Row("sasrec, PyTorch", "sasrec_movielens_1m", peer=("--model", "sasrec")),
            Row("sasrec", "sasrec_movielens_1m", overrides=("training.epochs=10",), against="sasrec, PyTorch"),
            Row("hstu, PyTorch", "hstu_movielens_1m", peer=("--model", "hstu", "--request-time")),
            Row("hstu", "hstu_movielens_1m", overrides=("training.epochs=10",), against="hstu, PyTorch"),
        ),
    ),
    "movielens_1m_20": Table(AT_10_TO_200, _curves_of_movielens(20, "sasrec", "two_tower", "hstu", "heterrec")),
}


def run_directories(row: Row, runs: Path) -> list[Path]:
    """Where the runs of a row lie, one a seed."""
    return [runs / row.config / f"{_slug(row.name)}-seed{seed}" for seed in range(row.seeds)]


def make(row: Row, runs: Path) -> None:
    """Trains and evaluates each seed of a row, unless that was done already."""
    for seed, run in enumerate(run_directories(row, runs)):
        if ranks_file(run, "test").exists():
            continue
        if row.peer:
            make_peer(row, run, seed)
            continue
        overrides = [f"--set={change}" for change in (*row.overrides, f"training.seed={seed}")]
        started = time.perf_counter()
        config = str(ROOT / "configs" / f"{row.config}.yaml")
        if not (ROOT / load(config, row.overrides).data.out).exists():
            _tfrec("preprocess", "--config", config, *overrides)
        _tfrec("train", "--config", config, *overrides, "--out", str(run))
        _tfrec("evaluate", str(run))
        print(f"{row.name} seed {seed}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)


def make_peer(row: Row, run: Path, seed: int) -> None:
    """Trains a row by the PyTorch script, and writes its ranks as `tfrec evaluate` writes those of a run."""
    run.mkdir(parents=True, exist_ok=True)
    config = load(ROOT / "configs" / f"{row.config}.yaml")
    data = Path(config.data.recipe.path)
    script = [str(ROOT / ".venv-peers/bin/python"), str(ROOT / "benchmarks/torch_sequence_models.py")]
    arguments = ["--data", str(data), *row.peer, "--seed", str(seed), "--ranks", str(run / "peer.npz")]
    subprocess.run([*script, *arguments], check=True, cwd=ROOT, stdout=sys.stderr)
    histories = Dataset.open(ROOT / config.data.out).histories()
    with np.load(run / "peer.npz") as peer:
        rows = {user: index for index, user in enumerate(peer["user"])}
        order = np.array([rows[user] for user in histories.user_ids])
        users = np.arange(len(order), dtype=np.int32)
        last = histories.columns["item"][histories.offsets[1:] - 1]
        ranks = Ranks(users, peer["place"][order], last, peer["better"][order], peer["equal"][order])
    if not np.array_equal(ranks.place, np.diff(histories.offsets) - 1):
        raise SystemExit(f"{data}: its users have other numbers of events than those of {config.data.out}.")
    ranks.write(ranks_file(run, "test"))


def _tfrec(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "tfrec", *arguments], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def finished_seeds(row: Row, runs: Path) -> list[int]:
    """The seeds of a row that are trained and evaluated."""
    return [seed for seed, run in enumerate(run_directories(row, runs)) if ranks_file(run, "test").exists()]


def measured(row: Row, seeds: list[int], runs: Path, metrics: tuple[str, ...]) -> Measured:
    """What a row is worth on the test queries, the mean over seeds."""
    ks = sorted({int(metric.partition("@")[2]) for metric in metrics})
    directories = run_directories(row, runs)
    ranks = [Ranks.read(ranks_file(directories[seed], "test")) for seed in seeds]
    found = [measured_ranks(row.name, one, ks, SAMPLES, {}) for one in ranks]
    return mean_over_seeds(row.name, found)


def tables(table: Table, chosen: list[Row], runs: Path) -> tuple[str, dict[str, dict]]:
    """Both tables in Markdown, and their numbers; differences are over the seeds that both rows have."""
    found = [measured(row, finished_seeds(row, runs), runs, table.metrics) for row in chosen]
    document = {one.name: one.document() for one in found}
    rows = {row.name: row for row in table.rows}
    pairs = []
    for row in chosen:
        other = rows.get(row.against or "")
        seeds = sorted({*finished_seeds(row, runs)} & {*finished_seeds(other, runs)}) if other else []
        if other and seeds:
            pair = (measured(row, seeds, runs, table.metrics), measured(other, seeds, runs, table.metrics))
            document[row.name]["difference"] = differences(*pair)
            pairs.append(pair)
    means = markdown_table(measured_rows(found, table.metrics), ("model", "seeds", *table.metrics))
    paired = markdown_table(difference_rows(pairs, table.metrics), ("difference", "seeds", *table.metrics))
    return f"{means}\n{paired}", document


def curves(rows: list[Row], runs: Path) -> str:
    """What validation said of the first seeds after each epoch: losses of different objectives cannot be compared.

    Rows without validation, and those of a peer, are not in it.
    """
    panels: dict[str, dict[str, tuple[list[int], list[float]]]] = {"recall@10": {}, "ndcg@10": {}}
    for row in rows:
        log = run_directories(row, runs)[0] / "logs" / "metrics.jsonl"
        entries = map(json.loads, log.read_text("utf-8").splitlines() if log.exists() else [])
        judged = [entry for entry in entries if "validation" in entry]
        for metric, panel in panels.items():
            if judged:
                epochs = [entry["epoch"] for entry in judged]
                panel[row.name] = (epochs, [entry["validation"][metric] for entry in judged])
    return line_charts({f"{metric}, validation": panel for metric, panel in panels.items()}, x="epoch")


def main() -> None:
    """Makes the rows that are missing, prints both tables and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=sorted(TABLES))
    parser.add_argument("--rows", nargs="*", help="names of rows; all by default")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--table-only", action="store_true", help="train nothing, show what is finished")
    parser.add_argument("--curves", type=Path, help="an .svg for the trainings by epoch")
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    table, runs = TABLES[arguments.table], arguments.runs.resolve()
    chosen = [row for row in table.rows if not arguments.rows or row.name in arguments.rows]
    if not arguments.table_only:
        for row in chosen:
            make(row, runs)
    finished = [row for row in chosen if finished_seeds(row, runs)]
    text, document = tables(table, finished, runs)
    print(text)
    if arguments.curves:
        write_chart(arguments.curves, curves(finished, runs))
    print(json.dumps({"table": arguments.table, "rows": document}))


if __name__ == "__main__":
    main()
