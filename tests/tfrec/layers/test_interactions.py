"""Layers by which features meet: cross networks, experts, Wukong's block, DIN's attention."""

import numpy as np
import pytest

from tests.checks import check_layer, randomise, run
from tests.tfrec.layers.references import layer_norm, weights_below, weights_of
from tfrec.layers.cross_network import CrossNetwork
from tfrec.layers.mixture_of_experts import MixtureOfExperts
from tfrec.layers.target_attention import TargetAttention
from tfrec.layers.wukong_block import WukongBlock

pytestmark = pytest.mark.jax


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def relu(x):
    return np.maximum(x, 0)


def trained(layer, inputs):
    run(layer, inputs)
    randomise(layer)
    return run(layer, inputs), weights_of(layer)


def mlp(x, weights, activation=relu, last=lambda x: x):
    hidden = 0
    while f"hidden_{hidden}/kernel" in weights:
        x = activation(x @ weights[f"hidden_{hidden}/kernel"] + weights[f"hidden_{hidden}/bias"])
        hidden += 1
    return last(x @ weights["output/kernel"] + weights["output/bias"])


CROSSES = [{}, {"rank": 3}, {"rank": 2, "num_experts": 3}]


@pytest.mark.parametrize("options", CROSSES)
def test_cross_network_is_the_loop(options):
    x = normal(5, 4)
    output, weights = trained(CrossNetwork(2, **options), {"x": x})
    for row in range(5):
        state = x[row].astype(np.float64)
        for layer in range(2):
            if "rank" not in options:
                mapped = state @ weights[f"kernel_{layer}"]
            else:
                mapped, experts = np.zeros(4), options.get("num_experts", 1)
                gates = softmax(state @ weights[f"gate_{layer}"]) if experts > 1 else [1.0]
                for expert, gate in enumerate(gates):
                    low = np.tanh(
                        np.tanh(state @ weights[f"down_{layer}"][expert]) @ weights[f"middle_{layer}"][expert]
                    )
                    mapped += gate * (low @ weights[f"up_{layer}"][expert])
            state = x[row] * (mapped + weights[f"bias_{layer}"]) + state
        np.testing.assert_allclose(output[row], state, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "parameters"),
    list(zip(CROSSES, [2 * (16 + 4), 2 * (2 * 12 + 9 + 4), 2 * (3 * (2 * 8 + 4) + 4 + 12)], strict=True)),
)
def test_cross_network_battery(options, parameters, tmp_path):
    layer = check_layer(lambda **kw: CrossNetwork(2, **options, **kw), {"x": normal(3, 5, 4)}, (3, 5, 4), tmp_path)
    assert layer.count_params() == parameters


def test_experts_are_mixed_for_each_task():
    x = normal(4, 6)
    output, weights = trained(MixtureOfExperts(3, 2, (5, 4)), {"x": x})
    for row in range(4):
        experts = [mlp(x[row], weights_below(weights, f"expert_{index}"), last=relu) for index in range(3)]
        for task in range(2):
            gates = softmax(x[row] @ weights["gate_kernel"][:, 3 * task : 3 * task + 3])
            expected = sum(gate * expert for gate, expert in zip(gates, experts, strict=True))
            np.testing.assert_allclose(output[row, task], expected, atol=1e-5)


def test_experts_battery(tmp_path):
    layer = check_layer(
        lambda **kw: MixtureOfExperts(3, 2, (5, 4), activation="tanh", dropout=0.1, **kw),
        {"x": normal(4, 3, 6)},
        (4, 3, 2, 4),
        tmp_path,
    )
    assert layer.count_params() == 3 * (6 * 5 + 5 + 5 * 4 + 4) + 6 * 6


