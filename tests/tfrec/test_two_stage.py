"""Two models in one request: what the first retrieves, the second ranks; all against the runs, one after the other."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

import tfrec.export
from tests.exports import (
    answer,
    assert_nothing_is_copied,
    coded_as_users_are,
    make_ranking_run,
    make_run,
    strings,
    users,
)
from tfrec import parity
from tfrec.errors import UserError
from tfrec.export import export
from tfrec.stock_loader import ask
from tfrec.two_stage_export import TwoStageVersion, aligned

LOWEST = np.finfo(np.float32).min
ITEMS, RETRIEVED, K = 30, 8, 5


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("stages")
    settings = {"export": {"k": K, "candidates": RETRIEVED, "parity_users": 12}}
    run = make_run(root, config=settings, users=12, items=ITEMS, side_features=True)
    return run, make_ranking_run(root)


@pytest.fixture(scope="module")
def heard():
    return []


@pytest.fixture(scope="module")
def version(runs, heard):
    def listen(directory, requests, libraries):
        answers = ask(directory, requests, libraries)
        heard.extend(zip(requests, answers, strict=True))
        return answers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfrec.export, "ask", listen)
        (version,) = export(runs[0], runs[0].directory.parent / "models" / "shop", rank_with=runs[1])
    return version


@pytest.fixture(scope="module")
def signatures(version):
    return tf.saved_model.load(str(version)).signatures


def request(runs, *places, allow=None, deny=(), **options):
    ids = runs[0].dataset.catalogue().item_ids
    inputs = users([ids[place] for place in places], **options)
    if allow is None:
        return inputs
    filters = {name: np.array([[""]], object) for name in runs[0].schema.filter_inputs()}
    filters |= {"allow_item_ids": strings([[ids[place] for place in allow] or [""]])}
    return inputs | filters | {"deny_item_ids": strings([[ids[place] for place in deny] or [""]])}


def items_of(got):
    return [item.decode() for item in got["item_ids"][0]]


def ranked_by_hand(runs, signatures, asked, candidates):
    """Ids by falling score of `rank`, asked of all candidates one by one."""
    plain = {name: values for name, values in asked.items() if not name.startswith(("allow_", "deny_"))}
    scores = {
        item: float(answer(signatures["rank"], plain | {"candidate_ids": strings([[item]])})["score"][0, 0])
        for item in candidates
    }
    return sorted(scores.items(), key=lambda pair: -pair[1])


def test_the_ranker_orders_what_the_retriever_finds(runs, signatures):
    run, _ = runs
    asked = request(runs, 3, 4, 5)
    got = answer(signatures["recommend"], asked)
    everything = answer(signatures["recommend_filtered"], request(runs, 3, 4, 5, allow=[]))
    assert items_of(everything) == items_of(got)
    catalogue = run.dataset.catalogue()
    vectors = np.asarray(run.model.encode_items(np.arange(2, ITEMS + 2, dtype=np.int32)))
    coded = {"item": np.array([[3, 4, 5]], np.int32), "time": np.array([[0, 60, 120]], np.int32)}
    coded |= {"session": np.ones((1, 3), np.int32), "event_type": np.full((1, 3), 2, np.int32)}
    coded |= coded_as_users_are(run.schema, [3, 4, 5], catalogue.codes[[3, 4, 5], 1])
    coded["request_time"] = np.array([120], np.int32)
    scores = np.asarray(run.model.encode_users(coded))[0] @ vectors.T
    scores[[1, 2, 3]] = -np.inf
    retrieved = [catalogue.item_ids[2 + place] for place in np.argsort(-scores)[:RETRIEVED]]
    expected = ranked_by_hand(runs, signatures, asked, retrieved)[:K]
    assert items_of(got) == [item for item, _ in expected]
    np.testing.assert_allclose(got["scores"][0], [score for _, score in expected], rtol=1e-5)


def test_no_variable_is_copied_for_each_request(version):
    assert_nothing_is_copied(version)


def test_the_gate_compares_with_both_runs_and_the_loader(version, heard, signatures):
    manifest = json.loads((version / "manifest.json").read_text())
    assert (manifest["k"], manifest["candidates"]) == (K, RETRIEVED)
    assert manifest["labels"] == ["click", "cart"]
    assert manifest["ranker"]["model"]["name"] == "din"
    assert manifest["parity"]["queries"] > 0
    assert manifest["parity"]["cpp_loader"]["score_difference"] <= 1e-5
    assert {request.signature for request, _ in heard} == {
        "serving_default",
        "recommend",
        "recommend_filtered",
        "rank",
    }
    for asked, got in heard:
        expected = answer(signatures[asked.signature], asked.inputs)
        for name, values in got.items():
            if values.dtype == object:
                assert values.tolist() == expected[name].tolist()
            else:
                np.testing.assert_allclose(values, expected[name], rtol=1e-5, atol=1e-6)


def test_lists_are_heeded_and_answers_stay_full(runs, signatures):
    ids = runs[0].dataset.catalogue().item_ids
    allowed = [10, 11, 12, 13, 14, 15, 16]
    got = answer(signatures["recommend_filtered"], request(runs, 3, 4, allow=allowed, deny=[12]))
    assert len(set(items_of(got))) == K
    assert set(items_of(got)) <= {ids[place] for place in allowed if place != 12}
    few = answer(signatures["recommend_filtered"], request(runs, 3, 4, allow=[10, 11, 3]))
    assert set(items_of(few)) == {ids[10], ids[11], ""}
    assert (few["scores"][0, 2:] == LOWEST).all()
    others = answer(signatures["recommend_filtered"], request(runs, 3, 4, allow=[], deny=range(2, 20)))
    assert len(set(items_of(others)) & set(ids[20:])) == K


def test_a_new_user_gets_the_popular_in_the_rankers_order(runs, signatures):
    catalogue = runs[0].dataset.catalogue()
    pairs = sorted(zip(-catalogue.train_count[2:], range(ITEMS), strict=True))[:RETRIEVED]
    popular = [catalogue.item_ids[2 + place] for _, place in pairs]
    asked = request(runs)
    expected = ranked_by_hand(runs, signatures, asked, popular)[:K]
    assert items_of(answer(signatures["recommend"], asked)) == [item for item, _ in expected]


def test_what_comes_after_the_request_counts_in_neither_stage(runs, signatures):
    late = request(runs, 3, 4, 5, times=[[0, 60, 500]])
    early = request(runs, 3, 4, times=[[0, 60]])
    for inputs in (late, early):
        inputs["request_time"] = inputs["history_times"][:, 0] + 100
    got, expected = (answer(signatures["recommend"], inputs) for inputs in (late, early))
    assert items_of(got) == items_of(expected)


def test_rows_are_aligned_by_query(runs):
    run, ranking = runs
    wanted = parity.samples(ranking, run.config)
    for sample, batch in zip(wanted, aligned(parity.samples(run), wanted), strict=True):
        np.testing.assert_array_equal(batch["user"], sample.batch["user"])
        np.testing.assert_array_equal(batch["target"], sample.batch["target"])


def test_runs_that_do_not_fit_are_one_line(runs, tmp_path):
    run, ranking = runs
    for wrong, message in (
        ({"rank_with": run}, "a RetrievalModel; `--rank-with` needs a ranking run"),
        ({"rank_with": ranking, "index": "scann"}, "two stages are exported with `--index exact`"),
    ):
        with pytest.raises(UserError, match=message):
            export(run, tmp_path / "x", **wrong)
    with pytest.raises(UserError, match="a RankingModel; `--rank-with` needs a retrieval run to rank what it finds"):
        export(ranking, tmp_path / "x", rank_with=ranking)
    elsewhere = make_ranking_run(tmp_path, users=12, items=ITEMS, seed=5)
    with pytest.raises(UserError, match="trained on another dataset than"):
        TwoStageVersion.of(run, dataclasses.replace(elsewhere, config=run.config))
