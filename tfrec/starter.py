"""`tfrec init`: a first configuration from a look at the first rows of log files.

Every guess is written down with its reason as a comment, and nothing is guessed twice: what the file does not show
(which event types count as targets, say) keeps its default and says so.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from tfrec.config import parse
from tfrec.errors import UsageError, UserError

SAMPLE_ROWS = 5000
ROLES = {
    "user_id": r"^(user|customer|visitor|member|client|reviewer|buyer|account|u)(_?(id|no|key|code|number))?$|^uid$",
    "item_id": r"^(item|product|article|asin|sku|movie|track|song|book|video|listing|content|stock_?code|parent_asin|i)"
    r"(_?(id|no|key|code|number))?$|^(iid|pid)$",
    "time": r"^(time|timestamp|ts|date|datetime|unix_?time|event_?time|created(_?at)?|.*_(time|date|at)|.*date)$",
    "event_type": r"^(event|action|behaviou?r|interaction)(_?type)?$|^type$",
    "session": r"^(session|visit)(_?(id|no|key|number))?$",
}
STRPTIME_FORMATS = (
    "%d/%m/%Y %H:%M",
    "%d/%m/%Y %H:%M:%S",
    "%m/%d/%Y %H:%M",
    "%m/%d/%Y %H:%M:%S",
    "%Y/%m/%d %H:%M:%S",
    "%d.%m.%Y %H:%M:%S",
    "%d/%m/%Y",
    "%m/%d/%Y",
    "%Y%m%d",
)
UNITS = {
    "seconds": (6.3e8, 4.2e9),  # 1990 to 2100
    "milliseconds": (6.3e11, 4.2e12),
    "microseconds": (6.3e14, 4.2e15),
    "nanoseconds": (6.3e17, 4.2e18),
}
SEPARATORS = ("|", ";", ",")


@dataclass
class Sample:
    """The first rows of one file, by column, and which column plays which role."""

    path: Path
    format: str
    columns: dict[str, list[Any]]
    delimiter: str = ","
    roles: dict[str, str] = field(default_factory=dict)

    @property
    def rest(self) -> list[str]:
        """The columns without a role."""
        return [name for name in self.columns if name not in self.roles.values()]


@dataclass(frozen=True)
class Guess:
    """A feature's configuration and why."""

    settings: dict[str, Any]
    reason: str


