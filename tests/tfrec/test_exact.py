import numpy as np
import pytest

from tfrec import exact
from tfrec.exact import exact_search, merge_answers


@pytest.fixture(params=[(1000, 1000), (7, 2), (3, 256)], ids=str)
def blocks(request, monkeypatch):
    """Sizes of blocks that are one with the catalogue, or cut it oddly."""
    monkeypatch.setattr(exact, "_ITEMS_AT_ONCE", request.param[0])
    monkeypatch.setattr(exact, "_QUERIES_AT_ONCE", request.param[1])


def by_sorting(queries, vectors, k, allowed, excluded):
    rows = []
    for query, out in zip(queries, excluded, strict=True):
        scores = [(-float(np.dot(query, vectors[place])), place) for place in allowed if place not in out]
        best = sorted(scores)[:k]
        rows.append([place for _, place in best] + [-1] * (k - len(best)))
    return rows


@pytest.mark.parametrize("k", [1, 5, 40])
@pytest.mark.parametrize("filtered", [False, True])
def test_answers_are_those_of_sorting_every_pair(blocks, k, filtered):
    rng = np.random.default_rng(k)
    # Small whole numbers: their products are exact in float16 as in float32, and many are equal.
    vectors, queries = (rng.integers(-3, 4, (size, 3)) for size in (30, 5))
    places = np.flatnonzero(rng.random(30) < 0.4) if filtered else None
    excluded = np.array([[-1, -1], [0, 29], [4, -1], [5, 5], [7, 8]])
    positions, scores = exact_search(
        vectors.astype(np.float16), queries.astype(np.float32), k, places=places, excluded=excluded
    )
    allowed = range(30) if places is None else places.tolist()
    assert positions.tolist() == by_sorting(queries, vectors, k, allowed, excluded.tolist())
    found = positions >= 0
    expected = (queries[:, None] * vectors[positions]).sum(axis=2)
    assert (scores[found] == expected[found]).all()
    assert np.isneginf(scores[~found]).all()


def test_nothing_to_search_is_answered_by_nothing():
    positions, scores = exact_search(
        np.ones((4, 2), np.float32),
        np.ones((2, 2), np.float32),
        3,
        places=np.zeros(0, np.int64),
        excluded=np.ones((2, 1)),
    )
    assert (positions == -1).all()
    assert np.isneginf(scores).all()


def test_vectors_on_disk_are_searched_as_those_in_memory(tmp_path, blocks):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(50, 8)).astype(np.float16)
    np.save(tmp_path / "vectors.npy", vectors)
    queries = rng.normal(size=(3, 8)).astype(np.float32)
    mapped = exact_search(np.load(tmp_path / "vectors.npy", mmap_mode="r"), queries, 6)
    assert mapped[0].tolist() == exact_search(vectors, queries, 6)[0].tolist()


def test_answers_are_merged_by_score():
    first = np.array([[4, 9, -1]]), np.array([[3.0, 1.0, -np.inf]], np.float32)
    second = np.array([[2, 7]]), np.array([[3.0, 2.0]], np.float32)
    positions, scores = merge_answers([first, second], 3)
    assert positions.tolist() == [[2, 4, 7]]
    assert scores.tolist() == [[3.0, 3.0, 2.0]]
