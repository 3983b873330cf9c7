"""What a served model is asked beside what it was trained on: a server's request log compared with a dataset.

Requests are counted as `tfrec.drift` counts events: every event of every recorded history once. Each row compares two
distributions by their Jensen-Shannon divergence in bits: a tenth of the events being something that training never saw
makes about 0.05. What chance alone would give is taken off before a row is judged.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfrec.data import Dataset
from tfrec.drift import Counts, code_counts, divergence, expected_noise, item_code_counts
from tfrec.errors import UserError
from tfrec.schema import ITEM_ID, Feature
from tfrec.transforms import FIRST_VALUE, PADDING, UNKNOWN, Bins, Hashed, Quantizer, Vocabulary

_GROUPS = 10

Inputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Skew:
    """One quantity in the dataset and in the requests."""

    name: str
    divergence: float
    noise: float
    """What the divergence would be on average if both were independent draws of one distribution."""
    unknown: tuple[float, float] | None = None
    """Share of values that are unknown or missing, in the dataset and in the requests; None where nothing can be."""

    def exceeds(self, threshold: float) -> bool:
        """Whether it differs by more than a threshold, chance taken off."""
        return self.divergence - self.noise > threshold


def recorded_inputs(files: Sequence[Path], model: str | None = None) -> Iterator[Inputs]:
    """The inputs of every recorded predict request with a history.

    Args:
        files: of a server's `--request-log`.
        model: requests to this model alone.

    Raises:
        UserError: a file is no request log.
    """
    from serving.replay import read
    from serving.tensor_proto import from_proto

    for log in read(files):
        request = log.predict_log.request
        if "history_item_ids" in request.inputs and model in (None, request.model_spec.name):
            yield {alias: from_proto(value, alias) for alias, value in request.inputs.items()}


def compare_requests(dataset: Dataset, requests: Iterable[Inputs]) -> list[Skew]:
    """Compares recorded requests with a dataset, the largest difference first.

    Args:
        dataset: that the served model was trained on.
        requests: inputs of `recommend`, a batch each.

    Raises:
        UserError: there are no requests, or they are not of a model of this dataset.
    """
    tally = _Tally(dataset)
    for inputs in requests:
        tally.add(inputs)
    if not tally.lengths:
        raise UserError("skew: the log has no recorded predict request with a history.")
    return sorted(tally.rows(), key=lambda row: row.noise - row.divergence)


class _Tally:
    """Counts of what requests hold, by code."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.lengths: list[int] = []
        schema = dataset.schema
        self.items = np.zeros(schema.num_items, np.int64)
        self.types = np.zeros(len(schema.event_types) + FIRST_VALUE, np.int64)
        self.known_types = {name: code for code, name in enumerate(schema.event_types, start=FIRST_VALUE)}
        self.features = {
            feature.name: np.zeros(max(feature.table_sizes), np.int64)
            for side in ("event", "user")
            for feature in schema.inputs(side)
            if not isinstance(feature.transform, Quantizer)
        }

    def add(self, inputs: Inputs) -> None:
        """Counts one request."""
        ids = inputs["history_item_ids"]
        valid = (np.arange(ids.shape[1]) < inputs["history_length"][:, None]) & (ids != b"")
        self.lengths += valid.sum(axis=1).tolist()
        schema, directory = self.dataset.schema, self.dataset.directory
        self.items += np.bincount(
            schema.item_vocabulary.encode(_texts(ids[valid]), directory), minlength=len(self.items)
        )
        if schema.event_types:
            types = [
                self.known_types.get(text, UNKNOWN) for text in _texts(self._of(inputs, "history_event_types")[valid])
            ]
            self.types += np.bincount(np.array(types, np.int64), minlength=len(self.types))
        for name, counts in self.features.items():
            feature = schema.feature(name)
            values = self._of(inputs, f"{feature.side}_{name}")
            counts += _code_counts(feature, values[valid] if feature.side == "event" else values, directory)

    def _of(self, inputs: Inputs, name: str) -> NDArray[Any]:
        if name not in inputs:
            raise UserError(
                f"skew: the requests have no `{name}`, which {self.dataset.directory} knows; name the dataset that the "
                "model was trained on."
            )
        return inputs[name]

    def rows(self) -> Iterator[Skew]:
        """One row a quantity."""
        dataset = self.dataset
        schema, histories = dataset.schema, dataset.histories()
        events = np.bincount(histories.columns["item"], minlength=schema.num_items)
        unknown = np.stack([_known(counts) for counts in (events, self.items)])
        yield _row("unknown items", unknown[0], unknown[1], (_share(events), _share(self.items)))
        groups = _popularity_groups(events)
        popular, asked = (np.bincount(groups, counts, _GROUPS + 2).astype(np.int64) for counts in (events, self.items))
        yield _row("item popularity", popular, asked)
        longest = schema.max_events
        lengths = np.minimum(np.diff(histories.offsets), longest)
        yield _row("history length", _by_powers(lengths), _by_powers(np.minimum(self.lengths, longest)))
        if schema.event_types:
            types = np.bincount(histories.columns["event_type"], minlength=len(self.types))
            yield _row("event_type", types, self.types, (_share(types), _share(self.types)))
        for feature in schema.features:
            if feature.name in self.features:
                (old,) = code_counts(dataset, feature)
                new = self.features[feature.name]
            elif feature.side == "item" and feature.name != ITEM_ID and not isinstance(feature.transform, Quantizer):
                (old,), (new,) = code_counts(dataset, feature), item_code_counts(dataset, feature, self.items)
            else:
                continue
            yield _row(f"{feature.side} {feature.name}", old, new, (_share(old), _share(new)))


