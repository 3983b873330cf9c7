"""Which file is what, and which of its columns plays which role, from a look at the first rows.

Names of columns say much, and where they say nothing the values do: the column that a file of items is keyed by, times
between 1990 and 2100, places 0, 1, 2, ... within a user.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import polars as pl

from beam_jobs.samples import Sample
from tfrec.config import suggest
from tfrec.errors import UsageError

_ROLES = {
    "events": ("user_id", "item_id", "time", "order", "event_type", "session"),
    "items": ("item_id",),
    "users": ("user_id",),
    "impressions": ("user_id", "item_id", "time", "position", "request"),
}
_ID = r"(_?(id|no|nr|num|number|key|code|uuid|hash))?"
_WHOLE_NAMES = {
    "user_id": rf"(user|usr|customer|cust|visitor|member|client|reviewer|buyer|shopper|account|person|uid|u){_ID}",
    "item_id": rf"((parent_)?asin|sku|isbn|ean|gtin|(item|product|prod|article|movie|film|track|song|book|video|"
    rf"listing|content|offer|stock|news|artist|business|doc|i){_ID}|iid|pid)",
    "session": rf"(session|visit|invoice|basket|order){_ID}",
    "request": rf"(request|req|impression|page_?view|search|query|slate|list){_ID}",
    "position": r"(position|pos|rank|slot|place)(_?(in_?list|index|no|nr))?",
    "event_type": r"(event|action|behaviou?r|interaction|activity)(_?(type|name|kind))?|type|kind",
    "order": r"(order|position|pos|step|seq|sequence|rank|index|idx|n)(_?(no|nr|num|number|in_?sequence))?",
}
_PARTS = {
    "user_id": r"user|usr|cust|client|member|visitor|account|kund|person",
    "item_id": r"item|prod|art|mat|sku|asin|movie|video|track|song|book|offer|listing|content",
}
_EVENT_WORDS = "view|click|cart|basket|buy|purchas|order|like|play|rate|watch|read|fav|impression|add|open"
_TIME_NAME = re.compile(r"time|date|_at$|^ts$|stamp|datum|when", re.I)
_UNITS = {"seconds": 1.0, "milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9}
_SINCE, _UNTIL = 6.3e8, 4.2e9  # 1990 and 2100 in Unix seconds
_FORMATS = (
    "%d.%m.%Y %H:%M:%S",
    "%d.%m.%Y %H:%M",
    "%d.%m.%Y",
    "%d/%m/%Y %H:%M:%S",
    "%d/%m/%Y %H:%M",
    "%m/%d/%Y %H:%M:%S",
    "%m/%d/%Y %H:%M",
    "%Y/%m/%d %H:%M:%S",
    "%Y/%m/%d",
    "%d/%m/%Y",
    "%m/%d/%Y",
    "%Y%m%d",
    "%Y%m%d%H%M%S",
)


@dataclass
class Log:
    """A sample, what its file is, and which column plays which role, and why."""

    sample: Sample
    roles: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Role -> (column, reason)."""
    kind: str = ""
    time_unit: str = "seconds"

    @property
    def frame(self) -> pl.DataFrame:
        """The sample's rows."""
        return self.sample.frame

    def column(self, role: str) -> pl.Series:
        """The values of a role."""
        return self.frame[self.roles[role][0]]

    def free(self) -> list[str]:
        """The columns without a role."""
        taken = {column for column, _ in self.roles.values()}
        return [name for name in self.frame.columns if name not in taken]

    def give(self, role: str, column: str, reason: str) -> None:
        """Gives a role to a column, unless the role is taken."""
        self.roles.setdefault(role, (column, reason))


