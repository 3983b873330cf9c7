"""Items that training has never seen, ranked by their content: `python benchmarks/cold_items.py [--runs runs]`.

5 % of Amazon Beauty's items, chosen by a hash of their ids, are taken out of the log and of the catalogue. HeterRec
learns from the rest (`configs/heterrec_amazon_beauty.yaml`), once with item-id dropout and once without. The users
whose last review is of such an item are the queries: their history is every earlier review, and their target stands
among all items of the full catalogue that the history does not hold. Users are encoded by the signature `encode_user`
of the exported run from raw ids, cold items by `encode_item` from raw attributes and the vector of their raw text. The
codes of every cold item by the graph must be those of `tfrec preprocess --from` over the full catalogue; the script
ends with an error else.

What is finished is not done again. The last line of stdout is one JSON document.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl

from tfrec.comparison import Measured, differences, measured_ranks
from tfrec.data import Dataset
from tfrec.evaluation import ranks_file
from tfrec.ranks import Ranks, count_better, encode_catalogue
from tfrec.tables import change, markdown_table, measured_rows
from tfrec.transforms import FIRST_VALUE, UNKNOWN

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "configs" / "heterrec_amazon_beauty.yaml"
ONE_IN = 20
DROPOUTS = (0.0, 0.2)
KS = (10, 50, 100, 200)
METRICS = (*(f"recall@{k}" for k in KS), "ndcg@10")
SAMPLES = 2000
AT_ONCE = 512
LEAST_AGREEMENT = 0.98


def is_cold(item_id: str) -> bool:
    """One item in twenty, the same on every machine."""
    return int.from_bytes(hashlib.sha256(item_id.encode()).digest()[:8], "big") % ONE_IN == 0


def _tfrec(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "tfrec", *arguments], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def prepare(data: Path, folder: Path) -> tuple[Path, Path]:
    """The dataset without the cold items, and the one that grew from it over all of them."""
    warm, grown = folder / "warm", folder / "grown"
    events, items = pl.read_parquet(data / "events.parquet"), pl.read_csv(data / "items.csv", infer_schema=False)
    ids = items["item_id"]
    warm_ids = ids.filter(pl.Series([not is_cold(one) for one in ids], dtype=pl.Boolean)).implode()
    folder.mkdir(parents=True, exist_ok=True)
    events.filter(pl.col("item_id").cast(pl.String).is_in(warm_ids)).write_parquet(folder / "events.parquet")
    items.filter(pl.col("item_id").is_in(warm_ids)).write_csv(folder / "items.csv")
    files = [f"--set=data.events.files=[{folder}/events.parquet]", f"--set=data.items.files=[{folder}/items.csv]"]
    if not warm.exists():
        _tfrec("preprocess", "--config", str(CONFIG), *files, f"--set=data.out={warm}")
    if not grown.exists():
        _tfrec("preprocess", "--config", str(CONFIG), "--from", str(warm), f"--set=data.out={grown}")
    return warm, grown


def train(dropout: float, warm: Path, folder: Path, runs: Path) -> tuple[Path, Path]:
    """The run of one item-id dropout, judged on its own test events, and its export."""
    run, models = runs / f"dropout_{dropout}", folder / f"dropout_{dropout}"
    if not (run / "evaluation.json").exists():
        changes = [f"--set=model.item_id_dropout={dropout}", f"--set=data.out={warm}", "--set=training.seed=0"]
        _tfrec("train", "--config", str(CONFIG), *changes, "--out", str(run))
        _tfrec("evaluate", str(run))
    if not (models / "1").exists():
        _tfrec("export", str(run), "--to", str(models))
    return run, models / "1"


def cold_queries(data: Path) -> list[tuple[list[str], str]]:
    """History and target of each user whose last review is of a cold item; raw ids."""
    events = pl.read_parquet(data / "events.parquet").sort("user_id", "position")
    rows = events.group_by("user_id", maintain_order=True).agg(pl.col("item_id").cast(pl.String))["item_id"].to_list()
    return [(row[:-1], row[-1]) for row in rows if is_cold(row[-1])]


def raw_attributes(data: Path, item_ids: list[str], dataset: Dataset) -> np.ndarray:
    """The items' attributes as the export takes them, `(N, values)`, "" where there are fewer."""
    items = pl.read_csv(data / "items.csv", infer_schema=False)
    texts = dict(zip(items["item_id"], items["attributes"].fill_null(""), strict=True))
    width = next(feature.num_codes for feature in dataset.schema.side("item") if feature.name == "attributes")
    return np.array([(texts[item].split("|") + [""] * width)[:width] for item in item_ids], object)


