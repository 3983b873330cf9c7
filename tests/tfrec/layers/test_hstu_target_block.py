"""HSTU's ranking block, its places and biases, against loops over plain NumPy."""

import math

import numpy as np
import pytest

from tests.checks import check_layer, randomise, run
from tests.tfrec.layers import references
from tests.tfrec.layers.references import layer_norm, silu, weights_of
from tfrec.layers.candidate_positions import CandidatePositions
from tfrec.layers.hstu_target_block import HSTUTargetBlock
from tfrec.layers.relative_bias import RelativeBias

pytestmark = pytest.mark.jax

BEFORE = np.array([[5, 2, 0], [3, 3, 1]])
LENGTHS = np.array([5, 3])
TIMES = np.array([[0, 5, 60, 5000, 90_000], [3, 700, 700, 0, 0]], np.int32)
CANDIDATE_TIMES = np.array([[90_000, 59, 0], [9_000, 700, 650]], np.int32)


def inputs(seed=0, width=6):
    rng = np.random.default_rng(seed)
    return {
        "history": rng.normal(size=(2, 5, width)).astype("float32"),
        "candidate": rng.normal(size=(2, 3, width)).astype("float32"),
        "valid_mask": np.arange(5) < LENGTHS[:, None],
        "visible": (np.arange(5) < BEFORE[..., None]) * rng.uniform(0.2, 1, (2, 3, 5)).astype("float32"),
    }


def loop(row, weights, *, heads, key_dim, value_dim, max_length, alpha, group_norm=False, bias=None, own_bias=0.0):
    """One row; `bias` of events `(L, L)` and of candidates `(C, L)`."""
    values, keys = heads * value_dim, heads * key_dim
    count = len(row["history"])
    x = np.concatenate([row["history"], row["candidate"]]).astype(np.float64)
    normed = layer_norm(x, weights["input_norm/gamma"], weights["input_norm/beta"])
    projected = silu(normed @ weights["uvqk_kernel"] + weights["uvqk_bias"])
    u, v, q, k = np.split(projected, [values, 2 * values, 2 * values + keys], axis=1)
    mixed = np.zeros((len(x), values))
    columns = row.get("weight", np.ones(count))
    for h in range(heads):
        key, value = slice(h * key_dim, (h + 1) * key_dim), slice(h * value_dim, (h + 1) * value_dim)
        for i in range(len(x)):
            for j in range(len(x)):
                if i < count:
                    share = float(j <= i and row["valid_mask"][j]) * columns[min(j, count - 1)]
                    added = bias[0][i, j] if bias is not None and j < count else 0.0
                elif j < count:
                    share = row["visible"][i - count, j]
                    added = bias[1][i - count, j] if bias is not None else 0.0
                else:
                    share, added = float(i == j), own_bias
                score = alpha * (q[i, key] @ k[j, key]) + added
                mixed[i, value] += silu(score) / max_length * share * v[j, value]
    if group_norm:
        per_head = layer_norm(mixed.reshape(len(x), heads, value_dim))
        normed = (per_head * weights["value_scale"] + weights["value_offset"]).reshape(mixed.shape)
    else:
        normed = layer_norm(mixed, weights["value_norm/gamma"], weights["value_norm/beta"])
    output = np.concatenate([u, normed, u * normed], axis=1) @ weights["output_dense/kernel"] + x
    return output[:count] * row["valid_mask"][:, None], output[count:]


def row_of(arrays, place):
    return {key: value[place] for key, value in arrays.items()}


@pytest.mark.parametrize(
    "options", [{}, {"alpha": 0.3}, {"group_norm": True}, {"weight": True}, {"bias": True}], ids=str
)
def test_block_is_the_loop(options):
    rng = np.random.default_rng(1)
    arrays, more, given = inputs(), {}, {key: options[key] for key in ("alpha", "group_norm") if key in options}
    if "weight" in options:
        arrays["weight"] = rng.uniform(size=(2, 5)).astype("float32")
    if "bias" in options:
        more = {"own_bias": 0.7, "history_bias": rng.normal(size=(2, 1, 5, 5)).astype("float32")}
        more["candidate_bias"] = rng.normal(size=(2, 1, 3, 5)).astype("float32")
    layer = HSTUTargetBlock(2, 3, 4, 7, **given)
    run(layer, inputs())
    randomise(layer)
    output = run(layer, {**arrays, **more})
    for place in range(2):
        bias = (more["history_bias"][place, 0], more["candidate_bias"][place, 0]) if more else None
        history, candidate = loop(
            row_of(arrays, place),
            weights_of(layer),
            heads=2,
            key_dim=3,
            value_dim=4,
            max_length=7,
            alpha=options.get("alpha", 1 / math.sqrt(3)),
            group_norm="group_norm" in options,
            bias=bias,
            own_bias=more.get("own_bias", 0.0),
        )
        np.testing.assert_allclose(output["history"][place], history, atol=5e-4)  # the norm of small values
        np.testing.assert_allclose(output["candidate"][place], candidate, atol=5e-4)


def test_chosen_places_are_all_places_with_weights_elsewhere_zero():
    arrays = inputs()
    selected = np.array([[[0, 4], [1, 0], [2, 2]], [[2, 0], [1, 2], [0, 0]]], np.int32)
    weight = np.array([[[0.5, 0.25], [1.0, 0.0], [0.0, 0.0]], [[1.0, 0.5], [0.1, 1.0], [0.7, 0.0]]], np.float32)
    dense = np.zeros((2, 3, 5), np.float32)
    bias = np.random.default_rng(2).normal(size=(2, 1, 3, 5)).astype("float32")
    near = np.take_along_axis(bias[:, 0], selected, axis=2).reshape(6, 1, 1, 2)
    for b, c, p in np.ndindex(2, 3, 2):
        dense[b, c, selected[b, c, p]] += weight[b, c, p]
    layer = HSTUTargetBlock(2, 3, 3, 7)
    run(layer, arrays)
    randomise(layer)
    expected = run(layer, {**arrays, "visible": dense, "candidate_bias": bias})
    output = run(layer, {**arrays, "visible": weight, "selected": selected, "candidate_bias": near})
    np.testing.assert_allclose(output["candidate"], expected["candidate"], atol=1e-5)
    np.testing.assert_array_equal(output["history"], expected["history"])