def guess_roles(samples: Sequence[Sample], named: Mapping[str, str]) -> list[Log]:
    """The logs with their kinds and roles.

    Args:
        samples: the first rows of each file.
        named: role -> column that the user knows.

    Raises:
        UsageError: no file has users, items and a time or an order; a role or column that is not there.
    """
    logs = [Log(sample) for sample in samples]
    _check_named(logs, named)
    for log in logs:
        for role, column in named.items():
            if column in log.frame.columns:
                log.give(role, column, "as you said")
        _guess_ids_by_name(log)
        _guess_ids_by_place(log)
    _guess_ids_by_keys(logs)
    _guess_ids_by_parts(logs)
    for log in logs:
        _guess_time(log)
        _guess_others(log)
    _tell_apart(logs)
    for log in logs:
        log.roles = {role: found for role, found in log.roles.items() if role in _ROLES[log.kind]}
    return logs


def _check_named(logs: Sequence[Log], named: Mapping[str, str]) -> None:
    roles = sorted({role for known in _ROLES.values() for role in known})
    columns = sorted({column for log in logs for column in log.frame.columns})
    for role, column in named.items():
        if role not in roles:
            raise UsageError(f"--column {role}={column}: no such role; {suggest(role, roles)}")
        if column not in columns:
            raise UsageError(f"--column {role}={column}: no file has that column; {suggest(column, columns)}")


def snake(name: str) -> str:
    """A column's name as snake_case: "InvoiceNo" -> "invoice_no"."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|\W+", "_", name.strip()).lower()
    return re.sub(r"_+", "_", words).strip("_")


def _named(log: Log, role: str) -> list[str]:
    return [name for name in log.free() if re.fullmatch(_WHOLE_NAMES[role], snake(name))]


def _could_be_id(values: pl.Series) -> bool:
    """Whole numbers or short texts, more than one, without spaces."""
    if values.dtype.is_float():
        values = values.drop_nulls()
        return bool(len(values) and (values == values.floor()).all()) and values.n_unique() > 1
    if values.dtype.is_integer():
        return values.n_unique() > 1
    return values.dtype == pl.String and values.n_unique() > 1 and bool((values.str.len_chars() <= 64).all())


def _guess_ids_by_name(log: Log) -> None:
    for role in ("user_id", "item_id"):
        candidates = [name for name in _named(log, role) if _could_be_id(log.frame[name])]
        if candidates:
            best = max(
                candidates, key=lambda name: (snake(name).endswith(("id", "asin", "sku", "code", "no")), -len(name))
            )
            log.give(role, best, "by its name")


def _guess_ids_by_place(log: Log) -> None:
    """Without names: users come first, items second."""
    if not log.sample.has_header and not log.roles:
        ids = [name for name in log.frame.columns if _could_be_id(log.frame[name])]
        if len(ids) >= 2:
            log.give("user_id", ids[0], "the file has no names; the first column is usually the user")
            log.give("item_id", ids[1], "the file has no names; the second column is usually the item")


def _guess_ids_by_keys(logs: list[Log]) -> None:
    """Looks for columns of one file that hold the values that another file is keyed by."""
    for log in logs:
        for other in logs:
            if other is not log and len(other.roles) < 2 and not _is_side(log):
                _correct_key(log, other)
                _find_key(log, other)


def _correct_key(log: Log, other: Log) -> None:
    """Where a file has several ids, its key is the one that the events hold, whatever the names."""
    for role, (column, _) in log.roles.items():
        if role in other.roles and not _holds(log, column, other, other.roles[role][0]):
            for key in _keys(other):
                if _holds(log, column, other, key):
                    other.roles[role] = (key, f"{column} of {log.sample.path.name} holds its values")


def _find_key(log: Log, other: Log) -> None:
    """A column without a role that holds the values of another file's key."""
    known = {key: role for role, (key, _) in other.roles.items()}
    for key in known or _keys(other):
        for column in log.free():
            if log.frame[column].n_unique() == log.frame.height or not _holds(log, column, other, key):
                continue
            role = known.get(key) or _side_of(other, key)
            if role not in log.roles:
                log.give(role, column, f"its values are the keys of {other.sample.path.name}")
                other.give(role, key, f"no row has the same, and {column} of {log.sample.path.name} holds its values")
                return


