import numpy as np
import pytest

from tests.checks import check_layer, run
from tfrec.layers.causal_mean import CausalMean

pytestmark = pytest.mark.jax


def inputs():
    valid = np.arange(5)[None] < np.array([5, 3])[:, None]
    return {"x": np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32"), "valid_mask": valid}


def test_is_the_mean_of_the_events_so_far():
    arrays = inputs()
    output = run(CausalMean(), arrays)
    for row, length in enumerate((5, 3)):
        for place in range(length):
            np.testing.assert_allclose(output[row, place], arrays["x"][row, : place + 1].mean(axis=0), atol=1e-6)
    assert not output[1, 3:].any()


def test_battery(tmp_path):
    assert check_layer(CausalMean, inputs(), (2, 5, 8), tmp_path).count_params() == 0
