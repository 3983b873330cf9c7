"""Which versions exist, which are loaded, and who is using them.

A version is a directory with a numeric name. A new one is loaded beside the old; the old one is let go once the new
one answers and the last request that holds it is done. A version that does not load stays visible with its error, and
the last good one keeps answering, whatever becomes of its files.
"""

import logging
import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, Protocol

from serving.signatures import Servable
from serving.status import Code, ServingError, invalid_argument

_LOGGER = logging.getLogger("serving")
_VERSION_NAME = re.compile(r"[0-9]{1,19}")
_MAX_VERSION = 2**63 - 1
_MAX_ENDED = 100


class State(IntEnum):
    """The states of a version, numbered as in TensorFlow Serving's ModelVersionStatus."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass(frozen=True)
class VersionStatus:
    """What a status request says of one version."""

    version: int
    state: State
    code: Code = Code.OK
    message: str = ""


class Policy(Protocol):
    """Chooses among the versions that exist."""

    def __call__(self, found: Sequence[int]) -> tuple[list[int], int]:
        """Returns the versions to try, in that order, and how many of them to serve."""


@dataclass(frozen=True)
class Latest:
    """The highest versions that load."""

    num_versions: int = 1

    def __call__(self, found: Sequence[int]) -> tuple[list[int], int]:
        """The highest first, until enough have loaded."""
        return sorted(found, reverse=True), self.num_versions


@dataclass(frozen=True)
class EveryVersion:
    """All versions at once."""

    def __call__(self, found: Sequence[int]) -> tuple[list[int], int]:
        """All of them."""
        return sorted(found, reverse=True), len(found)


@dataclass(frozen=True)
class Specific:
    """Exactly these versions."""

    versions: tuple[int, ...]

    def __call__(self, found: Sequence[int]) -> tuple[list[int], int]:
        """Those of them that exist."""
        return sorted(set(found) & set(self.versions), reverse=True), len(self.versions)


def find_versions(base_path: Path) -> dict[int, Path]:
    """The version directories below `base_path`: numeric names alone, no links, no files.

    Of several names for one number (1, 01, 001) the shortest counts.
    """
    found: dict[int, Path] = {}
    for path in sorted(base_path.iterdir(), key=lambda path: (len(path.name), path.name)):
        if _VERSION_NAME.fullmatch(path.name) and not path.is_symlink() and path.is_dir():
            number = int(path.name)
            if number <= _MAX_VERSION and number not in found:
                found[number] = path
    return found


def find_models(root: Path) -> dict[str, "ModelSource"]:
    """The models in a directory: every directory below it that holds a version and does not lead out of it."""
    found = {}
    for path in sorted(root.iterdir()):
        if path.name.startswith(".") or not path.is_dir() or not path.resolve().is_relative_to(root.resolve()):
            continue
        try:
            if find_versions(path):
                found[path.name] = ModelSource(path)
        except OSError as error:
            _LOGGER.warning("%s: cannot be listed (%s).", path.name, error.strerror)
    return found


def _stamp(directory: Path) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of a version's files: a failed version is tried again when they change."""
    try:
        files = sorted(path for path in directory.rglob("*") if path.is_file())
        stats = [(path.relative_to(directory).as_posix(), path.stat()) for path in files]
    except OSError:
        return ()
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


@dataclass
class _Version:
    """One version's state; `users` counts the requests that hold its servable."""

    status: VersionStatus
    path: Path
    servable: Servable | None = None
    users: int = 0


@dataclass(frozen=True)
class _Failure:
    """How often in a row a directory failed to load with the same files, and when it is tried again."""

    stamp: tuple[tuple[str, int, int], ...]
    count: int
    retry_at: float


@dataclass(frozen=True)
class Handle:
    """A version pinned for one request."""

    model: str
    version: int
    servable: Servable
    directory: Path


@dataclass(frozen=True)
class Retries:
    """How often a version that failed to load is tried again while its files stay the same.

    Attributes:
        count: how often; then it waits for its files to change.
        first_seconds: the first wait; each further one is twice as long.
        longest_seconds: no wait is longer.
    """

    count: int = 5
    first_seconds: float = 1.0
    longest_seconds: float = 60.0

    def wait_seconds(self, failures: int) -> float:
        """The wait after that many failures."""
        if failures > self.count:
            return math.inf
        return min(self.longest_seconds, self.first_seconds * 2.0 ** (failures - 1))


