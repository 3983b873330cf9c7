"""The second pipeline: buckets of users filtered, cut into sessions, split and cut to length."""

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import polars as pl
from numpy.typing import NDArray

from beam_jobs import splits
from beam_jobs.filters import REASONS
from beam_jobs.parts import Arranged, partial_fits, target_rows
from beam_jobs.plan import Plan
from beam_jobs.staging import Table, all_item_ids, encode_texts, positions, read_frame
from beam_jobs.threads import InThreads
from beam_jobs.validation import MICROSECONDS

logger = logging.getLogger("beam_jobs")

Reasons = Counter[tuple[str, int, str, str]]
"""(kind, file, outcome, reason) -> rows."""

NO_EVENTS = "user without stored events"
ITEM_IDS, FATES = "item_ids.arrow", "fates"


def arrange(staging: Path, name: str, plan: Plan) -> tuple[Arranged, Reasons]:
    """Arranges one bucket that holds events; returns it and what became of its rows."""
    item_ids = all_item_ids(staging / ITEM_IDS)
    table = Table.read(staging / "events" / name)
    reasons: Reasons = Counter()
    rows = _with_global_items(table, item_ids)
    rows = _drop_infrequent(rows, staging / FATES, name, reasons)
    user_ids = table.texts["user_id"]
    rows, places = _split_and_cut(rows, table, plan, reasons)
    stored = rows["user_id"].unique().sort()
    kept_ids = user_ids.gather(stored)
    user = _renumber(rows["user_id"], stored)
    rows = rows.with_columns(pl.Series("user", user)).drop("user_id")
    texts = {
        column: values for column, values in table.texts.items() if column not in ("user_id", "item_id", "session")
    }
    reasons.update({("events", file, "stored", ""): count for file, count in rows["file"].value_counts().iter_rows()})
    impressions = None
    if plan.impressions is not None:
        impressions = _arrange_impressions(staging, name, plan, kept_ids, rows, places, item_ids, reasons)
    rows = rows.drop("time_us", strict=False)
    return Arranged(Table(rows, texts), _arrange_users(staging, name, plan, kept_ids, reasons), impressions), reasons


@dataclass
class _Places:
    """Of each stored user where validation and test begin among their stored events (leave-one-out)."""

    validation_from: splits.Integers
    test_from: splits.Integers


def _with_global_items(table: Table, item_ids: pl.Series) -> pl.DataFrame:
    places = positions(table.texts["item_id"], item_ids).to_numpy().astype(np.int32)
    items = places[table.rows["item_id"].to_numpy()]
    return table.rows.with_columns(pl.Series("item", items)).drop("item_id")


def _drop_infrequent(rows: pl.DataFrame, fates: Path, name: str, reasons: Reasons) -> pl.DataFrame:
    if not fates.exists():
        return rows
    item_fate, user_fate = np.load(fates / "items.npy"), np.load(fates / f"{name}.npy")
    fate_of_item, fate_of_user = item_fate[rows["item"].to_numpy()], user_fate[rows["user_id"].to_numpy()]
    # Of two reasons the one that fell first; both from one round count as the item's.
    fate = np.where(
        (fate_of_item > 0) & ((fate_of_user == 0) | (fate_of_item <= fate_of_user)), fate_of_item, fate_of_user
    )
    dropped = rows.select("file", pl.Series("fate", fate)).filter(pl.col("fate") > 0).group_by("file", "fate").len()
    for file, number, count in dropped.iter_rows():
        reasons["events", file, "filtered", REASONS[number - 1]] += count
    return rows.filter(fate == 0)


