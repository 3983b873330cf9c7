import numpy as np
import pytest

from tests.checks import check_layer, gradients, randomise, run, sum_of_squares, to_numpy
from tests.tfrec.layers import references
from tests.tfrec.layers.references import weights_below, weights_of
from tfrec.layers.heterogeneous_token_flatten import HeterogeneousTokenFlatten, token_mask
from tfrec.layers.hierarchical_causal_transformer import HierarchicalCausalTransformer
from tfrec.layers.hierarchical_item_tower import HierarchicalItemTower

pytestmark = pytest.mark.jax

B, L, K, D = 2, 3, 2, 4


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def test_flatten_is_item_major_with_event_and_position(tmp_path):
    arrays = {"tokens": normal(B, L, K, D), "event": normal(B, L, D, seed=1), "prefix": normal(B, 1, D, seed=2)}
    layer = check_layer(
        lambda **kw: HeterogeneousTokenFlatten(position_length=L, **kw), arrays, (B, (1 + L) * K, D), tmp_path
    )
    position = np.asarray(layer.weights[0])
    output = run(layer, arrays)
    for b in range(B):
        np.testing.assert_allclose(output[b, 0], 2 * arrays["prefix"][b, 0], atol=1e-5)  # 2 = sqrt(D)
        assert not output[b, 1:K].any()
        for t in range(L):
            for k in range(K):
                expected = 2 * (arrays["tokens"][b, t, k] + arrays["event"][b, t]) + position[t]
                np.testing.assert_allclose(output[b, (1 + t) * K + k], expected, atol=1e-5)


def test_flatten_without_anything_else_is_a_reshape():
    tokens = normal(B, L, K, D)
    output = run(HeterogeneousTokenFlatten(), {"tokens": tokens})
    np.testing.assert_allclose(output[1], 2 * np.stack([tokens[1, t, k] for t in range(L) for k in range(K)]))
    with pytest.raises(ValueError, match="`position_length` must be at least 0"):
        HeterogeneousTokenFlatten(-1)


def test_token_mask_repeats_events_and_keeps_one_token_of_the_prefix():
    valid = np.array([[True, True, False], [False, False, False]])
    assert to_numpy(token_mask(valid, 2)).astype(int).tolist() == [[1, 1, 1, 1, 0, 0], [0] * 6]
    with_prefix = to_numpy(token_mask(valid, 2, has_prefix=True)).astype(int).tolist()
    assert with_prefix == [[1, 0, 1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]]


def hct_inputs(tokens=K, width=D):
    valid = np.array([[True, True, True], [True, True, False]])
    gap = np.array([[[0, 0, 0], [7, 0, 0], [30, 9, 0]]] * B, np.int32)
    return {
        "tokens": normal(B, L * tokens, width) * np.repeat(valid, tokens, axis=1)[..., None],
        "valid_mask": np.repeat(valid, tokens, axis=1),
        "time_gap": gap,
    }


def make_hct(arrays, **options):
    layer = HierarchicalCausalTransformer(
        **{"tokens_per_item": K, "num_heads": 2, "intermediate_dim": 6, "time_bias": True, **options}
    )
    run(layer, arrays)
    randomise(layer)
    return layer


@pytest.mark.parametrize("residual", [True, False])
def test_hct_is_token_blocks_fusion_and_item_blocks(residual):
    arrays = hct_inputs()
    layer = make_hct(arrays, residual=residual, num_token_blocks=1, num_item_blocks=2)
    weights = weights_of(layer)
    output = run(layer, arrays)
    for b in range(B):
        valid, gap = arrays["valid_mask"][b], arrays["time_gap"][b]
        hidden = references.transformer_block(
            arrays["tokens"][b], valid, weights_below(weights, "token_block_0"), heads=2, gap=gap, tokens=K
        )
        np.testing.assert_allclose(output["token"][b].reshape(L * K, D), hidden, atol=2e-5)
        state = np.zeros((L, D))
        for t in range(L):
            own = slice(t * K, (t + 1) * K)
            state[t] = references.mlp(hidden[own].reshape(-1), weights, "fusion")
            if residual:
                state[t] += arrays["tokens"][b, own].sum(axis=0)
        state *= valid[::K, None]
        for index in range(2):
            block = weights_below(weights, f"item_block_{index}")
            state = references.transformer_block(state, valid[::K], block, heads=2, gap=gap)
        np.testing.assert_allclose(output["state"][b], state, atol=1e-4)  # three blocks in float32


