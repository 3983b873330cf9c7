"""Fits the quantisers that turn vectors into codes, and says how good the codes are."""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tfrec.config import FeatureConfig
from tfrec.errors import UserError
from tfrec.transforms import (
    FIRST_VALUE,
    UNKNOWN,
    Codes,
    GroupQuantiles,
    ProductCodes,
    ResidualCodes,
    Vectors,
    VectorTransform,
    nearest,
    present_rows,
)

Arrays: TypeAlias = dict[str, NDArray[np.float32]]

_SAME_VALUE = 1e-5  # of a dimension's scale: float32 keeps about 1e-7 of it after a rotation


def fit_quantizer(vectors: Vectors, feature: FeatureConfig) -> tuple[VectorTransform, Arrays]:
    """The quantiser that a feature asks for, and its fitted arrays: equal bytes for equal vectors.

    Args:
        vectors: `(N, d)`, a sample of the catalogue; rows that are not finite are left out.
        feature: gives `quantizer` and its options.
    """
    rows = vectors[np.isfinite(vectors).all(axis=1)].astype(np.float64)
    if len(rows) == 0:
        raise UserError(f"feature `{feature.name}`: no item has a vector, so its codes cannot be fitted; leave it out.")
    mean = rows.mean(axis=0).astype(np.float32)
    fit = {"quantile": _fit_group_quantiles, "product": _fit_product_codes, "residual": _fit_residual_codes}
    transform, arrays = fit[feature.quantizer](rows - mean, feature)
    return transform, {"mean": mean, **arrays}


def _fit_group_quantiles(centred: NDArray[np.float64], feature: FeatureConfig) -> tuple[VectorTransform, Arrays]:
    """An edge is the gap between two distinct values that is nearest to the wanted quantile.

    Values that many vectors share (mass points) stay in one bin, far from any edge. Edges then repeat, and the bins
    between equal edges are dead codes, which `quality` reports.
    """
    rotation = _fit_rotation(centred, feature)
    rotated = centred @ rotation.astype(np.float64)
    edges = np.stack([_edges(column, feature.quantiles) for column in rotated.T]).astype(np.float32)
    transform = GroupQuantiles(
        file=_file(feature),
        input_dim=centred.shape[1],
        groups=feature.groups,
        dims_per_group=feature.dims_per_group,
        quantiles=feature.quantiles,
    )
    return transform, {"rotation": rotation, "edges": edges}


def _fit_product_codes(centred: NDArray[np.float64], feature: FeatureConfig) -> tuple[VectorTransform, Arrays]:
    rotation = _fit_rotation(centred, feature)
    parts = np.split(centred @ rotation.astype(np.float64), feature.groups, axis=1)
    transform = ProductCodes(
        file=_file(feature),
        input_dim=centred.shape[1],
        groups=feature.groups,
        dims_per_group=feature.dims_per_group,
        codes=feature.codes,
    )
    return transform, {"rotation": rotation, "centroids": np.stack([_means(part, feature.codes) for part in parts])}


def _fit_residual_codes(centred: NDArray[np.float64], feature: FeatureConfig) -> tuple[VectorTransform, Arrays]:
    centroids, rest = [], centred
    noise = _SAME_VALUE * np.abs(centred).max(initial=0)
    for _ in range(feature.levels):
        centroids.append(_means(np.where(np.abs(rest) > noise, rest, 0), feature.codes))
        means = present_rows(centroids[-1])
        rest = rest - means[nearest(rest, means)]
    transform = ResidualCodes(
        file=_file(feature), input_dim=centred.shape[1], levels=feature.levels, codes=feature.codes
    )
    return transform, {"centroids": np.stack(centroids)}


