"""Seeded nonsense over routes, JSON, gzip and TensorProtos: every input gets a documented code, and the server lives.

`benchmarks/serving_fuzz.py` runs the same generators for longer.
"""

import time

import grpc
import numpy as np
import pytest

from serving.app import ModelServer
from tests.serving.nonsense import HTTP_CODES, ask_grpc, http_request, predict_request_bytes
from tests.serving.saved_models import Client

DEADLINE_SECONDS = 30.0


def test_nonsense_over_http(server: ModelServer, client: Client) -> None:
    generator = np.random.default_rng(20)
    seen = set()
    for number in range(600):
        request = http_request(generator)
        started = time.monotonic()
        answer = client.http.request(request.verb, request.path, content=request.body, headers=request.headers)
        assert answer.status_code in HTTP_CODES, (number, request, answer.text)
        assert "Traceback" not in answer.text
        assert ".py" not in answer.text
        assert time.monotonic() - started < DEADLINE_SECONDS
        seen.add(answer.status_code)
    assert {200, 400, 404} <= seen  # some of it makes sense, and the rest is refused
    assert client.ok("/v1/models/half:predict", {"instances": [1.0]}) == {"predictions": [2.5]}


def test_nonsense_over_grpc(server: ModelServer, client: Client) -> None:
    generator = np.random.default_rng(21)
    seen = {ask_grpc(client.channel, predict_request_bytes(generator), DEADLINE_SECONDS) for _ in range(600)}
    assert {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT} <= seen
    assert list(client.predict("half", x=[2.0]).outputs["y"].float_val) == [3.0]


@pytest.mark.parametrize("seed", [1, 2])
def test_generators_repeat_themselves(seed: int) -> None:
    first, second = (http_request(np.random.default_rng(seed)) for _ in range(2))
    assert first == second
    assert predict_request_bytes(np.random.default_rng(seed)) == predict_request_bytes(np.random.default_rng(seed))
