"""Vectors shaped like trained embeddings, for the benchmarks of the index: trained ones made more, or made up.

    python -m benchmarks.embeddings RUN --data DATASET --to vectors.npz

writes the item vectors of a trained run and the vectors of its test users; the other benchmarks take the file by
`--vectors` and make as many items of it as they need. Without a file they make up both by a seeded mixture.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]

_CENTRES = 1000
_NOISE = 0.5  # of a copy, as a share of the distance between an item and its nearest neighbour


def items_and_queries(
    count: int, num_queries: int, *, dim: int = 64, seed: int = 0, vectors: Path | None = None
) -> tuple[Matrix, Matrix]:
    """`count` item vectors and `num_queries` queries for which they are searched.

    Args:
        count: items.
        num_queries: queries.
        dim: width of made-up vectors.
        seed: of everything.
        vectors: a file that this script wrote; None = made up.
    """
    rng = np.random.default_rng(seed)
    if vectors is None:
        centres, shares = _mixture(rng, dim)
        return _drawn(rng, centres, shares, count), _drawn(rng, centres, shares, num_queries)
    with np.load(vectors) as file:
        items, queries = file["items"], file["queries"]
    chosen = rng.integers(len(items), size=count)
    noise = _spacing(rng, items) * _NOISE / np.sqrt(items.shape[1])
    made = items[chosen] + (noise[chosen, None] * rng.normal(size=(count, items.shape[1]))).astype(np.float32)
    lengths = np.linalg.norm(items[chosen], axis=1) / np.linalg.norm(made, axis=1)
    return made * lengths[:, None], queries[rng.choice(len(queries), num_queries, replace=len(queries) < num_queries)]


def _mixture(rng: np.random.Generator, dim: int) -> tuple[Matrix, NDArray[np.float64]]:
    """Centres whose directions are of falling importance, and their shares by Zipf's law."""
    scale = np.arange(1, dim + 1) ** -0.3
    shares = np.arange(1, _CENTRES + 1) ** -0.7
    return (rng.normal(size=(_CENTRES, dim)) * scale).astype(np.float32), shares / shares.sum()


def _drawn(rng: np.random.Generator, centres: Matrix, shares: NDArray[np.float64], count: int) -> Matrix:
    chosen = rng.choice(len(centres), size=count, p=shares)
    spread = np.std(centres, axis=0) * 0.6
    vectors = centres[chosen] + rng.normal(size=(count, centres.shape[1])).astype(np.float32) * spread
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def _spacing(rng: np.random.Generator, items: Matrix) -> NDArray[np.float32]:
    """About how far each item's nearest neighbour is, among a sample."""
    sample = items[rng.choice(len(items), min(len(items), 5000), replace=False)]
    found = []
    for start in range(0, len(items), 2048):
        part = items[start : start + 2048]
        squares = (part**2).sum(1)[:, None] + (sample**2).sum(1) - 2 * part @ sample.T
        found.append(np.sqrt(np.maximum(np.partition(squares, 1, axis=1)[:, 1], 0)))
    return np.concatenate(found)


def main() -> None:
    """Writes the vectors of a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a trained retrieval run")
    parser.add_argument("--data", type=Path, help="its dataset, where it has moved")
    parser.add_argument("--to", type=Path, required=True, help="the .npz to write")
    arguments = parser.parse_args()

    from tfrec.data import Batches
    from tfrec.ranks import encode_catalogue
    from tfrec.runs import load_run

    run = load_run(arguments.run, data=arguments.data)
    histories, length = run.dataset.histories(), run.model.history_length
    batches = Batches(run.schema, histories, "test", history_length=length, batch_size=256, max_queries=4000)
    queries = np.concatenate([np.asarray(run.model.encode_users(batch), np.float32) for batch in batches])
    np.savez(arguments.to, items=encode_catalogue(run.model, run.schema.num_items), queries=queries)
    print(f"{arguments.to}: {run.schema.num_items - 2} items, {len(queries)} queries")


if __name__ == "__main__":
    main()
