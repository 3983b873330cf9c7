import numpy as np
import pytest

from tests.checks import check_layer, gradients, randomise, run, sum_of_squares, to_numpy
from tests.tfrec.layers import references
from tests.tfrec.layers.references import weights_of
from tfrec.layers.hstu_block import HSTUBlock
from tfrec.layers.time_gap_bias import TimeGapBias, time_gap_buckets
from tfrec.layers.transformer_block import TransformerBlock

pytestmark = pytest.mark.jax

TIMES = np.array([[0, 5, 60, 5000, 90_000], [3, 700, 700, 9_000, 2_000_000_000]], np.int32)
LENGTHS = (5, 3)


def inputs(tokens=1, width=8, seed=0):
    rng = np.random.default_rng(seed)
    valid = np.arange(5)[None] < np.array(LENGTHS)[:, None]
    return {
        "x": rng.normal(size=(2, 5 * tokens, width)).astype("float32"),
        "valid_mask": np.repeat(valid, tokens, axis=1),
        "time_gap": loop_buckets(TIMES, TIMES),
    }


def loop_buckets(query, key):
    rows, length = query.shape
    gaps = [
        [[references.bucket(int(query[b, i]) - int(key[b, j])) for j in range(length)] for i in range(length)]
        for b in range(rows)
    ]
    return np.array(gaps, np.int32)


def without(arrays, *names):
    return {name: value for name, value in arrays.items() if name not in names}


def test_buckets_are_the_written_formula_and_not_constant():
    query = np.concatenate([TIMES[:, 1:], TIMES[:, -1:]], axis=1)
    for queries in (TIMES, query):
        buckets = to_numpy(time_gap_buckets(queries, TIMES))
        np.testing.assert_array_equal(buckets, loop_buckets(queries, TIMES))
        assert len(np.unique(buckets[np.tril(np.ones((2, 5, 5), bool))])) > 5
    assert to_numpy(time_gap_buckets(np.array([[86_400]]), np.array([[0]]))).item() == 37  # ln(86400) / 0.301 = 37.76


def test_time_gap_bias_reads_a_scalar_for_each_head(tmp_path):
    gap = {"time_gap": inputs()["time_gap"]}
    layer = check_layer(lambda **kw: TimeGapBias(3, **kw), gap, (2, 3, 5, 5), tmp_path)
    table = np.asarray(layer.weights[0])
    assert table.shape == (129, 3)
    assert run(layer, gap)[1, 2, 4, 0] == pytest.approx(table[gap["time_gap"][1, 4, 0], 2])


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("token_mask", ["causal", "full"])
@pytest.mark.parametrize("tokens", [1, 3])
def test_transformer_block_is_the_loop(tokens, token_mask, norm_first):
    layer = TransformerBlock(2, 6, tokens_per_item=tokens, token_mask=token_mask, time_bias=True, norm_first=norm_first)
    arrays = inputs(tokens)
    run(layer, arrays)
    randomise(layer)
    output = run(layer, arrays)
    for row in range(2):
        expected = references.transformer_block(
            arrays["x"][row],
            arrays["valid_mask"][row],
            weights_of(layer),
            heads=2,
            gap=arrays["time_gap"][row],
            tokens=tokens,
            full=token_mask == "full",
            norm_first=norm_first,
        )
        np.testing.assert_allclose(output[row], expected, atol=2e-5)  # float32 through about 10 sums


def test_transformer_block_sees_both_ways_or_what_it_is_told():
    layer = TransformerBlock(2, 6, causal=False)
    arrays = without(inputs(), "time_gap")
    run(layer, arrays)
    randomise(layer)
    output = run(layer, arrays)
    for row in range(2):
        expected = references.transformer_block(
            arrays["x"][row], arrays["valid_mask"][row], weights_of(layer), heads=2, tokens=5, full=True
        )
        np.testing.assert_allclose(output[row], expected, atol=2e-5)
    past = np.tril(np.ones((5, 5), bool)) & arrays["valid_mask"][:, None, :]
    causal = TransformerBlock.from_config({**layer.get_config(), "causal": True})
    run(causal, arrays)
    causal.set_weights(layer.get_weights())
    np.testing.assert_allclose(run(layer, {**arrays, "visible": past}), run(causal, arrays), atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"concat_ua": True}, {"position_bias": False}, {"time_bias": True}])