def test_hct_battery(tmp_path):
    layer = check_layer(
        lambda **kw: HierarchicalCausalTransformer(K, 2, 6, time_bias=True, **kw),
        hct_inputs(),
        {"state": (B, L, D), "token": (B, L, K, D)},
        tmp_path,
    )
    block = (D * 3 * D + 3 * D) + (D * D + D) + (D * 6 + 6) + (6 * D + D) + 4 * D + 129 * 2
    assert layer.count_params() == 4 * block + (K * D * 6 + 6) + (6 * D + D)


def test_hct_starts_as_the_sum_of_the_tokens():
    arrays = hct_inputs()
    layer = HierarchicalCausalTransformer(K, 2, 6, num_item_blocks=0)
    state = run(layer, {name: arrays[name] for name in ("tokens", "valid_mask")})["state"]
    expected = arrays["tokens"].reshape(B, L, K, D).sum(axis=2)
    np.testing.assert_allclose(state, expected, atol=0.03)


def test_hct_mean_is_a_standard_transformer():
    arrays = hct_inputs()
    layer = make_hct(arrays, fuse="mean", num_token_blocks=2, num_item_blocks=0)
    output = run(layer, arrays)
    np.testing.assert_allclose(output["state"], output["token"].mean(axis=2), atol=1e-6)
    assert not any("fusion" in weight.path or "item_block" in weight.path for weight in layer.weights)
    with pytest.raises(ValueError, match=r'`fuse` must be "mlp" or "mean"\. Received: fuse=\'max\''):
        make_hct(arrays, fuse="max")


def test_hct_does_not_see_the_future_and_padding_is_zero():
    arrays = hct_inputs()
    layer = make_hct(arrays)
    output = run(layer, arrays)
    changed = {**arrays, "tokens": arrays["tokens"].copy()}
    changed["tokens"][0, 2 * K :] *= -1
    after = run(layer, changed)
    for name in ("state", "token"):
        np.testing.assert_array_equal(after[name][0, :2], output[name][0, :2])
        assert np.abs(after[name][0, 2] - output[name][0, 2]).max() > 1e-3
        assert not output[name][1, 2].any()


def test_hct_of_padding_has_finite_gradients():
    arrays = {name: np.zeros_like(value) for name, value in hct_inputs().items()}
    layer = make_hct(arrays)
    assert not run(layer, arrays)["state"].any()
    found = gradients(layer, lambda: sum_of_squares(layer(**arrays)))
    assert all(np.isfinite(gradient).all() for gradient in found.values() if gradient is not None)


@pytest.mark.parametrize("change", [{"token_mask": "full"}, {"residual": False}, {"norm_first": True}])
def test_options_of_hct_change_it(change):
    arrays = hct_inputs()
    base = make_hct(arrays)
    other = make_hct(arrays, **change)
    other.set_weights(base.get_weights())
    assert np.abs(run(other, arrays)["state"] - run(base, arrays)["state"]).max() > 1e-5


@pytest.mark.parametrize("residual", [True, False])
def test_item_tower_is_the_written_formula(residual, tmp_path):
    tokens = {"tokens": normal(5, K, D)}
    layer = check_layer(
        lambda **kw: HierarchicalItemTower(6, residual=residual, **kw),
        tokens,
        {"vector": (5, D), "token": (5, K, D)},
        tmp_path,
    )
    randomise(layer)
    weights, output = weights_of(layer), run(layer, tokens)
    for n in range(5):
        own = tokens["tokens"][n]
        token = np.stack([references.mlp(own[k], weights, f"token_mlp_{k}") + residual * own[k] for k in range(K)])
        vector = references.mlp(token.reshape(-1), weights, "item_mlp") + residual * token.sum(axis=0)
        np.testing.assert_allclose(output["token"][n], token, atol=1e-5)
        np.testing.assert_allclose(output["vector"][n], vector, atol=1e-5)
    assert layer.count_params() == K * 2 * (D * D + D) + (K * D * 6 + 6) + (6 * D + D)


def test_item_tower_starts_as_the_sum_of_the_tokens():
    tokens = {"tokens": normal(5, K, D)}
    layer = HierarchicalItemTower(6)
    np.testing.assert_allclose(run(layer, tokens)["vector"], tokens["tokens"].sum(axis=1), atol=0.03)
    np.testing.assert_allclose(
        to_numpy(layer.encode_token(tokens["tokens"][:, 1], 1)), run(layer, tokens)["token"][:, 1]
    )
