"""Section B of the conformance checklist: which URL means what."""

import http.client
from urllib.parse import quote

import pytest

from serving.app import ModelServer
from tests.serving.saved_models import Client

BODY = b'{"instances": [1.0]}'


def raw(server: ModelServer, verb: str, target: str, headers: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Sends a request target as it is, unlike clients that tidy it up."""
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=10)
    connection.request(verb, target, BODY if verb == "POST" else None, headers or {})
    response = connection.getresponse()
    kinds = response.headers.get_all("content-type") or []
    answer = response.status, response.read().decode(), ",".join(kinds)
    connection.close()
    return answer


@pytest.mark.conformance("B1")
def test_b1_other_paths_are_not_found(server: ModelServer) -> None:
    assert raw(server, "GET", "/statuspage")[0] == 404
    assert raw(server, "GET", "/index")[0] == 404


@pytest.mark.parametrize(
    ("verb", "target"),
    [
        ("GET", "/v1/foo"),  # B2
        ("POST", "/v1/foo"),
        ("GET", "/v1/models/debug/model_name"),  # B4
        ("POST", "/v1/models"),  # B5
        ("GET", "/v1/models/half:predict"),  # B6
        ("GET", "/v1/models/half/version/50:predict"),  # B7
        ("POST", "/v1/models/half/version/50:predict"),
        ("POST", "/v1/models/half/versions/HELLO:regress"),  # B8
        ("POST", "/v1/models/half/versions/some_label:regress"),
        ("POST", "/v1/models/half/metadata"),  # B10
        ("POST", "/v1/models/half/label/x:regress"),  # B11
        ("POST", "/v1/models/half/versions/50/labels/x:regress"),
        ("POST", "/V1/MODELS/half:PREDICT"),  # B14: the path's case is free, the method's is not
        ("POST", "/v1/models/half:predict?x=1"),  # B15
        ("PUT", "/v1/models/half:predict"),  # B16
        ("DELETE", "/v1/models/half"),
        ("PATCH", "/v1/models/half"),
        ("POST", "/v1/models/%zz:predict"),
        ("POST", "/v1/models/%ff:predict"),
    ],
)
@pytest.mark.conformance("B2", "B4", "B5", "B6", "B7", "B8", "B10", "B11", "B14", "B15", "B16")
def test_b2_to_b16_malformed_requests(server: ModelServer, verb: str, target: str) -> None:
    status, body, kind = raw(server, verb, target)
    assert status == 400
    assert "Malformed request" in body
    assert kind == "application/json"


@pytest.mark.conformance("B3")
def test_b3_models_without_a_name(server: ModelServer) -> None:
    status, body, _ = raw(server, "GET", "/v1/models")
    assert (status, "Missing model name" in body) == (400, True)


@pytest.mark.conformance("B9")
def test_b9_version_beyond_int64(server: ModelServer) -> None:
    for version in ("18446744073709551615", "9223372036854775808", "9" * 5000):
        status, body, _ = raw(server, "POST", f"/v1/models/half/versions/{version}:regress")
        assert (status, "Failed to convert version" in body) == (400, True)


@pytest.mark.conformance("B12")
def test_b12_names_and_labels_are_percent_decoded(server: ModelServer) -> None:
    name = "m!#$%&'()*+,/:;=?@[]"
    escaped = quote(name, safe="")
    assert f"Latest({name})" in raw(server, "POST", f"/v1/models/{escaped}:predict")[1]
    assert f"model {name}" in raw(server, "GET", f"/v1/models/{escaped}")[1]
    assert f"Latest({name})" in raw(server, "GET", f"/v1/models/{escaped}/metadata")[1]
    assert f"version label: {name}" in raw(server, "POST", f"/v1/models/half/labels/{escaped}:predict")[1]


@pytest.mark.conformance("B13")
def test_b13_version_label_and_metadata_paths(server: ModelServer) -> None:
    assert "Could not find version 99 of model half" in raw(server, "GET", "/v1/models/half/versions/99")[1]
    assert raw(server, "GET", "/v1/models/half/labels/latest")[0] == 200
    status, body, _ = raw(server, "GET", "/v1/models/half/labels/latest/metadata")
    assert (status, "Unrecognized servable version label: latest" in body) == (400, True)


@pytest.mark.conformance("B14")
def test_b14_case_of_the_path(server: ModelServer) -> None:
    assert raw(server, "POST", "/V1/Models/half:predict")[0] == 200
    assert raw(server, "POST", "/v1/models/HALF:predict")[0] == 404


@pytest.mark.conformance("B16")
def test_b16_head_is_refused_without_a_body(server: ModelServer) -> None:
    assert raw(server, "HEAD", "/v1/models/half")[:2] == (400, "")


@pytest.mark.conformance("B17")
def test_b17_options_depends_on_origin(server: ModelServer) -> None:
    target = "/v1/models/half:predict"
    assert raw(server, "OPTIONS", target, {"Origin": "http://page"})[:2] == (200, "")
    assert raw(server, "OPTIONS", target)[:2] == (400, "")


@pytest.mark.conformance("B18")
def test_b18_content_type_is_json_once(client: Client) -> None:
    for response in (client.post("/v1/models/half:predict", BODY), client.http.get("/v1/models/none")):
        assert response.headers.get_list("content-type") == ["application/json"]


def test_probes_say_alive_and_ready(server: ModelServer) -> None:
    assert raw(server, "GET", "/livez")[:2] == (200, "ok\n")
    assert raw(server, "GET", "/readyz")[:2] == (200, "ok\n")