def _row(name: str, old: Counts, new: Counts, unknown: tuple[float, float] | None = None) -> Skew:
    return Skew(name, divergence(old, new), expected_noise(old, new), unknown)


def _share(counts: Counts) -> float:
    return float(counts[UNKNOWN] / max(counts.sum(), 1))


def _known(counts: Counts) -> Counts:
    return np.array([counts[UNKNOWN], counts[FIRST_VALUE:].sum()])


def _popularity_groups(events: Counts) -> NDArray[np.int64]:
    """The group of each item: ten that have equally many of the dataset's events, the most popular items first.

    Unknown ones and those without events make two more.
    """
    order = np.argsort(-events[FIRST_VALUE:], kind="stable") + FIRST_VALUE
    before = np.cumsum(events[order]) - events[order]
    groups = np.full(len(events), _GROUPS, np.int64)
    groups[order] = np.minimum(before * _GROUPS // max(int(events[FIRST_VALUE:].sum()), 1), _GROUPS - 1)
    groups[events == 0] = _GROUPS + 1
    groups[UNKNOWN] = _GROUPS
    return groups


def _by_powers(lengths: NDArray[np.int64]) -> Counts:
    """How many are 0, 1, 2 to 3, 4 to 7, and so on."""
    exponents = np.ceil(np.log2(lengths + 1.0)).astype(np.int64)
    return np.bincount(exponents, minlength=64)


def _code_counts(feature: Feature, values: NDArray[Any], directory: Path) -> Counts:
    """Counts of the codes of raw values `(N,)`, or `(N, num_codes)` padded with empty ones where multi-valued."""
    match feature.transform:
        case Bins():
            codes = feature.transform.encode(values.astype(np.float64))
        case Vocabulary() | Hashed():
            codes = feature.transform.encode(_texts(values.reshape(-1)), directory).reshape(values.shape)
        case _:
            raise ValueError(f"`feature` must be made of texts or numbers. Received: {feature.name!r}.")
    if feature.multivalued:  # a row without any value is one missing value, its other places are padding
        empty = values == b""
        codes = np.where(empty, PADDING, codes)
        codes[empty.all(axis=1), 0] = UNKNOWN
    counts = np.bincount(codes.reshape(-1), minlength=max(feature.table_sizes))
    counts[PADDING] = 0
    return counts


def _texts(values: NDArray[Any]) -> list[str]:
    return [value.decode("utf-8", "replace") for value in values.tolist()]
