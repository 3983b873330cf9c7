"""Which versions exist, which are loaded, and who is using them.

A version is a directory with a numeric name. A new one is loaded beside the old; the old one is let go once the new
one answers and the last request that holds it is done. A version that does not load stays visible with its error, and
the last good one keeps answering, whatever becomes of its files.
"""

import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Protocol

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


def latest(num_versions: int = 1) -> Policy:
    """The highest versions that load."""
    return lambda found: (sorted(found, reverse=True), num_versions)


def every_version(found: Sequence[int]) -> tuple[list[int], int]:
    """All versions at once."""
    return sorted(found, reverse=True), len(found)


def specific(versions: Sequence[int]) -> Policy:
    """Exactly these versions."""
    return lambda found: (sorted(set(found) & set(versions), reverse=True), len(versions))


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
    servable: Servable | None = None
    users: int = 0
    stamp: tuple[tuple[str, int, int], ...] = field(default=())


@dataclass(frozen=True)
class Handle:
    """A version pinned for one request."""

    model: str
    version: int
    servable: Servable


@dataclass(frozen=True)
class ModelSource:
    """Where a model's versions lie, which of them to serve, and names for some of them, such as `stable`."""

    base_path: Path
    policy: Policy = field(default_factory=latest)
    labels: Mapping[str, int] = field(default_factory=dict)


class Model:
    """The versions of one model.

    Args:
        name: the name that requests use.
        source: where its versions lie and which of them to serve.
        load: loads a version directory; raises `ServingError` where it must not be served.
        on_change: called after any version changed its state.
    """

    def __init__(
        self,
        name: str,
        source: ModelSource,
        load: Callable[[Path], Servable],
        *,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.source = source
        self._load = load
        self._on_change = on_change
        self._versions: dict[int, _Version] = {}
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)

    def poll(self) -> None:
        """Looks at the files once and loads and unloads what has to be."""
        try:
            found = find_versions(self.source.base_path)
        except OSError as error:
            _LOGGER.warning("%s: its versions cannot be listed (%s); what is loaded stays.", self.name, error.strerror)
            return
        candidates, count = self.source.policy(list(found))
        chosen: list[int] = []
        for version in candidates:
            if len(chosen) == count:
                break
            if self._is_available(version) or self._try_load(version, found[version]):
                chosen.append(version)
        if chosen:
            for version in self.available():
                if version not in chosen:
                    self._retire(version)

    def available(self) -> list[int]:
        """The versions that answer, highest first."""
        with self._lock:
            return self._available()

    def _available(self) -> list[int]:
        versions = (number for number, version in self._versions.items() if version.status.state == State.AVAILABLE)
        return sorted(versions, reverse=True)

    def _is_available(self, version: int) -> bool:
        return version in self.available()

    def _try_load(self, number: int, path: Path) -> bool:
        stamp = _stamp(path)
        with self._lock:
            known = self._versions.get(number)
            if known is not None and known.status.code != Code.OK and known.stamp == stamp:
                return False  # it failed, and its files are the same
            if known is not None and known.status.state == State.UNLOADING:
                return False  # the next poll finds it ended
            self._versions[number] = _Version(VersionStatus(number, State.LOADING), stamp=stamp)
        self._on_change()
        _LOGGER.info("%s: loading version %d", self.name, number)
        try:
            servable = self._load(path)
        except ServingError as error:
            self._fail(number, error.code, error.message, path)
            return False
        except Exception as error:  # a loader's surprise must not end this model's polling: it becomes its status
            _LOGGER.exception("%s: version %d", self.name, number)
            self._fail(number, Code.INTERNAL, f"{type(error).__name__}: {error}", path)
            return False
        with self._lock:
            self._versions[number].servable = servable
            self._versions[number].status = VersionStatus(number, State.AVAILABLE)
        _LOGGER.info("%s: version %d is available", self.name, number)
        self._on_change()
        return True

    def _fail(self, number: int, code: Code, message: str, path: Path) -> None:
        message = message.replace(str(path), f"{self.name}/{path.name}").replace(str(self.source.base_path), self.name)
        with self._lock:
            self._versions[number].status = VersionStatus(number, State.END, code, message)
            self._forget_oldest()
        _LOGGER.error("%s: version %d is not served: %s", self.name, number, message)
        self._on_change()

    def _retire(self, number: int) -> None:
        with self._lock:
            version = self._versions[number]
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
            if label not in self.source.labels:
                raise invalid_argument(f"Unrecognized servable version label: {label}")
            version = self.source.labels[label]
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
            yield Handle(self.name, number, servable)
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
        for number in self.available():
            self._retire(number)
        with self._lock:
            self._idle.wait_for(lambda: not self._holding(), timeout_seconds)

    def _holding(self) -> bool:
        return any(version.servable is not None for version in self._versions.values())


