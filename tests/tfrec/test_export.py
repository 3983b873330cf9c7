import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.datasets import TIME_ORIGIN
from tests.exports import LENGTH, K, answer, make_run, raw_items, strings, users
from tfrec import parity, publishing
from tfrec.coders import VocabularyCoder
from tfrec.errors import UserError
from tfrec.evaluation import evaluate, recommend
from tfrec.export import export
from tfrec.graph import HistoryEncoder
from tfrec.manifest import published, verify
from tfrec.runs import build_model
from tfrec.stock_loader import LoaderError, Request, ask, scann_library


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def run(root):
    return make_run(root, side_features=True, config={"features": {"request_time": True}})


@pytest.fixture(scope="module")
def versions(run, root):
    """The exact version, moved after it was published, and the ScaNN one."""
    evaluate(run).write(run.directory)
    exact, scann = export(run, root / "first" / "shop", index="scann")
    assert (exact, scann) == (root / "first/shop/1", root / "first/shop_scann/1")
    (root / "models").mkdir()
    (root / "first" / "shop").rename(root / "models" / "shop")
    return root / "models" / "shop" / "1", scann


@pytest.fixture(scope="module")
def signatures(versions):
    return tf.saved_model.load(str(versions[0])).signatures


def test_lists_are_those_of_the_run(run, signatures):
    ids = run.dataset.catalogue().item_ids[2:]
    # The run's own way cannot be told event and user features, so they are unknown here too.
    inputs = users(ids[3:7]) | {"user_segment": np.array([""], object), "user_tags": strings([[""] * 3])}
    inputs["event_device"] = inputs["event_network"] = strings([[""] * 4])
    inputs["event_topics"] = np.full((1, 4, 2), "", object)
    got = answer(signatures["recommend"], inputs)
    times = (TIME_ORIGIN + 60 * np.arange(4)).tolist()
    expected = recommend(run, ids[3:7], times=times, event_types=["view"] * 4, request_time=TIME_ORIGIN + 90_000, k=K)
    assert [item.decode() for item in got["item_ids"][0]] == [item for item, _ in expected]
    np.testing.assert_allclose(got["scores"][0], [score for _, score in expected], rtol=1e-5)


@pytest.mark.parametrize("which", ["run", "plain_run"])
def test_graph_makes_the_batch_that_training_code_makes(which, request):
    run = request.getfixturevalue(which)
    directory, schema = run.dataset.directory, run.schema
    items = VocabularyCoder(schema.item_vocabulary, directory)
    encode = HistoryEncoder(
        schema,
        directory,
        items,
        length=run.model.history_length,
        request_time=run.model.request_time,
        item_codes=run.dataset.catalogue().codes,
    )
    for one in parity.samples(run):
        inputs = {name: tf.constant(value.tolist(), value.dtype.type) for name, value in one.request.items()}
        batch, seen = encode(inputs)
        width = one.batch["item"].shape[1]
        others = {"seen", "user", "target", "target_time", "label_liked"}
        assert set(batch) == set(one.batch) - others
        for name, values in batch.items():
            got = values.numpy()
            if name != "request_time" and not name.startswith("user_"):
                assert not got[:, width:].any()
                got = got[:, :width]
            np.testing.assert_array_equal(got, one.batch[name], err_msg=name)
        longest = (one.batch["seen"] != 0).sum(axis=1).max()
        np.testing.assert_array_equal(seen.numpy()[:, :longest], one.batch["seen"][:, :longest])


def test_positions_past_the_length_and_order_of_events_do_not_matter(run, signatures):
    ids = run.dataset.catalogue().item_ids[2:]
    plain = answer(signatures["recommend"], users(ids[:3]))
    padded = answer(signatures["recommend"], users([*ids[:3], ids[0], ids[20]], length=[3]))
    shuffled = answer(signatures["recommend"], users([ids[2], ids[0], ids[1]], times=[[120, 0, 60]]))
    for other in (padded, shuffled):
        assert other["item_ids"].tolist() == plain["item_ids"].tolist()
        np.testing.assert_allclose(other["scores"], plain["scores"], rtol=1e-5)


def test_long_history_is_encoded_by_its_end_and_seen_whole(run, signatures):
    ids = run.dataset.catalogue().item_ids[2:]
    long, end = users(ids[:20]), users(ids[20 - LENGTH : 20], times=[60 * np.arange(20 - LENGTH, 20)])
    vectors = [answer(signatures["encode_user"], inputs)["vector"] for inputs in (long, end)]
    np.testing.assert_allclose(*vectors, rtol=1e-5, atol=1e-6)
    recommended = {item.decode() for item in answer(signatures["recommend"], long)["item_ids"][0]}
    assert len(recommended) == K
    assert not recommended & set(ids[:20])