def text_vectors(data: Path, item_ids: list[str], dataset: Dataset) -> np.ndarray:
    """The vectors of the items' texts by the dataset's own encoder, `(N, dim)` float32."""
    items = pl.read_csv(data / "items.csv", infer_schema=False)
    feature = dataset.schema.feature("text")
    texts = dict(zip(items["item_id"], items[feature.column], strict=True))
    assert feature.encoder is not None, "The configuration's text has no encoder of its own."
    return np.asarray(feature.encoder.encode([texts[item] for item in item_ids], dataset.directory), np.float32)


def compare_codes(warm: Path, grown: Path, raw: dict[str, np.ndarray], cold: np.ndarray) -> int:
    """Cold items whose codes differ between the serving graph's coder and the grown dataset.

    Values that only cold items have are unknown to the graph, which was exported before them.
    """
    import tensorflow as tf

    from tfrec.coders import SideCoder

    schema, catalogue = Dataset.open(warm).schema, Dataset.open(grown).catalogue()
    features = schema.side("item")[1:]
    by_graph = SideCoder(features, warm)({name: tf.constant(values.tolist()) for name, values in raw.items()})
    different = np.zeros(len(cold), bool)
    for feature in features:
        codes = catalogue.codes[cold][:, schema.item_columns()[feature.name]]
        if feature.kind == "categorical":
            codes = np.where(codes >= feature.table_sizes[0], UNKNOWN, codes)
        different |= np.any(by_graph[feature.name].numpy().reshape(codes.shape) != codes, axis=1)
    return int(different.sum())


class Ranker:
    """Ranks by the signatures of an export, asked with raw ids and values.

    Args:
        version: the exported version.
        run: what it was exported from; its vectors are those of the items that it knows.
    """

    def __init__(self, version: Path, run: Path) -> None:
        import tensorflow as tf

        import tfrec

        self.directory = run
        self.run = tfrec.load_run(run)
        self.signatures = tf.saved_model.load(str(version)).signatures
        catalogue = self.run.dataset.catalogue()
        vectors = encode_catalogue(self.run.model, self.run.schema.num_items)
        self.item_ids = [catalogue.item_ids[item] for item in catalogue.candidates]
        self.vectors = vectors[catalogue.candidates - FIRST_VALUE]

    def add(self, item_ids: list[str], raw: dict[str, np.ndarray]) -> None:
        """Lets further items be found, coded and encoded by `encode_item`."""
        import tensorflow as tf

        inputs = {name: tf.constant(values.tolist()) for name, values in raw.items()}
        found = self.signatures["encode_item"](item_id=tf.constant(item_ids), **inputs)["vector"].numpy()
        self.item_ids = [*self.item_ids, *item_ids]
        self.vectors = np.concatenate([self.vectors, found])

    def rank(self, queries: list[tuple[list[str], str]]) -> Ranks:
        """Each target's place among all items."""
        import tensorflow as tf

        codes = {item: code for code, item in enumerate(self.item_ids, FIRST_VALUE)}  # the first column is item 2
        target = np.array([codes[item] for _, item in queries])
        better, equal = np.zeros(len(queries), np.int32), np.zeros(len(queries), np.int32)
        for start in range(0, len(queries), AT_ONCE):
            rows = [history for history, _ in queries[start : start + AT_ONCE]]
            width = max(map(len, rows))
            lengths = tf.constant([len(row) for row in rows], tf.int32)
            histories = tf.constant([row + [""] * (width - len(row)) for row in rows])
            asked = {"history_item_ids": histories, "history_length": lengths}
            users = self.signatures["encode_user"](**asked)["vector"].numpy()
            seen = np.zeros((len(rows), width), np.int32)
            for index, row in enumerate(rows):
                seen[index, : len(row)] = [codes[item] for item in row]
            now = slice(start, start + len(rows))
            better[now], equal[now] = count_better(users @ self.vectors.T, target[now], seen)
        return as_ranks(better, equal)

    def check(self) -> None:
        """Ends the script unless some of the run's own test queries have the places of its own evaluation.

        A few places differ by a rounding of the exported graph.
        """
        own, dataset = Ranks.read(ranks_file(self.directory, "test")), self.run.dataset
        ids, histories = dataset.catalogue().item_ids, dataset.histories()
        queries = []
        for user, place, target in zip(own.user[:AT_ONCE], own.place, own.target, strict=False):
            start = histories.offsets[user]
            queries.append(([ids[item] for item in histories.columns["item"][start : start + place]], ids[target]))
        agree = float(np.mean(self.rank(queries).better == own.better[: len(queries)]))
        if agree < LEAST_AGREEMENT:
            raise SystemExit(
                f"{self.directory}: only {agree:.1%} of its test queries have the place of its evaluation."
            )


