"""Exported ranking models: raw histories and candidates in, probabilities and scores out."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

import tfrec.export
from serving.app import ModelServer
from tests.datasets import TIME_ORIGIN
from tests.exports import LENGTH, answer, assert_nothing_is_copied, coded_as_users_are, make_ranking_run, strings, users
from tests.serving.saved_models import Client
from tfrec import publishing
from tfrec.errors import UsageError, UserError
from tfrec.export import export
from tfrec.ranking_export import RankingVersion, difference
from tfrec.ranking_signatures import RankingSignatures
from tfrec.stock_loader import ask

LOWEST = np.finfo(np.float32).min
WEIGHTS = {"click": 0.25, "cart": 2.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = {"export": {"score_weights": WEIGHTS, "parity_users": 12}}
    return make_ranking_run(tmp_path_factory.mktemp("ranking"), config=config, users=12, items=20, side_features=True)


@pytest.fixture(scope="module")
def heard():
    return []


@pytest.fixture(scope="module")
def version(run, heard):
    def listen(directory, requests, libraries):
        answers = ask(directory, requests, libraries)
        heard.extend(zip(requests, answers, strict=True))
        return answers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfrec.export, "ask", listen)
        (version,) = export(run, run.directory.parent / "models" / "ranker")
    return version


@pytest.fixture(scope="module")
def signatures(version):
    return tf.saved_model.load(str(version)).signatures


def request(run, candidates, *, history=(3, 4, 5), **options):
    ids = run.dataset.catalogue().item_ids
    names = [[item if isinstance(item, str) else ids[item] for item in row] for row in candidates]
    inputs = users(*[[ids[item] for item in history]] * len(candidates), **options)
    return inputs | {"candidate_ids": strings(names)}


def test_probabilities_are_those_of_the_model(run, signatures):
    got = answer(signatures["rank"], request(run, [[7, 2, "nobody knows it"]]))
    real = np.ones((1, 3), np.int32)
    batch = {
        "item": np.array([[3, 4, 5]], np.int32),
        "time": np.array([[0, 60, 120]], np.int32),
        "session": np.ones((1, 3), np.int32),
        "event_type": np.full((1, 3), 2, np.int32),
        "candidate": np.array([[7, 2, 1]], np.int32),
        "candidate_history": 3 * real,
        "candidate_time": 90_000 * real,
    }
    batch |= coded_as_users_are(run.schema, [3, 4, 5], run.dataset.catalogue().codes[[3, 4, 5], 1])
    for label, logits in run.model(batch).items():
        np.testing.assert_allclose(got[label], 1 / (1 + np.exp(-np.asarray(logits))), atol=1e-5)
    np.testing.assert_allclose(got["score"], 0.25 * got["click"] + 2 * got["cart"], rtol=1e-5)
    assert np.ptp(got["score"]) > 1e-3


def test_the_cpp_loader_answers_as_python_does(run, version, heard, signatures):
    assert {request.signature for request, _ in heard} == {"serving_default", "rank"}
    for asked, got in heard:
        expected = answer(signatures[asked.signature], asked.inputs)
        assert set(got) == set(expected) == {"click", "cart", "score"}
        for name, values in got.items():
            np.testing.assert_allclose(values, expected[name], rtol=1e-5, atol=1e-6)
    manifest = json.loads((version / "manifest.json").read_text())
    assert manifest["labels"] == ["click", "cart"]
    assert manifest["score_weights"] == WEIGHTS
    assert manifest["parity"]["queries"] == 12
    for name in ("saved_model", "cpp_loader"):
        assert 0 <= manifest["parity"][name]["probability_difference"] <= 1e-5
    assert (version / publishing.WARMUP).stat().st_size > 0


def test_no_variable_is_copied_for_each_request(version):
    assert_nothing_is_copied(version)


def test_padding_is_the_last_and_changes_nothing(run, signatures):
    whole = answer(signatures["rank"], request(run, [[7, "", 9], ["", "", ""]]))
    alone = answer(signatures["rank"], request(run, [[9, 7]]))
    for label in ("click", "cart"):
        assert whole[label][0, 1] == 0
        assert (whole[label][1] == 0).all()
        np.testing.assert_allclose(whole[label][0, [2, 0]], alone[label][0], atol=1e-6)
    assert whole["score"][0, 1] == LOWEST
    assert (whole["score"][1] == LOWEST).all()
    assert whole["score"][0, [0, 2]].min() > LOWEST


def test_unknown_candidates_and_events_are_unknown_items(run, signatures):
    got = answer(signatures["rank"], request(run, [["what", "is this", 5]]))
    np.testing.assert_array_equal(got["click"][0, 0], got["click"][0, 1])
    without = answer(signatures["rank"], request(run, [["what", 5]], history=()))
    for outputs in (got, without):
        assert all(np.isfinite(values).all() for values in outputs.values())


def test_what_comes_after_the_request_counts_for_nothing(run, signatures):
    asked = request(run, [[7, 8]], history=(3, 4, 5, 6), times=[[0, 60, 200, 90]])
    asked["request_time"] = np.array([TIME_ORIGIN + 90])
    got = answer(signatures["rank"], asked)
    before = request(run, [[7, 8]], history=(3, 4, 6), times=[[0, 60, 90]])
    before["request_time"] = asked["request_time"]
    expected = answer(signatures["rank"], before)
    for name, values in got.items():
        np.testing.assert_allclose(values, expected[name], atol=1e-6)
    later = answer(signatures["rank"], asked | {"request_time": asked["request_time"] + 200})
    assert np.abs(later["score"] - got["score"]).max() > 1e-4


def test_positions_past_the_length_and_events_before_the_window_do_not_matter(run, signatures):
    plain = answer(signatures["rank"], request(run, [[7, 8]]))
    padded = answer(signatures["rank"], request(run, [[7, 8]], history=(3, 4, 5, 9), length=[3]))
    np.testing.assert_allclose(padded["score"], plain["score"], rtol=1e-5)
    long = tuple(range(2, 2 + LENGTH + 4))
    ends = [answer(signatures["rank"], request(run, [[7, 8]], history=(first, *long[4:]))) for first in (2, 3)]
    whole = answer(signatures["rank"], request(run, [[7, 8]], history=long))
    np.testing.assert_allclose(ends[0]["score"], ends[1]["score"], rtol=1e-5)
    np.testing.assert_allclose(whole["score"], ends[0]["score"], rtol=1e-5)


def test_rows_of_candidates_are_those_of_histories(run, signatures):
    asked = request(run, [[7, 8]])
    asked["candidate_ids"] = np.repeat(asked["candidate_ids"], 2, axis=0)
    with pytest.raises(tf.errors.InvalidArgumentError, match="candidate_ids: must have as many rows as history_item"):
        answer(signatures["rank"], asked)


def test_the_server_gives_the_probabilities_over_rest_and_grpc(run, version, signatures):
    asked = request(run, [[7, 2, ""], [9, "unknown", 3]])
    expected = answer(signatures["rank"], asked)
    with ModelServer(version.parents[1], rest_port=0, grpc_port=0) as server:
        client = Client(server.rest_port, server.grpc_port)
        document = {"inputs": {name: values.tolist() for name, values in asked.items()}}
        by_rest = client.ok("/v1/models/ranker:predict", document)["outputs"]
        by_grpc = client.predict("ranker", **asked).outputs
        for name, values in expected.items():
            np.testing.assert_allclose(by_rest[name], values, rtol=1e-5)
            np.testing.assert_allclose(tf.make_ndarray(by_grpc[name]), values, rtol=1e-5)


def test_a_log_without_times_has_no_times_to_give(tmp_path):
    run = make_ranking_run(tmp_path, labels=("click",), has_time=False, users=12, items=20)
    made = RankingVersion.of(run)
    assert made.score_weights == {"click": 1.0}
    assert not {"history_times", "request_time"} & set(made.samples[0].request)
    module = RankingSignatures(run.schema, run.dataset.directory, run.model, score_weights=made.score_weights)
    rank = module.trace(run.model)["rank"]
    for sample in made.samples:
        assert difference(made.expected(sample.batch), answer(rank, sample.request), "graph") <= 1e-5


def test_wrong_weights_and_an_index_are_one_line(run):
    wrong = run.config.model_copy(
        update={"export": run.config.export.model_copy(update={"score_weights": {"carts": 1.0}})}
    )
    with pytest.raises(UsageError) as error:
        export(dataclasses.replace(run, config=wrong), run.directory.parent / "wrong")
    assert str(error.value) == "`export.score_weights.carts`: not a label of the model; did you mean `cart`?"
    with pytest.raises(UserError, match="a ranking model has no index; export it with `--index exact`"):
        export(run, run.directory.parent / "wrong", index="scann")
    assert publishing.versions(run.directory.parent / "wrong") == []


def test_an_answer_that_differs_is_refused():
    expected = {"click": np.array([[0.5, 0.25]])}
    assert difference(expected, {"click": np.array([[0.5, 0.25 + 1e-6]])}, "graph") == pytest.approx(1e-6)
    with pytest.raises(UserError, match=r"graph answers otherwise than the run \(`click` differs by 0.1, 1e-05 is"):
        difference(expected, {"click": np.array([[0.5, 0.35]])}, "graph")
