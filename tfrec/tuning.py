"""How wide an approximate search must look to find a given share of what exact search finds: measured, never guessed.

What is searched is decided at query time (leaves to look into, candidates to score again), so one index is built and
measured under many parameters. The cheapest that reach the target are chosen, cheapest by a count of what is read and
not by a clock, so that the same vectors give the same index on any machine.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfrec.errors import UserError

Matrix = NDArray[np.float32]

_WHOLE_BELOW = 10_000  # items; a tree pays only above
_LEAF_STEP = 1.2  # between the numbers of leaves that are tried
_REORDER_STEP = 1.5
_REORDER_COST = 16  # an exact score reads a vector from anywhere in memory, a quantised one 4 bits a value in order
_LEAF_COST = 8  # a centre is scored exactly, in order
_MOST_REORDER = 100  # times k
_TRAINING_SAMPLE = 100_000


@dataclass(frozen=True)
class ScannParameters:
    """How ScaNN looks for neighbours; `leaves` 0 = every vector is scored."""

    leaves: int
    """Partitions of the catalogue."""
    leaves_to_search: int
    """Partitions that a query looks into."""
    reorder: int
    """Candidates that are scored again exactly."""


def first_parameters(count: int, dim: int, k: int) -> ScannParameters:
    """What an index is built with: below 10,000 items, or in one dimension, no tree; else about sqrt(count) leaves."""
    if count < _WHOLE_BELOW or dim < 2:
        return ScannParameters(leaves=0, leaves_to_search=0, reorder=0)
    leaves = round(math.sqrt(count))
    return ScannParameters(leaves, leaves_to_search=max(1, leaves // 20), reorder=min(4 * k, count))


def configure(builder: Any, parameters: ScannParameters, count: int) -> Any:
    """Tells a ScaNN builder, of its TensorFlow ops or of its own library, what to build; returns the builder."""
    if not parameters.leaves:
        return builder.score_brute_force()
    sample = min(count, _TRAINING_SAMPLE)
    builder = builder.tree(parameters.leaves, parameters.leaves_to_search, training_sample_size=sample)
    builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2, training_sample_size=sample)
    return builder.reorder(parameters.reorder)


def choose(
    first: ScannParameters, count: int, k: int, target_recall: float, measure: Callable[[ScannParameters], float]
) -> ScannParameters:
    """The cheapest parameters that reach a recall; the widest that there are where none does.

    For each number of candidates to score again, rising by half, the fewest leaves are found by bisection. More
    candidates need fewer leaves; the search ends where a step no longer makes the whole cheaper.

    Args:
        first: what the index was built with.
        count: items of the index.
        k: items of an answer.
        target_recall: share of the exact top k that must be found.
        measure: the recall under some parameters.
    """
    if not first.leaves:
        return first
    steps = _steps(1, first.leaves, _LEAF_STEP)
    best: ScannParameters | None = None
    for reorder in _steps(min(k, count), min(_MOST_REORDER * k, count), _REORDER_STEP):
        option = _fewest_leaves(ScannParameters(first.leaves, 0, reorder), steps, target_recall, measure)
        if option is None:
            continue
        if best is not None and cost(option, count) >= cost(best, count):
            break
        best = option
    return best or ScannParameters(first.leaves, first.leaves, count)


def cost(parameters: ScannParameters, count: int) -> float:
    """What a query reads, in quantised vectors."""
    scanned = count * parameters.leaves_to_search / parameters.leaves
    return scanned + _LEAF_COST * parameters.leaves + _REORDER_COST * parameters.reorder


def _fewest_leaves(
    option: ScannParameters, steps: list[int], target: float, measure: Callable[[ScannParameters], float]
) -> ScannParameters | None:
    def at(place: int) -> ScannParameters:
        return ScannParameters(option.leaves, steps[place], option.reorder)

    low, high = 0, len(steps) - 1
    if measure(at(high)) < target:
        return None
    while low < high:
        middle = (low + high) // 2
        if measure(at(middle)) < target:
            low = middle + 1
        else:
            high = middle
    return at(low)


def _steps(first: int, last: int, ratio: float) -> list[int]:
    """Whole numbers from `first` to `last`, each about `ratio` times the one before."""
    found = [first]
    while found[-1] < last:
        found.append(min(last, max(found[-1] + 1, round(found[-1] * ratio))))
    return found


def recall(truth: NDArray[Any], found: NDArray[Any]) -> float:
    """The share of the true items `(Q, k)` that are among the found ones `(Q, k)`."""
    hits = [len(np.intersect1d(wanted, got)) for wanted, got in zip(truth, found, strict=True)]
    return sum(hits) / truth.size


def check_recall(reached: float, minimum: float, gate: str, target: str) -> None:
    """Raises a `UserError` where an index finds too little of what exact search finds.

    Args:
        reached: its recall.
        minimum: what is asked for.
        gate: the key that asks.
        target: the key that raises the recall.
    """
    if reached < minimum:
        raise UserError(
            f"index: recall of ScaNN is {reached:.3f}, `{gate}` asks for {minimum:g}; raise `{target}`. "
            "Nothing was published."
        )
