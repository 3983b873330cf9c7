"""Fits the bins of numbers, and what standardises them."""

import numpy as np
from numpy.typing import NDArray

from tfrec.config import FeatureConfig
from tfrec.transforms import Bins, Standard

_LARGEST = np.finfo(np.float64).max


def fit_bins(values: NDArray[np.float64], feature: FeatureConfig) -> Bins:
    """At most `bins` bins with boundaries by `spacing`, equal ones being one; none where there are no values.

    Args:
        values: a sample, without missing ones.
        feature: gives `bins` and `spacing`, or `boundaries`.
    """
    if feature.boundaries is not None:
        return Bins(boundaries=feature.boundaries, spacing="given")
    if len(values) == 0:
        return Bins(boundaries=(), spacing=feature.spacing)
    fit = {"quantile": _quantiles, "uniform": _uniform, "log": _log}
    scale = 1.0 if values.max() / 2 - values.min() / 2 < _LARGEST / 2 else 0.5  # so that no difference overflows
    boundaries = fit[feature.spacing](values * scale, feature.bins) / scale
    return Bins(boundaries=tuple(np.unique(boundaries).tolist()), spacing=feature.spacing)


def rank_error(sample: int, confidence: float = 1 - 1e-6) -> float:
    """How far, as a share of all values, a quantile of a random sample may lie from its rank, with this confidence.

    The Dvoretzky-Kiefer-Wolfowitz bound with Massart's constant, for all quantiles of a feature at once, and one value
    more for where `fit_bins` interpolates. Samples are bottom-k by hash, so without replacement, which only helps.
    """
    return float(np.sqrt(np.log(2 / (1 - confidence)) / (2 * sample)) + 1 / sample)


def fit_standard(values: NDArray[np.float64]) -> Standard:
    """Mean and standard deviation of the values; where they do not vary the deviation is 1."""
    if len(values) == 0:
        return Standard(mean=0.0, deviation=1.0)
    exponent = np.frexp(np.abs(values).max())[1]
    scaled = np.ldexp(values, -exponent)  # by a power of two, so that neither sums nor squares overflow
    deviation = float(np.ldexp(scaled.std(), exponent))
    return Standard(mean=float(np.ldexp(scaled.mean(), exponent)), deviation=deviation if deviation > 0 else 1.0)


def _quantiles(values: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    return np.quantile(values, np.arange(1, bins) / bins)


def _uniform(values: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    return np.linspace(values.min(), values.max(), bins + 1)[1:-1]


def _log(values: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    """Equal steps of the logarithm over the positive values; what is not positive has the first bin to itself."""
    positive = values[values > 0]
    if len(positive) == 0:
        return np.zeros(0)
    if len(positive) == len(values):
        return np.geomspace(positive.min(), positive.max(), bins + 1)[1:-1]
    return np.geomspace(positive.min(), positive.max(), bins)[:-1]
