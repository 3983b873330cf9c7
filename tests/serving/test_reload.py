"""A server's configuration replaced while it runs: by its file, and by gRPC."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import text_format
from tensorflow_serving.apis import model_management_pb2

from serving.app import ModelServer
from serving.core import Core
from serving.grpc import ModelService
from serving.guard import Guard
from serving.inference import Inference
from serving.models import Models
from serving.settings import Settings
from tests.serving.saved_models import Client, save_half_plus
from tests.serving.test_grpc import failure
from tests.serving.test_versions import Loader, wait_until
from tfrec.errors import UserError


def config(**base_paths: Path) -> str:
    models = "\n".join(
        f'config {{ name: "{name}" base_path: "{path}" model_platform: "tensorflow" }}'
        for name, path in base_paths.items()
    )
    return f"model_config_list {{ {models} }}"


def request(text: str) -> Any:
    made = model_management_pb2.ReloadConfigRequest()
    text_format.Parse(text, made.config)
    return made


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    save_half_plus(root / "two" / "1", 2.0)
    save_half_plus(root / "three" / "7", 3.0)
    (root / "broken" / "1").mkdir(parents=True)
    return root


@pytest.fixture
def client(root: Path, tmp_path: Path) -> Iterator[Client]:
    path = tmp_path / "models.config"
    path.write_text(config(two=root / "two"))
    settings = Settings(config_poll_seconds=0.05)
    with ModelServer(path, rest_port=0, grpc_port=0, poll_seconds=0.05, settings=settings) as server:
        client = Client(server.rest_port, server.grpc_port)
        client.config = path  # type: ignore[attr-defined]
        yield client
        client.close()


def answers(client: Client, model: str) -> float | None:
    response = client.post(f"/v1/models/{model}:predict", {"inputs": 2})
    return response.json()["outputs"] if response.status_code == 200 else None


@pytest.mark.conformance("A8", "A10")
def test_a10_rewritten_file_is_taken_up_and_a_bad_one_is_not(client: Client, root: Path) -> None:
    path: Path = client.config  # type: ignore[attr-defined]
    assert answers(client, "two") == 3.0
    path.write_text(config(two=root / "two", three=root / "three"))
    wait_until(lambda: answers(client, "three") == 4.0)
    path.write_text("model_config_list {")
    path.write_text("model_config_list { config { name: 'three' base_path: 'relative' } }")
    path.write_text(config(three=root / "three"))
    wait_until(lambda: answers(client, "two") is None)
    assert answers(client, "three") == 4.0


@pytest.mark.conformance("J1", "J2", "H19")
def test_h19_reload_over_grpc(client: Client, root: Path) -> None:
    answer = client.model.HandleReloadConfigRequest(request(config(three=root / "three")))
    assert answer.status.error_code == 0
    assert (answers(client, "two"), answers(client, "three")) == (None, 4.0)
    assert [status.state for status in client.grpc_status("two").model_version_status] == [50]
    client.model.HandleReloadConfigRequest(request(config(two=root / "two")))
    assert (answers(client, "two"), answers(client, "three")) == (3.0, None)


@pytest.mark.conformance("H19", "J3", "J5", "J6")
@pytest.mark.parametrize(
    ("text", "code", "fragment"),
    [
        ("", "INVALID_ARGUMENT", "Only ModelConfigList is currently supported"),
        ("custom_model_config {}", "INVALID_ARGUMENT", "Only ModelConfigList is currently supported"),
        (config(two=Path("relative")), "INVALID_ARGUMENT", "must be absolute"),
        (config(two=Path("/etc")), "PERMISSION_DENIED", "lies outside the directories"),
        (
            'model_config_list { config { name: "a" base_path: "/a" model_platform: "x" } }',
            "INVALID_ARGUMENT",
            "tensor",
        ),
        (
            'model_config_list { config { name: "a" base_path: "/a" model_platform: "tensorflow" model_type: 1 } }',
            "INVALID_ARGUMENT",
            "must not both be set",
        ),
    ],
)
def test_h19_bad_configurations_leave_the_old_one(client: Client, text: str, code: str, fragment: str) -> None:
    found, message = failure(client.model.HandleReloadConfigRequest, request(text))
    assert (found.name, fragment in message) == (code, True)
    assert answers(client, "two") == 3.0


@pytest.mark.conformance("J1", "H19")
def test_reload_tells_of_models_that_do_not_load(client: Client, root: Path) -> None:
    wanted = config(two=root / "two", broken=root / "broken")
    code, message = failure(client.model.HandleReloadConfigRequest, request(wanted))
    assert code == grpc.StatusCode.UNKNOWN
    assert "1 servable(s) did not become available: {{name: broken version: 1} due to error: NOT_FOUND" in message
    assert str(root) not in message
    assert answers(client, "two") == 3.0


def test_links_do_not_lead_out_of_the_roots(client: Client, root: Path, tmp_path: Path) -> None:
    (root / "link").unlink(missing_ok=True)
    (root / "link").symlink_to("/etc")
    code, _ = failure(client.model.HandleReloadConfigRequest, request(config(link=root / "link")))
    (root / "link").unlink()
    assert code == grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.conformance("H19")
def test_h19_status_stands_in_the_answer_as_well(tmp_path: Path) -> None:
    class Context:
        def set_code(self, code: grpc.StatusCode) -> None:
            self.code = code

        def set_details(self, details: str) -> None:
            self.details = details

    models = Models(dict, Loader(), poll_seconds=0)
    context: Any = Context()
    made = request(config(a=Path("b")))
    answer = ModelService(Core(models, Settings(), Guard(None), Inference())).HandleReloadConfigRequest(made, context)
    assert (answer.status.error_code, context.code) == (3, grpc.StatusCode.INVALID_ARGUMENT)
    assert answer.status.error_message == context.details == "`base_path` of a must be absolute. Received: 'b'."


@pytest.mark.conformance("J4")
def test_j4_start_ends_with_the_reason(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "models.config"
    path.write_text(config(broken=root / "broken"))
    with pytest.raises(UserError, match=r"1 servable\(s\) did not become available.*NOT_FOUND"):
        ModelServer(path, rest_port=0, grpc_port=0).start()


def test_reload_of_a_directory_s_models_ends_its_listing(root: Path) -> None:
    with ModelServer(root, rest_port=0, grpc_port=0, poll_seconds=0.02) as server:
        client = Client(server.rest_port, server.grpc_port)
        client.model.HandleReloadConfigRequest(request(config(two=root / "two")))
        assert server.models.names == ["two"]
        late = root / "late"
        late.mkdir()
        (late / "1").mkdir()
        wait_until(lambda: answers(client, "two") == 3.0)
        assert server.models.names == ["two"]
        (late / "1").rmdir()
        late.rmdir()
        client.close()