def test_empty_history_gets_what_is_popular(run, signatures):
    catalogue = run.dataset.catalogue()
    pairs = sorted(zip(-catalogue.train_count[2:], range(len(catalogue.train_count)), strict=False))[:K]
    total = catalogue.train_count.sum()
    for inputs in (users([]), users(["", ""]), users([catalogue.item_ids[5]], length=[0])):
        got = answer(signatures["recommend"], inputs)
        assert [item.decode() for item in got["item_ids"][0]] == [catalogue.item_ids[2 + place] for _, place in pairs]
        np.testing.assert_allclose(got["scores"][0], [-count / total for count, _ in pairs], rtol=1e-6)


def filtered(signatures, inputs, **filters):
    """Asks `recommend_filtered`; filters that are not given say nothing."""
    rows = len(inputs["history_item_ids"])
    names = signatures["recommend_filtered"].structured_input_signature[1]
    nothing = {name: np.full((rows, 1), "", object) for name in names if name.startswith(("allow_", "deny_"))}
    return answer(signatures["recommend_filtered"], inputs | nothing | filters)


def test_filters_leave_the_best_of_the_allowed_items(run, signatures):
    catalogue = run.dataset.catalogue()
    ids, codes = catalogue.item_ids[2:], catalogue.codes[2:]
    inputs = users(ids[:3], ids[5:7], [])
    whole = answer(signatures["recommend"], inputs)
    assert filtered(signatures, inputs)["item_ids"].tolist() == whole["item_ids"].tolist()
    vectors = np.asarray(run.model.encode_items(np.arange(2, len(ids) + 2)))
    scores = answer(signatures["encode_user"], inputs)["vector"] @ vectors.T
    scores[2] = catalogue.train_count[2:]  # nothing is known of the last user
    brands = ["", "", *run.schema.feature("brand").transform.read(run.dataset.directory)]
    brand = codes[:, run.schema.item_columns()["brand"]][:, 0]
    few, most = strings([ids[10:14], [ids[20]], [ids[3], "who?"]]), strings([[]] * 2 + [ids[:30]])
    some = strings([[brands[2]], [brands[3], brands[4], "unheard of"], [""]])
    cases = {
        "allow_item_ids": (few, lambda row, place: ids[place] in few[row]),
        "deny_item_ids": (most, lambda row, place: ids[place] not in most[row]),
        "allow_brand": (some, lambda row, place: row == 2 or brands[brand[place]] in [one for one in some[row] if one]),
    }
    for name, (values, passes) in cases.items():
        got = filtered(signatures, inputs, **{name: values})["item_ids"]
        for row, seen in enumerate((ids[:3], ids[5:7], [])):
            kept = [place for place in range(len(ids)) if passes(row, place) and ids[place] not in seen]
            expected = [ids[place] for place in sorted(kept, key=lambda place: -scores[row, place])[:K]]
            assert [item.decode() for item in got[row] if item] == expected, (name, row)


def test_one_row_of_filters_counts_for_all_and_another_number_is_refused(run, signatures):
    ids = run.dataset.catalogue().item_ids[2:]
    inputs = users(ids[:3], ids[5:7])
    got = filtered(signatures, inputs, deny_item_ids=strings([ids[:25]]))["item_ids"]
    assert {item.decode() for row in got for item in row if item} == set(ids[25:])
    unknown = filtered(signatures, inputs, allow_item_ids=strings([["who?"]] * 2))["item_ids"]
    assert set(unknown.ravel()) == {b""}
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="deny_item_ids: must have as many rows as history_item_ids"
    ):
        filtered(signatures, inputs, deny_item_ids=strings([["a"]] * 3))


def test_unknown_items_stay_in_the_history(signatures, run):
    ids = run.dataset.catalogue().item_ids[2:]
    without, known = users(ids[:2]), users([*ids[:2], "brand new"])
    vectors = [answer(signatures["encode_user"], inputs)["vector"] for inputs in (without, known)]
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


def test_where_few_items_remain_the_rest_is_empty_and_finite(run, signatures):
    ids = run.dataset.catalogue().item_ids[2:]
    got = answer(signatures["recommend"], users(ids[:-3]))
    assert {item.decode() for item in got["item_ids"][0, :3]} == set(ids[-3:])
    assert got["item_ids"][0, 3:].tolist() == [b""] * (K - 3)
    assert json.loads(json.dumps(got["scores"][0, 3:].tolist(), allow_nan=False)) == [-3.4028234663852886e38] * (K - 3)


