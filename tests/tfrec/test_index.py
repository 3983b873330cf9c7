import numpy as np
import pytest
import tensorflow as tf

from tfrec.index import ExactSearch, ScannParameters, ScannSearch, build_search, exact_top, found_by, recall, tune

BRUTE = ScannParameters(leaves=0, leaves_to_search=0, reorder=0)


def clustered(rng, count, dim):
    """Vectors around 50 centres, as catalogues are; evenly spread ones have no neighbours to find."""
    centres = rng.normal(size=(50, dim))
    return (centres[rng.integers(50, size=count)] + 0.4 * rng.normal(size=(count, dim))).astype(np.float32)


def by_hand(scores, excluded, k):
    """Top-k by sorting pairs, with what is excluded taken out."""
    rows = []
    for row, out in zip(scores, excluded, strict=True):
        pairs = sorted(((-score, place) for place, score in enumerate(row) if place not in set(out)))[:k]
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

    def test_a_batch_without_rows_is_answered_by_none(self, make):
        positions, scores = make(np.eye(3, dtype=np.float32))(tf.zeros([0, 3]), 2, tf.zeros([0, 1], tf.int32))
        assert positions.shape == scores.shape == (0, 2)


def test_scann_makes_up_for_the_seen_items():
    rng = np.random.default_rng(2)
    vectors = clustered(rng, 12_000, 8)
    query = vectors[:1]
    best = np.argsort(-(query @ vectors.T))[:, :50].astype(np.int32)
    search = ScannSearch(vectors, ScannParameters(leaves=100, leaves_to_search=100, reorder=200))
    positions, scores = search(tf.constant(query), 10, tf.constant(best[:, :40]))
    assert set(positions.numpy()[0]) == set(best[0, 40:])
    assert (np.diff(scores.numpy()[0]) <= 0).all()


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
    assert 0 < described["leaves_to_search"] < described["leaves"]


def test_recall_by_hand():
    truth = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert recall(truth, np.array([[4, 9, 2, -1], [8, 7, 6, 5]])) == 6 / 8


def test_exact_top_equals_sorting():
    rng = np.random.default_rng(4)
    vectors, queries = (rng.normal(size=(size, 5)).astype(np.float32) for size in (30, 7))
    expected = [set(np.argsort(row)[-4:]) for row in queries @ vectors.T]
    assert [set(row) for row in exact_top(vectors, queries, 4, chunk=3)] == expected
