"""Evaluated runs side by side: means over seeds, intervals, and the paired bootstrap where two may be compared.

All goes by resamples: a run's metrics on the same draws of users as every other run that answered the same queries. So
a difference is paired whatever the metric is, a mean over queries or not.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfrec.errors import UserError
from tfrec.evaluation import SEED, read_evaluation, read_ranks
from tfrec.metrics import Difference, Interval, difference_of, interval_of, larger_is_better, resampled_means
from tfrec.ranks import Ranks
from tfrec.scores import read_scores

_PROTOCOL = ("task", "split", "dataset", "filter_seen", "request_time")
_CERTAIN = 0.05


@dataclass(frozen=True)
class Measured:
    """What a model is worth on one set of queries: of a run, or the mean over several seeds."""

    name: str
    protocol: Mapping[str, Any]
    queries: NDArray[Any]
    """What was asked, one row a query; equal ones are answered in the same order."""
    metrics: dict[str, float]
    resampled: NDArray[np.float64]
    """`(samples, M)`: the metrics on each resample of the users."""
    seeds: int = 1

    @property
    def intervals(self) -> dict[str, Interval]:
        """The 95 % interval of each metric."""
        return dict(zip(self.metrics, interval_of(self.resampled), strict=True))

    def document(self) -> dict[str, Any]:
        """The figures as they are written."""
        intervals = {name: list(interval) for name, interval in self.intervals.items()}
        return {"metrics": self.metrics, "confidence_intervals": intervals, "seeds": self.seeds}


def measure(directory: Path, split: str = "test") -> Measured:
    """What `tfrec evaluate` measured of a run.

    Raises:
        UserError: the run is not evaluated on that split.
    """
    protocol = read_evaluation(Path(directory), split)["protocol"]
    if protocol["task"] == "ranking":
        scores = read_scores(Path(directory), split)
        resampled = scores.resampled(protocol["bootstrap_samples"], SEED)
        return Measured(str(directory), protocol, scores.queries, scores.metrics(), resampled)
    ranks = read_ranks(Path(directory), split)
    return measured_ranks(str(directory), ranks, protocol["ks"], protocol["bootstrap_samples"], protocol)


def measure_row(text: str, split: str = "test") -> Measured:
    """One row of a comparison: `RUN`, or `NAME=RUN,RUN,...`, several seeds of one model as their mean.

    Raises:
        UserError: a run is not evaluated on that split, or they were measured by different protocols.
    """
    if Path(text).exists():
        return measure(Path(text), split)
    name, _, runs = text.rpartition("=")
    found = [measure(Path(run), split) for run in runs.split(",")]
    return mean_over_seeds(name or text, found)


def measured_ranks(name: str, ranks: Ranks, ks: Sequence[int], samples: int, protocol: Mapping[str, Any]) -> Measured:
    """The metrics of ranks at cut-offs `ks`, and their resamples."""
    values = ranks.values(ks)
    resampled = resampled_means(np.stack(list(values.values()), axis=1), ranks.user, samples=samples, seed=SEED)
    metrics = {metric: float(value.mean()) for metric, value in values.items()}
    return Measured(name, protocol, np.stack([ranks.user, ranks.place], axis=1), metrics, resampled)


def mean_over_seeds(name: str, found: Sequence[Measured]) -> Measured:
    """One model trained with several seeds, as one.

    Raises:
        UserError: the runs were measured by different protocols or on different queries.
    """
    first = found[0]
    for other in found[1:]:
        if reasons := obstacles(first, other):
            raise UserError(f"{first.name} and {other.name}: are no seeds of one model, {'; '.join(reasons)}.")
    metrics = _common(found)
    rows = min(len(one.resampled) for one in found)
    return Measured(
        name,
        first.protocol,
        first.queries,
        {metric: float(np.mean([one.metrics[metric] for one in found])) for metric in metrics},
        np.mean([_columns(one, metrics)[:rows] for one in found], axis=0),
        sum(one.seeds for one in found),
    )


def obstacles(first: Measured, second: Measured) -> list[str]:
    """Why two may not be compared, each in words; nothing where they may."""
    keys = [key for key in _PROTOCOL if first.protocol.get(key) != second.protocol.get(key)]
    found = [f"`{key}` is {first.protocol.get(key)!r} and {second.protocol.get(key)!r}" for key in keys]
    if not found and not np.array_equal(first.queries, second.queries):
        found.append("measured on different queries")
    return found


def differences(first: Measured, second: Measured) -> dict[str, Difference]:
    """Paired differences `first - second` of the metrics that both have.

    Raises:
        UserError: the two were measured by different protocols or on different queries.
    """
    if reasons := obstacles(first, second):
        raise UserError(
            f"{first.name} and {second.name}: cannot be compared, {'; '.join(reasons)}; run `tfrec evaluate` on both "
            "by the same protocol."
        )
    metrics = _common((first, second))
    rows = min(len(first.resampled), len(second.resampled))
    resampled = _columns(first, metrics)[:rows] - _columns(second, metrics)[:rows]
    points = np.array([first.metrics[metric] - second.metrics[metric] for metric in metrics])
    return dict(zip(metrics, difference_of(points, resampled), strict=True))


def verdict(metric: str, found: Difference) -> str:
    """`better`, `worse`, or nothing where the interval holds 0 or the p-value is .05 or more."""
    if found.p_value >= _CERTAIN or found.low <= 0 <= found.high:
        return ""
    return "better" if (found.difference > 0) == larger_is_better(metric) else "worse"


def _common(found: Iterable[Measured]) -> list[str]:
    """The metrics that all have, in the order of the first."""
    first, *others = found
    return [metric for metric in first.metrics if all(metric in other.metrics for other in others)]


def _columns(found: Measured, metrics: Sequence[str]) -> NDArray[np.float64]:
    places = [list(found.metrics).index(metric) for metric in metrics]
    return found.resampled[:, places]


__all__ = [
    "Measured",
    "differences",
    "mean_over_seeds",
    "measure",
    "measure_row",
    "measured_ranks",
    "obstacles",
    "verdict",
]
