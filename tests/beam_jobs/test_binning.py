import math

import numpy as np
import polars as pl
import pytest

from beam_jobs.binning import fit_bins, fit_standard, rank_error
from beam_jobs.hashing import bottom_k, hash_ids
from tfrec.config import FeatureConfig


def boundaries(values, **options):
    return fit_bins(np.array(values, float), FeatureConfig(name="price", kind="numerical", **options)).boundaries


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        (range(101), {"bins": 4}, [25, 50, 75]),
        ([3, 3, 3], {"bins": 8}, [3]),
        ([], {"bins": 8}, []),
        ([0, 0, 0, 10, 100], {"bins": 4, "spacing": "uniform"}, [25, 50, 75]),
        ([7, 7], {"bins": 4, "spacing": "uniform"}, [7]),
        ([], {"spacing": "uniform"}, []),
        ([1, 2, 3, 10_000], {"bins": 4, "spacing": "log"}, [10, 100, 1000]),
        ([-5, 0, 1, 2, 1000], {"bins": 4, "spacing": "log"}, [1, 10, 100]),
        ([-5, 0], {"bins": 4, "spacing": "log"}, []),
        ([-1.6e308, 1.6e308], {"bins": 4, "spacing": "uniform"}, [-8e307, 0, 8e307]),
        ([-1.6e308, 1.6e308], {"bins": 4}, [-8e307, 0, 8e307]),
        ([0.5, 100], {"boundaries": [1, 2.5]}, [1, 2.5]),
        ([], {"boundaries": [1, 2.5]}, [1, 2.5]),
    ],
)
def test_boundaries_by_hand(values, options, expected):
    assert boundaries(values, **options) == pytest.approx(expected)


def test_what_is_not_positive_has_the_first_bin_to_itself():
    bins = fit_bins(
        np.array([-5.0, 0, 0.25, 2, 1000]), FeatureConfig(name="x", kind="numerical", bins=3, spacing="log")
    )
    assert bins.encode([-9.0, -0.0, 0.0, 0.25, 1000.0, np.nan]).tolist() == [2, 2, 2, 3, 4, 1]


def test_numbers_are_standardised_by_mean_and_deviation():
    standard = fit_standard(np.array([1.0, 3.0, 5.0, 7.0]))
    assert (standard.mean, standard.deviation) == (4.0, pytest.approx(5**0.5))
    values = standard.encode(np.array([4.0, 4 + 5**0.5, 1e300, -1e300, np.nan]))
    np.testing.assert_allclose(values, [0, 1, 10, -10, np.nan], rtol=1e-6)
    largest = np.finfo(float).max
    assert fit_standard(np.array([1e300, 1e300, -1e300, -1e300])).encode(np.array([5e299])).tolist() == [0.5]
    assert fit_standard(np.array([largest, -largest])).deviation == largest
    assert fit_standard(np.array([5e-324, 5e-324])).encode(np.array([5e-324])).tolist() == [0.0]
    assert fit_standard(np.zeros(2)).encode(np.array([0.0, 1.0])).tolist() == [0.0, 1.0]
    assert fit_standard(np.array([2.0, 2.0])).encode(np.array([3.0])).tolist() == [1.0]
    assert fit_standard(np.zeros(0)).encode(np.array([3.0])).tolist() == [3.0]


def test_quantiles_of_a_bottom_k_sample_lie_within_the_stated_rank_error():
    size, sample = 200_000, 2_000
    values = np.sort(np.random.default_rng(2).lognormal(size=size))  # the place is the rank
    hashes = hash_ids(pl.Series([f"user {n}" for n in range(size)]))
    chosen = values[bottom_k(hashes, sample)]
    places = np.searchsorted(values, boundaries(chosen, bins=100))
    errors = np.abs(places / size - np.arange(1, 100) / 100)
    assert 0.005 < errors.max() < rank_error(sample)
    assert rank_error(sample) == pytest.approx(math.sqrt(math.log(2e6) / 4000) + 0.0005)
    assert round(rank_error(200_000), 3) == 0.006
