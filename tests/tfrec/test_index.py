import numpy as np
import pytest
import tensorflow as tf

from tfrec.index import ExactSearch, ScannSearch, build_search, found_by, top_k, tune
from tfrec.tuning import ScannParameters

BRUTE = ScannParameters(leaves=0, leaves_to_search=0, reorder=0)


def clustered(rng, count, dim):
    """Vectors around 50 centres, as catalogues are; evenly spread ones have no neighbours to find."""
    centres = rng.normal(size=(50, dim))
    return (centres[rng.integers(50, size=count)] + 0.4 * rng.normal(size=(count, dim))).astype(np.float32)


def by_hand(scores, excluded, k):
    """Top-k by sorting pairs, with what is excluded taken out."""
    rows = []
    for row, out in zip(scores, excluded, strict=True):
        gone = set(out)
        pairs = sorted((-score, place) for place, score in enumerate(row) if place not in gone)[:k]
        rows.append([place for _, place in pairs])
    return rows


@pytest.mark.parametrize("make", [ExactSearch, lambda vectors: ScannSearch(vectors, BRUTE)], ids=["exact", "scann"])
class TestSearches:
    def test_top_k_equals_sorting_every_score(self, make):
        rng = np.random.default_rng(0)
        vectors, queries = (rng.normal(size=(size, 6)).astype(np.float32) for size in (40, 5))
        excluded = np.array([[-1, -1, -1], [3, 3, -1], [0, 39, 7], [-1, 5, 5], [-2, -1, 11]], np.int32)
        positions, scores = make(vectors)(tf.constant(queries), 7, tf.constant(excluded))
        assert positions.numpy().tolist() == by_hand(queries @ vectors.T, excluded, 7)
        expected = np.take_along_axis(queries @ vectors.T, positions.numpy(), axis=1)
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)

    def test_one_query_is_answered_as_among_others(self, make):
        rng = np.random.default_rng(9)
        vectors, queries = (rng.normal(size=(size, 6)).astype(np.float32) for size in (1000, 3))
        search, excluded = make(vectors), np.array([[1, 2], [-1, -1], [999, 0]], np.int32)
        for row in range(3):
            one = slice(row, row + 1)
            positions, scores = search(tf.constant(queries[one]), 8, tf.constant(excluded[one]))
            assert positions.numpy().tolist() == by_hand(queries[one] @ vectors.T, excluded[one], 8)
            np.testing.assert_allclose(
                scores[0], (queries[row] @ vectors.T)[positions.numpy()[0]], rtol=1e-5, atol=1e-6
            )

    def test_nearest_is_by_cosine_without_the_item_itself(self, make):
        rng = np.random.default_rng(1)
        vectors = (rng.normal(size=(30, 4)) * rng.uniform(0.1, 9, size=(30, 1))).astype(np.float32)
        units = vectors / np.sqrt((vectors**2).sum(axis=1, keepdims=True))
        asked = np.array([4, 0, 29], np.int32)
        positions, cosines = make(vectors).nearest(tf.constant(asked), 5)
        assert positions.numpy().tolist() == by_hand(units[asked] @ units.T, asked[:, None], 5)
        np.testing.assert_allclose(cosines, [sorted(units[a] @ units.T)[-2:-7:-1] for a in asked], rtol=1e-5)

    def test_what_is_not_there_scores_minus_infinity(self, make):
        vectors = np.eye(3, dtype=np.float32)
        positions, scores = make(vectors)(tf.ones([1, 3]), 3, tf.constant([[0, 2, -1]]))
        assert positions.numpy()[0, 0] == 1
        assert scores.numpy().tolist() == [[1.0, -np.inf, -np.inf]]

    def test_what_is_not_allowed_is_left_out(self, make):
        rng = np.random.default_rng(5)
        vectors, queries = (rng.normal(size=(size, 6)).astype(np.float32) for size in (40, 3))
        allowed = rng.random((3, 40)) < np.array([[0.2], [0.6], [1.0]])
        excluded = np.array([[int(np.flatnonzero(allowed[0])[0])], [-1], [7]], np.int32)
        positions, scores = make(vectors)(tf.constant(queries), 9, tf.constant(excluded), tf.constant(allowed.T))
        out = [{*np.flatnonzero(~row), *some} for row, some in zip(allowed, excluded, strict=True)]
        for place, expected in enumerate(by_hand(queries @ vectors.T, out, 9)):
            assert positions.numpy()[place, : len(expected)].tolist() == expected
            assert np.isneginf(scores.numpy()[place, len(expected) :]).all()

    def test_a_batch_without_rows_is_answered_by_none(self, make):
        positions, scores = make(np.eye(3, dtype=np.float32))(tf.zeros([0, 3]), 2, tf.zeros([0, 1], tf.int32))
        assert positions.shape == scores.shape == (0, 2)


