"""Times `beam_jobs.preprocess` against a polars script on generated events.

    python -m benchmarks.preprocess --events 20000000

What is measured: a Parquet log (user, item, time in seconds, in the order of time) becomes per-user histories with item
codes by falling training count, session numbers and leave-one-out splits. Ours reads, checks every value, shuffles by
user, accounts for every row and writes tf.train.Example TFRecords, vocabulary, statistics and a hashed manifest. The
polars script works the same columns out of the same file in one process and writes them as Parquet. Both run in a
process of their own, one after the other, `--repeats` times, with the same number of threads; the fastest run of each
counts. Peak memory is the process's own (VmHWM). The last line of stdout is one JSON document.

`--with` adds others: `features` (our job with four item features and a text, against the polars script with the same
columns: codes of a vocabulary, of several values, of quantile bins, of hash buckets, and of scikit-learn's TF-IDF + SVD
cut into quantiles), `pandas` (ids, sessions, splits and one training row an event, by pandas and a Python loop over
NumPy arrays), `elements` (a Beam job whose elements are events, to TFRecords) and `recbole` (RecBole 1.2's own reading
of its own kind of file, up to the rows of a training of SASRec, by the interpreter that `--peer` names;
`benchmarks/recbole_preprocess.py` says how to make one).
`benchmarks/preprocess_scaling.py` measures sizes and workers.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from benchmarks.memory import resident_bytes

EVENTS_A_USER = 50
EVENTS_AT_ONCE = 5_000_000
ITEMS = "catalogue.parquet"
NUM_ITEMS = 100_000
SESSION_GAP_SECONDS = 1800
FIRST_SECOND = 1_600_000_000
TAGS = 8
"""Places of a feature of several values."""
BARS = {
    "ours": ("polars", 1.5),
    "features": ("polars_features", 2.0),
    "pandas": ("ours", None),
    "elements": ("ours", None),
    "recbole": ("ours", None),
}
"""Of each run what its time is divided by, and at most how much that may be at 20 million events."""
PEERS = {"features": ("polars_features",)}


def generate(path: Path, num_events: int, seed: int) -> None:
    """Events by rising time: skewed users and items, texts as ids; written a few million at a time."""
    rng = np.random.default_rng(seed)
    users = max(num_events // EVENTS_A_USER, 10)
    parts = -(-num_events // EVENTS_AT_ONCE)
    writer = None
    for part in range(parts):
        count = num_events * (part + 1) // parts - num_events * part // parts
        length = 90 * 86_400 // parts
        frame = pl.DataFrame(
            {
                "user_id": (users * rng.random(count) ** 1.5).astype(np.int64),
                "item_id": (NUM_ITEMS * rng.random(count) ** 3).astype(np.int64),
                "time": FIRST_SECOND + part * length + np.sort(rng.integers(0, length, count)),
            }
        )
        texts = frame.with_columns(
            pl.format("u{}", "user_id").alias("user_id"), pl.format("i{}", "item_id").alias("item_id")
        )
        table = texts.to_arrow()
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table, row_group_size=1 << 19)
    if writer is not None:
        writer.close()


def generate_items(path: Path) -> None:
    """A catalogue with four features and a text."""
    rng = np.random.default_rng(1)
    words = np.array([f"word{n}" for n in range(5_000)])
    pl.DataFrame(
        {
            "item_id": [f"i{n}" for n in range(NUM_ITEMS)],
            "brand": rng.integers(0, 2_000, NUM_ITEMS).astype(str),
            "tags": ["|".join(row) for row in rng.integers(0, 500, (NUM_ITEMS, 3)).astype(str)],
            "price": rng.lognormal(3, 1, NUM_ITEMS),
            "seller": rng.integers(0, 20_000, NUM_ITEMS).astype(str),
            "title": [" ".join(row) for row in words[(5_000 * rng.random((NUM_ITEMS, 6)) ** 2).astype(int)]],
        }
    ).write_parquet(path)


def run_ours(events: Path, out: Path) -> None:
    """Our job on the generated log."""
    from beam_jobs.preprocess import run
    from tfrec.config import parse

    run(parse({"data": {"out": str(out), "events": {"files": [str(events)]}}}))


def run_polars(events: Path, out: Path) -> None:
    """The same columns by polars alone: one row a user, lists of events, as Parquet."""
    frame = pl.read_parquet(events).sort("user_id", "time", maintain_order=True)
    length, place = pl.len().over("user_id"), pl.int_range(pl.len()).over("user_id")
    frame = frame.with_columns(length.alias("length"), place.alias("place"))
    left = pl.col("length") - pl.col("place")  # 1 for the last event
    frame = frame.with_columns(
        pl.when(pl.col("length") < 3)
        .then(0)
        .when(left == 1)
        .then(2)
        .when(left == 2)
        .then(1)
        .otherwise(0)
        .cast(pl.Int8)
        .alias("split"),
        ((pl.col("time").diff() > SESSION_GAP_SECONDS) | (pl.col("place") == 0)).alias("cut"),
    )
    counts = frame.group_by("item_id").agg((pl.col("split") == 0).sum().alias("train_count"))
    counts = counts.sort(["train_count", "item_id"], descending=[True, False]).with_row_index("item", offset=2)
    frame = frame.with_columns(pl.col("cut").cum_sum().over("user_id").alias("session"))
    frame = frame.join(counts.select("item_id", "item"), on="item_id", how="left", maintain_order="left")
    origin = frame["time"].min() // 86_400 * 86_400
    histories = frame.group_by("user_id", maintain_order=True).agg("item", pl.col("time") - origin, "session", "split")
    out.mkdir()
    counts.write_parquet(out / "items.parquet")
    histories.write_parquet(out / "histories.parquet")


def run_features(events: Path, out: Path) -> None:
    """Our job with four item features and a text."""
    from beam_jobs.preprocess import run
    from tfrec.config import parse

    features = [
        {"name": "brand", "kind": "categorical"},
        {"name": "tags", "kind": "categorical", "multivalued": True, "separator": "|", "max_values": TAGS},
        {"name": "price", "kind": "numerical", "bins": 32},
        {"name": "seller", "kind": "categorical", "hash_buckets": 10_000},
        {"name": "title", "kind": "text", "dim": 64, "groups": 8, "dims_per_group": 2, "quantiles": 8},
    ]
    items = {"files": [str(events.with_name(ITEMS))]}
    data = {"out": str(out), "events": {"files": [str(events)]}, "items": items}
    run(parse({"data": data, "features": {"items": features}}))


def run_polars_features(events: Path, out: Path) -> None:
    """The same columns by polars, of the title by scikit-learn: histories, and the items' codes as Parquet."""
    run_polars(events, out)
    items = pl.read_parquet(events.with_name(ITEMS))
    tags = items["tags"].str.split("|")
    coded = items.select(
        "item_id",
        pl.Series("brand", _codes(items["brand"], items["brand"])),
        pl.col("seller").hash() % 10_000 + 2,
        pl.Series("tags", _code_lists(tags)),
    )
    edges = np.unique(items["price"].quantile(list(np.arange(1, 32) / 32), "linear"))
    bins = np.searchsorted(edges, items["price"].to_numpy(), side="right") + 2
    coded = coded.with_columns(pl.Series("price", bins), pl.Series("title", _title_codes(items["title"].to_list())))
    counts = pl.read_parquet(out / "items.parquet")
    counts.join(coded, on="item_id", how="left", maintain_order="left").write_parquet(out / "items.parquet")


