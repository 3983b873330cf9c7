import math
import types

import keras
import numpy as np
import pytest
from keras import ops

from tests.checks import to_numpy
from tfrec.config import Training
from tfrec.optimizers import exclude_from_decay, learning_rate, make_optimizer

pytestmark = [
    pytest.mark.jax,
    # Keras' Variable takes no `copy` argument in __array__, which NumPy 2 asks for when weights are copied.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]


def rates(training, steps, total):
    rate = learning_rate(training, total)
    return [rate if isinstance(rate, float) else float(rate(step)) for step in steps]


def test_constant_rate_is_reached_linearly():
    training = Training(learning_rate=0.1, warmup_steps=4)
    np.testing.assert_allclose(rates(training, [0, 2, 4, 100], 10), [0.025, 0.0625, 0.1, 0.1], rtol=1e-5)
    assert rates(Training(learning_rate=0.1), [0, 100], 10) == [0.1, 0.1]


def test_cosine_falls_from_the_peak_to_zero():
    training = Training(learning_rate=0.1, warmup_steps=4, schedule="cosine")
    expected = [0.1 * (1 + math.cos(math.pi * done / 10)) / 2 for done in (0, 5, 10)]
    np.testing.assert_allclose(rates(training, [4, 9, 14], 14), expected, atol=1e-8)


def test_decay_spares_embeddings_biases_and_norms():
    model = keras.Sequential(
        [
            keras.Input((3,), dtype="int32"),
            keras.layers.Embedding(5, 4, name="item_table"),
            keras.layers.Dense(4, name="dense"),
            keras.layers.LayerNormalization(name="norm"),
        ]
    )
    optimizer = make_optimizer(Training(learning_rate=1e-30, weight_decay=0.5), 10)
    assert exclude_from_decay(optimizer, model) == [model.layers[1].kernel.path]
    optimizer.build(model.trainable_variables)
    optimizer.learning_rate = 1.0
    before = [keras.ops.convert_to_numpy(variable) for variable in model.trainable_variables]
    optimizer.apply_gradients([(keras.ops.zeros(variable.shape), variable) for variable in model.trainable_variables])
    for variable, value in zip(model.trainable_variables, before, strict=True):
        factor = 0.5 if variable is model.layers[1].kernel else 1.0
        np.testing.assert_allclose(keras.ops.convert_to_numpy(variable), factor * value, rtol=1e-6)


def test_rows_read_twice_count_their_summed_gradient():
    """One step of Adam by hand: the gradient of row 1 is the sum over both places that read it."""
    model = keras.Sequential([keras.Input((3,), dtype="int32"), keras.layers.Embedding(4, 2, name="item_table")])
    table = model.layers[0].embeddings
    table.assign(np.ones((4, 2), np.float32))
    model.compile(make_optimizer(Training(learning_rate=0.1), 10), loss=lambda wanted, found: wanted * found)
    slope = np.array([[[1.0, 2.0], [3.0, -1.0], [1.0, 1.0]]], np.float32)
    model.fit(np.array([[1, 1, 2]]), slope, verbose=0)
    gradient = np.array([[0, 0], [4, 1], [1, 1], [0, 0]]) / 6  # the mean over 6 values
    moved = 0.1 * gradient / (np.abs(gradient) + 1e-7)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(table), 1 - moved, rtol=1e-5)
    model.fit(np.array([[1, 1, 2]]), -slope, verbose=0)
    first, second = gradient, -gradient
    mean = (0.9 * 0.1 * first + 0.1 * second) / (1 - 0.9**2)
    square = (0.98 * 0.02 * first**2 + 0.02 * second**2) / (1 - 0.98**2)
    expected = 1 - moved - 0.1 * mean / (np.sqrt(square) + 1e-7)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(table), expected, rtol=1e-4)


def test_gradients_are_clipped_together():
    variable = keras.Variable(np.zeros(2, np.float32))
    optimizer = make_optimizer(Training(clip_norm=1.0), 10)
    assert optimizer.global_clipnorm == 1.0
    optimizer.build([variable])
    clipped = optimizer._clip_gradients([keras.ops.convert_to_tensor(np.array([3.0, 4.0], np.float32))])
    np.testing.assert_allclose(keras.ops.convert_to_numpy(clipped[0]), [0.6, 0.8], rtol=1e-6)


def test_some_variables_learn_at_a_share_of_the_rate_and_are_not_decayed():
    """Adam's first step is the rate itself, whatever the gradient."""
    slow, fast = (keras.Variable([[1.0, 2.0], [3.0, 4.0]], name=name) for name in ("slow_kernel", "fast_kernel"))
    optimizer = make_optimizer(Training(learning_rate=0.01, weight_decay=0.5), 10)
    model = types.SimpleNamespace(trainable_variables=[slow, fast])
    assert exclude_from_decay(optimizer, model, [slow]) == [fast.path]
    optimizer.build([slow, fast])
    optimizer.slow_down([slow], 0.25)
    before = to_numpy(slow)
    optimizer.apply([ops.ones((2, 2)) * 3.0, ops.ones((2, 2)) * 3.0])
    np.testing.assert_allclose(to_numpy(slow), before - 0.0025, rtol=1e-5)
    np.testing.assert_allclose(to_numpy(fast), before * (1 - 0.5 * 0.01) - 0.01, rtol=1e-5)