def not_found(model: str, version: int | None) -> ServingError:
    """What a request for a model or version that is not served gets."""
    wanted = f"Latest({model})" if version is None else f"Specific({model}, {version})"
    return ServingError(Code.NOT_FOUND, f"Servable not found for request: {wanted}")


class Models:
    """All models, each polled by a thread of its own, so that a bad one never holds up another.

    Args:
        find: lists the models that should be served, new ones included.
        load: loads a version directory; raises `ServingError` where it must not be served.
        poll_seconds: how often the file system is looked at; 0 = once.
        on_change: called after any version of any model changed its state.
    """

    def __init__(
        self,
        find: Callable[[], Mapping[str, ModelSource]],
        load: Callable[[Path], Servable],
        *,
        poll_seconds: float = 1.0,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._find = find
        self._load = load
        self._poll_seconds = poll_seconds
        self._on_change = on_change
        self._models: dict[str, Model] = {}
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()

    def start(self) -> None:
        """Loads what there is, then keeps looking in the background."""
        threads = [threading.Thread(target=model.poll, daemon=True) for model in self._discover()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._poll_seconds > 0:
            for model in self._models.values():
                self._watch(model)
            self._start_thread(self._keep_discovering)

    def _discover(self) -> list[Model]:
        sources = {name: source for name, source in self._find().items() if name not in self._models}
        new = {name: Model(name, source, self._load, on_change=self._on_change) for name, source in sources.items()}
        self._models = {**self._models, **new}
        return list(new.values())

    def _keep_discovering(self) -> None:
        while not self._stopping.wait(self._poll_seconds):
            try:
                for model in self._discover():
                    self._watch(model)
            except OSError as error:
                _LOGGER.warning("the models' directory cannot be listed (%s)", error.strerror)

    def _watch(self, model: Model) -> None:
        def keep_polling() -> None:
            while not self._stopping.is_set():
                model.poll()
                self._stopping.wait(self._poll_seconds)

        self._start_thread(keep_polling)

    def _start_thread(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, daemon=True)
        self._threads.append(thread)
        thread.start()

    @property
    def ready(self) -> bool:
        """Whether some model answers."""
        return any(model.available() for model in self._models.values())

    @property
    def names(self) -> list[str]:
        """The models that were found, whether they load or not."""
        return sorted(self._models)

    def handle(self, name: str, version: int | None = None, label: str | None = None) -> AbstractContextManager[Handle]:
        """Pins a version of a model for the length of one request."""
        model = self._models.get(name)
        if model is None:
            raise not_found(name, version)
        return model.handle(version, label)

    def status(self, name: str, version: int | None = None) -> list[VersionStatus]:
        """The state of a model's versions, highest first."""
        model = self._models.get(name)
        if model is None:
            raise ServingError(Code.NOT_FOUND, f"Could not find any versions of model {name}")
        return model.status(version)

    def close(self) -> None:
        """Stops looking and unloads everything."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        for model in self._models.values():
            model.close()
