"""A published model asked in this process: what `tfrec recommend` does, with the titles that travel in the version."""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tfrec import publishing
from tfrec.config import suggest
from tfrec.errors import UsageError, UserError
from tfrec.schema import Schema

if TYPE_CHECKING:
    from serving.servable import SavedModelServable

Answer = list[tuple[str, float]]

_STRING = 7  # TensorFlow's number of the type


class PublishedModel:
    """A version directory that can be asked; `PublishedModel.newest` makes one.

    Args:
        directory: MODELS/NAME/<version>.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.version = int(directory.name)
        self._display = publishing.read_display(directory)
        self._schema = Schema.read(directory / publishing.EXTRA)
        self.fields: tuple[str, ...] = tuple(next(iter(self._display.values()), {}))

    @classmethod
    def newest(cls, model: Path) -> "PublishedModel":
        """The highest version of MODELS/NAME.

        Raises:
            UserError: there is none.
        """
        return cls(publishing.latest(model))

    @cached_property
    def _servable(self) -> "SavedModelServable":
        """The SavedModel, loaded on the first question (seconds).

        Raises:
            UserError: it does not load.
        """
        from serving.servable import SavedModelServable
        from serving.status import ServingError

        try:
            with _without_notes():
                return SavedModelServable(self.directory)
        except ServingError as error:
            raise UserError(f"{self.directory}: does not load: {str(error).removesuffix('.')}.") from None

    def recommend(
        self,
        items: Sequence[str],
        *,
        times: Sequence[int] = (),
        event_types: Sequence[str] = (),
        request_time: int | None = None,
        k: int | None = 10,
        allow: Sequence[str] = (),
        deny: Sequence[str] = (),
        where: Mapping[str, Sequence[str]] | None = None,
    ) -> Answer:
        """The k best items after a history.

        Args:
            items: item ids, oldest first; unknown ones count as events of an unknown item.
            times: Unix seconds of the events; left out, they are a minute apart and the last one is at the request.
            event_types: of the events.
            request_time: Unix seconds of the question.
            k: items wanted; the export's own k is the most that there are, and what None gives.
            allow: these items alone; empty = all.
            deny: these items not.
            where: feature of the items -> values, of which an item must have one.
        """
        filters = self._filters(allow, deny, where or {})
        signature = "recommend_filtered" if filters else "recommend"
        return self._ask(signature, self._inputs(signature, items, times, event_types, request_time) | filters, k)

    def rank(
        self,
        items: Sequence[str],
        candidates: Sequence[str],
        *,
        times: Sequence[int] = (),
        event_types: Sequence[str] = (),
        request_time: int | None = None,
    ) -> Answer:
        """Candidates after a history, best first, each with its score.

        Args:
            items: see `recommend`.
            candidates: item ids; unknown ones are ranked as an unknown item.
            times: see `recommend`.
            event_types: see `recommend`.
            request_time: see `recommend`.
        """
        inputs = self._inputs("rank", items, times, event_types, request_time)
        outputs = self._run("rank", inputs | {"candidate_ids": _strings(candidates)})
        pairs = zip(candidates, map(float, outputs["score"][0]), strict=True)
        return sorted(pairs, key=lambda pair: -pair[1])

    def _filters(
        self, allow: Sequence[str], deny: Sequence[str], where: Mapping[str, Sequence[str]]
    ) -> dict[str, NDArray[Any]]:
        """The inputs of `recommend_filtered` that filter, none where nothing is filtered."""
        known = [feature.name for feature in self._schema.filterable()]
        for name in where:
            if name not in known:
                raise UserError(f"{name}: no feature that items can be filtered by; {suggest(name, known)}")
        asked = {"allow_item_ids": allow, "deny_item_ids": deny}
        asked |= {f"allow_{name}": values for name, values in where.items()}
        if not any(asked.values()):
            return {}
        return {name: _strings(asked.get(name) or [""]) for name in self._schema.filter_inputs()}

    def similar_items(self, item: str, k: int = 10) -> Answer:
        """The k items most like one.

        Raises:
            UserError: the catalogue does not have the item.
        """
        if item not in self._display:
            raise UserError(f"{item}: not in the catalogue of version {self.version}.")
        return self._ask("similar_items", {"item_ids": _strings([item])[0]}, k)

    def unknown(self, items: Sequence[str]) -> list[str]:
        """Those of the items that the catalogue does not have."""
        return [item for item in items if item not in self._display]

    def display(self, item: str) -> tuple[str, ...]:
        """What people read of an item, in the order of `fields`."""
        return tuple(self._display.get(item, {}).get(field, "") for field in self.fields)

    def _inputs(
        self,
        signature: str,
        items: Sequence[str],
        times: Sequence[int],
        event_types: Sequence[str],
        request_time: int | None,
    ) -> dict[str, NDArray[Any]]:
        """All inputs of a signature: what a history says, and values that say nothing."""
        for name, values in (("times", times), ("event types", event_types)):
            if values and len(values) != len(items):
                raise UsageError(f"history: {len(items)} items but {len(values)} {name}; give one for each item.")
        signatures = self._servable.signature_def.signature_def
        if signature not in signatures:
            raise UserError(f"{self.directory}: has no signature `{signature}`, only {', '.join(sorted(signatures))}.")
        infos = signatures[signature].inputs
        times = times or self._schema.times_of(len(items), request_time)
        known = history_inputs(infos, items, times, event_types, request_time)
        unknown = {name: _missing(info, len(items)) for name, info in infos.items() if name not in known}
        return {**known, **unknown}

    def _run(self, signature: str, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        servable = self._servable
        with _without_notes():
            return servable.run(signature, inputs)

    def _ask(self, signature: str, inputs: dict[str, NDArray[Any]], k: int | None) -> Answer:
        outputs = self._run(signature, inputs)
        pairs = zip(outputs["item_ids"][0][:k], outputs["scores"][0][:k], strict=True)
        return [(item.decode(), float(score)) for item, score in pairs if item]


@contextmanager
def _without_notes() -> Iterator[None]:
    """TensorFlow's C++ library writes notes on loading and first use that no level silences; errors are exceptions."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def history_inputs(
    names: Iterable[str],
    items: Sequence[str],
    times: Sequence[int],
    event_types: Sequence[str] = (),
    request_time: int | None = None,
) -> dict[str, NDArray[Any]]:
    """Those inputs of `recommend` that a history says, for one user: a batch of one row.

    Args:
        names: the inputs that the signature has; those that a history says nothing of are left out.
        items: item ids, oldest first.
        times: Unix seconds of the events.
        event_types: left out, every event is of unknown type.
        request_time: Unix seconds of the request; left out, the latest event's.
    """
    length = len(items)
    end = request_time if request_time is not None else max(times, default=0)
    said = {
        "history_item_ids": _strings(items),
        "history_length": np.array([length], np.int32),
        "history_times": np.array([times], np.int64),
        "history_event_types": _strings(event_types or [""] * length),
        "history_sessions": _strings(["1"] * length),
        "request_time": np.array([end], np.int64),
    }
    return {name: said[name] for name in names if name in said}


def _strings(values: Sequence[str]) -> NDArray[Any]:
    array = np.empty((1, len(values)), dtype=object)
    array[0] = [value.encode() for value in values]
    return array


def _missing(info: Any, length: int) -> NDArray[Any]:
    """A value that says nothing, of a user feature `(1, ...)` or of an event feature `(1, length, ...)`."""
    varying = iter((1, length))  # the batch, then the events; the places of a multi-valued feature are fixed
    shape = [each.size if each.size >= 0 else next(varying) for each in info.tensor_shape.dim]
    if info.dtype == _STRING:
        return np.full(shape, b"", dtype=object)
    return np.full(shape, np.nan, {1: np.float32, 2: np.float64}[info.dtype])
