"""What is in a dataset, as tables with bars: distributions, unknown rates, lengths, sessions, some users' histories."""

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
from rich.table import Table

from tfrec.columns import SPLITS
from tfrec.data import Dataset
from tfrec.drift import Comparison, code_counts
from tfrec.pictures import bars_table
from tfrec.schema import ITEM_ID, Feature
from tfrec.tables import rows_table
from tfrec.transforms import FIRST_VALUE, UNKNOWN, Bins, Quantizer, Vocabulary

_MOST_VALUES = 8
_EVENTS_SHOWN = 6


def dataset_tables(dataset: Dataset, *, users: int = 3) -> Iterator[Table]:
    """The tables of `tfrec data inspect` that are made from items and histories.

    Args:
        dataset: what is looked at.
        users: how many users' histories are shown, from short to long ones.
    """
    yield _unknown_rates(dataset)
    for feature in dataset.schema.features:
        if not isinstance(feature.transform, Quantizer):
            yield _distribution(dataset, feature)
    lengths = np.diff(dataset.histories().offsets)
    yield _by_powers(lengths, "events", "length of histories")
    if dataset.schema.has_sessions:
        sessions = np.maximum.reduceat(dataset.histories().columns["session"], dataset.histories().offsets[:-1])
        yield _by_powers(sessions, "sessions", "sessions of users")
        yield _by_powers(_session_lengths(dataset), "events", "length of sessions", of="sessions")
    for user in _some_users(lengths, users):
        yield _history(dataset, user)


def comparison_tables(found: Comparison, old: str, new: str) -> Iterator[Table]:
    """The tables of `tfrec data compare`."""
    sizes = []
    for name, (before, after) in found.sizes.items():
        added, gone, share = found.members.get(name, (None, None, None))
        members = ("", "", "") if added is None else (f"{added:,}", f"{gone:,}", f"{share:.1%}")
        sizes.append((name, f"{before:,}", f"{after:,}", *members))
    yield rows_table(sizes, ("", "old", "new", "added", "gone", "events of the added"), title=f"{old} -> {new}")
    drifts = sorted(found.drifts, key=lambda drift: -(drift.divergence if drift.divergence is not None else 2.0))
    rows = [
        (
            drift.name,
            drift.side,
            "fitted anew" if drift.divergence is None else f"{drift.divergence:.4f}",
            "" if drift.noise is None else f"{drift.noise:.4f}",
            *(f"{share:.2%}" for share in drift.unknown),
            f"{drift.new_values:,}",
            f"{drift.gone_values:,}",
        )
        for drift in drifts
    ]
    columns = (
        "feature",
        "side",
        "divergence",
        "by chance",
        "unknown, old",
        "unknown, new",
        "new values",
        "gone values",
    )
    yield rows_table(rows, columns, title="drift: Jensen-Shannon divergence, 0 = equal, 1 = nothing shared")
    known = [(drift.name, [drift.divergence]) for drift in drifts if drift.divergence is not None]
    yield bars_table(known, ("bits",), title="drift", decimals=4)
    if found.periods:
        periods = [(start, counts) for start, *counts in found.periods]
        yield bars_table(periods, ("old", "new"), title="events from each day on")


def _unknown_rates(dataset: Dataset) -> Table:
    rows = []
    for feature in dataset.schema.features:
        counts = code_counts(dataset, feature)
        shares = [each[UNKNOWN] / max(each.sum(), 1) for each in counts]
        rows.append((f"{feature.side} {feature.name}", [100 * float(np.mean(shares))]))
    return bars_table(rows, ("%",), title="unknown or missing, of events (users for their own features)", decimals=2)


