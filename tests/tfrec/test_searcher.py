import numpy as np
import pytest

from tests.tfrec.test_index import clustered
from tfrec.errors import UserError
from tfrec.manifest import verify
from tfrec.searcher import Searcher, write_vectors

COUNT, DIM, K = 12_000, 16, 20


@pytest.fixture(scope="module")
def vectors():
    return clustered(np.random.default_rng(0), COUNT, DIM).astype(np.float16)


@pytest.fixture(scope="module")
def queries():
    return clustered(np.random.default_rng(0), COUNT + 60, DIM)[COUNT:]


@pytest.fixture(scope="module")
def built(vectors, queries, tmp_path_factory):
    """Directories by kind of index."""
    root = tmp_path_factory.mktemp("indices")
    ids = [f"i{place}" for place in range(COUNT)]
    chunks = [vectors[start : start + 5000] for start in range(0, COUNT, 5000)]
    for kind in ("exact", "scann"):
        Searcher.build(root / kind, ids, chunks, kind=kind, queries=queries, k=K, target_recall=0.9, min_recall=0.5)
    return root


def best(queries, vectors, k, out=()):
    """Sets of positions by sorting every score in float64, without what is out."""
    scores = queries.astype(np.float64) @ vectors.astype(np.float64).T
    scores[:, list(out)] = -np.inf
    return [set(row) for row in np.argsort(-scores, axis=1)[:, :k].tolist()]


def share_found(found, expected):
    return np.mean([len(set(row) & wanted) / len(wanted) for row, wanted in zip(found.tolist(), expected, strict=True)])


def test_exact_index_finds_what_sorting_finds(built, vectors, queries):
    searcher = Searcher.open(built / "exact")
    positions, scores = searcher.search(queries, K)
    assert share_found(positions, best(queries, vectors, K)) == 1
    np.testing.assert_allclose(
        scores, np.take_along_axis(queries @ vectors.astype(np.float32).T, positions, 1), rtol=1e-5
    )
    assert [searcher.item_ids[place] for place in positions[0, :2]] == [f"i{place}" for place in positions[0, :2]]


def test_scann_index_says_what_it_finds(built, vectors, queries):
    searcher = Searcher.open(built / "scann")
    index = verify(built / "scann", whole=True)["index"]
    held_out = queries[1::2]
    reached = share_found(searcher.search(held_out, K)[0], best(held_out, vectors, K))
    assert index["recall"] == pytest.approx(reached, abs=0.002)
    assert searcher.recall(held_out, K) == pytest.approx(reached, abs=0.002)
    assert reached > 0.87
    assert 0 < index["leaves_to_search"] < index["leaves"]


def test_parameters_are_chosen_anew_without_building(built, vectors, queries, tmp_path):
    searcher = Searcher.open(built / "scann")
    narrow = searcher.tune(queries, K, 0.5)
    leaves = searcher.index["leaves_to_search"]
    reached = searcher.tune(queries, K, 1.0)
    held_out = queries[1::2]
    assert reached == pytest.approx(share_found(searcher.search(held_out, K)[0], best(held_out, vectors, K)), abs=0.002)
    assert 0.45 < narrow < reached
    assert reached > 0.99
    assert searcher.index["leaves_to_search"] > leaves
    saved = searcher.save(tmp_path / "tuned")
    assert saved.index["recall"] == reached
    assert saved.search(queries, K)[0].tolist() == searcher.search(queries, K)[0].tolist()
    assert Searcher.open(built / "exact").tune(queries, K, 0.5) == 1.0


@pytest.mark.parametrize("kind", ["exact", "scann"])
@pytest.mark.parametrize("share", [0.001, 0.01, 0.2])
def test_narrow_allow_lists_are_answered_by_the_true_best(built, vectors, queries, kind, share):
    allowed = np.flatnonzero(np.random.default_rng(1).random(COUNT) < share)
    out = np.setdiff1d(np.arange(COUNT), allowed)
    k = min(K, len(allowed))
    positions, scores = Searcher.open(built / kind).search(queries, K, allow=[f"i{place}" for place in allowed] + ["?"])
    assert share_found(positions[:, :k], best(queries, vectors, k, out)) == 1
    assert (positions[:, k:] == -1).all()
    assert np.isneginf(scores[:, k:]).all()


