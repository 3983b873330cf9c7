"""SEM against transformers that are run session by session, as its two equations are written."""

import numpy as np
import pytest

from tests.checks import check_layer, randomise, run
from tests.tfrec.layers import references
from tests.tfrec.layers.references import weights_below, weights_of
from tfrec.layers.session_enhancement import SessionEnhancement

pytestmark = pytest.mark.jax

SESSIONS = np.array([[1, 1, 2, 2, 2, 3], [1, 1, 1, 2, 0, 0]], np.int32)


def inputs(seed=0, width=8):
    x = np.random.default_rng(seed).normal(size=(2, 6, width)).astype("float32")
    return {"x": x, "session": SESSIONS}


def made(arrays, seed=0, **options):
    layer = SessionEnhancement(2, 6, 7, **options)
    run(layer, arrays)
    randomise(layer, seed)
    return layer


def blocks_of(weights, name, count, hidden, *, causal):
    valid = np.ones(len(hidden), bool)
    for index in range(count):
        below = weights_below(weights, f"{name}_{index}")
        tokens = 1 if causal else len(hidden)
        hidden = references.transformer_block(hidden, valid, below, heads=2, tokens=tokens, full=not causal)
    return hidden


def whole(x, session, weights, pooling, blocks):
    """One row: a transformer a session, then one over their summaries."""
    numbers = sorted(set(session[session > 0]))
    summaries = []
    for number in numbers:
        events = x[session == number]
        events = events + weights["place_in_session"][: len(events)]
        hidden = blocks_of(weights, "intra_block", blocks, np.vstack([weights["intra_cls"], events]), causal=False)
        summaries.append(hidden[0] + weights["session_place"][numbers[-1] - number])
    sequence = np.array(summaries)
    if pooling == "cls":
        sequence = np.vstack([weights["inter_cls"], sequence])
    related = blocks_of(weights, "inter_block", blocks, sequence, causal=False)
    context = related[0] if pooling == "cls" else related.mean(axis=0)
    return (x + weights["context_scale"] * context) * (session > 0)[:, None]


def running(x, session, weights, blocks):
    """One row: for each event the sequence of sessions that were closed before, and its own up to it."""
    output = np.zeros_like(x, np.float64)
    for t in np.flatnonzero(session):
        states = []
        for number in range(1, session[t] + 1):
            events = x[: t + 1][session[: t + 1] == number]
            hidden = blocks_of(
                weights, "intra_block", blocks, events + weights["place_in_session"][: len(events)], causal=True
            )
            states.append(hidden[-1] + weights["session_place"][number - 1])
        context = blocks_of(weights, "inter_block", blocks, np.array(states), causal=True)[-1]
        output[t] = x[t] + weights["context_scale"] * context
    return output


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_is_a_transformer_a_session_and_one_over_sessions(pooling):
    arrays = inputs()
    layer = made(arrays, pooling=pooling, num_intra_blocks=2, num_inter_blocks=2)
    output = run(layer, arrays)
    for row in range(2):
        expected = whole(arrays["x"][row], SESSIONS[row], weights_of(layer), pooling, 2)
        np.testing.assert_allclose(output[row], expected, atol=5e-5)


def test_causal_context_is_that_of_the_prefix():
    arrays = inputs()
    layer = made(arrays, causal=True, num_intra_blocks=2, num_inter_blocks=2)
    output = run(layer, arrays)
    for row in range(2):
        expected = running(arrays["x"][row], SESSIONS[row], weights_of(layer), 2)
        np.testing.assert_allclose(output[row], expected, atol=5e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_what_comes_later_is_seen_unless_causal(causal):
    arrays = inputs()
    layer = made(arrays, causal=causal)
    before = run(layer, arrays)
    changed = {**arrays, "x": arrays["x"].copy()}
    changed["x"][0, 4] += 1  # in the second of three sessions
    difference = np.abs(run(layer, changed) - before)[0].max(axis=-1)
    assert (difference[4:] > 1e-4).all()
    assert (difference[:4] < 1e-6).all() == causal
    np.testing.assert_array_equal(run(layer, changed)[1], before[1])


@pytest.mark.parametrize("causal", [False, True])
def test_padding_changes_nothing(causal):
    arrays = inputs()
    layer = made(arrays, causal=causal)
    short = {name: value[1:, :4] for name, value in arrays.items()}
    noisy = {**arrays, "x": arrays["x"].copy()}
    noisy["x"][1, 4:] = 100
    np.testing.assert_allclose(run(layer, short)[0], run(layer, noisy)[1, :4], atol=1e-5)
    assert not run(layer, noisy)[1, 4:].any()


def test_all_events_of_a_history_are_given_the_same_context():
    arrays = inputs()
    added = run(made(arrays), arrays) - arrays["x"]
    np.testing.assert_allclose(added[0], np.repeat(added[0, :1], 6, axis=0), atol=1e-5)


def test_fresh_contexts_do_not_drown_the_events():
    arrays = inputs(width=32)
    layer = SessionEnhancement(2, 6, 7)
    added = run(layer, arrays)[0] - arrays["x"][0]
    assert np.abs(np.linalg.norm(added, axis=-1) - 0.1 * np.sqrt(32)).max() < 0.01


def test_empty_history_stays_zero():
    arrays = {"x": np.ones((1, 3, 8), "float32"), "session": np.zeros((1, 3), np.int32)}
    for options in ({}, {"pooling": "mean"}, {"causal": True}):
        assert not run(made(arrays, **options), arrays).any()


@pytest.mark.parametrize("options", [{}, {"pooling": "mean"}, {"causal": True}])
def test_battery(options, tmp_path):
    layer = check_layer(lambda **kw: SessionEnhancement(2, 6, 7, **options, **kw), inputs(), (2, 6, 8), tmp_path)
    block = (8 * 24 + 24) + (8 * 8 + 8) + (8 * 6 + 6) + (6 * 8 + 8) + 2 * (8 + 8)
    tokens = {"cls": 2, "mean": 1}[options.get("pooling", "cls")] if not options.get("causal") else 0
    assert layer.count_params() == 2 * block + 2 * 7 * 8 + tokens * 8 + 8


def test_options_are_checked():
    with pytest.raises(ValueError, match="`pooling` must be"):
        SessionEnhancement(1, 4, 5, pooling="max")
    with pytest.raises(ValueError, match="`max_length` must be"):
        SessionEnhancement(1, 4, 0)
