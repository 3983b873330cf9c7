"""Two datasets side by side: how far each feature's distribution has moved, and what is new or gone.

A value's share is its share of events (of users for user features). How far two distributions p and q lie apart is
their Jensen-Shannon divergence in bits, (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2: 0 for equal ones, 1 for
those that share nothing, finite whatever is missing on one side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfrec.data import Dataset
from tfrec.schema import ITEM_ID, Feature
from tfrec.transforms import FIRST_VALUE, UNKNOWN, Cross, Quantizer, Vocabulary

Counts = NDArray[np.int64]
_DAY_SECONDS = 86_400
_PERIODS = 24


@dataclass(frozen=True)
class Drift:
    """One feature in two datasets."""

    name: str
    side: str
    divergence: float | None
    """Jensen-Shannon divergence in bits, the mean over the codes of a quantised vector; None where codes of the two
    datasets do not mean the same, because the feature was fitted anew."""
    noise: float | None
    """What it would be on average if both were independent draws of one distribution."""
    unknown: tuple[float, float]
    """Share of values that are unknown or missing, old and new."""
    new_values: int
    """Values of the new vocabulary that the old one lacks."""
    gone_values: int
    """Values of the old vocabulary that the new one lacks."""


@dataclass(frozen=True)
class Comparison:
    """Everything that `tfrec data compare` shows."""

    drifts: tuple[Drift, ...]
    sizes: dict[str, tuple[int, int]]
    """Users, items, events of each."""
    members: dict[str, tuple[int, int, float]]
    """Of users and items how many are new, how many are gone, and the share of new events that the new ones have."""
    periods: tuple[tuple[str, int, int], ...]
    """Start of a period, events of each; empty where either has no times."""


def compare_datasets(old: Dataset, new: Dataset) -> Comparison:
    """Compares two datasets of the same features; features of one alone are left out."""
    names = [feature.name for feature in old.schema.features]
    drifts = [_drift(old, new, feature) for feature in new.schema.features if feature.name in names]
    if old.schema.event_types and new.schema.event_types:
        drifts.append(_event_type_drift(old, new))
    sizes = {
        "users": (old.histories().num_users, new.histories().num_users),
        "items": (len(old.catalogue().candidates), len(new.catalogue().candidates)),
        "events": (int(old.histories().offsets[-1]), int(new.histories().offsets[-1])),
    }
    return Comparison(tuple(drifts), sizes, {"users": _users(old, new), "items": _items(old, new)}, _periods(old, new))


def code_counts(dataset: Dataset, feature: Feature) -> list[Counts]:
    """How often each code occurs, padding left out: one array, or one for each code of a quantised vector."""
    histories = dataset.histories()
    if feature.side == "item":
        events = np.bincount(histories.columns["item"], minlength=dataset.schema.num_items)
        return item_code_counts(dataset, feature, events)
    codes = histories.user[feature.name] if feature.side == "user" else histories.columns[f"event_{feature.name}"]
    return _code_counts(feature, codes, np.ones(len(codes), np.int64))


def item_code_counts(dataset: Dataset, feature: Feature, events: Counts) -> list[Counts]:
    """The same of an item feature, where `events (V,)` says how many events each item has."""
    codes = dataset.catalogue().codes[:, dataset.schema.item_columns()[feature.name]]
    return _code_counts(feature, codes, events)


def _code_counts(feature: Feature, codes: NDArray[np.int32], weights: Counts) -> list[Counts]:
    sizes = feature.transform.table_sizes
    counts = [np.bincount(column, weights, max(sizes)).astype(np.int64) for column in codes.T]
    if not isinstance(feature.transform, Quantizer):  # one vocabulary for all columns
        counts = [np.sum(counts, axis=0)]
    for each in counts:
        each[0] = 0
    return counts


def divergence(old: Counts, new: Counts) -> float:
    """The Jensen-Shannon divergence in bits of two distributions, given as counts."""
    shares = [counts / max(counts.sum(), 1) for counts in (old, new)]
    middle = (shares[0] + shares[1]) / 2
    total = 0.0
    for share in shares:
        present = share > 0
        total += float((share[present] * np.log2(share[present] / middle[present])).sum())
    return max(total / 2, 0.0)


def expected_noise(old: Counts, new: Counts) -> float:
    """What `divergence` is on average, to first order, for two samples of these sizes from one distribution.

    The divergence is sum((p - q) ** 2 / m) / (8 ln 2) for nearby p and q, and that sum is on average (values - 1) *
    (1 / sample + 1 / other sample). Events of one user are not independent, so that real noise is somewhat larger.
    """
    values = int(((old + new) > 0).sum())
    sizes = sum(1 / max(int(counts.sum()), 1) for counts in (old, new))
    return max(values - 1, 0) * sizes / (8 * float(np.log(2)))


def _drift(old: Dataset, new: Dataset, feature: Feature) -> Drift:
    before = old.schema.feature(feature.name)
    counts = [code_counts(dataset, each) for dataset, each in ((old, before), (new, feature))]
    unknown = tuple(float(np.mean([each[UNKNOWN] / max(each.sum(), 1) for each in found])) for found in counts)
    vocabularies = [
        _values(dataset, each)
        for dataset, each in ((old, before), (new, feature))
        if isinstance(each.transform, Vocabulary)
    ]
    if len(vocabularies) == 2:
        pairs = [_aligned(vocabularies[0], vocabularies[1], counts[0][0], counts[1][0])]
        known = [{value for value in values if value} for values in vocabularies]
        added, gone = len(known[1] - known[0]), len(known[0] - known[1])
    else:
        same = _codes_mean_the_same(old, new, before, feature)
        pairs = list(zip(counts[0], counts[1], strict=True)) if same else []
        added = gone = 0
    return Drift(
        feature.name,
        feature.side,
        divergence=float(np.mean([divergence(*pair) for pair in pairs])) if pairs else None,
        noise=float(np.mean([expected_noise(*pair) for pair in pairs])) if pairs else None,
        unknown=(unknown[0], unknown[1]),
        new_values=added,
        gone_values=gone,
    )


def _event_type_drift(old: Dataset, new: Dataset) -> Drift:
    types = [dataset.schema.event_types for dataset in (old, new)]
    counts = [
        np.bincount(dataset.histories().columns["event_type"], minlength=len(dataset.schema.event_types) + FIRST_VALUE)
        for dataset in (old, new)
    ]
    pair = _aligned(types[0], types[1], counts[0], counts[1])
    unknown = [float(each[UNKNOWN] / max(each.sum(), 1)) for each in counts]
    added, gone = len(set(types[1]) - set(types[0])), len(set(types[0]) - set(types[1]))
    return Drift("event_type", "event", divergence(*pair), expected_noise(*pair), (unknown[0], unknown[1]), added, gone)


def _values(dataset: Dataset, feature: Feature) -> Sequence[str]:
    if feature.name == ITEM_ID:
        return dataset.catalogue().item_ids[FIRST_VALUE:]
    assert isinstance(feature.transform, Vocabulary), "Asked of vocabularies alone."
    return feature.transform.read(dataset.directory)


def _codes_mean_the_same(old: Dataset, new: Dataset, before: Feature, after: Feature) -> bool:
    if isinstance(before.transform, Vocabulary) and isinstance(after.transform, Vocabulary):
        values = _values(old, before)
        return list(values) == list(_values(new, after)[: len(values)])
    same = (before.transform, before.encoder) == (after.transform, after.encoder)
    if not same or _files(old, before) != _files(new, after):
        return False
    names = after.transform.cross if isinstance(after.transform, Cross) else ()
    return all(_codes_mean_the_same(old, new, old.schema.feature(name), new.schema.feature(name)) for name in names)


def _files(dataset: Dataset, feature: Feature) -> list[Any]:
    """Hashes of what a transform and its encoder were fitted to."""
    specifications = [part.model_dump() for part in (feature.transform, feature.encoder) if part is not None]
    names = sorted(value for each in specifications for value in each.values() if isinstance(value, str))
    files = dataset.manifest["files"]
    return [files[name]["sha256"] for name in names if name in files]


def _aligned(old_values: Sequence[str], new_values: Sequence[str], old: Counts, new: Counts) -> tuple[Counts, Counts]:
    """Counts by code of two vocabularies as counts of the same values, unknown first."""
    place = {value: number for number, value in enumerate(dict.fromkeys([*old_values, *new_values]), start=1)}
    aligned = []
    for values, counts in ((old_values, old), (new_values, new)):
        each = np.zeros(len(place) + 1, np.int64)
        each[0] = counts[UNKNOWN]
        np.add.at(each, [place[value] for value in values], counts[FIRST_VALUE : FIRST_VALUE + len(values)])
        aligned.append(each)
    return aligned[0], aligned[1]


def _users(old: Dataset, new: Dataset) -> tuple[int, int, float]:
    histories = new.histories()
    before = set(old.histories().user_ids)
    is_new = np.array([user_id not in before for user_id in histories.user_ids], np.bool_)
    lengths = np.diff(histories.offsets)
    gone = len(before - set(histories.user_ids))
    return int(is_new.sum()), gone, float(lengths[is_new].sum() / max(lengths.sum(), 1))


def _items(old: Dataset, new: Dataset) -> tuple[int, int, float]:
    catalogues = [dataset.catalogue() for dataset in (old, new)]
    before, after = ({each.item_ids[item] for item in each.candidates} for each in catalogues)
    is_new = np.array([item_id in after - before for item_id in catalogues[1].item_ids], np.bool_)
    items = new.histories().columns["item"]
    return len(after - before), len(before - after), float(is_new[items].mean()) if len(items) else 0.0


def _periods(old: Dataset, new: Dataset) -> tuple[tuple[str, int, int], ...]:
    if not (old.schema.has_time and new.schema.has_time):
        return ()
    times = [
        dataset.histories().columns["time"].astype(np.int64) + dataset.schema.time_origin for dataset in (old, new)
    ]
    first, last = (int(function(np.concatenate(times))) for function in (np.min, np.max))
    first -= first % _DAY_SECONDS
    length = -(-(last + 1 - first) // (_PERIODS * _DAY_SECONDS)) * _DAY_SECONDS  # whole days
    count = -(-(last + 1 - first) // length)
    events = [np.bincount((each - first) // length, minlength=count).tolist() for each in times]
    starts = [datetime.fromtimestamp(first + place * length, UTC).strftime("%Y-%m-%d") for place in range(count)]
    return tuple(zip(starts, *events, strict=True))
