"""Batches, an item encoder and gradients for the tests of objectives; expected values stand in each test."""

import math

import keras
import numpy as np
from keras import ops

NUM_ITEMS = 9


class Table:
    """An item encoder that looks vectors up and remembers which ids it was asked for."""

    def __init__(self, vectors):
        self.vectors = vectors
        self.asked = []

    def __call__(self, ids):
        self.asked.append(ids)
        return {"vector": ops.take(self.vectors, ids, axis=0)}


def make_batch(seed=0, rows=3, length=5, num_items=NUM_ITEMS):
    """Right-padded rows with unknown items, repeats, events that are no targets, and one row without any event."""
    rng = np.random.default_rng(seed)
    item = rng.integers(1, num_items, (rows, length + 1)).astype(np.int32)
    for row, real in enumerate(rng.integers(2, length + 2, rows)):
        item[row, real:] = 0
    item[-1] = 0
    return {"item": item, "target_mask": (item > 0) & (rng.random(item.shape) < 0.8)}


def make_arrays(seed=0, rows=3, length=5, num_items=NUM_ITEMS, width=4):
    """Unit states `(B, L, D)` and unit item vectors `(V, D)`."""
    rng = np.random.default_rng(seed + 100)
    state = rng.normal(size=(rows, length, width))
    vectors = rng.normal(size=(num_items, width))
    return unit(state).astype(np.float32), unit(vectors).astype(np.float32)


def unit(values):
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def counts(num_items=NUM_ITEMS):
    """Training counts that differ from item to item."""
    count = np.arange(num_items) * 3
    count[:2] = 0
    return count


def targets(batch, step):
    """(row, place, item) of every event that may be predicted from `step` events before it."""
    found = []
    item, mask = batch["item"], batch["target_mask"]
    for row in range(item.shape[0]):
        for place in range(item.shape[1] - 1):
            later = place + step
            if later < item.shape[1] and item[row, place] != 0 and mask[row, later] and item[row, later] > 1:
                found.append((row, place, int(item[row, later])))
    return found


def cross_entropy(positive, negatives, null=False):
    """Minus the logarithm of the positive's share, in double precision."""
    total = math.exp(positive) + sum(math.exp(value) for value in negatives) + (1.0 if null else 0.0)
    return -math.log(math.exp(positive) / total)


def call(objective, batch, state, vectors, **user):
    """Loss and metrics as numbers."""
    loss, metrics = objective({"state": state, **user}, items=Table(vectors), batch=batch)
    return float(loss), {name: float(value) for name, value in metrics.items()}


def gradients(function, arrays):
    """Gradients of a scalar function by the backend's own differentiation."""
    arrays = [ops.convert_to_tensor(array) for array in arrays]
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(arrays)
            value = function(*arrays)
        found = tape.gradient(value, arrays, unconnected_gradients="zero")
        return [np.asarray(tf.convert_to_tensor(gradient)) for gradient in found]
    import jax

    return [np.asarray(found) for found in jax.grad(function, argnums=tuple(range(len(arrays))))(*arrays)]


def finite_differences(function, arrays, step=1e-5):
    """Central differences of a double-precision function."""
    arrays = [array.astype(np.float64) for array in arrays]
    found = []
    for array in arrays:
        gradient = np.zeros_like(array)
        for place in np.ndindex(array.shape):
            kept = array[place]
            array[place] = kept + step
            above = function(*arrays)
            array[place] = kept - step
            below = function(*arrays)
            array[place] = kept
            gradient[place] = (above - below) / (2 * step)
        found.append(gradient)
    return found
