"""`models.config`: TensorFlow Serving's ModelServerConfig, as text in a file or as a message, read and written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from serving.status import ServingError, invalid_argument
from serving.versions import EveryVersion, Latest, ModelSource, Policy, Specific
from tfrec.errors import UserError

_MAX_BYTES = 1 << 20


def read(path: Path) -> dict[str, ModelSource]:
    """The models of a `models.config` file.

    Raises:
        UserError: the file cannot be parsed, or says what `sources` refuses.
    """
    config = model_server_config_pb2.ModelServerConfig()
    parse_text(path, config)
    try:
        return sources(config)
    except ServingError as error:
        raise UserError(f"{path}: {error.message}") from None


def parse_text(path: Path, message: Any) -> None:
    """Fills a message from a file in protobuf's text form."""
    kind = message.DESCRIPTOR.name
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UserError(f"{path}: larger than a {kind} may be ({_MAX_BYTES} bytes).")
        text_format.Parse(path.read_text(encoding="utf-8"), message)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be parsed as a text-format {kind}: {error}") from None


def sources(config: Any) -> dict[str, ModelSource]:
    """The models of a ModelServerConfig message.

    Raises:
        ServingError: INVALID_ARGUMENT, it is no list of models, or a model has no name, a name that another has, a
            relative path or another platform than TensorFlow.
    """
    if config.WhichOneof("config") != "model_config_list":
        raise invalid_argument("a configuration must have a `model_config_list`.")
    found: dict[str, ModelSource] = {}
    for model in config.model_config_list.config:
        if not model.name or "\0" in model.name or model.name in found:
            raise invalid_argument(f"each model must have a name of its own. Received: name={model.name!r}.")
        if not Path(model.base_path).is_absolute() or "\0" in model.base_path:
            raise invalid_argument(f"`base_path` of {model.name} must be absolute. Received: {model.base_path!r}.")
        if model.model_type and model.model_platform:
            raise invalid_argument(f"`model_type` and `model_platform` of {model.name} must not both be set.")
        if model.model_platform not in ("", "tensorflow") or model.model_type > 1:
            raise invalid_argument(f"`model_platform` of {model.name} must be tensorflow.")
        policy = _policy(model.model_version_policy)
        found[model.name] = ModelSource(Path(model.base_path), policy, dict(model.version_labels))
    return found


def _policy(policy: Any) -> Policy:
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return EveryVersion()
    if choice == "specific":
        return Specific(tuple(policy.specific.versions))
    return Latest(policy.latest.num_versions or 1)


def write(path: Path, base_paths: Mapping[str, Path]) -> None:
    """Writes a `models.config` that serves the latest version of each model."""
    config = model_server_config_pb2.ModelServerConfig()
    for name, base_path in sorted(base_paths.items()):
        config.model_config_list.config.add(name=name, base_path=str(base_path), model_platform="tensorflow")
    path.write_text(text_format.MessageToString(config), encoding="utf-8")