def test_hstu_block_is_the_loop(options):
    layer = HSTUBlock(2, 3, 5, max_length=7, **options)
    arrays = inputs()
    run(layer, arrays)
    randomise(layer)
    output = run(layer, arrays)
    for row in range(2):
        expected = references.hstu_block(
            arrays["x"][row],
            arrays["valid_mask"][row],
            weights_of(layer),
            heads=2,
            key_dim=3,
            value_dim=5,
            max_length=7,
            gap=arrays["time_gap"][row] if options.get("time_bias") else None,
            position=options.get("position_bias", True),
            concat_ua=options.get("concat_ua", False),
        )
        np.testing.assert_allclose(output[row], expected, atol=2e-4)  # the norm of small values raises float32 errors


def test_transformer_block_battery(tmp_path):
    layer = check_layer(
        lambda **kw: TransformerBlock(2, 6, tokens_per_item=2, time_bias=True, output_stddev=0.02, **kw),
        inputs(2),
        (2, 10, 8),
        tmp_path,
    )
    attention = (8 * 24 + 24) + (8 * 8 + 8)
    feed_forward = (8 * 6 + 6) + (6 * 8 + 8)
    assert layer.count_params() == attention + feed_forward + 2 * (8 + 8) + 129 * 2


def test_hstu_block_battery(tmp_path):
    layer = check_layer(lambda **kw: HSTUBlock(2, 3, 4, 7, time_bias=True, **kw), inputs(), (2, 5, 8), tmp_path)
    assert layer.count_params() == 8 * (2 * 2 * 4 + 2 * 2 * 3) + (8 * 8 + 8) + (2 * 7 - 1) + 129


BLOCKS = {
    "transformer": lambda: TransformerBlock(2, 6, time_bias=True),
    "sasrec": lambda: TransformerBlock(2, 6, time_bias=True, norm_first=True),
    "hstu": lambda: HSTUBlock(2, 4, 4, 7, time_bias=True),
}


def made(name, arrays):
    layer = BLOCKS[name]()
    run(layer, arrays)
    randomise(layer)
    return layer


@pytest.mark.parametrize("name", BLOCKS)
def test_masked_input_is_a_shorter_input(name):
    arrays = inputs()
    layer = made(name, arrays)
    output = run(layer, arrays)
    short = {
        "x": arrays["x"][1:, :3],
        "valid_mask": arrays["valid_mask"][1:, :3],
        "time_gap": arrays["time_gap"][1:, :3, :3],
    }
    np.testing.assert_allclose(output[1:, :3], run(layer, short), atol=1e-6)
    assert not output[1, 3:].any()


@pytest.mark.parametrize("name", BLOCKS)
def test_a_later_item_changes_no_earlier_state(name):
    arrays = inputs()
    layer = made(name, arrays)
    output = run(layer, arrays)
    for place in range(1, 5):
        changed = {**arrays, "x": arrays["x"].copy()}
        changed["x"][:, place] *= -1  # a constant would be lost in the norms
        difference = np.abs(run(layer, changed) - output).max(axis=-1)
        assert not difference[:, :place].any()
        assert difference[0, place:].min() > 0


@pytest.mark.parametrize("name", BLOCKS)
def test_a_hole_in_the_mask_is_not_seen(name):
    arrays = inputs()
    arrays["valid_mask"][0, 1] = False
    layer = made(name, arrays)
    changed = {**arrays, "x": arrays["x"].copy()}
    changed["x"][0, 1] *= -1
    np.testing.assert_array_equal(run(layer, changed), run(layer, arrays))


