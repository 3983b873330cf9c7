import numpy as np
import pytest

from tests.checks import check_layer, randomise, run
from tests.tfrec.layers.references import weights_of
from tfrec.layers.gated_recurrence import GatedRecurrence

pytestmark = pytest.mark.jax


def inputs():
    valid = np.arange(5)[None] < np.array([5, 3])[:, None]
    return {"x": np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32"), "valid_mask": valid}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def loop(x, weights, units):
    """One row by the equations of a gated recurrent unit whose reset gate follows the recurrent product."""
    kernel, recurrent = weights["recurrence/gru_cell/kernel"], weights["recurrence/gru_cell/recurrent_kernel"]
    input_bias, recurrent_bias = weights["recurrence/gru_cell/bias"]
    state, states = np.zeros(units), []
    for event in x.astype(np.float64):
        update_x, reset_x, new_x = np.split(event @ kernel + input_bias, 3)
        update_h, reset_h, new_h = np.split(state @ recurrent + recurrent_bias, 3)
        update, reset = sigmoid(update_x + update_h), sigmoid(reset_x + reset_h)
        state = update * state + (1 - update) * np.tanh(new_x + reset * new_h)
        states.append(state @ weights["output_dense/kernel"] + weights["output_dense/bias"])
    return np.array(states)


def test_is_the_loop():
    layer, arrays = GatedRecurrence(6), inputs()
    run(layer, arrays)
    randomise(layer)
    output = run(layer, arrays)
    for row, length in enumerate((5, 3)):
        expected = loop(arrays["x"][row, :length], weights_of(layer), 6)
        np.testing.assert_allclose(output[row, :length], expected, atol=1e-5)
    assert not output[1, 3:].any()


def test_battery(tmp_path):
    layer = check_layer(lambda **kw: GatedRecurrence(6, dropout=0.1, **kw), inputs(), (2, 5, 8), tmp_path)
    assert layer.count_params() == 3 * (8 * 6 + 6 * 6 + 2 * 6) + 6 * 8 + 8


def test_units_are_checked():
    with pytest.raises(ValueError, match="`units` must be at least 1"):
        GatedRecurrence(0)
