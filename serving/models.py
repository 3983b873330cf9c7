"""All models that are served: which there are, their labels, and how a new configuration takes the old one's place."""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

from serving.signatures import Servable
from serving.status import Code, ServingError
from serving.versions import Handle, Model, ModelSource, Retries, VersionStatus, not_found
from tfrec.errors import UserError

_LOGGER = logging.getLogger("serving")


class Models:
    """All models, each polled by a thread of its own, so that a bad one never holds up another.

    Args:
        find: lists the models that should be served; a `UserError` or `OSError` of it leaves everything as it is.
        load: loads a version directory; raises `ServingError` where it must not be served.
        poll_seconds: how often versions are looked for; 0 = once.
        find_seconds: how often `find` is asked again; 0 = once. Defaults to `poll_seconds`.
        complete: whether `find` lists all there is, so that what it leaves out is unloaded.
        retries: when versions that failed are tried again.
        allow_unavailable_labels: whether a new label may name a version that does not answer.
        on_change: called after any version of any model changed its state.
    """

    def __init__(
        self,
        find: Callable[[], Mapping[str, ModelSource]],
        load: Callable[[Path], Servable],
        *,
        poll_seconds: float = 1.0,
        find_seconds: float | None = None,
        complete: bool = False,
        retries: Retries | None = None,
        allow_unavailable_labels: bool = False,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._find = find
        self._load = load
        self._poll_seconds = poll_seconds
        self._find_seconds = poll_seconds if find_seconds is None else find_seconds
        self._complete = complete
        self._may_change = complete  # a file may; a directory's listing gives way to a reload
        self._retries = retries
        self._allow_unavailable_labels = allow_unavailable_labels
        self._on_change = on_change
        self._models: dict[str, Model] = {}
        self._watched: set[str] = set()
        self._threads: list[threading.Thread] = []
        self._applying = threading.Lock()
        self._stopping = threading.Event()
        self._stopped_finding = threading.Event()

    def start(self) -> None:
        """Loads what there is, then keeps looking in the background.

        Raises:
            ServingError: of a complete listing, a model has versions and none of them loads, or a label names a
                version that does not answer.
        """
        found = self._find()
        try:
            self.apply(found)
        except ServingError:
            if self._complete:
                raise
        if not self._models:
            _LOGGER.warning("no model has a version yet; looking again every %g s", self._find_seconds)
        for name, model in self._models.items():
            if not model.available():
                _LOGGER.warning("%s: no version answers yet", name)
        if self._find_seconds > 0:
            self._start_thread(partial(self._keep_finding, found))

    def apply(self, sources: Mapping[str, ModelSource], *, wait: bool = True) -> None:
        """Serves these models from now on; of a complete listing, no others.

        Args:
            sources: the models by name.
            wait: whether to return only once each model has loaded or failed.

        Raises:
            ServingError: UNKNOWN, a model that is new or changed has versions and none of them loads;
                FAILED_PRECONDITION, a label names a version that does not answer: the labels stay as they were.
        """
        with self._applying:
            changed = [self._place(name, source) for name, source in sources.items() if self._differs(name, source)]
            if wait:
                _in_threads([model.poll for model in changed])
            if self._poll_seconds > 0:
                self._watch(changed)
            if self._complete:
                for name in self._models.keys() - sources.keys():
                    self._models[name].withdraw()
            if wait:
                self._check_available(changed)
            self._set_labels(sources)

    def reload(self, sources: Mapping[str, ModelSource]) -> None:
        """Serves these models and no others from now on, as `apply`; a directory is not listed any more."""
        self._complete = True
        if not self._may_change:
            self._stopped_finding.set()
        self.apply(sources)

    def _differs(self, name: str, source: ModelSource) -> bool:
        known = self._models.get(name)
        if known is None or known.withdrawn:
            return True
        return replace(known.source, labels={}) != replace(source, labels={})

    def _place(self, name: str, source: ModelSource) -> Model:
        known = self._models.get(name)
        if known is None:
            unlabelled = replace(source, labels={})
            known = Model(name, unlabelled, self._load, retries=self._retries, on_change=self._on_change)
            self._models = {**self._models, name: known}
        else:
            known.restore(replace(source, labels=known.source.labels))
        return known

    def _check_available(self, models: Iterable[Model]) -> None:
        failed = {model.name: model.failures() for model in models}
        reasons = [f"{{name: {name} version: {each.version}}} due to error: {each.code.name}: {each.message}"
                   for name, statuses in failed.items() for each in statuses[:1]]  # fmt: skip
        if reasons:
            message = f"{len(reasons)} servable(s) did not become available: {{{', '.join(reasons)}}}"
            raise ServingError(Code.UNKNOWN, message)

    def _set_labels(self, sources: Mapping[str, ModelSource]) -> None:
        for name, source in sources.items():
            known = self._models[name]
            for label, version in source.labels.items():
                old = known.source.labels.get(label, version)
                allowed = self._allow_unavailable_labels and old == version
                if not allowed and version not in known.available() and known.source.labels.get(label) != version:
                    raise ServingError(
                        Code.FAILED_PRECONDITION,
                        f"Request to assign label to version {version} of model {name}, which is not currently "
                        "available for inference",
                    )
        for name, source in sources.items():
            known = self._models[name]
            known.source = replace(known.source, labels=dict(source.labels))

    def _keep_finding(self, before: Mapping[str, ModelSource]) -> None:
        told = ""  # a fault is told once, and not at every look
        while not self._stopped_finding.wait(self._find_seconds):
            fault = ""
            try:
                found = self._find()
                if found != before and not self._stopped_finding.is_set():
                    _LOGGER.info("models: %s", ", ".join(sorted(found)) or "none")
                    before = found
                    self.apply(found, wait=self._complete)
            except OSError as error:
                fault = f"the models cannot be listed ({error.strerror})"
            except (UserError, ServingError) as error:
                fault = f"the new configuration is not in force: {error}"
            if fault and fault != told:
                _LOGGER.error("%s", fault)
            told = fault

    def _watch(self, models: Iterable[Model]) -> None:
        for model in models:
            if model.name not in self._watched:
                self._watched.add(model.name)
                self._start_thread(partial(self._keep_polling, model))

    def _keep_polling(self, model: Model) -> None:
        while not self._stopping.is_set():
            model.poll()
            self._stopping.wait(self._poll_seconds)

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
        """The models that should be served, whether they load or not."""
        return sorted(name for name, model in self._models.items() if not model.withdrawn)

    def available(self, name: str) -> list[int]:
        """The versions of a model that answer, highest first."""
        return self._models[name].available()

    def labels(self, name: str, version: int) -> list[str]:
        """The labels of a version."""
        return sorted(label for label, number in self._models[name].source.labels.items() if number == version)

    def knows(self, name: str) -> bool:
        """Whether there is or was such a model."""
        return name in self._models

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
        self._stopped_finding.set()
        for thread in self._threads:
            thread.join()
        for model in self._models.values():
            model.close()


def _in_threads(calls: Iterable[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=call, daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