def _keys(log: Log) -> list[str]:
    """Columns that could be ids and differ in every row."""
    return [
        name
        for name in log.frame.columns
        if _could_be_id(log.frame[name]) and log.frame[name].n_unique() == log.frame.height
    ]


def _holds(log: Log, column: str, other: Log, key: str) -> bool:
    """Whether most values of a column are found in the other file's key, as far as the samples go."""
    values, keys = log.frame[column].drop_nulls(), other.frame[key]
    if not _could_be_id(values) or not _could_be_id(keys):
        return False
    found = values.cast(pl.String).is_in(keys.cast(pl.String).implode()).sum()
    return found > (0.9 if other.sample.whole else 0.3) * len(values)


def _guess_ids_by_parts(logs: list[Log]) -> None:
    for log in logs:
        if _is_side(log):
            continue
        for role, pattern in _PARTS.items():
            parts = [name for name in log.free() if re.search(pattern, snake(name)) and _could_be_id(log.frame[name])]
            parts = [name for name in parts if log.frame[name].n_unique() > 20] or parts[:1]
            if parts:
                log.give(role, parts[0], "by a part of its name")


def _is_side(log: Log) -> bool:
    """A file keyed by one role alone."""
    return len(log.roles) == 1 and all(
        log.frame[column].n_unique() == log.frame.height for column, _ in log.roles.values()
    )


def _side_of(other: Log, key: str) -> str:
    """Users or items: by a part of the key's name, else a file with texts or lists describes items."""
    for role, pattern in _PARTS.items():
        if re.search(pattern, snake(key)):
            return role
    wordy = any(
        values.dtype.base_type() in (pl.List, pl.Array) or (values.dtype == pl.String and words_a_cell(values) > 2)
        for values in other.frame.iter_columns()
    )
    return "item_id" if wordy or other.frame.width > 4 else "user_id"


def time_unit(values: pl.Series) -> str | None:
    """The unit or format of a column of times; None where it holds no times between 1990 and 2100."""
    present = values.drop_nulls()
    if len(present) == 0:
        return None
    if present.dtype.is_temporal():
        return "iso"
    if present.dtype.is_numeric():
        middle = float(np.median(present.to_numpy()))
        for unit, scale in _UNITS.items():
            if _SINCE * scale <= middle <= _UNTIL * scale:
                return unit
        patterns = [pattern for pattern in _FORMATS if pattern.startswith("%Y%m")]  # 20240131
    else:
        patterns = ["iso", *_FORMATS]
    if present.dtype == pl.String or present.dtype.is_integer():
        texts = present.cast(pl.String).head(2000).to_list()
        for pattern in patterns:
            if all(_is_time(text, pattern) for text in texts):
                return pattern
    return None


def _is_time(text: str, pattern: str) -> bool:
    try:
        time = datetime.fromisoformat(text) if pattern == "iso" else datetime.strptime(text, pattern)
    except ValueError:
        return False
    return 1990 <= time.year < 2100


def _guess_time(log: Log) -> None:
    if "time" in log.roles:
        log.time_unit = time_unit(log.column("time")) or "seconds"
        return
    found = {name: unit for name in log.free() if (unit := time_unit(log.frame[name]))}
    if found and not _is_side(log):
        best = max(found, key=lambda name: (bool(_TIME_NAME.search(snake(name))), log.frame[name].n_unique()))
        log.time_unit = found[best]
        log.give("time", best, f"such as {log.frame[best].drop_nulls()[0]}")


def _guess_others(log: Log) -> None:
    """Event type, session, request, position and order, of files that have users and items."""
    if not {"user_id", "item_id"} <= log.roles.keys():
        return
    for name in _named(log, "request"):
        if 1 < log.frame[name].n_unique() < 0.9 * log.frame.height:
            log.give("request", name, "by its name; several rows share a value")
    if "request" in log.roles:
        for name in _named(log, "position"):
            log.give("position", name, "by its name, and there are requests")
    _guess_event_type(log)
    _guess_session(log)
    _guess_order(log)


