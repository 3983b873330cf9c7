"""The account of every input row, and `statistics.json`: what a person wants to see of a dataset."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import polars as pl

from beam_jobs.analysis import MISSING_ITEMS, Fitted, read_item_column, read_parts
from beam_jobs.binning import rank_error
from beam_jobs.encoding import code_map
from beam_jobs.plan import Plan
from beam_jobs.staging import read_frame
from tfrec.errors import UserError
from tfrec.schema import ITEM_ID, Feature, Schema
from tfrec.transforms import FIRST_VALUE, UNKNOWN, Bins, Cross, EventCounter, Hashed, Vocabulary

Counts: TypeAlias = Mapping[tuple[str, ...], int]
"""(kind, file, outcome, reason) -> rows."""

Account: TypeAlias = dict[str, dict[str, Any]]

_REASONED = ("rejected", "filtered", "truncated")
_SPLITS = ("train", "validation", "test")
_QUANTILES = {"min": 0.0, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}
_TOP_VALUES = 10


def add_up(*counts: Counts) -> dict[tuple[str, ...], int]:
    """The sums of several counts."""
    total: dict[tuple[str, ...], int] = {}
    for one in counts:
        for key, count in one.items():
            total[key] = total.get(key, 0) + count
    return total


def make_account(counts: Counts) -> Account:
    """What became of each log's rows: by kind the totals and, under `files`, the same of each file with reasons.

    A file some of whose accepted rows miss a value that could not be encoded has `missing`: values by reason.

    Raises:
        AssertionError: the numbers do not add up: input = accepted + rejected, accepted = stored + filtered +
            truncated.
    """
    account: Account = {}
    for (kind, file, outcome, reason), count in sorted(counts.items()):
        files = account.setdefault(kind, {"files": {}})["files"]
        entry = files.setdefault(file, {"input": 0, "accepted": 0, "stored": 0, **{name: {} for name in _REASONED}})
        if outcome in _REASONED:
            entry[outcome][reason] = count
        elif outcome == "missing":
            entry.setdefault(outcome, {})[reason] = count
        else:
            entry[outcome] = count
    for log in account.values():
        for entry in log["files"].values():
            entry["accepted"] = entry["input"] - sum(entry["rejected"].values())
        for name in ("input", "accepted", "stored"):
            log[name] = sum(entry[name] for entry in log["files"].values())
        for name in _REASONED:
            log[name] = sum(sum(entry[name].values()) for entry in log["files"].values())
    for kind, log in account.items():
        for file, entry in [*log["files"].items(), ("all files", log)]:
            left = entry["accepted"] - entry["stored"] - sum(_total(entry[name]) for name in ("filtered", "truncated"))
            assert left == 0, f"{kind}, {file}: {left} accepted rows are unaccounted for."
    return account


def _total(value: int | dict[str, int]) -> int:
    return value if isinstance(value, int) else sum(value.values())


def check_rejected(counts: Counts, first_rejects: Mapping[str, dict[str, Any]], most: float) -> None:
    """Raises a `UserError` where a larger share than `data.max_rejected` of a log's rows is rejected, or all of them.

    Args:
        counts: of the first pipeline.
        first_rejects: rule as counted -> the first reject under it.
        most: `data.max_rejected`.
    """
    for kind in sorted({key[0] for key in counts}):
        own = {key: count for key, count in counts.items() if key[0] == kind}
        total = sum(count for key, count in own.items() if key[2] == "input")
        rejected = {key: count for key, count in own.items() if key[2] == "rejected"}
        number = sum(rejected.values())
        if not number or (number <= most * total and number < total):
            continue
        (_, file, _, reason), count = max(rejected.items(), key=lambda entry: (entry[1], entry[0]))
        example = first_rejects.get(f"{kind}/{file}/{reason}")
        where = "column " if example is None or example["column"] else "a line that "  # a line that is none at all
        shown = f"; first row {example['row']}, value {example['value']!r}" if example else ""
        raise UserError(
            f"{file}: {number:,} of {total:,} rows of the {kind} rejected, more than `data.max_rejected` "
            f"{most:g} allows; most often {where}{reason} ({count:,} rows{shown})."
        )


def check_missing(counts: Counts, most: float) -> None:
    """Raises a `UserError` where a larger share of a column's texts or images lacks a vector than `max_rejected`."""
    rows: dict[str, int] = {}
    missing: dict[tuple[str, str], int] = {}
    for (kind, _, outcome, reason), count in counts.items():
        if outcome == "input":
            rows[kind] = rows.get(kind, 0) + count
        elif outcome == "missing":
            missing[kind, reason] = missing.get((kind, reason), 0) + count
    for (kind, reason), count in missing.items():
        if count > most * rows[kind]:
            raise UserError(
                f"`data.{kind}`: {count:,} of {rows[kind]:,} values of column {reason}; "
                f"`data.max_rejected` allows {most:g}."
            )