def _distribution(dataset: Dataset, feature: Feature) -> Table:
    (counts,) = code_counts(dataset, feature)
    known = counts[FIRST_VALUE:]
    of = "users" if feature.side == "user" else "events"
    if isinstance(feature.transform, Bins):
        names, order = _bin_names(feature.transform), np.arange(len(known))
    else:
        names, order = _value_names(dataset, feature), np.argsort(-known, kind="stable")[:_MOST_VALUES]
    rows = [(names[place], [int(known[place])]) for place in order]
    rest = int(known.sum() - known[order].sum())
    if len(order) < len(known):
        rows.append((f"{len(known) - len(order):,} others", [rest]))
    return bars_table(rows, (of,), title=f"{feature.side} {feature.name}")


def _value_names(dataset: Dataset, feature: Feature) -> list[str]:
    if feature.name == ITEM_ID:
        return [_item_name(dataset, item) for item in range(FIRST_VALUE, dataset.schema.num_items)]
    if isinstance(feature.transform, Vocabulary):
        return feature.transform.read(dataset.directory)
    return [f"code {code}" for code in range(FIRST_VALUE, feature.transform.table_sizes[0])]


def _bin_names(transform: Bins) -> list[str]:
    edges = [f"{edge:g}" for edge in transform.boundaries]
    if not edges:
        return ["all"]
    between = [f"{low} to {high}" for low, high in itertools.pairwise(edges)]
    return [f"below {edges[0]}", *between, f"from {edges[-1]}"]


def _by_powers(values: Any, what: str, title: str, *, of: str = "users") -> Table:
    """How many of them have 1, 2 to 3, 4 to 7, ... events."""
    power = np.floor(np.log2(np.maximum(values, 1))).astype(np.int64)
    rows = []
    for exponent, count in enumerate(np.bincount(power)):
        low, high = 2**exponent, 2 ** (exponent + 1) - 1
        rows.append((f"{low:,}" if low == high else f"{low:,} to {high:,}", [int(count)]))
    table = bars_table(rows, (of,), title=title)
    table.columns[0].header = what
    return table


def _session_lengths(dataset: Dataset) -> Any:
    histories = dataset.histories()
    user = np.repeat(np.arange(histories.num_users), np.diff(histories.offsets))
    session = histories.columns["session"]
    starts = np.flatnonzero(np.diff(user, prepend=-1).astype(bool) | np.diff(session, prepend=-1).astype(bool))
    return np.diff(np.append(starts, len(session)))


def _some_users(lengths: Any, count: int) -> list[int]:
    """Users at even steps from the shortest history to the longest."""
    order = np.argsort(lengths, kind="stable")
    places = np.linspace(0, len(order) - 1, min(count + 2, len(order)))[1:-1] if len(order) > 2 else range(len(order))
    return [int(order[int(place)]) for place in places][:count]


def _history(dataset: Dataset, user: int) -> Table:
    histories, schema = dataset.histories(), dataset.schema
    start, stop = int(histories.offsets[user]), int(histories.offsets[user + 1])
    names = {code: name for name, code in SPLITS.items()}
    rows = []
    for event in range(max(start, stop - _EVENTS_SHOWN), stop):
        row = [str(event - start + 1)]
        if schema.has_time:
            seconds = int(histories.columns["time"][event]) + schema.time_origin
            row.append(datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S"))
        if schema.event_types:
            row.append(["", "unknown", *schema.event_types][histories.columns["event_type"][event]])
        row += [
            names[int(histories.columns["split"][event])],
            _item_name(dataset, int(histories.columns["item"][event])),
        ]
        rows.append(tuple(row))
    fields = ["#", *(["time"] if schema.has_time else []), *(["type"] if schema.event_types else []), "split", "item"]
    shown = f"the last {len(rows)} of {stop - start:,} events" if stop - start > len(rows) else f"{len(rows)} events"
    return rows_table(rows, fields, title=f"user {histories.user_ids[user]}: {shown}")


def _item_name(dataset: Dataset, item: int) -> str:
    catalogue, title = dataset.catalogue(), dataset.schema.title
    if item < FIRST_VALUE:
        return "(unknown item)"
    text = catalogue.display[title][item] if title else ""
    return f"{catalogue.item_ids[item]}  {text}".rstrip() or "(forgotten item)"
