"""PGSA against a loop over candidates, and its sparse path against the dense one."""

import math

import keras
import numpy as np
import pytest
from keras import ops

from tests.checks import check_layer, gradients, randomise, run, to_numpy
from tfrec.layers.hstu_target_block import HSTUTargetBlock
from tfrec.layers.pointwise_attention import gather_places
from tfrec.layers.preference_guided_sparse_attention import PreferenceGuidedSparseAttention

pytestmark = pytest.mark.jax

LENGTH = 24


def inputs(seed=0, candidates=3, width=4):
    rng = np.random.default_rng(seed)
    before = np.array([[24, 20, 7], [12, 2, 0]])[:, :candidates]  # events before each candidate
    return {
        "candidate": rng.normal(size=(2, candidates, width)).astype("float32"),
        "history": rng.normal(size=(2, LENGTH, width)).astype("float32"),
        "valid_mask": np.arange(LENGTH) < before[..., None],
    }


def loop(arrays, anchors, sigma, *, cosine=False, total=False, cut=None):
    rows, candidates, length = arrays["valid_mask"].shape
    mask = np.zeros((rows, candidates, length))
    for b in range(rows):
        for c in range(candidates):
            places = np.flatnonzero(arrays["valid_mask"][b, c])
            query = arrays["candidate"][b, c].astype(np.float64)
            keys = arrays["history"][b].astype(np.float64)
            if cosine:
                query, keys = query / np.linalg.norm(query), keys / np.linalg.norm(keys, axis=1, keepdims=True)
            nearest = sorted(places, key=lambda j, q=query, k=keys: (-float(q @ k[j]), j))[:anchors]
            for j in places:
                gauss = [math.exp(-((j - a) ** 2) / (2 * sigma**2)) for a in nearest]
                if cut is not None:
                    near = [abs(j - a) <= math.ceil(cut * sigma) for a in nearest]
                    gauss = [value if close else 0.0 for value, close in zip(gauss, near, strict=True)]
                mask[b, c, j] = min(sum(gauss), 1.0) if total else max(gauss)
    return mask


@pytest.mark.parametrize("options", [{}, {"similarity": "cosine"}, {"combine": "sum"}])
@pytest.mark.parametrize("cut", [None, 1.5])
def test_mask_is_the_loop(options, cut):
    arrays = inputs()
    output = run(PreferenceGuidedSparseAttention(3, 1.3, cut=cut, **options), arrays)
    expected = loop(arrays, 3, 1.3, cosine="similarity" in options, total="combine" in options, cut=cut)
    np.testing.assert_allclose(output, expected, atol=1e-6)
    assert output[0, 0].min() < 0.5 < output[0, 0].max() == 1


def test_a_hand_figure():
    history = np.zeros((1, 7, 1), "float32")
    history[0, 2] = 1.0
    arrays = {"candidate": np.ones((1, 1, 1), "float32"), "history": history, "valid_mask": np.ones((1, 1, 7), bool)}
    output = run(PreferenceGuidedSparseAttention(1, 2.0, cut=1.0), arrays)[0, 0]
    np.testing.assert_allclose(output, [0.6065307, 0.8824969, 1, 0.8824969, 0.6065307, 0, 0], atol=1e-6)


@pytest.mark.parametrize("combine", ["max", "sum"])
def test_selected_places_carry_the_whole_mask(combine):
    arrays = inputs()
    layer = PreferenceGuidedSparseAttention(3, 0.6, combine=combine)
    dense = run(layer, arrays)
    place, weight = (to_numpy(each) for each in layer.select(**arrays))
    assert place.shape == weight.shape == (2, 3, layer.max_places) == (2, 3, 3 * (2 * 2 + 1))
    spread = np.zeros_like(dense)
    for b, c in np.ndindex(2, 3):
        used = weight[b, c] > 0
        assert len(set(place[b, c][used])) == used.sum()
        assert (np.diff(place[b, c][used]) > 0).all()
        spread[b, c, place[b, c][used]] = weight[b, c][used]
    np.testing.assert_allclose(spread, dense, atol=1e-6)


def test_fewer_events_than_anchors():
    arrays = inputs()
    for layer in (PreferenceGuidedSparseAttention(8, 0.5), PreferenceGuidedSparseAttention(30, 0.5)):
        output = run(layer, arrays)
        np.testing.assert_array_equal(output[1, 1] > 0, arrays["valid_mask"][1, 1])
        assert not output[1, 2].any()
        assert not to_numpy(layer.select(**arrays)[1])[1, 2].any()


def test_an_event_after_the_candidate_changes_nothing():
    arrays = inputs()
    layer = PreferenceGuidedSparseAttention(3, 1.0)
    changed = {**arrays, "history": arrays["history"].copy()}
    changed["history"][0, 7:] *= -5
    np.testing.assert_array_equal(run(layer, changed)[0, 2], run(layer, arrays)[0, 2])


def state_of(blocks, guide, arrays, *, sparse):
    """The candidate's state where every row of attention is guided (scope `all`)."""
    candidate, history, valid = (arrays[name] for name in ("candidate", "history", "valid_mask"))
    if sparse:
        place, mask = guide.select(candidate, history, valid)
        history = gather_places(history, place)
    else:
        mask = guide(candidate, history, valid)
    for block in blocks:
        made = block(history, candidate, mask[:, 0] > 0, mask, weight=mask[:, 0])
        history, candidate = made["history"], made["candidate"]
    return candidate


def test_sparse_attention_is_dense_attention_under_the_same_cut():
    arrays = inputs(candidates=1, width=6)
    guide = PreferenceGuidedSparseAttention(2, 1.0)
    assert guide.max_places == 14 < LENGTH
    blocks = [HSTUTargetBlock(2, 3, 3, max_length=LENGTH, name=f"block_{index}") for index in range(2)]
    model = keras.Sequential(blocks)
    state_of(blocks, guide, arrays, sparse=False)
    for index, block in enumerate(blocks):
        randomise(block, index)
    dense, sparse = (to_numpy(state_of(blocks, guide, arrays, sparse=each)) for each in (False, True))
    np.testing.assert_allclose(sparse, dense, atol=1e-5)
    assert np.abs(dense).max() > 0.1
    slopes = [
        gradients(model, lambda each=each: ops.sum(ops.square(state_of(blocks, guide, arrays, sparse=each))))
        for each in (False, True)
    ]
    for path, slope in slopes[0].items():
        np.testing.assert_allclose(slopes[1][path], slope, rtol=1e-4, atol=1e-4, err_msg=path)


def test_battery(tmp_path):
    layer = check_layer(
        lambda **kw: PreferenceGuidedSparseAttention(3, 1.3, similarity="cosine", combine="sum", cut=2.0, **kw),
        inputs(),
        (2, 3, LENGTH),
        tmp_path,
    )
    assert layer.count_params() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_anchors": 0}, "`num_anchors` must"),
        ({"sigma": 0.0}, "`sigma` must"),
        ({"cut": -1.0}, "`cut` must"),
        ({"similarity": "l2"}, "`similarity` must"),
        ({"combine": "mean"}, "`combine` must"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        PreferenceGuidedSparseAttention(**{"num_anchors": 2, "sigma": 1.0, **options})


def test_there_is_no_selection_without_a_cut():
    with pytest.raises(ValueError, match="`cut` must be a number"):
        PreferenceGuidedSparseAttention(2, 1.0, cut=None).select(**inputs())