def account_table(account: Account) -> str:
    """The totals of an account as a small table for people."""
    names = ("input", "rejected", "filtered", "truncated", "stored")
    lines = [f"{'':12}" + "".join(f"{name:>14}" for name in names)]
    for kind, log in account.items():
        lines.append(f"{kind:12}" + "".join(f"{log[name]:>14,}" for name in names))
    return "\n".join(lines)


def make_statistics(staging: Path, directory: Path, plan: Plan, schema: Schema, fitted: Fitted) -> dict[str, Any]:
    """What is in a dataset, from the parts that the buckets left."""
    events = dict(zip(_SPLITS, split_counts(read_parts(staging, "split"), "events"), strict=True))
    document: dict[str, Any] = {
        "counts": schema.counts,
        "events_by_split": events,
        "history_length": weighted_quantiles(read_parts(staging, "length")),
        "items": _item_statistics(fitted.train_count[~fitted.retired][FIRST_VALUE:]),
        "features": {
            feature.name: _feature_statistics(staging, directory, feature, plan.config.features.fit_sample)
            for feature in schema.features
            if feature.name != ITEM_ID
        },
    }
    if schema.impressions is not None:
        shares = split_counts(read_parts(staging, "impression_split"), "impressions")
        document["impressions_by_split"] = dict(zip(_SPLITS, shares, strict=True))
    if schema.has_time:
        moments = read_parts(staging, "seconds")
        document["time"] = {"first": _iso(moments["first"].min()), "last": _iso(moments["last"].max())}
    if schema.has_sessions:
        document["sessions"] = int(read_parts(staging, "session")["sessions"].sum())
    if schema.event_types:
        counts = read_parts(staging, "event_type").group_by("value").agg(pl.sum("count"))
        found = dict(counts.iter_rows())
        document["train_events_by_type"] = {name: found[name] for name in schema.event_types}
    for name, quality in fitted.quality.items():
        document["features"][name]["quantiser"] = quality
    missing = int((~read_frame(staging / "items" / MISSING_ITEMS)["retired"]).sum())
    document["items"]["without_content"] = missing if plan.items is not None else 0
    document["items"]["retired"] = int(fitted.retired.sum())
    return document


def split_counts(parts: pl.DataFrame, column: str) -> list[int]:
    """The sums of a column of the parts over training, validation and test."""
    counts = dict(parts.group_by("split").agg(pl.sum(column)).iter_rows()) if len(parts) else {}
    return [int(counts.get(split, 0)) for split in range(3)]


def weighted_quantiles(parts: pl.DataFrame) -> dict[str, float]:
    """Quantiles (nearest rank) and mean of lengths, each counted `users` times."""
    counts = parts.group_by("length").agg(pl.sum("users")).sort("length")
    lengths, weights = counts["length"].to_numpy(), counts["users"].to_numpy()
    ranks = np.cumsum(weights)
    places = {name: min(int(np.searchsorted(ranks, q * ranks[-1])), len(lengths) - 1) for name, q in _QUANTILES.items()}
    return {"mean": round(float((lengths * weights).sum() / ranks[-1]), 4)} | {
        name: int(lengths[place]) for name, place in places.items()
    }


