"""What PGSA's sparse path saves: HSTU attention over histories of 256 to 8,192 events, forward and backward.

Two blocks, one row, one candidate, as in a model: the loss is of the candidate's state, so that nobody computes the
rows of events of the last block. Beside dense attention without a mask: the mask over everything, and attention at the
places alone that the mask leaves, with the choice of anchors in the time of both. Scope `all` guides events and the
candidate; scope `candidate` guides the candidate's row alone, and its history is encoded densely.

    python benchmarks/sparse_attention.py [--lengths 256 512 1024 2048 4096 8192] [--svg sparse_attention.svg]

Prints tables of milliseconds a step, median of several; the last line is one JSON document. KERAS_BACKEND=jax measures
what XLA compiles, the default is TensorFlow's graph.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops
from rich.console import Console
from rich.table import Table

from tfrec.charts import line_charts, write_chart
from tfrec.layers.hstu_target_block import HSTUTargetBlock
from tfrec.layers.pointwise_attention import gather_places
from tfrec.layers.preference_guided_sparse_attention import PreferenceGuidedSparseAttention
from tfrec.pictures import bars_table

NAMES = ("dense", "all, masked", "all, sparse", "candidate, masked", "candidate, sparse")


class Attention(keras.layers.Layer):
    """A path from a history and a candidate to the candidate's state."""

    def __init__(self, name: str, length: int, width: int, heads: int, anchors: int, sigma: float) -> None:
        super().__init__()
        self.kind = name
        self.guide = PreferenceGuidedSparseAttention(anchors, sigma)
        size = width // heads
        self.blocks = [HSTUTargetBlock(heads, size, size, length, name=f"block_{index}") for index in range(2)]
        for block in self.blocks:
            block.build((None, None, width))
        self.built = True

    def call(self, history: Any, candidate: Any, visible: Any) -> Any:
        """State `(B, 1, D)`."""
        compared = (candidate, history, visible)
        options: dict[str, Any] = {"valid_mask": visible[:, 0], "visible": visible}
        if self.kind.endswith("masked"):
            options["visible"] = self.guide(*compared)
        elif self.kind.endswith("sparse"):
            options["selected"], options["visible"] = self.guide.select(*compared)
        if self.kind.startswith("all"):
            options |= {"weight": options["visible"][:, 0], "valid_mask": options["visible"][:, 0] > 0}
            place = options.pop("selected", None)
            history = history if place is None else gather_places(history, place)
        state = {"history": history, "candidate": candidate}
        for block in self.blocks:
            state = block(**state, **options)
        return state["candidate"]


def step_of(layer: keras.layers.Layer) -> Callable[..., Any]:
    """One forward and backward pass, compiled: gradients of the weights and of the history."""
    weights = layer.trainable_weights
    if keras.backend.backend() == "jax":
        import jax

        def loss(values: Any, history: Any, candidate: Any, visible: Any) -> Any:
            with keras.StatelessScope(state_mapping=list(zip(weights, values, strict=True))):
                return ops.sum(ops.square(layer(history, candidate, visible)))

        gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
        values = [weight.value for weight in weights]
        return lambda *arrays: jax.block_until_ready(gradient(values, *arrays))
    import tensorflow as tf

    @tf.function
    def step(history: Any, candidate: Any, visible: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(history)
            value = ops.sum(ops.square(layer(history, candidate, visible)))
        return [tf.convert_to_tensor(each) for each in tape.gradient(value, [history, *(w.value for w in weights)])]

    return lambda *arrays: step(*arrays)[0].numpy()


def milliseconds(step: Callable[..., Any], arrays: list[Any], repeats: int) -> float:
    """The median over calls, after two that compile and warm up."""
    for _ in range(2):
        step(*arrays)
    found = []
    for _ in range(repeats):
        begun = time.perf_counter()
        step(*arrays)
        found.append(1000 * (time.perf_counter() - begun))
    return statistics.median(found)


def measure(length: int, args: argparse.Namespace) -> dict[str, float]:
    """Milliseconds a step by path."""
    rng = np.random.default_rng(0)
    shapes = [(1, length, args.width), (1, 1, args.width)]
    arrays = [ops.convert_to_tensor(rng.normal(size=shape).astype("float32")) for shape in shapes]
    arrays.append(ops.ones((1, 1, length), dtype="bool"))
    times = {}
    for name in NAMES:
        keras.utils.set_random_seed(0)
        layer = Attention(name, length, args.width, args.heads, args.anchors, args.sigma)
        times[name] = milliseconds(step_of(layer), arrays, args.repeats)
    return times


def drawn(rows: list[dict]) -> str:
    """Milliseconds by length, and how many times as fast as dense attention each path is."""
    lengths = [row["length"] for row in rows]
    times = {name: [row["milliseconds"][name] for row in rows] for name in NAMES}
    faster = {name: [dense / own for dense, own in zip(times["dense"], times[name], strict=True)] for name in NAMES}
    charts = {"milliseconds a step": times, "times as fast as dense attention": faster}
    series = {title: {name: (lengths, values) for name, values in lines.items()} for title, lines in charts.items()}
    return line_charts(series, x="events", logarithmic="xy")


def main() -> None:
    """Measures, prints, draws."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096, 8192])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--anchors", type=int, default=32)
    parser.add_argument("--sigma", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--svg", type=Path, help="where the times are drawn")
    args = parser.parse_args()
    console, rows = Console(width=130), []
    title = f"ms a step, K {args.anchors}, sigma {args.sigma:g}, width {args.width}, {keras.backend.backend()}"
    table = Table("events", *NAMES, title=title)
    for length in args.lengths:
        times = measure(length, args)
        rows.append({"length": length, "milliseconds": times})
        table.add_row(f"{length:,}", *(f"{times[name]:,.1f}" for name in NAMES))
        print(json.dumps(rows[-1]), file=sys.stderr)
    sparse = [name for name in NAMES if name.endswith("sparse")]
    faster = [
        (f"{row['length']:,}", [row["milliseconds"]["dense"] / row["milliseconds"][name] for name in sparse])
        for row in rows
    ]
    parts = [table, bars_table(faster, sparse, title="times as fast as dense attention", decimals=1)]
    for part in parts:
        console.print(part)
    if args.svg is not None:
        write_chart(args.svg, drawn(rows))
    settings = {key: value for key, value in vars(args).items() if key not in ("svg", "lengths")}
    print(json.dumps({"backend": keras.backend.backend(), **settings, "rows": rows}))


if __name__ == "__main__":
    main()
