"""MTGR's block and its norm against loops over plain NumPy."""

import math

import numpy as np
import pytest

from tests.checks import check_layer, randomise, run
from tests.tfrec.layers.references import layer_norm, silu, weights_of
from tfrec.layers.group_layer_normalization import GroupLayerNormalization
from tfrec.layers.mtgr_block import MTGRBlock

pytestmark = pytest.mark.jax

GROUP = np.array([[0, 1, 1, 2], [0, 1, 2, 2]], np.int32)


def inputs(width=6):
    rng = np.random.default_rng(0)
    return {
        "context": rng.normal(size=(2, 4, width)).astype("float32"),
        "candidate": rng.normal(size=(2, 3, width)).astype("float32"),
        "seen": rng.random((2, 4, 4)) < 0.7,
        "visible": rng.random((2, 3, 4)) < 0.7,
        "context_group": GROUP,
    }


def grouped_norm(x, group, weights, name):
    return layer_norm(x) * weights[f"{name}/gamma"][group] + weights[f"{name}/beta"][group]


def loop(row, weights, heads, max_length):
    context = len(row["context"])
    x = np.concatenate([row["context"], row["candidate"]]).astype(np.float64)
    group = np.concatenate([row["context_group"], np.full(len(row["candidate"]), 3)])
    width = x.shape[1]
    projected = grouped_norm(x, group, weights, "input_norm") @ weights["uvqk_kernel"] + weights["uvqk_bias"]
    u, v, q, k = np.split(silu(projected), 4, axis=1)
    mixed = np.zeros_like(x)
    for h in range(heads):
        part = slice(h * width // heads, (h + 1) * width // heads)
        for i, j in np.ndindex(len(x), len(x)):
            if i < context:
                open_ = j < context and row["seen"][i, j]
            else:
                open_ = row["visible"][i - context, j] if j < context else i == j
            if open_:
                score = q[i, part] @ k[j, part] / math.sqrt(width / heads)
                mixed[i, part] += silu(score) / max_length * v[j, part]
    normed = grouped_norm(mixed * u, group, weights, "value_norm")
    hidden = silu(normed @ weights["mlp/hidden_0/kernel"] + weights["mlp/hidden_0/bias"])
    output = x + hidden @ weights["mlp/output/kernel"] + weights["mlp/output/bias"]
    return output[:context], output[context:]


def test_block_is_the_loop():
    layer, arrays = MTGRBlock(2, 5, 7), inputs()
    run(layer, arrays)
    randomise(layer)
    output, weights = run(layer, arrays), weights_of(layer)
    for place in range(2):
        context, candidate = loop({key: value[place] for key, value in arrays.items()}, weights, 2, 7)
        np.testing.assert_allclose(output["context"][place], context, atol=5e-4)  # the norm of small values
        np.testing.assert_allclose(output["candidate"][place], candidate, atol=5e-4)


def test_block_battery(tmp_path):
    layer = check_layer(
        lambda **kw: MTGRBlock(2, 5, 7, **kw), inputs(), {"context": (2, 4, 6), "candidate": (2, 3, 6)}, tmp_path
    )
    assert layer.count_params() == (6 * 24 + 24) + 2 * 2 * 4 * 6 + (6 * 5 + 5) + (5 * 6 + 6)


def test_norm_has_parameters_for_each_group(tmp_path):
    arrays = {"x": inputs()["context"], "group": np.array([[0, 1, 1, 2], [2, 1, 0, 0]], np.int32)}
    layer = check_layer(lambda **kw: GroupLayerNormalization(3, **kw), arrays, (2, 4, 6), tmp_path)
    randomise(layer)
    weights = {f"norm/{path}": value for path, value in weights_of(layer).items()}
    expected = grouped_norm(arrays["x"].astype(np.float64), arrays["group"], weights, "norm")
    np.testing.assert_allclose(run(layer, arrays), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MTGRBlock(1, 1, 0), "`max_length` must"),
        (lambda: run(MTGRBlock(4, 1, 7), inputs()), "`num_heads` must divide the input's width 6"),
        (lambda: GroupLayerNormalization(0), "`num_groups` must"),
    ],
)
def test_options_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