def _item_statistics(train_count: Any) -> dict[str, Any]:
    total, size = max(int(train_count.sum()), 1), len(train_count)
    top = max(size // 100, 1)
    return {
        "never_in_training": int((train_count == 0).sum()),
        "share_of_top_percent": round(float(np.sort(train_count)[::-1][:top].sum() / total), 6),
        "train_count": {name: int(np.quantile(train_count, q, method="lower")) for name, q in _QUANTILES.items()},
    }


def _rank_error(feature: Feature, values: int, sample: int) -> dict[str, float]:
    """Of quantiles: how far their ranks may lie off, 0 where they were fitted on all values.

    Args:
        feature: of the schema.
        values: those that the parts hold, all of them unless a part was cut to the sample.
        sample: values fitted on at most.
    """
    if not isinstance(feature.transform, Bins) or feature.transform.spacing != "quantile":
        return {}
    return {"rank_error": 0.0 if values <= sample else round(rank_error(sample), 6)}


def _feature_statistics(staging: Path, directory: Path, feature: Feature, sample: int) -> dict[str, Any]:
    document: dict[str, Any] = {"kind": feature.kind, "side": feature.side, "table_sizes": list(feature.table_sizes)}
    if isinstance(feature.transform, Cross | EventCounter):
        return document
    categorical = isinstance(feature.transform, Vocabulary | Hashed)
    if feature.side != "item":
        fitted_on = read_parts(staging, f"{feature.side}_{feature.name}")
        if categorical:
            return document | _value_statistics(fitted_on, feature.transform, directory)
        return document | _rank_error(feature, len(fitted_on), sample)
    known, total = 0, 0
    parts = [pl.DataFrame(schema={"value": pl.String, "count": pl.UInt32})]
    for frame in read_item_column(staging, f"item_{feature.name}"):
        values = frame[f"item_{feature.name}"]
        known += len(values) - values.null_count()
        total += len(values)
        if categorical:
            flat = (
                values.explode(empty_as_null=False, keep_nulls=False) if isinstance(values.dtype, pl.List) else values
            )
            parts.append(flat.drop_nulls().value_counts(name="count").rename({values.name: "value"}))
    document["items_with_a_value"] = known
    document["items_without"] = total - known
    if categorical:
        return document | _value_statistics(pl.concat(parts), feature.transform, directory)
    return document | _rank_error(feature, known, sample)


def _value_statistics(parts: pl.DataFrame, transform: Any, directory: Path) -> dict[str, Any]:
    """What is known of the values of a categorical feature, from parts of (value, count)."""
    if parts.is_empty():
        return {"values": 0, "unknown_values": 0, "unknown_share": 0.0, "top_values": []}
    counts = parts.group_by("value").agg(pl.sum("count")).sort("value")
    codes = code_map(counts["value"], transform, directory)[:-1]
    unknown = int(counts["count"].filter(codes == UNKNOWN).sum())
    document: dict[str, Any] = {
        "values": len(counts),
        "unknown_values": int((codes == UNKNOWN).sum()),
        "unknown_share": round(unknown / max(int(counts["count"].sum()), 1), 6),
        "top_values": _top_values(counts),
    }
    if isinstance(transform, Hashed):
        _, sharing = np.unique(codes, return_counts=True)
        document["values_in_shared_buckets"] = int(sharing[sharing > 1].sum())
    return document


def _top_values(counts: pl.DataFrame) -> list[list[Any]]:
    """The most frequent values, each with its count."""
    top = counts.sort(["count", "value"], descending=[True, False]).head(_TOP_VALUES)
    return [list(row) for row in top.select("value", "count").iter_rows()]


def _iso(seconds: Any) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
