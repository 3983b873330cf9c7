import numpy as np
import pytest

from tests.checks import check_layer, randomise, run, seed_weights
from tests.tfrec.layers.references import weights_of
from tfrec.layers.adaptive_activation import AdaptiveActivation
from tfrec.layers.label_heads import LabelHeads
from tfrec.layers.mlp import MLP

pytestmark = pytest.mark.jax

LABELS = ("click", "cart")


def inputs(separate=False):
    rng = np.random.default_rng(0)
    shape = (3, 4, 2, 6) if separate else (3, 4, 6)
    return {"x": rng.normal(size=shape).astype("float32"), "position": rng.integers(0, 7, (3, 4)).astype("int32")}


@pytest.mark.parametrize("separate", [False, True])
def test_heads_are_the_loop(separate):
    heads, arrays = LabelHeads(LABELS, (5,), separate=separate, num_positions=3), inputs(separate)
    run(heads, arrays)
    randomise(heads)
    output, weights = run(heads, arrays), weights_of(heads)
    for place, label in enumerate(LABELS):
        name = f"{label}_mlp" if separate else "mlp"
        for row in range(3):
            for column in range(4):
                x = arrays["x"][row, column]
                x = x[place] if separate else x
                kernel, bias = weights[f"{name}/hidden_0/kernel"], weights[f"{name}/hidden_0/bias"]
                hidden = np.maximum(x @ kernel + bias, 0)
                logits = hidden @ weights[f"{name}/output/kernel"] + weights[f"{name}/output/bias"]
                bias = weights["position_bias"][min(arrays["position"][row, column], 3), place]
                expected = logits[0 if separate else place] + bias
                assert output[label][row, column] == pytest.approx(expected, abs=1e-5)


def test_without_a_position_all_stand_at_the_top():
    heads, arrays = LabelHeads(LABELS, num_positions=3), inputs()
    run(heads, arrays)
    randomise(heads)
    first = run(heads, {**arrays, "position": np.ones((3, 4), "int32")})
    without = run(heads, {"x": arrays["x"]})
    for label in LABELS:
        np.testing.assert_array_equal(without[label], first[label])


def test_several_places_are_each_place_by_itself():
    arrays = inputs()
    for places in (3, 0):
        heads = LabelHeads(LABELS, num_positions=places)
        run(heads, arrays)
        randomise(heads)
        both = run(heads, {**arrays, "position": np.stack([arrays["position"], np.ones((3, 4), "int32")], axis=-1)})
        own, first = run(heads, arrays), run(heads, {**arrays, "position": np.ones((3, 4), "int32")})
        for label in LABELS:
            np.testing.assert_array_equal(both[label], np.stack([own[label], first[label]], axis=-1))


@pytest.mark.parametrize(("separate", "activation"), [(False, "relu"), (True, "prelu"), (False, "dice")])
def test_heads_battery(separate, activation, tmp_path):
    def make(**options):
        return LabelHeads(
            LABELS, (5,), activation=activation, separate=separate, num_positions=6, dropout=0.1, **options
        )

    arrays = inputs(separate)
    arrays["position"] = np.arange(12, dtype="int32").reshape(3, 4) % 7
    layer = check_layer(make, arrays, dict.fromkeys(LABELS, (3, 4)), tmp_path, float32_output=True)
    alpha = 0 if activation == "relu" else 5
    mlps = 2 * (6 * 5 + 5 + alpha + 5 + 1) if separate else 6 * 5 + 5 + alpha + 5 * 2 + 2
    assert sum(int(np.prod(weight.shape)) for weight in layer.trainable_weights) == mlps + 7 * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ()}, "`labels` must be different names"),
        ({"labels": ("a", "a")}, "`labels` must be different names"),
        ({"labels": ("a",), "num_positions": -1}, "`num_positions` must be at least 0"),
    ],
)
def test_options_of_heads_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        LabelHeads(**options)


def dice(x, mean, variance, alpha):
    share = 1 / (1 + np.exp(-(x - mean) / np.sqrt(variance + 1e-9)))
    return share * x + (1 - share) * alpha * x


def test_dice_bends_where_the_real_inputs_are():
    layer = AdaptiveActivation("dice", momentum=0.0)
    x = np.random.default_rng(0).normal(3, 2, (4, 5, 3)).astype("float32")
    mask = np.arange(5)[None] < np.array([5, 3, 1, 4])[:, None]
    layer.build(x.shape)
    layer.alpha.assign(np.array([0.1, -0.5, 0.9], "float32"))
    mean, variance = x[mask].mean(axis=0), x[mask].var(axis=0)
    expected = dice(x, mean, variance, np.array([0.1, -0.5, 0.9]))
    np.testing.assert_allclose(run(layer, {"x": x, "valid_mask": mask}, training=True), expected, atol=1e-4)
    np.testing.assert_allclose(
        run(layer, {"x": x}), expected, atol=1e-4
    )  # momentum 0: the running ones are the batch's


def test_prelu_is_its_formula():
    layer = AdaptiveActivation("prelu")
    x = np.linspace(-2, 2, 12, dtype="float32").reshape(4, 3)
    layer.build(x.shape)
    layer.alpha.assign(np.array([0.1, -0.5, 0.9], "float32"))
    np.testing.assert_allclose(run(layer, {"x": x}), np.where(x > 0, x, x * [0.1, -0.5, 0.9]), atol=1e-6)


@pytest.mark.parametrize("kind", ["dice", "prelu"])
def test_activation_battery(kind, tmp_path):
    x = np.random.default_rng(0).normal(size=(3, 4, 5)).astype("float32")
    check_layer(lambda **options: AdaptiveActivation(kind, **options), {"x": x}, (3, 4, 5), tmp_path)


def test_kind_of_activation_is_checked():
    with pytest.raises(ValueError, match=r"`kind` must be one of dice, prelu\. Received: kind='relu'"):
        AdaptiveActivation("relu")


def test_mlp_takes_an_adaptive_activation():
    seed_weights(0)
    mlp = MLP([4], 2, activation="prelu")
    x = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    mlp.build(x.shape)
    randomise(mlp)
    weights = weights_of(mlp)
    hidden = x @ weights["hidden_0/kernel"] + weights["hidden_0/bias"]
    hidden = np.where(hidden > 0, hidden, weights["activation_0/alpha"] * hidden)
    expected = hidden @ weights["output/kernel"] + weights["output/bias"]
    np.testing.assert_allclose(run(mlp, {"x": x}), expected, atol=1e-5)