def _split_and_cut(rows: pl.DataFrame, table: Table, plan: Plan, reasons: Reasons) -> tuple[pl.DataFrame, _Places]:
    config = plan.config
    user = rows["user_id"].to_numpy().astype(np.int64)
    stored = np.unique(user)
    place = np.searchsorted(stored, user)
    starts = splits.row_starts(place, len(stored))
    seconds = None
    if plan.has_time:
        seconds = rows["time"].to_numpy() // MICROSECONDS
        rows = rows.rename({"time": "time_us"}).with_columns(pl.Series("seconds", seconds))
    target = target_rows(table.texts, rows, config.data.target_events)
    split = splits.split_events(config.data.split, starts, target, seconds)
    validation_from, test_from = splits.leave_one_out_places(config.data.split, starts, target)
    kept = splits.latest_rows(starts, config.histories.max_events)
    added = [pl.Series("split", split)]
    if plan.has_sessions:
        cuts = (
            splits.cut_by_id(rows["session"].to_numpy().astype(np.int64))
            if plan.events.has("session")
            else splits.cut_by_gap(seconds, config.histories.session_gap_seconds)  # type: ignore[arg-type]  # has_time
        )
        session = np.zeros(len(rows), np.int32)
        session[kept] = splits.number_sessions(place[kept], cuts[kept])
        added.append(pl.Series("session", session))
    rows = rows.with_columns(added).drop("order", strict=False)
    if not kept.all():
        for file, count in rows.filter(~kept)["file"].value_counts().iter_rows():
            reasons["events", file, "truncated", "histories.max_events"] += count
        rows = rows.filter(kept)
    removed = np.diff(starts) - np.diff(splits.row_starts(place[kept], len(stored)))
    return rows, _Places(validation_from - removed, test_from - removed)


def _renumber(users: pl.Series, stored: pl.Series) -> NDArray[np.int32]:
    return np.searchsorted(stored.to_numpy(), users.to_numpy()).astype(np.int32)


def _arrange_impressions(
    staging: Path,
    name: str,
    plan: Plan,
    user_ids: pl.Series,
    events: pl.DataFrame,
    places: _Places,
    item_ids: pl.Series,
    reasons: Reasons,
) -> Table:
    folder = staging / "impressions" / name
    if not folder.exists():
        return _no_impressions(plan)
    table = Table.read(folder)
    rows = _with_global_items(table, item_ids)
    user = (
        positions(table.texts["user_id"], user_ids).cast(pl.Int64).fill_null(-1).to_numpy()[rows["user_id"].to_numpy()]
    )
    rows = rows.with_columns(pl.Series("user", user, dtype=pl.Int64)).drop("user_id")
    for file, count in rows.filter(pl.col("user") < 0)["file"].value_counts().iter_rows():
        reasons["impressions", file, "filtered", NO_EVENTS] += count
    rows = rows.filter(pl.col("user") >= 0)
    user, time = rows["user"].to_numpy(), rows["time"].to_numpy()
    event_user = events["user"].to_numpy().astype(np.int64)
    event_starts = splits.row_starts(event_user, len(user_ids))
    history = splits.rows_before(event_user, events["time_us"].to_numpy(), event_starts, user, time)
    starts = splits.row_starts(user, len(user_ids))
    seconds = time // MICROSECONDS
    rule = plan.config.data.split
    if rule.kind == "temporal":
        split = splits.split_by_time(rule, seconds)
    elif rule.kind == "last_fraction":
        split = splits.split_last_fraction(rule, starts)
    else:
        split = splits.split_impressions_by_history(
            history, np.diff(event_starts)[user], places.validation_from[user], places.test_from[user]
        )
    rows = rows.with_columns(
        pl.Series("seconds", seconds), pl.Series("split", split), pl.Series("history", history.astype(np.int32))
    ).drop("time")
    kept = splits.latest_rows(starts, plan.config.histories.max_events)
    for file, count in rows.filter(~kept)["file"].value_counts().iter_rows():
        reasons["impressions", file, "truncated", "histories.max_events"] += count
    rows = rows.filter(kept)
    reasons.update(
        {("impressions", file, "stored", ""): count for file, count in rows["file"].value_counts().iter_rows()}
    )
    return Table(rows, {"request": table.texts["request"]} if "request" in table.texts else {})