def _codes(values: pl.Series, seen: pl.Series) -> pl.Series:
    """Codes of values by falling count of those seen, ties by value."""
    ranked = seen.value_counts(name="count").sort(["count", seen.name], descending=[True, False])
    return values.cast(pl.Enum(ranked[seen.name])).to_physical() + 2


def _code_lists(lists: pl.Series) -> pl.Series:
    flat = lists.explode()
    codes = pl.DataFrame({"row": np.repeat(np.arange(len(lists)), lists.list.len()), "code": _codes(flat, flat)})
    return codes.group_by("row", maintain_order=True).agg("code")["code"].list.head(TAGS)


def _title_codes(titles: list[str]) -> list[list[int]]:
    """Quantile codes of eight groups of two dimensions of TF-IDF + SVD vectors."""
    from sklearn.decomposition import PCA, TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    weights = TfidfVectorizer(min_df=2, max_features=50_000, sublinear_tf=True).fit_transform(titles)
    vectors = TruncatedSVD(64, algorithm="arpack", random_state=0).fit_transform(weights)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    rotated = PCA(16).fit_transform(vectors)
    bins = [np.searchsorted(np.quantile(x, np.arange(1, 8) / 8), x, side="right") for x in rotated.T]
    low, high = np.stack(bins[0::2], axis=1), np.stack(bins[1::2], axis=1)
    return (low + 8 * high + 2).tolist()


def run_pandas(events: Path, out: Path) -> None:
    """Ids, sessions and splits by pandas, and, by a Python loop over events, one row of the items before each."""
    import pandas as pd

    frame = pd.read_parquet(events)
    for name in ("user_id", "item_id"):
        frame[name] = pd.factorize(frame[name])[0] + 1
    frame = frame.sort_values(["user_id", "time"], kind="stable").reset_index(drop=True)
    users = frame.groupby("user_id")
    frame["session"] = (users["time"].diff() > SESSION_GAP_SECONDS).groupby(frame["user_id"]).cumsum() + 1
    left = users["item_id"].transform("size") - users.cumcount()
    frame["split"] = np.select([left == 1, left == 2], [2, 1], 0)
    user, item, begin = frame["user_id"].to_numpy(), frame["item_id"].to_numpy(), 0
    rows = np.zeros((len(frame), EVENTS_A_USER), np.int32)
    for place in range(1, len(frame)):
        if user[place] != user[place - 1]:
            begin = place
        before = item[max(begin, place - EVENTS_A_USER) : place]
        rows[place, : len(before)] = before
    out.mkdir()
    frame.to_parquet(out / "events.parquet")
    np.save(out / "rows.npy", rows)