def test_similar_items_are_by_cosine_without_the_item(run, signatures):
    ids = run.dataset.catalogue().item_ids[2:]
    vectors = np.asarray(run.model.encode_items(np.arange(2, len(ids) + 2)))
    units = vectors / np.sqrt((vectors**2).sum(axis=1, keepdims=True))
    order = [place for place in np.argsort(-(units @ units[4]), kind="stable") if place != 4][:K]
    got = answer(signatures["similar_items"], {"item_ids": np.array([ids[4], "who?"], object)})
    assert [item.decode() for item in got["item_ids"][0]] == [ids[place] for place in order]
    np.testing.assert_allclose(got["scores"][0], (units @ units[4])[order], rtol=1e-4, atol=1e-5)
    assert got["item_ids"][1].tolist() == [b""] * K


def test_items_are_encoded_from_their_raw_features(run, signatures):
    places = list(range(2, 42))
    got = answer(signatures["encode_item"], raw_items(run, places))["vector"]
    np.testing.assert_allclose(got, run.model.encode_items(np.array(places)), rtol=1e-5, atol=1e-6)


def test_new_item_has_the_vector_of_its_features_with_an_unknown_id(root, run, signatures):
    raw = raw_items(run, [8, 9]) | {"item_id": np.array(["new-1", "new-2"], object)}
    got = answer(signatures["encode_item"], raw)["vector"]
    catalogue = run.dataset.catalogue()
    codes = catalogue.codes.copy()
    codes[[8, 9], 0] = 1
    other = build_model(run.config, run.dataset)
    other.load_weights(run.directory / "model.weights.h5")
    other.set_catalogue(codes, catalogue.train_count, catalogue.vectors)
    np.testing.assert_allclose(got, other.encode_items(np.array([8, 9])), rtol=1e-5, atol=1e-6)
    assert np.abs(got - run.model.encode_items(np.array([8, 9]))).max() > 1e-3


def operations(version):
    from tensorflow.core.protobuf import saved_model_pb2

    graph = saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes()).meta_graphs[0].graph_def
    functions = [node.op for function in graph.library.function for node in function.node_def]
    return {node.op for node in graph.node} | set(functions)


@pytest.mark.conformance("L4")
def test_exact_export_holds_no_scann_and_no_python_ops(versions):
    exact, scann = operations(versions[0]), operations(versions[1])
    assert {op for op in exact if op.startswith("Scann>")} == set()
    assert "Scann>ScannSearchBatched" in scann
    assert {op for op in exact | scann if "PyFunc" in op} == set()


@pytest.mark.conformance("L3")
def test_scann_export_needs_its_ops_library_and_then_finds_the_same(run, versions):
    ids = run.dataset.catalogue().item_ids[2:]
    requests = [
        Request("recommend", users(ids[:4], [], ids[:-3])),
        Request("similar_items", {"item_ids": np.array([ids[3], "who?"], object)}),
    ]
    with pytest.raises(LoaderError, match="Op type not registered 'Scann>"):
        ask(versions[1], requests)
    exact = ask(versions[0], requests)
    for one, other in zip(exact, ask(versions[1], requests, [scann_library()]), strict=True):
        assert one["item_ids"].tolist() == other["item_ids"].tolist()
        np.testing.assert_allclose(one["scores"], other["scores"], rtol=1e-5, atol=1e-6)


def test_manifests_tell_where_the_siblings_come_from(run, versions):
    exact, scann = (verify(version, whole=True) for version in versions)
    assert exact["run"] == scann["run"]
    record = json.loads((run.directory / "run.json").read_text())
    assert exact["run"]["weights"] == record["weights"]
    assert exact["dataset"] == record["dataset"]
    assert exact["parity"]["queries"] == len(parity.samples(run)[0].batch["user"]) > 40
    for who in ("saved_model", "cpp_loader"):
        assert exact["parity"][who]["score_difference"] <= 1e-5
    assert (exact["index"]["kind"], scann["index"]["kind"]) == ("exact", "scann")
    assert scann["index"]["recall"] == 1.0
    assert exact["evaluation"]["metrics"] == json.loads((run.directory / "evaluation.json").read_text())["metrics"]
    titles = run.dataset.catalogue().display["title"]
    assert [row["title"] for row in publishing.read_display(versions[0]).values()] == titles[2:]
    assert all(str(run.directory.parent) not in json.dumps(manifest) for manifest in (exact, scann))


