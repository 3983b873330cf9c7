"""What is served and what is refused: the corruption table, manifests, warm-up."""

import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from serving.loading import Loader
from serving.servable import WARMUP_REQUESTS, SavedModelServable
from serving.status import Code, ServingError
from serving.versions import Model, ModelSource, State
from tests.serving.saved_models import publish, save_vocabulary, warmup_record, write_warmup
from tfrec.manifest import write_manifest

load = Loader()
DATA = "variables/variables.data-00000-of-00001"
INDEX = "variables/variables.index"


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vocabulary(tmp_path_factory.mktemp("vocabulary") / "saved", ["a", "b", "c"])


def refusal(directory: Path) -> ServingError:
    with pytest.raises(ServingError) as caught:
        load(directory)
    return caught.value


def answer(directory: Path) -> list[float]:
    loaded = load(directory)
    code = loaded.run("serving_default", {"word": np.array([b"b", b"z"], dtype=object)})["code"]
    loaded.close()
    return code.tolist()


def remove(name: str) -> Callable[[Path], None]:
    def damage(version: Path) -> None:
        path = version / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda version: (version / name).write_bytes((version / name).read_bytes()[:size]) and None


def flip(name: str, offset: int) -> Callable[[Path], None]:
    def damage(version: Path) -> None:
        content = bytearray((version / name).read_bytes())
        content[offset] ^= 1
        (version / name).write_bytes(content)

    return damage


def first_asset(version: Path) -> str:
    return next(path for path in (version / "assets").iterdir()).relative_to(version).as_posix()


DAMAGES: dict[str, tuple[Callable[[Path], None], set[Code]]] = {
    "no saved_model.pb": (remove("saved_model.pb"), {Code.NOT_FOUND}),
    "cut saved_model.pb": (cut("saved_model.pb", 1000), {Code.OUT_OF_RANGE, Code.DATA_LOSS}),
    "empty saved_model.pb": (cut("saved_model.pb", 0), {Code.NOT_FOUND, Code.FAILED_PRECONDITION}),
    "variables missing": (remove("variables"), {Code.DATA_LOSS}),
    "data cut": (cut(DATA, 100), {Code.OUT_OF_RANGE, Code.DATA_LOSS}),
    "bit flip in data": (flip(DATA, 200), {Code.DATA_LOSS}),
    "bit flip in index": (flip(INDEX, 20), {Code.DATA_LOSS, Code.OUT_OF_RANGE, Code.INVALID_ARGUMENT}),
    "asset missing": (lambda version: (version / first_asset(version)).unlink(), {Code.NOT_FOUND}),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.conformance("L6")
def test_l6_damage_without_a_manifest(tmp_path: Path, vocabulary: Path, damage: str) -> None:
    version = publish(vocabulary, tmp_path, 1)
    make, codes = DAMAGES[damage]
    make(version)
    assert refusal(version).code in codes


@pytest.mark.conformance("L6")
def test_l6_missing_fingerprint_without_a_manifest_answers_right(tmp_path: Path, vocabulary: Path) -> None:
    version = publish(vocabulary, tmp_path, 1)
    (version / "fingerprint.pb").unlink()
    assert answer(version) == [1.0, -1.0]


MANIFEST_DAMAGES = {name: damage for name, (damage, _) in DAMAGES.items()} | {
    "fingerprint missing": remove("fingerprint.pb"),
    "asset's contents": lambda version: flip(first_asset(version), 0)(version),
    "bit flip in saved_model.pb": flip("saved_model.pb", 300),
    "a file more": lambda version: (version / "assets" / "more.txt").write_text("x") and None,
}


@pytest.mark.parametrize("damage", MANIFEST_DAMAGES)
@pytest.mark.conformance("L6")
def test_l6_damage_with_a_manifest(tmp_path: Path, vocabulary: Path, damage: str) -> None:
    version = publish(vocabulary, tmp_path, 1, manifest=True)
    assert answer(version) == [1.0, -1.0]
    MANIFEST_DAMAGES[damage](version)
    error = refusal(version)
    assert error.code == Code.DATA_LOSS
    assert "manifest.json" in error.message


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"files": []}',
        '{"files": {"saved_model.pb": {}}}',
        '{"files": {"saved_model.pb": 3}}',
        '{"files": {"../1/saved_model.pb": {"bytes": 1, "sha256": ""}}}',
        '{"files": {"/etc/hostname": {"bytes": 1, "sha256": ""}}}',
    ],
)
def test_manifest_that_says_nothing_is_refused(tmp_path: Path, vocabulary: Path, text: str) -> None:
    version = publish(vocabulary, tmp_path, 1)
    (version / "manifest.json").write_text(text)
    assert refusal(version).code == Code.DATA_LOSS


