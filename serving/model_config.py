"""`models.config`: TensorFlow Serving's ModelServerConfig in text form, read and written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from serving import versions
from serving.versions import ModelSource, Policy
from tfrec.errors import UserError

_MAX_BYTES = 1 << 20


def read(path: Path) -> dict[str, ModelSource]:
    """The models of a `models.config` file.

    Raises:
        UserError: the file cannot be parsed, or names a model twice, without a name or with a relative path.
    """
    if path.stat().st_size > _MAX_BYTES:
        raise UserError(f"{path}: larger than a models.config may be ({_MAX_BYTES} bytes).")
    config = model_server_config_pb2.ModelServerConfig()
    try:
        text_format.Parse(path.read_text(encoding="utf-8"), config)
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be parsed as a text-format ModelServerConfig: {error}") from None
    if config.WhichOneof("config") != "model_config_list":
        raise UserError(f"{path}: must have a `model_config_list`.")
    sources: dict[str, ModelSource] = {}
    for model in config.model_config_list.config:
        if not model.name or model.name in sources:
            raise UserError(f"{path}: each model must have a name of its own. Received: name={model.name!r}.")
        if not Path(model.base_path).is_absolute():
            raise UserError(f"{path}: `base_path` of {model.name} must be absolute. Received: {model.base_path!r}.")
        if model.model_platform not in ("", "tensorflow"):
            raise UserError(f"{path}: `model_platform` of {model.name} must be tensorflow.")
        policy = _policy(model.model_version_policy)
        sources[model.name] = ModelSource(Path(model.base_path), policy, dict(model.version_labels))
    return sources


def _policy(policy: Any) -> Policy:
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return versions.every_version
    if choice == "specific":
        return versions.specific(list(policy.specific.versions))
    return versions.latest(policy.latest.num_versions or 1)


def write(path: Path, base_paths: Mapping[str, Path]) -> None:
    """Writes a `models.config` that serves the latest version of each model."""
    config = model_server_config_pb2.ModelServerConfig()
    for name, base_path in sorted(base_paths.items()):
        config.model_config_list.config.add(name=name, base_path=str(base_path), model_platform="tensorflow")
    path.write_text(text_format.MessageToString(config), encoding="utf-8")