def _history(user: str, events: Iterable[tuple[int, str]]) -> bytes:
    import tensorflow as tf

    times, items = zip(*sorted(events), strict=True)
    cuts = np.diff(times, prepend=times[0]) > SESSION_GAP_SECONDS
    split = [0] * (len(items) - 2) + [1, 2] if len(items) > 2 else [0] * len(items)
    numbers = {"time": times, "session": np.cumsum(cuts) + 1, "split": split}
    feature = {name: tf.train.Feature(int64_list=tf.train.Int64List(value=values)) for name, values in numbers.items()}
    texts = {"user_id": [user.encode()], "item_id": [item.encode() for item in items]}
    feature |= {name: tf.train.Feature(bytes_list=tf.train.BytesList(value=values)) for name, values in texts.items()}
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString(deterministic=True)


def run_elements(events: Path, out: Path) -> None:
    """Histories by a Beam job whose elements are events."""
    import apache_beam as beam

    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        _ = (
            pipeline
            | beam.io.ReadFromParquet(str(events))
            | beam.Map(lambda row: (row["user_id"], (row["time"], row["item_id"])))
            | beam.GroupByKey()
            | beam.MapTuple(_history)
            | beam.io.WriteToTFRecord(str(out / "histories"))
        )


def write_recbole(events: Path, folder: Path) -> None:
    """A log as RecBole reads it: text with tabs, under a header of names and kinds."""
    folder.mkdir()
    kinds = {"user_id": "user_id:token", "item_id": "item_id:token", "time": "time:float"}
    frame = pl.scan_parquet(events).select(list(kinds)).rename(kinds)
    frame.sink_csv(folder / f"{folder.name}.inter", separator="\t")


RUNS = {
    "polars": run_polars,
    "ours": run_ours,
    "polars_features": run_polars_features,
    "features": run_features,
    "pandas": run_pandas,
    "elements": run_elements,
}


def measure(name: str, events: Path, folder: Path, threads: int, peer: Path) -> dict[str, float]:
    """Seconds and peak memory of one run in a process of its own."""
    out = folder / f"out-{name}"
    environment = dict(os.environ, POLARS_MAX_THREADS=str(threads), OMP_NUM_THREADS=str(threads))
    command = [sys.executable, "-m", "benchmarks.preprocess", "--only", name, "--log", str(events), "--out", str(out)]
    if name == "recbole":
        write_recbole(events, out)
        command = [str(peer), "-m", "benchmarks.recbole_preprocess", str(out)]
    start = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        answer, _ = process.communicate()
    seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{name} failed")
    subprocess.run(["rm", "-rf", str(out)], check=True)
    return {"seconds": seconds, **json.loads(answer.splitlines()[-1])}


def main() -> None:
    """Generates, runs both, prints a table and one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=200_000, help="events to generate")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each; the fastest counts")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of polars and Arrow")
    parser.add_argument("--seed", type=int, default=0, help="seed of the events")
    parser.add_argument("--folder", type=Path, help="where to work; by default a temporary folder")
    parser.add_argument("--with", nargs="*", default=[], choices=list(BARS)[1:], dest="others", help="what else is run")
    parser.add_argument("--peer", type=Path, default=".venv-recbole/bin/python", help="interpreter that has RecBole")
    parser.add_argument("--only", choices=list(RUNS), help=argparse.SUPPRESS)
    parser.add_argument("--log", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        RUNS[arguments.only](arguments.log, arguments.out)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        print(json.dumps({"peak_bytes": resident_bytes("VmHWM"), "cpu_seconds": usage.ru_utime + usage.ru_stime}))
        return
    if "recbole" in arguments.others and not arguments.peer.exists():
        parser.error(f"--peer {arguments.peer}: no such file; benchmarks/recbole_preprocess.py says how to make one")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        events = Path(folder) / "events.parquet"
        generate(events, arguments.events, arguments.seed)
        generate_items(events.with_name(ITEMS))
        names = dict.fromkeys(
            ["polars", "ours", *(one for name in arguments.others for one in (*PEERS.get(name, ()), name))]
        )
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for _ in range(arguments.repeats):
            for name, found in runs.items():
                found.append(measure(name, events, Path(folder), arguments.threads, arguments.peer))
    best = {name: min(found, key=lambda one: one["seconds"]) for name, found in runs.items()}
    print(f"{'':16}{'seconds':>10}{'CPU s':>10}{'events/s':>12}{'peak GiB':>10}")
    for name, one in best.items():
        rate, peak = arguments.events / one["seconds"], one["peak_bytes"] / 2**30
        print(f"{name:16}{one['seconds']:>10.2f}{one['cpu_seconds']:>10.2f}{rate:>12,.0f}{peak:>10.2f}")
    ratios = {}
    for name, (peer, most) in BARS.items():
        if name in best:
            ratios[f"{name} / {peer}"] = ratio = best[name]["seconds"] / best[peer]["seconds"]
            bar = "at least 5" if most is None else f"at most {most}"
            print(f"{name} / {peer}: {ratio:.2f} (bar: {bar} at 20 million events)")
    print(json.dumps({"events": arguments.events, "threads": arguments.threads, "ratios": ratios, **best}))


if __name__ == "__main__":
    main()