@pytest.mark.parametrize("rows", [(2, 3), (2, 2)])
def test_wukong_block_is_the_loop(rows):
    x = normal(4, 5, 3)  # five fields: as many as rows in the first case
    interactions, compressed = rows
    output, weights = trained(WukongBlock(interactions, compressed, 2, (7,)), {"x": x})
    norms = [(weights[f"{name}_norm/gamma"], weights[f"{name}_norm/beta"]) for name in ("product", "output")]
    assert ("residual" in weights) == (sum(rows) != 5)
    for row in range(4):
        fields = x[row].astype(np.float64)
        products = np.array([[fields[i] @ fields[j] for j in range(5)] for i in range(5)]) @ weights["projection"]
        fm = mlp(layer_norm(products.ravel(), *norms[0]), weights_below(weights, "mlp")).reshape(interactions, 3)
        kept = weights["residual"].T @ fields if "residual" in weights else fields
        expected = layer_norm(np.concatenate([fm, weights["compression"].T @ fields]) + kept, *norms[1])
        np.testing.assert_allclose(output[row], expected, atol=1e-4)


def test_wukong_block_battery(tmp_path):
    layer = check_layer(
        lambda **kw: WukongBlock(2, 4, 2, (7,), dropout=0.1, **kw), {"x": normal(3, 2, 5, 4)}, (3, 2, 6, 4), tmp_path
    )
    fm = 5 * 2 + 2 * 10 + (10 * 7 + 7) + (7 * 8 + 8)
    assert layer.count_params() == fm + 5 * 4 + 5 * 6 + 2 * 4


def attended():
    visible = np.arange(6)[None, None] < np.array([[6, 2, 0], [3, 4, 1]])[..., None]
    return {"candidate": normal(2, 3, 4), "history": normal(2, 6, 4, seed=1), "visible": visible}


@pytest.mark.parametrize("softmax_option", [False, True])
@pytest.mark.parametrize("activation", ["dice", "prelu", "sigmoid"])
def test_target_attention_is_the_loop(activation, softmax_option):
    layer, arrays = TargetAttention((5, 3), activation=activation, softmax=softmax_option), attended()
    output, weights = trained(layer, arrays)

    def activate(name):
        if activation == "sigmoid":
            return sigmoid
        if activation == "prelu":
            return lambda x: np.where(x > 0, x, weights[f"{name}/alpha"] * x)
        # The running mean is still 0, the variance 1
        return lambda x: sigmoid(x) * x + (1 - sigmoid(x)) * weights[f"{name}/alpha"] * x

    for row in range(2):
        for column in range(3):
            v, total, scores = arrays["candidate"][row, column], np.zeros(4), []
            seen = arrays["history"][row][arrays["visible"][row, column]].astype(np.float64)
            for e in seen:
                pair = np.concatenate([e, v, e - v, e * v])
                hidden = activate("first_activation")(pair @ weights["kernel"] + weights["bias"])
                scores.append(mlp(hidden, weights_below(weights, "mlp"), activate("mlp/activation_0"))[0])
            if softmax_option and scores:
                scores = softmax(np.array(scores) / 2)  # the width is 4
            for score, e in zip(scores, seen, strict=True):
                total += score * e
            np.testing.assert_allclose(output[row, column], total, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"activation": "relu", "softmax": True}])
def test_target_attention_battery(options, tmp_path):
    layer = check_layer(
        lambda **kw: TargetAttention((5, 3), **options, **kw),
        attended(),
        (2, 3, 4),
        tmp_path,
        weights_without_gradient=("mlp/output/bias",) if options else (),  # a softmax does not see it
    )
    alphas = 8 if not options else 0
    trainable = sum(int(np.prod(weight.shape)) for weight in layer.trainable_weights)
    assert trainable == 16 * 5 + 5 + 5 * 3 + 3 + 3 + 1 + alphas


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CrossNetwork(0), "`num_layers` must be at least 1"),
        (lambda: CrossNetwork(1, 0), "`rank` must be at least 1"),
        (lambda: CrossNetwork(1, num_experts=2), "`rank` must be given for a mixture"),
        (lambda: MixtureOfExperts(0, 1, (2,)), "`num_experts` must be at least 1"),
        (lambda: MixtureOfExperts(1, 1, ()), "`hidden_units` must not be empty"),
        (lambda: WukongBlock(0, 1, 1, ()), "`num_interactions` must be at least 1"),
        (lambda: TargetAttention(()), "`hidden_units` must not be empty"),
    ],
)
def test_options_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