@pytest.mark.parametrize("name", BLOCKS)
def test_a_row_of_padding_gives_zeros_and_finite_gradients(name):
    arrays = inputs()
    arrays["valid_mask"][1] = False
    layer = made(name, arrays)
    assert not run(layer, arrays)[1].any()
    found = gradients(layer, lambda: sum_of_squares(layer(**arrays)))
    assert all(np.isfinite(gradient).all() for gradient in found.values())


@pytest.mark.parametrize("name", BLOCKS)
def test_time_gaps_change_states(name):
    arrays = inputs()
    layer = made(name, arrays)
    none = {**arrays, "time_gap": np.zeros_like(arrays["time_gap"])}
    assert np.abs(run(layer, none) - run(layer, arrays)).max() > 1e-3


def test_the_tokens_of_an_item_see_as_much_as_their_mask_says():
    for token_mask, seen in (("causal", False), ("full", True)):
        arrays = inputs(tokens=3)
        layer = TransformerBlock(2, 6, tokens_per_item=3, token_mask=token_mask)
        output = run(layer, without(arrays, "time_gap"))
        arrays["x"][0, 5] *= -1  # the last token of the second item
        difference = np.abs(run(layer, without(arrays, "time_gap")) - output)[0].max(axis=-1)
        assert not difference[:3].any()
        assert bool(difference[3:5].max() > 0) is seen
        assert difference[5:].min() > 0


def test_options_of_the_transformer_block_change_it():
    arrays = inputs(tokens=2)
    base = TransformerBlock(2, 6, tokens_per_item=2)
    plain = without(arrays, "time_gap")
    run(base, plain)
    randomise(base)
    expected = run(base, plain)
    changes = [{"norm_first": True}, {"token_mask": "full"}, {"activation": "gelu"}, {"num_heads": 4}]
    for change in changes:
        other = TransformerBlock(**{"num_heads": 2, "intermediate_dim": 6, "tokens_per_item": 2, **change})
        run(other, plain)
        other.set_weights(base.get_weights())
        assert np.abs(run(other, plain) - expected).max() > 1e-3, change


@pytest.mark.parametrize("option", ["dropout", "attention_dropout"])
def test_dropout_acts_in_training_alone(option):
    arrays = without(inputs(), "time_gap")
    layer = TransformerBlock(2, 6, **{option: 0.5})
    run(layer, arrays)
    randomise(layer)
    np.testing.assert_array_equal(run(layer, arrays), run(layer, arrays))
    assert np.abs(run(layer, arrays, training=True) - run(layer, arrays)).max() > 1e-3


def test_hstu_dropout_acts_in_training_alone():
    arrays = without(inputs(), "time_gap")
    layer = HSTUBlock(2, 4, 4, 7, dropout=0.5)
    np.testing.assert_array_equal(run(layer, arrays), run(layer, arrays))
    assert np.abs(run(layer, arrays, training=True) - run(layer, arrays)).max() > 1e-3


def test_small_outputs_start_near_the_normalised_input():
    arrays = without(inputs(), "time_gap")
    small = TransformerBlock(2, 6, output_stddev=1e-4)
    expected = references.layer_norm(references.layer_norm(arrays["x"])) * arrays["valid_mask"][..., None]
    np.testing.assert_allclose(run(small, arrays), expected, atol=5e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TransformerBlock(2, 6, token_mask="half"), '`token_mask` must be "causal" or "full"'),
        (lambda: TransformerBlock(3, 6).build((None, None, 8)), "`num_heads` must divide the input's width 8"),
        (lambda: HSTUBlock(1, 2, 2, 0), "`max_length` must be at least 1. Received: max_length=0"),
    ],
)
def test_blocks_refuse(make, message):
    with pytest.raises(ValueError, match=message):
        make()
