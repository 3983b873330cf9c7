"""Training speed of hstu_ranking and hpgr against the same blocks in PyTorch: seconds a step on the same rows.

Rows of 50 events and 10 candidates with ids, times and sessions; 64 wide, two blocks; Adam over dense tables.

    python benchmarks/ranking_speed.py [--peer .venv-peers/bin/python] [--rows 128]

(`uv venv .venv-peers && uv pip install -p .venv-peers -r benchmarks/requirements-peers.in` makes the peer.) Prints a
table; the last line is one JSON document.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
from rich.console import Console
from rich.table import Table

from tfrec.models import build
from tfrec.schema import Feature, Impressions, Label, Schema, Split
from tfrec.transforms import Vocabulary

MODELS = ("hstu_ranking", "hpgr")


def make_schema(num_items: int) -> Schema:
    """Items without features, times, sessions, impressions with a click."""
    ids = Vocabulary(file="vocabularies/item_id.txt", size=num_items)
    counts = dict.fromkeys(("users", "items", "events", "train_events", "impressions"), 1)
    return Schema(
        features=(Feature(name="item_id", side="item", kind="categorical", column="item_id", transform=ids),),
        labels=(Label(name="click", column="click", operator="==", value=1),),
        impressions=Impressions(labels=("click",), has_requests=True),
        max_events=1000,
        repeats="keep",
        split=Split(kind="leave_one_out"),
        counts=counts,
    )


def make_rows(rows: int, length: int, candidates: int, num_items: int) -> dict[str, np.ndarray]:
    """Rows of requests, of which every fifth candidate is clicked."""
    rng = np.random.default_rng(0)
    count = rng.integers(length // 2, length + 1, (rows, 1))
    valid = np.arange(length) < count
    gaps = np.where(rng.random((rows, length)) < 0.2, 40_000, 60) + rng.integers(0, 60, (rows, length))
    session = 1 + np.cumsum(gaps > 1800, axis=1)
    time_ = np.cumsum(gaps, axis=1)
    events = {"item": rng.integers(2, num_items, (rows, length)), "time": time_, "session": session}
    batch = {key: np.where(valid, value, 0).astype(np.int32) for key, value in events.items()}
    shape = (rows, candidates)
    batch["candidate"] = rng.integers(2, num_items, shape).astype(np.int32)
    batch["candidate_history"] = np.broadcast_to(count, shape).astype(np.int32)
    batch["candidate_time"] = np.broadcast_to(batch["time"].max(axis=1, keepdims=True) + 30, shape).astype(np.int32)
    batch["candidate_label_click"] = (rng.random(shape) < 0.2).astype(np.float32)
    batch["candidate_weight"] = np.ones(shape, np.float32)
    return batch


class StepTimes(keras.callbacks.Callback):
    """The time of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self.begun = 0.0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Starts the clock."""
        self.begun = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Stops it, when the loss is there."""
        float((logs or {})["loss"])
        self.seconds.append(time.perf_counter() - self.begun)


def ours(name: str, batch: dict[str, np.ndarray], args: argparse.Namespace) -> dict[str, Any]:
    """Seconds a step of a compiled model, after some that warm it up."""
    keras.utils.set_random_seed(0)
    options = {"history_length": args.length, "embedding_dim": 64, "dropout": 0.1}
    model = build(make_schema(args.items), {"name": name, **options}, labels=("click",))
    codes = np.arange(args.items, dtype=np.int32)[:, None]
    model.set_catalogue(codes, np.ones(args.items, np.int64))
    prepared = model.objective.prepare(batch, np.random.default_rng(0))

    def forever() -> Iterator[tuple[dict[str, np.ndarray]]]:
        while True:
            yield (prepared,)

    model.compile(optimizer=keras.optimizers.Adam(1e-3), jit_compile=keras.backend.backend() == "jax")
    times = StepTimes()
    fitted = model.fit(
        forever(), steps_per_epoch=args.warmup + args.steps, epochs=1, verbose=0, shuffle=False, callbacks=[times]
    )
    return {"seconds": statistics.median(times.seconds[args.warmup :]), "loss": fitted.history["loss"][-1]}


def peer(name: str, rows: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The same of the peer, in its own environment."""
    script = Path(__file__).with_name("torch_ranking_models.py")
    command = [args.peer, script, "--rows", rows, "--model", name, "--steps", args.steps, "--warmup", args.warmup]
    answer = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
    report: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return report


def main() -> None:
    """Measures, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", default=".venv-peers/bin/python", help="a Python with torch")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--candidates", type=int, default=10)
    parser.add_argument("--items", type=int, default=5002)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=5)
    args = parser.parse_args()
    batch = make_rows(args.rows, args.length, args.candidates, args.items)
    table, report = Table("model", "tfrec, ms a step", "PyTorch, ms a step", "ratio"), {}
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.npz"
        np.savez(rows, num_items=args.items, **batch)
        for name in MODELS:
            mine, theirs = ours(name, batch, args), peer(name, rows, args)
            ratio = mine["seconds"] / theirs["seconds"]
            report[name] = {"tfrec": mine, "peer": theirs, "ratio": ratio}
            table.add_row(name, *(f"{1000 * each['seconds']:.1f}" for each in (mine, theirs)), f"{ratio:.2f}")
    Console(file=sys.stderr).print(table)
    settings = {key: value for key, value in vars(args).items() if key != "peer"}
    print(json.dumps({"backend": keras.backend.backend(), **settings, "models": report}))


if __name__ == "__main__":
    main()