def test_block_battery(tmp_path):
    shapes = {"history": (2, 5, 6), "candidate": (2, 3, 6)}
    layer = check_layer(lambda **kw: HSTUTargetBlock(2, 3, 4, 7, group_norm=True, **kw), inputs(), shapes, tmp_path)
    assert layer.count_params() == (6 * 28 + 28) + 2 * 6 + 2 * 2 + 3 * 8 * 6
    layer = check_layer(lambda **kw: HSTUTargetBlock(2, 3, 4, 7, **kw), inputs(), shapes, tmp_path)
    assert layer.count_params() == (6 * 28 + 28) + 2 * 6 + 2 * 8 + 3 * 8 * 6


def place_inputs(width=4):
    rng = np.random.default_rng(0)
    return {
        "x": rng.normal(size=(2, 5, width)).astype("float32"),
        "candidate": rng.normal(size=(2, 3, width)).astype("float32"),
        "candidate_history": BEFORE.astype("int32"),
        "time": TIMES,
        "candidate_time": CANDIDATE_TIMES,
    }


def places_of(kind, row):
    """Place and seconds of each event, then of each candidate."""
    before, times, own = BEFORE[row], TIMES[row], CANDIDATE_TIMES[row]
    events, candidates = [], []
    for j in range(5):
        if kind == "backward":
            events.append((max(before) - j, max(own) - times[j]))
        else:
            events.append((j + 1, times[j] - times[j - 1] if j else 0))
    for n, t in zip(before, own, strict=True):
        place = 1 + n if kind == "time_aware" else 0
        gap = max(own) - t if kind == "backward" else t - times[n - 1] if n else 0
        candidates.append((place, gap))
    return events, candidates


@pytest.mark.parametrize("kind", ["backward", "shared", "time_aware"])
def test_places_and_times_are_the_loop(kind, tmp_path):
    arrays = place_inputs()
    shapes = {"history": (2, 5, 4), "candidate": (2, 3, 4)}
    layer = check_layer(lambda **kw: CandidatePositions(kind, 6, 30, **kw), arrays, shapes, tmp_path)
    randomise(layer)
    output, weights = run(layer, arrays), weights_of(layer)
    for row in range(2):
        for key, found in zip(("history", "candidate"), places_of(kind, row), strict=True):
            for place, (index, seconds) in enumerate(found):
                if key == "history" and place >= LENGTHS[row]:
                    continue  # padding
                bucket = min(math.floor(math.sqrt(max(seconds, 0) / 60)), 29)
                expected = weights["position_table"][min(max(index, 0), 5)] + weights["time_table"][bucket]
                np.testing.assert_allclose(output[key][row, place], expected, atol=1e-6)


def test_places_alone():
    arrays = {key: value for key, value in place_inputs().items() if "time" not in key}
    layer = CandidatePositions("time_aware", 7)
    output = run(layer, arrays)
    table = weights_of(layer)["position_table"]
    assert table.shape == (7, 4)
    assert np.abs(table).max() <= 7**-0.5
    np.testing.assert_array_equal(output["candidate"], table[1 + BEFORE])
    np.testing.assert_array_equal(output["history"], table[None, 1:6])


def test_relative_bias_is_the_loop(tmp_path):
    arrays = {
        "query_place": BEFORE.astype("int32"),
        "key_place": np.tile(np.arange(5, dtype="int32"), (2, 1)),
        "query_time": CANDIDATE_TIMES,
        "key_time": TIMES,
    }
    layer = check_layer(lambda **kw: RelativeBias(4, **kw), arrays, (2, 1, 3, 5), tmp_path)
    randomise(layer)
    output, weights = run(layer, arrays), weights_of(layer)
    for b, i, j in np.ndindex(2, 3, 5):
        distance = min(max(BEFORE[b, i] - j, 0), 4)
        gap = references.bucket(int(CANDIDATE_TIMES[b, i]) - int(TIMES[b, j]))
        expected = weights["distance_table"][distance] + weights["gap_bias/table"][gap, 0]
        assert output[b, 0, i, j] == pytest.approx(expected, abs=1e-6)
    own = weights["distance_table"][0] + weights["gap_bias/table"][0, 0]
    assert float(layer.own()) == pytest.approx(own)
    plain = RelativeBias(4, time_bias=False)
    shape = run(plain, {key: arrays[key] for key in ("query_place", "key_place")}).shape
    assert shape == (2, 1, 3, 5)
    assert float(plain.own()) == pytest.approx(weights_of(plain)["distance_table"][0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HSTUTargetBlock(1, 1, 1, 0), "`max_length` must"),
        (lambda: HSTUTargetBlock(1, 1, 1, 1, alpha=0.0), "`alpha` must"),
        (lambda: CandidatePositions("later", 3), "`kind` must be one of backward, shared, time_aware"),
        (lambda: CandidatePositions("shared", 1), "`num_positions` must"),
        (lambda: CandidatePositions("shared", 2, -1), "`num_time_buckets` must"),
        (lambda: RelativeBias(0), "`max_distance` must"),
    ],
)
def test_options_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