@dataclass(frozen=True)
class ModelSource:
    """Where a model's versions lie, which of them to serve, and names for some of them, such as `stable`."""

    base_path: Path
    policy: Policy = field(default_factory=Latest)
    labels: Mapping[str, int] = field(default_factory=dict)


class Model:
    """The versions of one model.

    Args:
        name: the name that requests use.
        source: where its versions lie and which of them to serve.
        load: loads a version directory; raises `ServingError` where it must not be served.
        retries: when a version that failed is tried again.
        on_change: called after any version changed its state.
    """

    def __init__(
        self,
        name: str,
        source: ModelSource,
        load: Callable[[Path], Servable],
        *,
        retries: Retries | None = None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.source = source
        self._load = load
        self._retries = retries or Retries()
        self._on_change = on_change
        self._withdrawn = False
        self._versions: dict[int, _Version] = {}
        self._failures: dict[Path, _Failure] = {}
        self._polling = threading.Lock()
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._held = 0

    def poll(self) -> None:
        """Looks at the files once and loads and unloads what has to be."""
        with self._polling:
            if not self._withdrawn:
                self._poll()

    def _poll(self) -> None:
        source = self.source
        try:
            found = find_versions(source.base_path)
        except OSError as error:
            _LOGGER.warning("%s: its versions cannot be listed (%s); what is loaded stays.", self.name, error.strerror)
            return
        paths = set(found.values())
        self._failures = {path: failure for path, failure in self._failures.items() if path in paths}
        candidates, count = source.policy(list(found))
        chosen: list[int] = []
        for version in candidates:
            if len(chosen) == count:
                break
            if self._is_loaded_from(version, found[version]) or self._try_load(version, found[version]):
                chosen.append(version)
        if chosen:
            for version in self.available():
                if version not in chosen:
                    self._retire(version)

    def withdraw(self) -> None:
        """Unloads every version and looks for none until the next `restore`."""
        with self._polling:
            self._withdrawn = True
            for version in self.available():
                self._retire(version)

    def restore(self, source: ModelSource) -> None:
        """Serves from this source from the next poll on."""
        with self._polling:
            self.source = source
            self._withdrawn = False

    @property
    def withdrawn(self) -> bool:
        """Whether it was withdrawn and not restored."""
        return self._withdrawn

    def available(self) -> list[int]:
        """The versions that answer, highest first."""
        with self._lock:
            return self._available()

    def _available(self) -> list[int]:
        versions = (number for number, version in self._versions.items() if version.status.state == State.AVAILABLE)
        return sorted(versions, reverse=True)

    def failures(self) -> list[VersionStatus]:
        """The versions whose last load failed, highest first; none of a model that answers or was withdrawn."""
        with self._lock:
            if self._withdrawn or self._available():
                return []
            failed = [known.status for known in self._versions.values() if known.status.code != Code.OK]
        return sorted(failed, key=lambda status: -status.version)

    def _is_loaded_from(self, version: int, path: Path) -> bool:
        with self._lock:
            known = self._versions.get(version)
            return known is not None and known.status.state == State.AVAILABLE and known.path == path

    def _try_load(self, number: int, path: Path) -> bool:
        stamp = _stamp(path)
        failure = self._failures.get(path)
        if failure is not None and failure.stamp == stamp and time.monotonic() < failure.retry_at:
            return False
        loading = _Version(VersionStatus(number, State.LOADING), path)
        with self._lock:
            known = self._versions.get(number)
            if known is not None and known.status.state == State.UNLOADING:
                return False  # the next poll finds it ended
            replaced = known if known is not None and known.servable is not None else None
            if replaced is None:  # else the old one of that number answers until the new one does
                self._versions[number] = loading
        self._on_change()
        _LOGGER.info("%s: loading version %d", self.name, number)
        try:
            servable = self._load(path)
        except ServingError as error:
            self._fail(number, loading, stamp, error.code, error.message)
            return False
        except Exception as error:  # a loader's surprise must not end this model's polling: it becomes its status
            _LOGGER.exception("%s: version %d", self.name, number)
            self._fail(number, loading, stamp, Code.INTERNAL, f"{type(error).__name__}: {error}")
            return False
        self._failures.pop(path, None)
        with self._lock:
            loading.servable = servable
            loading.status = VersionStatus(number, State.AVAILABLE)
            self._held += 1
            self._versions[number] = loading
        _LOGGER.info("%s: version %d is available", self.name, number)
        self._on_change()
        if replaced is not None:
            self._release(number, replaced)
        return True

    def _fail(self, number: int, version: _Version, stamp: Any, code: Code, message: str) -> None:
        path, base = version.path, version.path.parent
        for known, shown in ((path, f"{self.name}/{path.name}"), (base, self.name), (base.resolve(), self.name)):
            message = message.replace(str(known), shown)
        before = self._failures.get(path)
        count = 1 if before is None or before.stamp != stamp else before.count + 1
        self._failures[path] = _Failure(stamp, count, time.monotonic() + self._retries.wait_seconds(count))
        with self._lock:
            version.status = VersionStatus(number, State.END, code, message)
            self._forget_oldest()
        _LOGGER.error("%s: version %d is not served (failure %d): %s", self.name, number, count, message)
        self._on_change()

    def _retire(self, number: int) -> None:
        with self._lock:
            version = self._versions[number]
        self._release(number, version)

    def _release(self, number: int, version: _Version) -> None:
        """Lets a version go: at once, or with the last request that holds it."""
        with self._lock:
            version.status = VersionStatus(number, State.UNLOADING)
            last = version.users == 0
        self._on_change()
        if last:
            self._end(number, version)

    def _end(self, number: int, version: _Version) -> None:
        servable, version.servable = version.servable, None
        if servable is not None:
            servable.close()
        with self._lock:
            version.status = VersionStatus(number, State.END)
            self._held -= servable is not None
            self._forget_oldest()
            self._idle.notify_all()
        _LOGGER.info("%s: version %d is unloaded", self.name, number)
        self._on_change()

    def _forget_oldest(self) -> None:
        ended = [number for number, known in sorted(self._versions.items()) if known.status.state == State.END]
        for number in ended[:-_MAX_ENDED]:
            del self._versions[number]

    @contextmanager
    def handle(self, version: int | None = None, label: str | None = None) -> Iterator[Handle]:
        """Pins a version for the length of one request; it is not unloaded before that ends."""
        if label is not None:
            labels = self.source.labels  # which a new configuration replaces meanwhile
            if label not in labels:
                raise invalid_argument(f"Unrecognized servable version label: {label}")
            version = labels[label]
        with self._lock:
            available = self._available()
            number = version if version is not None else (available[0] if available else None)
            if number is None or number not in available:
                raise not_found(self.name, version)
            pinned = self._versions[number]
            pinned.users += 1
            servable = pinned.servable
        assert servable is not None  # an available version has one, under the same lock
        try:
            yield Handle(self.name, number, servable, pinned.path)
        finally:
            with self._lock:
                pinned.users -= 1
                last = pinned.users == 0 and pinned.status.state == State.UNLOADING
            if last:  # closing takes a while: not at this request's cost
                threading.Thread(target=self._end, args=(number, pinned), daemon=True).start()

    def status(self, version: int | None = None) -> list[VersionStatus]:
        """The state of one version or of all, highest first.

        Raises:
            ServingError: NOT_FOUND, nothing is known of it.
        """
        with self._lock:
            statuses = sorted((known.status for known in self._versions.values()), key=lambda s: -s.version)
        if version is not None:
            statuses = [status for status in statuses if status.version == version]
            if not statuses:
                raise ServingError(Code.NOT_FOUND, f"Could not find version {version} of model {self.name}")
        if not statuses:
            raise ServingError(Code.NOT_FOUND, f"Could not find any versions of model {self.name}")
        return statuses

    def close(self, timeout_seconds: float = 10.0) -> None:
        """Unloads everything, waiting for the requests that still hold a version."""
        self.withdraw()
        with self._lock:
            self._idle.wait_for(lambda: self._held == 0, timeout_seconds)


def not_found(model: str, version: int | None) -> ServingError:
    """What a request for a model or version that is not served gets."""
    wanted = f"Latest({model})" if version is None else f"Specific({model}, {version})"
    return ServingError(Code.NOT_FOUND, f"Servable not found for request: {wanted}")