def _guess_event_type(log: Log) -> None:
    by_name = _named(log, "event_type")
    for name in sorted(log.free(), key=lambda name: name not in by_name):
        values = log.frame[name].drop_nulls()
        if values.dtype == pl.String and 1 < values.n_unique() <= 20:
            if name in by_name:
                log.give("event_type", name, "by its name")
            elif values.unique().str.contains(f"(?i){_EVENT_WORDS}").all():
                log.give("event_type", name, "its values look like things that users do")


def _guess_session(log: Log) -> None:
    pairs = log.frame.lazy()
    for name in _named(log, "session"):
        user = log.roles["user_id"][0]
        sessions, owned = (
            (pairs.drop_nulls([name, user]).select(a=pl.col(name).n_unique(), b=pl.struct(name, user).n_unique()))
            .collect()
            .row(0)
        )
        if 1 < sessions < 0.9 * log.frame.height and owned <= 1.1 * sessions + 1:
            log.give("session", name, "by its name; each value belongs to one user and to several rows")


def _guess_order(log: Log) -> None:
    """A whole number that tells a user's rows apart and runs from 0 or 1 without gaps."""
    user = log.roles["user_id"][0]
    for name in log.free():
        if not log.frame[name].dtype.is_integer() or log.frame[name].null_count():
            continue
        of_user = log.frame.group_by(user).agg(
            first=pl.col(name).min(), last=pl.col(name).max(), different=pl.col(name).n_unique(), rows=pl.len()
        )
        different = of_user["different"] == of_user["rows"]
        gapless = different & (of_user["last"] - of_user["first"] == of_user["rows"] - 1)
        if _mostly(gapless) and _mostly(of_user["first"].is_in([0, 1])) and (of_user["rows"] > 1).any():
            log.give("order", name, "counts 0, 1, 2, ... (or from 1) within a user")
        elif "time" not in log.roles and name in _named(log, "order") and _mostly(different):
            log.give("order", name, "by its name; no user has a value twice")


def _mostly(flags: pl.Series) -> bool:
    return int(flags.sum()) > 0.95 * len(flags)


def _tell_apart(logs: list[Log]) -> None:
    """Says which file is what; impressions are shown lists beside a log of events."""
    both = [log for log in logs if {"user_id", "item_id"} <= log.roles.keys()]
    plain = [log for log in both if not {"request", "position"} & log.roles.keys()]
    for log in logs:
        if log in both:
            log.kind = "events" if log in plain or not plain else "impressions"
        elif len({"user_id", "item_id"} & log.roles.keys()) == 1:
            log.kind = "items" if "item_id" in log.roles else "users"
        else:
            raise _nothing_found(log, "looks like a user or an item", "user_id=COLUMN --column item_id=COLUMN")
    if not both:
        raise _nothing_found(logs[0], "looks like a user beside one that looks like an item", "user_id=COLUMN")
    for log in both:
        if not {"time", "order"} & log.roles.keys():
            raise _nothing_found(log, "looks like a time or an order", "time=COLUMN, or --column order=COLUMN")
        if log.kind == "impressions" and "time" not in log.roles:
            raise _nothing_found(log, "looks like a time, which impressions need", "time=COLUMN")


def _nothing_found(log: Log, what: str, mend: str) -> UsageError:
    columns = ", ".join(log.frame.columns)
    return UsageError(f"{log.sample.path}: no column {what} ({columns}); name it: --column {mend}.")


def words_a_cell(texts: pl.Series) -> float:
    """The mean number of words of the texts that are there."""
    return float(texts.drop_nulls().str.split(" ").list.len().mean() or 0)  # type: ignore[arg-type]