def write_config(logs: Sequence[Path], out: Path, *, roles: Sequence[str] = ()) -> None:
    """Writes a commented configuration for log files; refuses to overwrite one.

    Args:
        logs: files of events, and of items or users where there are such; told apart by their columns.
        out: the YAML file to write.
        roles: `role=column` for columns whose names say nothing.

    Raises:
        UserError: a file is missing, empty or unreadable, or no file has a user and an item.
    """
    if out.exists():
        raise UserError(f"{out}: exists already; give another name with --out.")
    named = dict(_role(text) for text in roles)
    samples = [_with_roles(read_sample(path), named) for path in logs]
    events = [sample for sample in samples if {"user_id", "item_id"} <= sample.roles.keys()]
    if not events:
        seen = "; ".join(f"{sample.path}: {', '.join(sample.columns)}" for sample in samples)
        raise UsageError(
            f"no file has a column that looks like a user and one that looks like an item ({seen}); "
            "name them: --column user_id=COLUMN --column item_id=COLUMN."
        )
    if not {"time", "order"} & events[0].roles.keys():
        raise UsageError(
            f"{events[0].path}: no column looks like a time ({', '.join(events[0].columns)}); name one: "
            "--column time=COLUMN, or --column order=COLUMN where only the order is known."
        )
    items = [sample for sample in samples if "item_id" in sample.roles and "user_id" not in sample.roles]
    users = [sample for sample in samples if "user_id" in sample.roles and "item_id" not in sample.roles]
    text = _render(out.stem, events, items, users)
    parse(yaml.safe_load(text), where=str(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")


def _role(text: str) -> tuple[str, str]:
    role, equals, column = text.partition("=")
    known = [*ROLES, "order"]
    if not equals or role not in known:
        raise UsageError(f"--column {text}: must look like role=column, with a role of {', '.join(known)}.")
    return role, column


def read_sample(path: Path) -> Sample:
    """The first rows of a CSV, TSV, Parquet or JSON lines file, compressed or not."""
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    suffixes = [suffix for suffix in path.suffixes if suffix not in (".gz", ".bz2", ".zst")]
    suffix = suffixes[-1].lower() if suffixes else ""
    readers: dict[str, Callable[[Path], Sample]] = {
        ".parquet": _read_parquet,
        ".jsonl": _read_json_lines,
        ".json": _read_json_lines,
    }
    sample = readers.get(suffix, _read_csv)(path)
    if not sample.columns or not any(sample.columns.values()):
        raise UserError(f"{path}: holds no row.")
    return sample


def _read_parquet(path: Path) -> Sample:
    import pyarrow
    from pyarrow import parquet

    try:
        batch = next(parquet.ParquetFile(path).iter_batches(SAMPLE_ROWS), None)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path}: not a Parquet file ({error}).") from None
    return Sample(path, "parquet", batch.to_pydict() if batch is not None else {})


def _read_json_lines(path: Path) -> Sample:
    columns: dict[str, list[Any]] = {}
    for number, line in enumerate(_first_lines(path), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: line {number} is not JSON ({error.msg}).") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number} is not an object such as {{...}}.")
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return Sample(path, "jsonl", columns)


def _read_csv(path: Path) -> Sample:
    import csv

    lines = _first_lines(path)
    if not lines:
        return Sample(path, "csv", {})
    delimiter = max((",", "\t", ";", "|"), key=lines[0].count)
    rows = [row for row in csv.reader(lines, delimiter=delimiter) if row]
    header, body = rows[0], rows[1:]
    columns = {name: [row[place] for row in body if place < len(row)] for place, name in enumerate(header)}
    return Sample(path, "csv", columns, delimiter)


def _first_lines(path: Path) -> list[str]:
    import pyarrow

    with pyarrow.input_stream(str(path), compression="detect") as stream:
        raw = stream.read(8 << 20)
    text = raw.decode("utf-8-sig", errors="replace")
    lines = text.splitlines()
    if len(raw) == 8 << 20:
        lines = lines[:-1]  # the last one may be cut
    return [line for line in lines[: SAMPLE_ROWS + 1] if line.strip()]


def _with_roles(sample: Sample, named: dict[str, str]) -> Sample:
    sample.roles = {role: column for role, column in named.items() if column in sample.columns}
    for role, pattern in ROLES.items():
        if role not in sample.roles:
            matches = [name for name in sample.rest if re.fullmatch(pattern, _snake(name))]
            if role == "time":
                matches = [name for name in matches if time_unit(sample.columns[name])]
            if matches:
                sample.roles[role] = matches[0]
    return sample


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[\s.-]+", "_", name.strip()).lower()


def time_unit(values: Iterable[Any]) -> str | None:
    """The unit or format of a column of times; None where it holds no times between 1990 and 2100."""
    present = [value for value in values if value not in (None, "")]
    if not present:
        return None
    if all(hasattr(value, "year") for value in present):
        return "iso"
    numbers = _numbers(present)
    if numbers is not None:
        middle = sorted(numbers)[len(numbers) // 2]
        for unit, (low, high) in UNITS.items():
            if low <= middle <= high:
                return unit
    texts = [str(value) for value in present]
    if numbers is None and _all_parse(texts, datetime.fromisoformat):
        return "iso"
    for pattern in STRPTIME_FORMATS:
        if _all_parse(texts, lambda text, pattern=pattern: datetime.strptime(text, pattern)):  # type: ignore[misc]
            return pattern
    return None


def _all_parse(texts: Sequence[str], parser: Callable[[str], Any]) -> bool:
    try:
        for text in texts:
            parser(text)
    except ValueError:
        return False
    return True


def _numbers(values: Sequence[Any]) -> list[float] | None:
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError):
        return None


def guess_feature(name: str, values: Sequence[Any], *, side: str) -> Guess | None:
    """What kind of feature a column could be; None where it looks like neither (an identifier, say)."""
    present = [value for value in values if value not in (None, "", [])]
    if not present:
        return None
    if isinstance(present[0], list):
        return _guess_list(name, present, side)
    distinct = len({str(value) for value in present})
    numbers = _numbers(present)
    if numbers is not None and distinct > 20:
        return Guess({"name": name, "kind": "numerical"}, f"{distinct} different numbers in the sample")
    texts = [str(value) for value in present]
    words = sum(len(text.split()) for text in texts) / len(texts)
    if side == "item" and numbers is None and words > 2.5 and distinct > 0.5 * len(texts):
        return Guess({"name": name, "kind": "text"}, f"{words:.0f} words a cell on average, mostly different")
    separator = _separator(texts)
    if side == "item" and separator is not None:
        settings = {"name": name, "kind": "categorical", "multivalued": True, "separator": separator}
        return Guess(settings, f"many cells hold several values separated by {separator!r}")
    if distinct <= max(20, 0.5 * len(texts)):
        return Guess({"name": name, "kind": "categorical"}, f"{distinct} different values in {len(texts)} rows")
    return None


def _guess_list(name: str, present: Sequence[list[Any]], side: str) -> Guess | None:
    widths = {len(value) for value in present}
    if side == "item" and len(widths) == 1 and min(widths) >= 8 and _numbers(present[0]) is not None:
        width = widths.pop()
        groups = min(8, width // 2)
        return Guess(
            {"name": name, "kind": "multimodal", "dim": width, "groups": groups}, f"vectors of {width} numbers"
        )
    if side == "item":
        return Guess({"name": name, "kind": "categorical", "multivalued": True}, "lists of values")
    return None


def _separator(texts: Sequence[str]) -> str | None:
    for separator in SEPARATORS:
        split = [text.split(separator) for text in texts if separator in text]
        parts = [part.strip() for cell in split for part in cell]
        if len(split) > 0.3 * len(texts) and len(set(parts)) < 0.5 * len(parts):
            return separator
    return None


def _render(name: str, events: list[Sample], items: list[Sample], users: list[Sample]) -> str:
    lines = [
        "# Written by `tfrec init` from the first rows of each file. Read each guess, then: tfrec doctor --config FILE",
        "data:",
        f"  out: datasets/{name}",
    ]
    lines += _source_lines("events", events) + _source_lines("items", items) + _source_lines("users", users)
    lines += _event_lines(events[0])
    lines += ["features:"]
    lines += _feature_lines("items", items) + _feature_lines("users", users) + _display_lines(items)
    lines += [
        "model:",
        "  name: heterrec # or sasrec, hstu, popularity",
        "  history_length: 50",
        "training:",
        "  epochs: 20",
        "  patience: 3 # stops after 3 validations without improvement",
    ]
    return "\n".join(lines) + "\n"


def _source_lines(role: str, samples: list[Sample]) -> list[str]:
    if not samples:
        return []
    first = samples[0]
    lines = [f"  {role}:", f"    files: {_yaml([str(sample.path) for sample in samples])}"]
    if first.format == "csv" and first.delimiter != ",":
        lines.append(f"    delimiter: {_yaml(first.delimiter)}")
    lines.append("    columns:")
    wanted = {"events": ROLES.keys() | {"order"}, "items": {"item_id"}, "users": {"user_id"}}[role]
    lines += [f"      {part}: {_yaml(column)}" for part, column in first.roles.items() if part in wanted]
    if role == "events" and "time" in first.roles:
        values = first.columns[first.roles["time"]]
        lines.append(f"    time_unit: {_yaml(time_unit(values))} # such as {str(values[0])[:40]}")
    return lines


def _event_lines(events: Sample) -> list[str]:
    lines = []
    if "event_type" in events.roles:
        counts: dict[str, int] = {}
        for value in events.columns[events.roles["event_type"]]:
            counts[str(value)] = counts.get(str(value), 0) + 1
        found = ", ".join(
            f"{value} ({count})" for value, count in sorted(counts.items(), key=lambda pair: -pair[1])[:8]
        )
        lines += [f"  # Event types in the sample: {found}", "  target_events: all # or a list such as [purchase]"]
    pairs = list(zip(events.columns[events.roles["user_id"]], events.columns[events.roles["item_id"]], strict=False))
    repeated = 1 - len(set(pairs)) / len(pairs)
    lines.append(
        "  repeats: first # keeps a user's first event of an item, so that seen items can be left out of answers"
    )
    lines.append(
        f"  # In the sample {repeated:.0%} of events repeat an earlier item of the same user. To recommend them"
    )
    lines.append("  # again: repeats: keep, and evaluation.filter_seen: false.")
    lines.append("  split: {kind: leave_one_out} # or {kind: temporal, ...}, {kind: last_fraction, fraction: 0.1}")
    return lines


def _feature_lines(key: str, samples: list[Sample]) -> list[str]:
    if not samples:
        return []
    sample, side = samples[0], key.removesuffix("s")
    lines, left = [], []
    for column in sample.rest:
        guess = guess_feature(column, sample.columns[column], side=side)
        if guess is None or (side == "user" and guess.settings["kind"] not in ("categorical", "numerical")):
            left.append(column)
            continue
        settings = {**guess.settings, "name": _feature_name(column), "column": column}
        if settings["name"] == column:
            del settings["column"]
        lines.append(f"    - {_yaml(settings)} # {guess.reason}")
    if left:
        lines.append(f"    # Left out, as they look like identifiers or free text: {', '.join(left)}")
    return [f"  {key}:", *lines] if any(line.lstrip().startswith("-") for line in lines) else [f"  {key}: []", *lines]


def _feature_name(column: str) -> str:
    return re.sub(r"\W+", "_", _snake(column)).strip("_")


def _display_lines(items: list[Sample]) -> list[str]:
    if not items:
        return ["  items: [] # without a file of items, an item is its id alone"]
    titles = [name for name in items[0].rest if re.search(r"title|name|description", _snake(name))]
    return [f"  display: {_yaml(titles[:1])} # what people read beside an item's id"]


def _yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True, sort_keys=False)
    return text.removesuffix("...\n").strip()
