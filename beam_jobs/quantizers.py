"""Fits the group quantiser that turns vectors into codes, and says how good the codes are."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfrec.config import FeatureConfig
from tfrec.errors import UserError
from tfrec.transforms import FIRST_VALUE, UNKNOWN, Codes, GroupQuantiles, Vectors

_SAME_VALUE = 1e-5  # of a dimension's scale: float32 keeps about 1e-7 of it after a rotation


def fit_group_quantiles(vectors: Vectors, feature: FeatureConfig) -> dict[str, NDArray[np.float32]]:
    """The arrays of a `GroupQuantiles`: `mean`, `rotation` and `edges`, equal bytes for equal vectors.

    The rotation is PCA in float64, each component's sign fixed so that its largest entry is positive. Components are
    dealt to the groups by falling variance, forwards and backwards in turn, so that groups carry similar energy.

    An edge is the gap between two distinct values that is nearest to the wanted quantile: values that many vectors
    share (mass points) stay in one bin, far from any edge. Edges then repeat, and the bins between equal edges are
    dead codes, which `quality` reports.

    Args:
        vectors: `(N, d)`, a sample of the catalogue; rows that hold a NaN are left out.
        feature: gives `groups`, `dims_per_group`, `quantiles`.
    """
    rows = vectors[~np.isnan(vectors).any(axis=1)].astype(np.float64)
    dims = feature.groups * feature.dims_per_group
    if len(rows) == 0:
        raise UserError(f"feature `{feature.name}`: no item has a vector, so its codes cannot be fitted; leave it out.")
    if rows.shape[1] < dims:
        raise UserError(
            f"feature `{feature.name}`: `groups` * `dims_per_group` must be at most the width of the vectors. "
            f"Received: {feature.groups} * {feature.dims_per_group}, width {rows.shape[1]}."
        )
    mean = rows.mean(axis=0).astype(np.float32)
    centred = rows - mean
    rotation = _principal_directions(centred)[:, _dealt(feature.groups, feature.dims_per_group)].astype(np.float32)
    rotated = centred @ rotation.astype(np.float64)
    edges = np.stack([_edges(column, feature.quantiles) for column in rotated.T]).astype(np.float32)
    return {"mean": mean, "rotation": rotation, "edges": edges}


def quality(
    codes: Codes, vectors: Vectors, transform: GroupQuantiles, fitted: dict[str, NDArray[np.float32]]
) -> dict[str, Any]:
    """What the codes keep of the vectors, ready for `statistics.json`.

    Args:
        codes: `(N, groups)`; rows of unknown codes (items without a vector) are left out.
        vectors: `(N, d)`, what was coded.
        transform: the specification that coded them.
        fitted: its arrays.

    Returns:
        `distortion`: squared error of the codes' mean vectors as a share of the variance (0 = all kept, 1 = nothing);
        `perplexity`: exp(entropy) of the codes of each group; `dead_codes`: codes of each group that nothing has;
        `collisions`: vectors that share all their codes with another; `coded`: vectors with codes.
    """
    known = (codes != UNKNOWN).all(axis=1)
    values = codes[known] - FIRST_VALUE
    if len(values) == 0:
        dead = [transform.group_size - FIRST_VALUE] * transform.groups
        empty = [0.0] * transform.groups
        return {"distortion": 0.0, "perplexity": empty, "dead_codes": dead, "collisions": 0, "coded": 0}
    centred = vectors[known].astype(np.float64) - fitted["mean"]
    counts = [np.bincount(column, minlength=transform.group_size - FIRST_VALUE) for column in values.T]
    _, sharing = np.unique(values, axis=0, return_counts=True)
    return {
        "distortion": _distortion(values, centred, transform, fitted["rotation"]),
        "perplexity": [_perplexity(count) for count in counts],
        "dead_codes": [int((count == 0).sum()) for count in counts],
        "collisions": int(sharing[sharing > 1].sum()),
        "coded": len(values),
    }


def _principal_directions(centred: NDArray[np.float64]) -> NDArray[np.float64]:
    """Orthonormal columns `(d, d)` by falling variance, each with its largest entry positive."""
    _, directions = np.linalg.eigh(centred.T @ centred)
    directions = directions[:, ::-1]
    largest = directions[np.abs(directions).argmax(axis=0), np.arange(directions.shape[1])]
    return directions * np.where(largest < 0, -1.0, 1.0)


def _dealt(groups: int, dims_per_group: int) -> NDArray[np.int64]:
    """Which component (0 = the strongest) stands in each column: group by group, dealt forwards and backwards."""
    rounds = np.arange(groups * dims_per_group).reshape(dims_per_group, groups)
    rounds[1::2] = rounds[1::2, ::-1].copy()
    return rounds.T.reshape(-1)


def _edges(values: NDArray[np.float64], quantiles: int) -> NDArray[np.float64]:
    """The `quantiles - 1` non-decreasing edges of one dimension, each in a gap between distinct values."""
    values = np.sort(values)
    tolerance = _SAME_VALUE * max(float(np.abs(values).max()), 1e-30)
    gaps = np.flatnonzero(np.diff(values) > tolerance) + 1  # values[:gap] lie below the gap
    middles = (values[gaps - 1] + values[gaps]) / 2
    # An edge below all values and one above all of them, for dimensions that hardly vary.
    ranks = np.concatenate([[0], gaps, [len(values)]])
    places = np.concatenate([[values[0] - tolerance], middles, [values[-1] + tolerance]])
    wanted = len(values) * np.arange(1, quantiles) / quantiles
    above = np.searchsorted(ranks, wanted)
    nearest = np.where(wanted - ranks[above - 1] <= ranks[above] - wanted, above - 1, above)
    return places[nearest]


def _distortion(
    values: Codes, centred: NDArray[np.float64], transform: GroupQuantiles, rotation: NDArray[np.float32]
) -> float:
    """The share of the variance that is lost when each group's part of a vector becomes the mean of its code."""
    total = float((centred**2).sum())
    if total == 0:
        return 0.0
    rotated = (centred @ rotation.astype(np.float64)).reshape(len(values), transform.groups, -1)
    kept = 0.0
    for group in range(transform.groups):
        counts = np.bincount(values[:, group])
        for dimension in rotated[:, group].T:
            sums = np.bincount(values[:, group], weights=dimension)
            kept += float((sums**2 / np.maximum(counts, 1)).sum())
    return 1 - kept / total


def _perplexity(counts: NDArray[np.int64]) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))