@pytest.mark.conformance("A7", "L6")
def test_refused_version_is_visible_and_the_old_one_answers(tmp_path: Path, vocabulary: Path) -> None:
    publish(vocabulary, tmp_path, 1, manifest=True)
    served = Model("words", ModelSource(tmp_path), load)
    served.poll()
    flip(DATA, 200)(publish(vocabulary, tmp_path, 2, manifest=True))
    served.poll()
    newest, oldest = served.status()
    assert (newest.state, newest.code, oldest.state) == (State.END, Code.DATA_LOSS, State.AVAILABLE)
    assert newest.message.startswith(f"words/2/{DATA}: its SHA-256 differs from manifest.json")
    assert str(tmp_path) not in newest.message
    with served.handle() as handle:
        code = handle.servable.run("serving_default", {"word": np.array([b"c"], dtype=object)})["code"]
    assert code.tolist() == [2.0]
    served.close()


def test_missing_scann_is_told(tmp_path: Path, vocabulary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = publish(vocabulary, tmp_path, 1)
    graph = version / "saved_model.pb"
    graph.write_bytes(graph.read_bytes().replace(b"LookupTableFindV2", b"Scann>SearchBatch"))
    monkeypatch.setitem(sys.modules, "scann", None)  # as where it is not installed
    error = refusal(version)
    assert error.code == Code.NOT_FOUND
    assert "Op type not registered 'Scann>SearchBatch': the model needs the package `scann`" in error.message


def test_package_with_operations_of_text_is_imported_where_it_is_installed(
    tmp_path: Path, vocabulary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for tensorflow_text, which brings no operations: the load fails after it was asked."""
    stand_in = tmp_path / "site" / "tensorflow_text" / "__init__.py"
    stand_in.parent.mkdir(parents=True)
    stand_in.touch()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setitem(sys.modules, "tensorflow_text", None)  # which takes away afterwards what is imported here
    del sys.modules["tensorflow_text"]
    load(publish(vocabulary, tmp_path, 1)).close()
    assert "tensorflow_text" not in sys.modules  # nothing asks for it
    version = publish(vocabulary, tmp_path, 2)
    graph = version / "saved_model.pb"
    graph.write_bytes(graph.read_bytes().replace(b"LookupTableFindV2", b"WordpieceTokenize"))
    assert "WordpieceTokenize" in refusal(version).message
    assert "tensorflow_text" in sys.modules


@pytest.mark.conformance("L7")
def test_l7_concurrent_runs_and_loads_without_growth(half_plus_two: Path) -> None:
    """`benchmarks/serving_soak.py` does this for longer, over the ports."""
    process = psutil.Process()
    for cycle in range(12):
        if cycle == 4:  # what the first ones warm up stays
            before = process.num_threads(), process.num_fds(), process.memory_info().rss
        loaded = load(half_plus_two)
        values = np.arange(64, dtype=np.float32)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(partial(loaded.run, "serving_default"), [{"x": value} for value in values]))
        assert [answer["y"] for answer in answers] == [value / 2 + 2 for value in values]
        loaded.close()
    after = process.num_threads(), process.num_fds(), process.memory_info().rss
    assert after[0] - before[0] < 8  # a leak has one a cycle; TensorFlow's pools may still grow by a few
    assert after[1] - before[1] < 8
    assert after[2] - before[2] < 100 << 20


def test_scann_export_answers(tmp_path: Path) -> None:
    """The session knows ScaNN's operations once the graph asks for them; nearest by a plain product."""
    from scann.scann_ops.py import scann_ops

    vectors = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    searcher = scann_ops.builder(vectors, 3, "dot_product").score_brute_force().build()

    class Search(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.state = searcher.serialize_to_module()

        @tf.function(input_signature=[tf.TensorSpec([None, 8], tf.float32, name="query")])
        def search(self, query: Any) -> dict[str, Any]:
            restored = scann_ops.searcher_from_module(self.state, tf.constant(vectors))
            return {"items": restored.search_batched(query)[0]}

    module = Search()
    options = tf.saved_model.SaveOptions(namespace_whitelist=["Scann"])
    tf.saved_model.save(module, str(tmp_path / "1"), signatures={"serving_default": module.search}, options=options)
    loaded = load(tmp_path / "1")
    found = loaded.run("serving_default", {"query": vectors[:5]})["items"]
    loaded.close()
    np.testing.assert_array_equal(found, np.argsort(-(vectors[:5] @ vectors.T), axis=1)[:, :3])


# Section K, warm-up.


@pytest.mark.conformance("K7")
def test_k7_warmup_runs_before_the_version_answers(tmp_path: Path, half_plus_two: Path) -> None:
    version = publish(half_plus_two, tmp_path, 1)
    write_warmup(version, [])
    load(version).close()
    write_warmup(version, [warmup_record([1.0]), warmup_record([[2.0]])])
    write_manifest(version, {})
    loaded = load(version)
    assert loaded.run("serving_default", {"x": np.float32([2])})["y"].tolist() == [3.0]
    loaded.close()


def other_log() -> bytes:
    log = prediction_log_pb2.PredictionLog()
    log.session_run_log.request.model_spec.name = "any"
    return log.SerializeToString()


@pytest.mark.parametrize(
    ("records", "code", "fragment"),
    [
        (
            [warmup_record([1.0]), warmup_record([True])],
            Code.INVALID_ARGUMENT,
            "record 1 failed: Expects arg[0]",
        ),
        ([warmup_record([1.0], "z")], Code.INVALID_ARGUMENT, "record 0 failed: input size does not match"),
        ([b"\xff\xff"], Code.INVALID_ARGUMENT, "Failed to parse warmup record 0"),
        ([other_log()], Code.UNIMPLEMENTED, "session_run_log"),
        ([warmup_record([1.0])] * 1001, Code.INVALID_ARGUMENT, "exceeds the maximum (1000)"),
    ],
)
@pytest.mark.conformance("K7")
def test_k7_failing_warmup_fails_the_load(
    tmp_path: Path, half_plus_two: Path, records: list[bytes], code: Code, fragment: str
) -> None:
    version = publish(half_plus_two, tmp_path, 1)
    write_warmup(version, records)
    error = refusal(version)
    assert error.code == code
    assert fragment in error.message


@pytest.mark.conformance("K7")
def test_k7_warmup_of_another_format(tmp_path: Path, half_plus_two: Path) -> None:
    version = publish(half_plus_two, tmp_path, 1)
    write_warmup(version, [])
    (version / WARMUP_REQUESTS).write_bytes(b"not a TFRecord file")
    assert refusal(version).code == Code.DATA_LOSS


@pytest.mark.conformance("L4")
def test_python_function_is_refused(tmp_path: Path) -> None:
    module = tf.Module()
    module.double = tf.function(
        lambda x: {"y": tf.py_function(lambda value: value * 2, [x], tf.float32)},
        input_signature=[tf.TensorSpec([None], tf.float32, name="x")],
    )
    tf.saved_model.save(module, str(tmp_path / "1"), signatures={"serving_default": module.double})
    error = refusal(tmp_path / "1")
    assert error.code == Code.FAILED_PRECONDITION
    assert "No OpKernel was registered to support Op 'EagerPyFunc'" in error.message


@pytest.mark.parametrize(("processors", "asked", "threads"), [({5}, 0, -1), ({0, 1}, 0, 0), ({5}, 2, 2)])
def test_on_one_processor_operations_run_in_the_thread_that_calls(
    vocabulary: Path, monkeypatch: pytest.MonkeyPatch, processors: set[int], asked: int, threads: int
) -> None:
    sessions = []

    class Session(tf.compat.v1.Session):
        def __init__(self, *, graph: tf.Graph, config: Any) -> None:
            super().__init__(graph=graph, config=config)
            sessions.append(config)

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: processors)
    monkeypatch.setattr(tf.compat.v1, "Session", Session)
    loaded = SavedModelServable(vocabulary, inter_op_threads=asked)
    found = loaded.run("serving_default", {"word": np.array([b"c"], dtype=object)})
    loaded.close()
    assert [config.inter_op_parallelism_threads for config in sessions] == [threads]
    assert found["code"].tolist() == [2]