def as_ranks(better: np.ndarray, equal: np.ndarray) -> Ranks:
    """One query a user, whose target is known."""
    users = np.arange(len(better), dtype=np.int32)
    return Ranks(users, np.zeros_like(users), np.full_like(users, FIRST_VALUE), better, equal)


def baselines(queries: list[tuple[list[str], str]], num_items: int, trained: set[str]) -> dict[str, Ranks]:
    """A random order, and that of training events, of which a cold item has none: ties by expectation."""
    seen = np.array([len(history) for history, _ in queries], np.int32)
    above = len(trained) - np.array([len(trained.intersection(history)) for history, _ in queries], np.int32)
    rest = (num_items - seen - 1).astype(np.int32)
    return {
        "random": as_ranks(np.zeros_like(seen), rest),
        "popularity": as_ranks(above.astype(np.int32), rest - above.astype(np.int32)),
    }


def main() -> None:
    """Makes what is missing, prints both tables and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    data = Path(os.environ["TFREC_DATA"]) / "amazon-beauty"
    runs, folder = arguments.runs.resolve() / "cold_items", ROOT / "datasets" / "cold_items"
    warm, grown = prepare(data, folder)
    versions = {dropout: train(dropout, warm, folder, runs) for dropout in DROPOUTS}

    catalogue, warm_catalogue = Dataset.open(grown).catalogue(), Dataset.open(warm).catalogue()
    cold = np.array([code for code in catalogue.candidates if is_cold(catalogue.item_ids[code])])
    cold_ids = [catalogue.item_ids[code] for code in cold]
    raw = {
        "attributes": raw_attributes(data, cold_ids, Dataset.open(warm)),
        "text": text_vectors(data, cold_ids, Dataset.open(warm)),
    }
    queries = cold_queries(data)
    trained = {warm_catalogue.item_ids[item] for item in np.flatnonzero(warm_catalogue.train_count)} - {""}
    found = baselines(queries, len(catalogue.candidates), trained)
    for dropout, (run, version) in versions.items():
        ranker = Ranker(version, run)
        ranker.check()
        ranker.add(cold_ids, raw)
        found[f"heterrec, item_id_dropout {dropout}"] = ranker.rank(queries)
    measured: list[Measured] = [measured_ranks(name, ranks, KS, SAMPLES, {}) for name, ranks in found.items()]
    different = compare_codes(warm, grown, raw, cold)
    if different:
        raise SystemExit(f"{different} of {len(cold)} cold items have other codes by the graph than by the job.")
    print(f"{len(cold)} cold items, {len(queries)} queries; the graph codes all of them as the job does.\n")
    print(markdown_table(measured_rows(measured, METRICS), ("model", "seeds", *METRICS)))
    off, on = measured[-2:]
    found_difference = differences(on, off)
    print(", ".join(f"{metric} {change(found_difference[metric])}" for metric in METRICS))
    own = {
        str(dropout): json.loads((run / "evaluation.json").read_text())["metrics"]
        for dropout, (run, _) in versions.items()
    }
    print(f"The warm dataset's own test: {own}")
    print(json.dumps({"queries": len(queries), "cold_items": len(cold), **{m.name: m.document() for m in measured}}))


if __name__ == "__main__":
    main()
