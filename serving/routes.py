"""What the paths of the REST API mean."""

import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from serving.status import ServingError, invalid_argument

_INFERENCE = re.compile(
    r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
    r":(?P<method>classify|regress|predict)",
    re.IGNORECASE,
)
_MODEL = re.compile(
    r"/v1/models(?:/(?P<name>[^/:]+))?(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
    r"(?:/(?P<method>metadata))?",
    re.IGNORECASE,
)
_API = re.compile(r"/v1/.*", re.IGNORECASE | re.DOTALL)
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_MAX_VERSION = 2**63 - 1
_INFERENCES = ("predict", "classify", "regress")


@dataclass(frozen=True)
class Target:
    """What a request asks, and of which model.

    Attributes:
        method: `predict`, `classify`, `regress`, `metadata` or `status`.
        name: the model.
        version: the version asked for, None for whichever is the latest.
        label: the label asked for.
    """

    method: str
    name: str
    version: int | None
    label: str | None

    @property
    def is_inference(self) -> bool:
        """Whether it runs the model."""
        return self.method in _INFERENCES


def is_api(path: str) -> bool:
    """Whether a path belongs to the API at all."""
    return _API.fullmatch(path) is not None or path.lower() == "/v1/models"


def parse(verb: str, path: str) -> Target:
    """What a request to the API asks; `path` includes the query string.

    Raises:
        ServingError: INVALID_ARGUMENT, it is no request of the API.
    """
    if verb == "POST" and (match := _INFERENCE.fullmatch(path)) and match["method"] in _INFERENCES:
        return _target(match, match["method"])
    if verb == "GET" and (match := _MODEL.fullmatch(path)):
        if not match["name"]:
            raise invalid_argument("Missing model name in request.")
        return _target(match, "metadata" if match["method"] else "status")
    raise _malformed(verb, path)


def _malformed(verb: str, path: str) -> ServingError:
    return invalid_argument(f"Malformed request: {verb} {path[:256]}")


def _target(match: re.Match[str], method: str) -> Target:
    version, label = match["version"], match["label"]
    if version is not None and (len(version) > 19 or int(version) > _MAX_VERSION):
        raise invalid_argument(f"Failed to convert version: {version[:40]} to numeric.")
    number = int(version) if version is not None else None
    return Target(method, _decode(match["name"]), number, _decode(label) if label is not None else None)


def _decode(text: str) -> str:
    if _BAD_ESCAPE.search(text):
        raise invalid_argument("Malformed request: a percent sign must be followed by two hexadecimal digits.")
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise invalid_argument("Malformed request: a percent-encoded name must be UTF-8.") from None