def test_warmup_requests_name_every_signature(versions):
    from tensorflow_serving.apis import prediction_log_pb2

    records = tf.data.TFRecordDataset(str(versions[0] / publishing.WARMUP))
    logs = [prediction_log_pb2.PredictionLog.FromString(record.numpy()) for record in records]
    requests = [log.predict_log.request for log in logs]
    names = ("serving_default", "recommend", "recommend_filtered", "encode_user", "encode_item", "similar_items")
    assert {request.model_spec.signature_name for request in requests} == set(names)
    sizes = {
        request.inputs["item_ids"].tensor_shape.dim[0].size for request in requests if "item_ids" in request.inputs
    }
    assert sizes == {1, 8, 32}


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory):
    """Of a log without times and with repeats: the popularity model, which sees nothing of either."""
    config = {"evaluation": {"filter_seen": False}, "model": {"name": "popularity"}, "export": {"k": 999}}
    root = tmp_path_factory.mktemp("plain")
    return make_run(root, has_time=False, repeats="keep", users=25, items=15, config=config)


def test_model_without_times_takes_what_its_schema_has(plain_run, tmp_path):
    for name in ("m/9", "m_scann/0010", "m/latest", "m/.tmp-99-1"):
        (tmp_path / name).mkdir(parents=True)
    (version,) = export(plain_run, tmp_path / "m")
    assert version == tmp_path / "m" / "11"
    recommend = tf.saved_model.load(str(version)).signatures["recommend"]
    expected = {"history_item_ids", "history_length", "history_event_types", "history_sessions"}
    assert set(recommend.structured_input_signature[1]) == expected
    ids = plain_run.dataset.catalogue().item_ids[2:]
    inputs = {name: value for name, value in users(ids[:2]).items() if name in expected}
    got = answer(recommend, inputs | {"history_sessions": strings([["a", "a"]])})
    assert sorted(item.decode() for item in got["item_ids"][0]) == sorted(ids)  # k is the catalogue; the seen stay
    assert verify(version)["k"] == 15


class TestRefusals:
    def test_gate_publishes_nothing_that_answers_otherwise(self, plain_run, tmp_path, monkeypatch):
        right = parity.run_scores
        monkeypatch.setattr(parity, "run_scores", lambda *arguments: right(*arguments) * np.float32(1.0001))
        with pytest.raises(UserError, match=r"parity: saved_model answers otherwise than the run .*1e-05 is allowed"):
            export(plain_run, tmp_path / "shop")
        assert list((tmp_path / "shop").iterdir()) == []

    def test_swaps_among_equal_scores_are_allowed_and_others_not(self):
        scores = np.array([[3.0, 2.0, 2.000001, 1.0, -np.inf]], np.float32)
        ids = ["a", "b", "c", "d", "e"]
        swapped = {"item_ids": np.array([[b"a", b"b", b"c"]]), "scores": np.array([[3.0, 2.0, 2.0]])}
        assert parity.compare(scores, swapped, ids, "x").swapped == 2
        wrong = {"item_ids": np.array([[b"b", b"a", b"c"]]), "scores": np.array([[3.0, 2.0, 2.0]])}
        missing = {"item_ids": np.array([[b"a", b"b", b"d"]]), "scores": np.array([[3.0, 2.0, 1.0]])}
        seen = {"item_ids": np.array([[b"a", b"b", b"e"]]), "scores": np.array([[3.0, 2.0, 2.0]])}
        for bad in (wrong, missing, seen):
            with pytest.raises(UserError, match="parity: x answers otherwise"):
                parity.compare(scores, bad, ids, "x")

    def test_another_backend_is_told_what_to_set(self, run, root, monkeypatch):
        monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
        with pytest.raises(UserError, match="here it is on jax; set KERAS_BACKEND=tensorflow"):
            export(run, root / "refused" / "shop")

    def test_index_under_its_gate_is_not_published(self, plain_run, tmp_path, monkeypatch):
        monkeypatch.setattr(parity, "recalls", lambda scores, *_: np.full(len(scores), 0.89))
        with pytest.raises(
            UserError, match=r"recall of ScaNN is 0\.890, `export\.min_recall` asks for 0\.9; raise `index"
        ):
            export(plain_run, tmp_path / "shop", index="scann")
        assert publishing.versions(tmp_path / "shop") == publishing.versions(tmp_path / "shop_scann") == []

    def test_worse_model_than_the_served_one_is_refused(self, run, versions, tmp_path):
        served = tmp_path / "shop"
        with pytest.raises(UserError, match="shop: no version there"):
            export(run, served, not_worse_than=served)
        (served / "2").mkdir(parents=True)
        with pytest.raises(UserError, match=r"2: was published without an evaluation"):
            export(run, served, not_worse_than=served)
        shutil.copytree(versions[0], served / "10")
        assert publishing.refuse_worse(run, served) is None  # equal is not worse
        # Every rank of the served model becomes the first: this run cannot but be worse.
        file = served / "10" / "assets.extra" / "ranks_test.npz"
        ranks = dict(np.load(file))
        np.savez(file, **ranks | {name: np.zeros_like(ranks[name]) for name in ("better", "equal")})
        with pytest.raises(UserError, match=r"worse than .*shop/10: ndcg@10 differs by -0\.\d+ \(95 % interval"):
            export(run, served, not_worse_than=served)
        assert sorted(path.name for path in served.iterdir()) == ["10", "2"]


