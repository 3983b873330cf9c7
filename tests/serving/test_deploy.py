"""Every file of serving/deploy is what it says it is."""

import json
from pathlib import Path

import pytest
import yaml

from serving import app, flags, model_config, text_protos


def read_dockerfile(path: Path) -> dict[str, str]:
    """The instructions by name, each once."""
    lines = [line for line in path.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    return dict(line.split(" ", 1) for line in lines)


DEPLOY = Path(app.__file__).parent / "deploy"
READERS = {
    "models.config": model_config.read,
    "canary.config": model_config.read,
    "Dockerfile": read_dockerfile,
    "batching_parameters.txt": text_protos.read_batching,
    "monitoring.config": text_protos.read_metrics_path,
    "compose.yaml": lambda path: yaml.safe_load(path.read_text("utf-8")),
    "kubernetes.yaml": lambda path: list(yaml.safe_load_all(path.read_text("utf-8"))),
    "README.md": lambda path: path.read_text("utf-8"),
}


@pytest.mark.parametrize("path", sorted(DEPLOY.iterdir()), ids=lambda path: path.name)
def test_file_can_be_read(path: Path) -> None:
    assert READERS[path.name](path)
    assert path.name in (DEPLOY / "README.md").read_text("utf-8") or path.name == "README.md"


def deployed_flags(command: list[str]) -> flags.Command:
    """A container's flags with its /config as the directory that is mounted there."""
    return flags.parse([part.replace("/config/", f"{DEPLOY}/") for part in command])


def test_compose_starts_either_server() -> None:
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))["services"]["serving"]
    command = deployed_flags([*service["entrypoint"][1:], *service["command"]])
    assert (command.models, command.serve["rest_port"], command.serve["grpc_port"]) == (
        DEPLOY / "models.config",
        8501,
        8500,
    )
    assert command.serve["settings"].batching == text_protos.read_batching(DEPLOY / "batching_parameters.txt")


def test_canary_has_two_labelled_versions() -> None:
    shop = model_config.read(DEPLOY / "canary.config")["shop"]
    assert shop.labels == {"stable": 1, "canary": 2}
    assert shop.policy([1, 2, 3]) == ([2, 1], 2)


def test_image_runs_the_built_in_server_as_nobody_special() -> None:
    found = read_dockerfile(DEPLOY / "Dockerfile")
    command = [*json.loads(found["ENTRYPOINT"]), *json.loads(found["CMD"])]
    assert command[:2] == ["tfrec", "serve"]
    parsed = flags.parse(command[2:])
    assert (parsed.models, parsed.serve["host"], parsed.serve["engine"]) == (Path("/models"), "0.0.0.0", "builtin")
    assert found["USER"] != "root"
    kubernetes = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text("utf-8")))
    assert str(kubernetes[0]["spec"]["template"]["spec"]["securityContext"]["runAsUser"]) == found["USER"]


def test_kubernetes_runs_the_built_in_server_with_probes(tmp_path: Path) -> None:
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text("utf-8")))
    by_kind = {document["kind"]: document for document in documents}
    assert set(by_kind) == {"Deployment", "ConfigMap", "Service"}
    pod = by_kind["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    for name, text in by_kind["ConfigMap"]["data"].items():
        (tmp_path / name).write_text(text)
    arguments = [part.replace("=/config/", f"={tmp_path}/") for part in container["args"]]
    command = flags.parse([part for part in arguments if not part.startswith("--token-file")])
    assert (command.models, command.serve["host"]) == (Path("/models"), "0.0.0.0")
    batching = command.serve["settings"].batching
    assert batching == text_protos.read_batching(DEPLOY / "batching_parameters.txt")
    assert (batching.pad_variable_length_inputs, batching.allowed_batch_sizes) == (True, (1, 4, 8, 16, 24, 32))
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert mounts["/config"]["configMap"]["name"] == by_kind["ConfigMap"]["metadata"]["name"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    waits = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > waits + app._DRAIN_SECONDS + app._CLOSING_SECONDS
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert pod["securityContext"]["runAsNonRoot"]
    ports = {port["targetPort"] for port in by_kind["Service"]["spec"]["ports"]}
    assert ports == {port["name"] for port in container["ports"]}