@pytest.mark.parametrize(("count", "k"), [(1000, 10), (1009, 3), (640, 10), (639, 10), (7, 7), (200, 1)])
def test_top_k_in_two_steps_puts_equal_scores_in_the_order_of_positions(count, k):
    rng = np.random.default_rng(count)
    scores = rng.integers(0, 9, size=(6, count)).astype(np.float32)
    scores[1] = -np.inf
    scores[2, k // 2 :] = -np.inf
    scores[3] = np.arange(count)
    scores[4] = -np.arange(count)
    best, positions = top_k(tf.constant(scores.T), k)
    assert positions.numpy().tolist() == by_hand(scores, [()] * 6, k)
    assert best.numpy().tolist() == np.take_along_axis(scores, positions.numpy(), axis=1).tolist()


def test_scann_makes_up_for_the_seen_items():
    rng = np.random.default_rng(2)
    vectors = clustered(rng, 12_000, 8)
    query = vectors[:1]
    best = np.argsort(-(query @ vectors.T))[:, :50].astype(np.int32)
    search = ScannSearch(vectors, ScannParameters(leaves=100, leaves_to_search=100, reorder=200))
    positions, scores = search(tf.constant(query), 10, tf.constant(best[:, :40]))
    assert set(positions.numpy()[0]) == set(best[0, 40:])
    assert (np.diff(scores.numpy()[0]) <= 0).all()


@pytest.fixture(scope="module")
def narrow():
    """A tree of which a query looks into one leaf of a hundred."""
    vectors = clustered(np.random.default_rng(6), 10_000, 8)
    return vectors, ScannSearch(vectors, ScannParameters(leaves=100, leaves_to_search=1, reorder=20))


@pytest.mark.parametrize("share", [0.01, 0.2])
def test_scann_answers_narrow_filters_exactly(narrow, share):
    vectors, search = narrow
    rng = np.random.default_rng(7)
    queries, allowed = clustered(rng, 4, 8), rng.random((4, 10_000)) < share
    nothing = tf.fill([4, 1], -1)
    positions, scores = search(tf.constant(queries), 20, nothing, tf.constant(allowed.T))
    assert positions.numpy().tolist() == by_hand(queries @ vectors.T, [np.flatnonzero(~row) for row in allowed], 20)
    assert np.isfinite(scores).all()


def test_scann_returns_k_items_where_the_leaves_looked_into_hold_too_few_that_are_allowed(narrow):
    vectors, search = narrow
    query = vectors[:1]
    near = np.argsort(-(query @ vectors.T)[0])[:3000]
    allowed = np.ones((1, 10_000), bool)
    allowed[0, near] = False
    positions, _ = search(tf.constant(query), 20, tf.fill([1, 1], -1), tf.constant(allowed.T))
    assert positions.numpy().tolist() == by_hand(query @ vectors.T, [near], 20)


def test_scann_under_a_wide_filter_answers_allowed_items_alone(narrow):
    vectors, search = narrow
    rng = np.random.default_rng(8)
    queries, allowed = vectors[:5], rng.random((5, 10_000)) < 0.6
    positions, scores = search(tf.constant(queries), 10, tf.fill([5, 1], -1), tf.constant(allowed.T))
    found = positions.numpy()
    assert np.take_along_axis(allowed, found, axis=1).all()
    assert [len(set(row)) for row in found.tolist()] == [10] * 5
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ vectors.T, found, axis=1), rtol=1e-5)


def test_small_catalogues_are_scored_whole():
    assert tune(np.ones((9_999, 4), np.float32), np.ones((2, 4), np.float32), 10, 0.9).parameters == BRUTE
    assert tune(np.ones((20_000, 1), np.float32), np.ones((2, 1), np.float32), 10, 0.9).parameters == BRUTE


def test_scann_reaches_the_target_recall_without_searching_every_leaf():
    rng = np.random.default_rng(3)
    vectors, queries = clustered(rng, 15_000, 16), clustered(rng, 100, 16)
    search, described = build_search(vectors, queries, "scann", k=20, target_recall=0.9)
    unseen = queries[1::2]
    expected = [set(row) for row in by_hand(unseen @ vectors.T, [()] * 50, 20)]
    found = [set(row) for row in found_by(search, unseen, 20)]
    assert np.mean([len(one & other) / 20 for one, other in zip(expected, found, strict=True)]) > 0.85
    assert described["kind"] == "scann"
    assert described["held_out_recall"] > 0.85
    assert 0 < described["leaves_to_search"] < described["leaves"]