def quality(codes: Codes, vectors: Vectors, transform: VectorTransform, fitted: Arrays) -> dict[str, Any]:
    """What the codes keep of the vectors, ready for `statistics.json`.

    Args:
        codes: `(N, codes)`; rows of unknown codes (items without a vector) are left out.
        vectors: `(N, d)`, what was coded.
        transform: the specification that coded them.
        fitted: its arrays.

    Returns:
        `distortion`: squared error of what the codes stand for (in a quantile's cell the mean of its vectors) as a
        share of the variance (0 = all kept, 1 = nothing); `perplexity`: exp(entropy) of the codes of each group or
        level; `dead_codes`: codes of each that nothing has; `collisions`: vectors that share all their codes with
        another; `coded`: vectors with codes.
    """
    known = (codes != UNKNOWN).all(axis=1)
    cells = codes[known] - FIRST_VALUE
    sizes = [size - FIRST_VALUE for size in transform.table_sizes]
    if len(cells) == 0:
        return {"distortion": 0.0, "perplexity": [0.0] * len(sizes), "dead_codes": sizes, "collisions": 0, "coded": 0}
    centred = vectors[known].astype(np.float64) - fitted["mean"]
    counts = [np.bincount(column, minlength=size) for column, size in zip(cells.T, sizes, strict=True)]
    _, sharing = np.unique(cells, axis=0, return_counts=True)
    return {
        "distortion": _distortion(cells, centred, transform, fitted),
        "perplexity": [_perplexity(count) for count in counts],
        "dead_codes": [int((count == 0).sum()) for count in counts],
        "collisions": int(sharing[sharing > 1].sum()),
        "coded": len(cells),
    }


def _file(feature: FeatureConfig) -> str:
    return f"artifacts/{feature.name}.npz"


def _means(rows: NDArray[np.float64], number: int) -> NDArray[np.float32]:
    """At most `number` k-means of the rows, sorted, and rows of NaN where they are fewer: `(number, d)`.

    In one thread: with more, sums would be added up in the order in which the threads are done.
    """
    from sklearn.cluster import KMeans  # slow to import, and most jobs need none
    from threadpoolctl import threadpool_limits

    points = rows.astype(np.float32)
    means = np.unique(points, axis=0)
    if len(means) > number:
        with threadpool_limits(1):
            means = np.unique(KMeans(number, n_init=1, random_state=0).fit(points).cluster_centers_, axis=0)
    padded = np.full((number, rows.shape[1]), np.nan, np.float32)
    padded[: len(means)] = means
    return padded


def _fit_rotation(centred: NDArray[np.float64], feature: FeatureConfig) -> NDArray[np.float32]:
    """PCA `(d, groups * dims_per_group)` in float64, each component's sign fixed so that its largest entry is positive.

    Components are dealt to the groups by falling variance, forwards and backwards in turn, so that groups carry
    similar energy.
    """
    if centred.shape[1] < feature.groups * feature.dims_per_group:
        raise UserError(
            f"feature `{feature.name}`: `groups` * `dims_per_group` must be at most the width of the vectors. "
            f"Received: {feature.groups} * {feature.dims_per_group}, width {centred.shape[1]}."
        )
    return _principal_directions(centred)[:, _dealt(feature.groups, feature.dims_per_group)].astype(np.float32)


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


def _distortion(cells: Codes, centred: NDArray[np.float64], transform: VectorTransform, fitted: Arrays) -> float:
    """The share of the variance that is lost when what the codes stand for takes the vectors' place."""
    total = float((centred**2).sum())
    if total == 0:
        return 0.0
    if isinstance(transform, ResidualCodes):
        rest = centred
        for column, means in zip(cells.T, fitted["centroids"], strict=True):
            rest = rest - means[column]
        return float((rest**2).sum()) / total
    rotated = centred @ fitted["rotation"].astype(np.float64)
    lost = total - float((rotated**2).sum())
    for group, part in enumerate(np.split(rotated, transform.groups, axis=1)):
        column = cells[:, group]
        means = _mean_of_each(column, part) if isinstance(transform, GroupQuantiles) else fitted["centroids"][group]
        lost += float(((part - means[column]) ** 2).sum())
    return lost / total


def _mean_of_each(cells: NDArray[np.int32], rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean `(cells, d)` of the rows of each cell."""
    sums = np.stack([np.bincount(cells, weights=column) for column in rows.T], axis=1)
    return sums / np.maximum(np.bincount(cells), 1)[:, None]


def _perplexity(counts: NDArray[np.int64]) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))