@pytest.mark.parametrize("kind", ["exact", "scann"])
def test_seen_and_denied_items_are_made_up_for(built, vectors, queries, kind):
    searcher = Searcher.open(built / kind)
    plain = searcher.search(queries, K)[0]
    denied = plain[0, :3].tolist()
    seen = [[f"i{place}" for place in row[: 2 * number]] for number, row in enumerate(plain[:6].tolist())]
    positions, _ = searcher.search(queries[:6], K, seen=seen, deny=[f"i{place}" for place in denied])
    assert (positions >= 0).all()
    for row, ids in zip(positions, seen, strict=True):
        assert not {f"i{place}" for place in row} & {*ids, *(f"i{place}" for place in denied)}
        assert len(set(row.tolist())) == K
    out = {int(one[1:]) for one in seen[5]} | set(denied)
    assert share_found(positions[5:], best(queries[5:6], vectors, K, out)) > 0.8


@pytest.mark.parametrize("kind", ["exact", "scann"])
def test_index_follows_new_changed_and_removed_items(built, vectors, queries, kind, tmp_path):
    searcher = Searcher.open(built / kind)
    rng = np.random.default_rng(2)
    new = clustered(rng, 900, DIM).astype(np.float16)
    ids = [f"new{place}" for place in range(600)] + [f"i{place}" for place in range(300)]
    searcher.upsert(ids, new)
    searcher.remove([f"i{place}" for place in range(200, 2000)] + ["unheard of"])
    gone = range(2000)
    everything = np.concatenate([vectors, new])
    removed = [*gone, *(COUNT + 600 + place for place in range(200, 300))]
    assert len(searcher) == COUNT + 900 - len(removed)
    expected = best(queries, everything, K, removed)
    found = searcher.search(queries, K)[0]
    assert not np.isin(found, removed).any()
    assert share_found(found, expected) > (0.85 if kind == "scann" else 0.999)
    assert searcher.recall(queries, K) == pytest.approx(share_found(found, expected), abs=0.002)
    saved = searcher.save(tmp_path / "saved")
    assert len(saved) == len(searcher) == len(saved.vectors)
    again = [[saved.item_ids[place] for place in row] for row in saved.search(queries, K)[0]]
    before = [[searcher.item_ids[place] for place in row] for row in found]
    if kind == "exact":
        assert again == before
    else:  # equal codes stand in another order, and the cut before reordering falls elsewhere
        alike = [len(set(one) & set(other)) / K for one, other in zip(again, before, strict=True)]
        assert np.mean(alike) > 0.97
    changed = saved.search(queries, 2, allow=["i7", "new3"])[0]
    assert {saved.item_ids[place] for place in changed[0]} == {"i7", "new3"}
    np.testing.assert_array_equal(saved.vectors[list(saved.item_ids).index("i7")], new[607])


class TestRefusals:
    def test_index_under_its_gate_is_not_written(self, vectors, queries, tmp_path):
        ids = [str(place) for place in range(COUNT)]
        with pytest.raises(
            UserError, match=r"recall of ScaNN is 0\.\d+, `min_recall` asks for 1; raise `target_recall`"
        ):
            Searcher.build(
                tmp_path / "x", ids, [vectors], kind="scann", queries=queries, k=K, target_recall=0.3, min_recall=1.0
            )
        assert list(tmp_path.iterdir()) == []

    def test_vectors_that_do_not_fit_their_ids(self, tmp_path):
        chunk = np.ones((3, 2), np.float32)
        with pytest.raises(UserError, match="3 vectors for 4 item ids"):
            write_vectors(tmp_path / "v.npy", [chunk], 4)
        with pytest.raises(UserError, match="more vectors than the 2 item ids"):
            write_vectors(tmp_path / "v.npy", [chunk], 2)
        with pytest.raises(UserError, match="not finite as float16"):
            write_vectors(tmp_path / "v.npy", [chunk * 1e6], 3)
        with pytest.raises(UserError, match=r"must be \(n, 2\)"):
            write_vectors(tmp_path / "v.npy", [chunk, np.ones((1, 3))], 4)
        with pytest.raises(UserError, match="an item id stands twice"):
            Searcher.build(tmp_path / "x", ["a", "a", "b"], [chunk])
