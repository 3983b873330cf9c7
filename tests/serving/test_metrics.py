"""Metrics in Prometheus' text format, and the structured log."""

import io
import json
import logging
import re
import sys
from collections.abc import Iterator

import httpx
import pytest
import tensorflow as tf

from serving import logs
from serving.app import ModelServer
from serving.metrics import Metrics, escape, metric_name
from serving.settings import Batching, Settings
from tests.serving.saved_models import Client
from tests.serving.test_grpc import failure

LINE = re.compile(r'[a-zA-Z_:][a-zA-Z0-9_:]*(\{([a-zA-Z_]\w*="([^"\\\n]|\\["\\n])*",?)*\})? [0-9.e+-]+(inf)?')


@pytest.mark.conformance("K11")
def test_k11_text_format_to_the_letter() -> None:
    metrics = Metrics()
    metrics.count("/tensorflow/serving/request_count", model_name='a"b\\c\nd', status="OK")
    metrics.count("/tensorflow/serving/request_count", 2, model_name='a"b\\c\nd', status="OK")
    metrics.gauge("/load", 1.5)
    metrics.observe("/latency", 17.0, API="Predict")
    metrics.observe("/latency", 1e12, API="Predict")
    lines = metrics.text().splitlines()
    assert lines[:4] == [
        "# TYPE :tensorflow:serving:request_count counter",
        ':tensorflow:serving:request_count{model_name="a\\"b\\\\c\\nd",status="OK"} 3',
        "# TYPE :load gauge",
        ":load 1.5",
    ]
    histogram = lines[4:]
    assert histogram[0] == "# TYPE :latency histogram"
    assert histogram[1:4] == [
        ':latency_bucket{API="Predict",le="10"} 0',
        ':latency_bucket{API="Predict",le="18"} 1',
        ':latency_bucket{API="Predict",le="32.4"} 1',
    ]
    assert histogram[-3:] == [
        ':latency_bucket{API="Predict",le="+Inf"} 2',
        ':latency_sum{API="Predict"} 1e+12',
        ':latency_count{API="Predict"} 2',
    ]
    assert len(histogram) == 1 + 33 + 1 + 2  # the type, the bounds 10 * 1.8^i, infinity, sum and count
    assert all(LINE.fullmatch(line) for line in lines if not line.startswith("#"))


@pytest.mark.conformance("K11")
def test_k11_names_and_labels_are_made_valid() -> None:
    assert metric_name("/a-b/c d") == ":a_b:c_d"
    assert metric_name("9x") == "_9x"
    assert escape('\\"\n') == '\\\\\\"\\n'


@pytest.fixture(scope="module")
def monitored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A server with metrics and batching, over a model that declares its rows."""
    root = tmp_path_factory.mktemp("monitored")
    module = tf.Module()
    module.weights = tf.Variable(2.0)
    module.double = tf.function(
        lambda x: {"y": module.weights * x}, input_signature=[tf.TensorSpec([None], tf.float32, name="x")]
    )
    tf.saved_model.save(module, str(root / "double" / "1"), signatures={"serving_default": module.double})
    parameters = root / "double" / "1" / "batching_params.pbtxt"
    parameters.write_text("max_batch_size { value: 4 } allowed_batch_sizes: 4")
    settings = Settings(
        metrics_path="/monitoring/prometheus/metrics",
        batching=Batching(max_batch_size=2),
        per_model_batching=True,
        access_log=True,
    )
    with ModelServer(root, rest_port=0, grpc_port=0, settings=settings) as server:
        client = Client(server.rest_port, server.grpc_port)
        yield client
        client.close()


@pytest.mark.conformance("A19", "K11")
def test_a19_requests_are_counted_and_timed(monitored: Client) -> None:
    assert monitored.ok("/v1/models/double:predict", {"instances": [1, 2, 3]}) == {"predictions": [2.0, 4.0, 6.0]}
    assert list(monitored.predict("double", x=[5.0]).outputs["y"].float_val) == [10.0]
    failure(monitored.predict, "double", x=True)
    failure(monitored.predict, "made up by a client", x=1.0)
    monitored.error("/v1/models/double:predict", {"instances": [1, 2, 3, 4, 5]})  # more than its own parameters allow
    answer = monitored.http.get("/monitoring/prometheus/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    lines = answer.text.splitlines()
    assert "# TYPE :tensorflow:serving:request_count counter" in lines
    assert ':tensorflow:serving:request_count{model_name="double",status="OK"} 2' in lines
    assert ':tensorflow:serving:request_count{model_name="double",status="INVALID_ARGUMENT"} 2' in lines
    assert ':tensorflow:serving:request_count{model_name="",status="NOT_FOUND"} 1' in lines
    for entrypoint in ("REST", "GRPC"):
        labels = f'model_name="double",API="Predict",entrypoint="{entrypoint}"'
        assert f":tensorflow:serving:request_latency_count{{{labels}}} 1" in lines
    assert ':tensorflow:serving:runtime_latency_count{model_name="double",API="Predict",runtime="TF1"} 3' in lines
    assert ":tensorflow:serving:batching_session:input_batch_size_count 2" in lines
    assert all(LINE.fullmatch(line) for line in lines if not line.startswith("#"))
    assert monitored.http.get("/monitoring/prometheus/other").status_code == 404


def test_no_metrics_where_none_were_asked_for(server: ModelServer) -> None:
    assert httpx.get(f"http://127.0.0.1:{server.rest_port}/monitoring/prometheus/metrics").status_code == 404


def test_log_in_json(monitored: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("serving")
    before = logger.handlers, logger.propagate, logger.level
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    logs.configure("json")
    try:
        monitored.post("/v1/models/double:predict", {"instances": [1]})
        monitored.predict("double", x=[1.0])
        try:
            raise ValueError("é")
        except ValueError:
            logger.exception("surprise")
    finally:
        logger.handlers, logger.propagate = before[:2]
        logger.setLevel(before[2])
    records = [json.loads(line) for line in stream.getvalue().splitlines()]
    requests = [record["request"] for record in records if "request" in record]
    rest, rpc = requests
    assert (rest["verb"], rest["path"], rest["status"]) == ("POST", "/v1/models/double:predict", 200)
    assert (rpc["method"], rpc["status"]) == ("Predict", "OK")
    assert rest["ms"] > 0
    assert (records[-1]["level"], records[-1]["message"]) == ("ERROR", "surprise")
    assert "ValueError: é" in records[-1]["trace"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", records[0]["time"])