def _no_impressions(plan: Plan) -> Table:
    assert plan.impressions is not None, "Called where there are impressions."
    types: dict[str, Any] = {
        "item": pl.Int32,
        "user": pl.Int64,
        "seconds": pl.Int64,
        "split": pl.Int8,
        "history": pl.Int32,
    }
    types.update({f"label_{label.name}": pl.Int8 for label in plan.impressions.labels})
    types.update({"position": pl.Int64} if plan.impressions.has("position") else {})
    types.update({"weight": pl.Float64} if plan.impressions.has("weight") else {})
    types.update({"request": pl.UInt32} if plan.impressions.has("request") else {})
    texts = {"request": pl.Series([], dtype=pl.String)} if "request" in types else {}
    return Table(pl.DataFrame(schema=types), texts)


def _arrange_users(staging: Path, name: str, plan: Plan, user_ids: pl.Series, reasons: Reasons) -> Table:
    frame = pl.DataFrame({"user_id": user_ids})
    if plan.users is None:
        return Table(frame)
    path = staging / "users" / f"{name}.arrow"
    if path.exists():
        profiles = read_frame(path)
        known = profiles["user_id"].is_in(user_ids.implode())
        for outcome, reason, part in (
            ("stored", "", profiles.filter(known)),
            ("filtered", NO_EVENTS, profiles.filter(~known)),
        ):
            for file, count in part["file"].value_counts().iter_rows():
                reasons["users", file, outcome, reason] += count
        frame = frame.join(profiles.drop("file", "_row"), on="user_id", how="left", maintain_order="left")
    else:
        types: dict[str, Any] = {"number": pl.Float64, "texts": pl.List(pl.String), "weights": pl.List(pl.Float32)}
        missing = [field for field in plan.users.fields if field.name != "user_id"]
        frame = frame.with_columns(pl.lit(None, types.get(one.kind, pl.String)).alias(one.name) for one in missing)
    if frame.columns == ["user_id"]:  # profiles are given, features of them are not
        return Table(frame)
    table = encode_texts(frame.drop("user_id"))
    return Table(table.rows.insert_column(0, frame["user_id"]), table.texts)


def _without_events(staging: Path, name: str) -> Reasons:
    """What becomes of the impressions and profiles in a bucket whose users have no events at all."""
    reasons: Reasons = Counter()
    impressions, users = staging / "impressions" / name / "rows.arrow", staging / "users" / f"{name}.arrow"
    for kind, path in (("impressions", impressions), ("users", users)):
        if path.exists():
            for file, count in read_frame(path, ["file"])["file"].value_counts().iter_rows():
                reasons[kind, file, "filtered", NO_EVENTS] += count
    return reasons


class _Arrange(InThreads):
    def __init__(self, plan: Plan, staging: Path) -> None:
        self.plan, self.staging = plan, staging

    def work(self, element: str) -> list[tuple[tuple[str, str, str, str], int]]:
        names = {log.kind: log.file_names for log in self.plan.logs}
        if (self.staging / "events" / element).exists():
            reasons = self._arrange(element)
        else:
            reasons = _without_events(self.staging, element)
        return [
            ((kind, names[kind][file], outcome, reason), count)  # type: ignore[index]  # kinds of logs
            for (kind, file, outcome, reason), count in sorted(reasons.items())
        ]

    def _arrange(self, name: str) -> Reasons:
        arranged, reasons = arrange(self.staging, name, self.plan)
        if len(arranged.events.rows):
            arranged.write(self.staging / "arranged" / name)
            parts = self.staging / "parts" / name
            parts.mkdir(parents=True, exist_ok=True)
            for part, frame in partial_fits(arranged, self.plan).items():
                frame.write_ipc(parts / f"{part}.arrow")
        logger.info("arranged bucket %s: %s events", name, f"{len(arranged.events.rows):,}")
        return reasons


@dataclass
class ArrangeBuckets(beam.PTransform[Any, Any]):
    """PCollection[bucket name] → counts: filters, sessions, splits, truncation of each bucket, written to staging."""

    plan: Plan
    staging: Path

    def expand(self, names: Any) -> Any:
        """Wires the work on each bucket."""
        return names | "Arrange" >> beam.ParDo(_Arrange(self.plan, self.staging))
