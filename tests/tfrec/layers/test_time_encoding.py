import math

import numpy as np
import pytest

from tests.checks import check_layer, randomise, run
from tests.tfrec.layers.references import weights_of
from tfrec.layers.time_encoding import PERIODS, TimeEncoding

pytestmark = pytest.mark.jax


def inputs():
    time = np.array([[0, 5, 100_000, 2_000_000_000], [7, 7, 0, 0]], np.int32)
    return {"time": time, "valid_mask": np.array([[True] * 4, [True, True, False, False]])}


def test_is_the_loop():
    layer, arrays = TimeEncoding(6), inputs()
    run(layer, arrays)
    randomise(layer)
    output, weights = run(layer, arrays), weights_of(layer)
    for row, column in np.ndindex(2, 4):
        time = int(arrays["time"][row, column])
        before = int(arrays["time"][row, max(column - 1, 0)])
        waves = [wave(2 * math.pi * time / period) for period in PERIODS for wave in (math.sin, math.cos)]
        features = np.array([*waves, math.log(1 + max(time - before, 0))])
        expected = features @ weights["projection/kernel"] + weights["projection/bias"]
        np.testing.assert_allclose(output[row, column], expected * arrays["valid_mask"][row, column], atol=1e-5)


def test_battery(tmp_path):
    layer = check_layer(lambda **kw: TimeEncoding(6, **kw), inputs(), (2, 4, 6), tmp_path)
    assert layer.count_params() == (2 * len(PERIODS) + 1) * 6 + 6


def test_periods_are_checked():
    with pytest.raises(ValueError, match="`periods` must be positive"):
        TimeEncoding(4, periods=(60, 0))