PUBLISHER = """
import itertools, sys, shutil
from pathlib import Path
from tfrec.manifest import published, verify
source, model, first = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
for number in itertools.count(first):
    with published(model / str(number), check=lambda path: verify(path, whole=True)) as target:
        for file in sorted(source.rglob("*")):
            place = target / file.relative_to(source)
            place.mkdir(exist_ok=True) if file.is_dir() else shutil.copyfile(file, place)
"""


def test_killed_publishing_leaves_only_whole_versions(versions, tmp_path):
    rng, model = np.random.default_rng(0), tmp_path / "shop"
    for _ in range(12):
        command = [sys.executable, "-c", PUBLISHER, str(versions[0]), str(model), str(publishing.next_version(model))]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
        process.stdout.readline()
        while not publishing.versions(model):
            time.sleep(0.001)
        time.sleep(rng.uniform(0.0, 0.1))
        process.kill()
        process.communicate()
        for number in publishing.versions(model):
            verify(model / str(number), whole=True)
    with published(model / str(publishing.next_version(model))):
        pass  # what the last one left behind is removed by the next
    left = [path for path in model.glob(".tmp-*") if path.suffix != ".lock"]  # a killed holder's lock is free
    assert not left


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["saved_model.pb", "assets.extra/items.jsonl", "manifest.json"])
def test_killed_export_leaves_no_version(run, tmp_path, moment):
    code = (
        "import sys; from pathlib import Path; from tfrec.runs import load_run; from tfrec.export import export\n"
        "export(load_run(sys.argv[1]), Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, str(run.directory), str(tmp_path / "shop")]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL)
    while process.poll() is None and not list((tmp_path / "shop").glob(f".tmp-*/{moment}")):
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for number in publishing.versions(tmp_path / "shop"):
        verify(tmp_path / "shop" / str(number), whole=True)
    assert moment == "manifest.json" or not publishing.versions(tmp_path / "shop")


def test_retired_items_are_never_recommended(tmp_path):
    run = make_run(tmp_path, config={"export": {"k": 40}})
    catalogue = run.dataset.catalogue()
    retired = np.zeros(len(catalogue.item_ids), bool)
    retired[[4, 9, 20]] = True
    run.dataset._catalogue = dataclasses.replace(catalogue, retired=retired)
    ids = catalogue.item_ids
    live = {ids[item] for item in range(2, len(ids)) if item not in (4, 9, 20)}
    (version,) = export(run, tmp_path / "models" / "shop")
    signatures = tf.saved_model.load(str(version)).signatures
    history = [ids[4], ids[7], ids[8]]
    asked = {
        name: value
        for name, value in users(history, []).items()
        if name in signatures["recommend"].structured_input_signature[1]
    }
    got = answer(signatures["recommend"], asked)
    for row, seen in zip(got["item_ids"], (set(history), set()), strict=True):
        found = [item.decode() for item in row if item]
        assert len(found) == len(set(found))
        assert set(found) == live - seen
    times = (TIME_ORIGIN + 60 * np.arange(3)).tolist()
    expected = recommend(run, history, times=times, event_types=["view"] * 3, k=40)
    assert [item.decode() for item in got["item_ids"][0] if item] == [item for item, _ in expected]
    near = answer(signatures["similar_items"], {"item_ids": np.array([ids[9], ids[10]], object)})["item_ids"]
    assert not any(near[0])
    assert {item.decode() for item in near[1] if item} == live - {ids[10]}
