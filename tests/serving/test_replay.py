"""Requests recorded, replayed as warm-up, and asked again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2, regression_pb2

from serving.app import ModelServer
from serving.loading import Loader
from serving.replay import read, replay
from serving.request_log import RequestLog, file_of
from serving.servable import WARMUP_REQUESTS
from serving.settings import RequestLogging, Settings
from tests.serving.saved_models import Client, publish, save_half_plus
from tfrec.errors import UserError


@pytest.fixture(scope="module")
def recorded(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log of a server that was asked once over REST, twice over gRPC, and once in vain."""
    prefix = tmp_path_factory.mktemp("log") / "requests"
    settings = Settings(request_logging=RequestLogging(prefix))
    with ModelServer(models, rest_port=0, grpc_port=0, settings=settings) as server:
        client = Client(server.rest_port, server.grpc_port)
        client.ok("/v1/models/half:predict", {"instances": [1.0, 2.0]})
        client.predict("half", x=[4.0])
        client.predict("echo", signature="string", x=[b"a"])
        client.error("/v1/models/half:predict", {"instances": ["x"]})
        client.close()
    return file_of(prefix, 0)


@pytest.mark.conformance("J18")
def test_j18_requests_and_answers_are_recorded(recorded: Path, models: Path) -> None:
    logs = list(read([recorded]))
    found = []
    for log in logs:
        request, response = log.predict_log.request, log.predict_log.response
        spec = log.log_metadata.model_spec
        x = tf.make_ndarray(request.inputs["x"]).tolist()
        y = tf.make_ndarray(response.outputs["y"]).tolist()
        found.append((spec.name, spec.version.value, spec.signature_name, x, y))
        assert log.log_metadata.sampling_config.sampling_rate == 1.0
    assert found == [
        ("half", 123, "serving_default", [1.0, 2.0], [2.5, 3.0]),
        ("half", 123, "serving_default", [4.0], [4.0]),
        ("echo", 1, "string", [b"a"], [b"a"]),
    ]
    assert not list(models.rglob("*.tfrecord"))  # and nowhere else


def test_log_serves_as_warm_up(recorded: Path, half_plus_two: Path, tmp_path: Path) -> None:
    version = publish(half_plus_two, tmp_path, 1)
    halves = [log for log in read([recorded]) if log.log_metadata.model_spec.name == "half"]
    (version / "assets.extra").mkdir()
    with tf.io.TFRecordWriter(str(version / WARMUP_REQUESTS)) as writer:
        for log in halves:
            writer.write(log.SerializeToString())
    Loader()(version).close()


def test_replay_compares_answers(recorded: Path, client: Client, server: ModelServer, tmp_path: Path) -> None:
    same = replay([recorded, recorded], f"127.0.0.1:{server.grpc_port}", clients=2)
    assert {key: same[key] for key in ("asked", "answered", "errors", "compared", "differing")} == {
        "asked": 6,
        "answered": 6,
        "errors": {},
        "compared": 6,
        "differing": 0,
    }
    assert 0 < same["p50_ms"] <= same["p99_ms"]
    save_half_plus(tmp_path / "half" / "1", 5.0)
    with ModelServer(tmp_path, rest_port=None, grpc_port=0) as other:
        changed = replay([recorded], f"127.0.0.1:{other.grpc_port}", rate=50)
    assert (changed["answered"], changed["differing"], changed["errors"]) == (2, 2, {"NOT_FOUND": 1})
    renamed = replay([recorded], f"127.0.0.1:{server.grpc_port}", model="echo")
    assert renamed["errors"] == {"FAILED_PRECONDITION": 2}  # echo has no default signature


def test_replay_of_something_else_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        replay([tmp_path / "none"], "127.0.0.1:1")
    (tmp_path / "text").write_text("not records at all")
    with pytest.raises(UserError, match="is no request log, or is damaged"):
        replay([tmp_path / "text"], "127.0.0.1:1")
    tf.io.TFRecordWriter(str(tmp_path / "empty")).close()
    with pytest.raises(UserError, match="no requests there"):
        replay([tmp_path / "empty"], "127.0.0.1:1")


def write(options: RequestLogging, count: int) -> RequestLog:
    log = RequestLog(options)
    for number in range(count):
        if log.wants_next():
            made = prediction_log_pb2.PredictionLog()
            made.regress_log.request.CopyFrom(regression_pb2.RegressionRequest())
            made.regress_log.request.model_spec.name = f"{number:04d}"
            log.offer(made)
    log.close()
    return log


def recorded_names(prefix: Path) -> list[list[str]]:
    files = sorted(prefix.parent.glob("*.tfrecord"))
    return [[log.regress_log.request.model_spec.name for log in read([path])] for path in files]


def test_sample_is_that_of_the_seed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(RequestLogging(tmp_path / name / "log", 0.3, seed=7), 400)
    first, second = (recorded_names(tmp_path / name / "log") for name in ("a", "b"))
    assert first == second
    assert 80 < len(first[0]) < 160  # 120 expected, 9 the standard deviation
    assert write(RequestLogging(tmp_path / "none" / "log", 0.0), 50).dropped == 0
    assert recorded_names(tmp_path / "none" / "log") == [[]]


def test_files_are_bounded_in_size_and_number(tmp_path: Path) -> None:
    record = 25  # bytes of one record, more or less: 4 to a file
    log = write(RequestLogging(tmp_path / "log", max_file_bytes=4 * record - 20, max_files=2), 20)
    found = recorded_names(tmp_path / "log")
    kept: Any = np.concatenate(found).tolist()
    assert len(found) == 2
    assert kept == [f"{number:04d}" for number in range(len(kept))]
    assert len(kept) + log.dropped == 20
