"""What `tfrec init` writes: a configuration guessed from the first rows of log files, each guess with its reason."""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from beam_jobs.guess_roles import Log, guess_roles, snake, words_a_cell
from beam_jobs.samples import read_sample
from tfrec.config import parse
from tfrec.schema import NAME_PATTERN

_TITLE_NAME = re.compile(r"title|name|description|headline|label|text", re.I)
_LABEL_NAME = re.compile(r"click|cart|purchas|buy|bought|conver|like|view|label|follow|share|order|install", re.I)
_FEW_VALUES = 100
_MARKS = ("|", ";", ",", "/")


def guess_config(paths: Sequence[Path], roles: Mapping[str, str] | None = None, name: str = "mine") -> str:
    """A commented configuration for log files, which `tfrec.config.load` accepts.

    Args:
        paths: files of events, and of items, users or impressions where there are such; told apart by their columns.
        roles: role -> column where the names say nothing and the values too little.
        name: of the dataset directory.

    Raises:
        UserError: a file is missing, empty or unreadable, or no file has users, items and a time or an order.
    """
    logs = guess_roles([read_sample(path) for path in paths], roles or {})
    text = "\n".join(_lines(logs, name)) + "\n"
    parse(yaml.safe_load(text), where="the guessed configuration")
    return text


def _lines(logs: list[Log], name: str) -> Iterator[str]:
    by_kind = {kind: [log for log in logs if log.kind == kind] for kind in ("events", "items", "users", "impressions")}
    yield "# Guessed from the first rows of each file. Read each guess, then: tfrec doctor --config FILE"
    yield "data:"
    yield f"  out: {_yaml(f'datasets/{name}')}"
    for kind, found in by_kind.items():
        yield from _source_lines(kind, found)
    yield from _data_lines(by_kind)
    yield "features:"
    for kind in ("items", "users"):
        yield from _feature_lines(kind, by_kind[kind][:1])
    if by_kind["items"]:
        titles = [column for column in by_kind["items"][0].free() if _TITLE_NAME.search(snake(column))]
        yield f"  display: {_yaml(titles[:1])} # what people read beside an item's id"
    yield "model:"
    yield "  name: heterrec # or sasrec, hstu, popularity"
    yield "  history_length: 50"
    yield "training:"
    yield "  epochs: 20"
    yield "  patience: 3 # stops after 3 validations without improvement"


def _source_lines(kind: str, logs: list[Log]) -> Iterator[str]:
    if not logs:
        return
    sample = logs[0].sample
    yield f"  {kind}:"
    yield f"    files: {_yaml([str(log.sample.path) for log in logs])}"
    if sample.format != "parquet" and sample.path.suffix not in (".csv", ".tsv", ".jsonl", ".json"):
        yield f"    format: {sample.format}"
    if sample.format == "csv":
        if sample.delimiter != ",":
            yield f"    delimiter: {_yaml(sample.delimiter)}"
        if sample.encoding != "utf-8":
            yield f"    encoding: {sample.encoding} # it is not UTF-8"
        if not sample.has_header:
            yield f"    header: {_yaml(sample.frame.columns)} # the first row holds values, not names: name them here"
    yield "    columns:"
    for role, (column, reason) in logs[0].roles.items():
        yield f"      {role}: {_yaml(column)} # {_comment(reason)}"
    if "time" in logs[0].roles:
        yield f"    time_unit: {_yaml(logs[0].time_unit)}"


def _data_lines(by_kind: dict[str, list[Log]]) -> Iterator[str]:
    events = by_kind["events"][0]
    for log in by_kind["impressions"][:1]:
        labels = [
            {"name": _feature_name(column, f"label_{place}"), "column": column, "operator": ">=", "value": 1}
            for place, column in enumerate(log.free())
            if _LABEL_NAME.search(column) and set(log.frame[column].unique().drop_nulls().to_list()) <= {0, 1}
        ]
        yield f"  labels: {_yaml(labels)} # 0/1 columns of the impressions"
    if "event_type" in events.roles:
        counts = events.column("event_type").value_counts(sort=True).head(8).rows()
        yield f"  # Event types in the sample: {_comment(', '.join(f'{value} ({count})' for value, count in counts))}"
        yield "  target_events: all # or a list of those that should be predicted"
    pair = pl.struct(events.roles["user_id"][0], events.roles["item_id"][0])
    repeated = 1 - events.frame.select(pair.n_unique()).item() / events.frame.height
    yield "  repeats: first # a user's first event of an item; what was seen is not recommended again"
    yield f"  # In the sample {repeated:.0%} of the events repeat an item of the same user. To recommend those again:"
    yield "  # repeats: keep, and evaluation: {filter_seen: false}."
    yield "  split: {kind: leave_one_out} # or {kind: last_fraction, fraction: 0.1}, or temporal"
    if events.free():
        yield f"  # Columns of the events that are not used: {_comment(', '.join(events.free()))}"


def _feature_lines(kind: str, logs: list[Log]) -> Iterator[str]:
    if not logs:
        yield f"  {kind}: []" + (" # without a file of items, an item is its id alone" if kind == "items" else "")
        return
    lines: list[str] = []
    left: list[str] = []
    for column in logs[0].free():
        guess = guess_feature(logs[0].frame[column], side=kind)
        if guess is None:
            left.append(column)
            continue
        settings, reason = guess
        count = logs[0].frame.height - logs[0].frame[column].null_count()
        reason += f"; guessed from {count} values alone, look again" if count < _FEW_VALUES else ""
        name = _feature_name(column, f"{kind.removesuffix('s')}_feature_{len(lines) + 1}")
        named = {"name": name, **({"column": column} if name != column else {}), **settings}
        lines.append(f"    - {_yaml(named)} # {_comment(reason)}")
    yield f"  {kind}:" if lines else f"  {kind}: []"
    yield from lines
    if left:
        yield f"    # Left out, as they look like identifiers, constants or free text: {_comment(', '.join(left))}"


def _feature_name(column: str, otherwise: str) -> str:
    """A column's name in plain letters, "Größe" -> "grosse"; `otherwise` where that leaves none."""
    plain = unicodedata.normalize("NFKD", snake(column)).replace("ß", "ss").encode("ascii", "ignore").decode()
    return plain if re.fullmatch(NAME_PATTERN, plain) else otherwise


def guess_feature(values: pl.Series, *, side: str) -> tuple[dict[str, Any], str] | None:
    """The settings of a feature made of a column, and the reason; None where it is none (an identifier, a constant).

    Args:
        values: the column.
        side: `items` or `users`; users have categorical and numerical features alone.
    """
    present = values.drop_nulls()
    different = present.n_unique() if len(present) else 0
    if different < 2:
        return None
    if present.dtype.base_type() in (pl.List, pl.Array):
        return _guess_list(present.cast(pl.List(present.dtype.inner))) if side == "items" else None  # type: ignore[attr-defined]
    if present.dtype.is_numeric() and different > 20:
        return {"kind": "numerical"}, f"{different} different numbers in the sample"
    texts = present.cast(pl.String)
    mark = _separator(texts) if side == "items" and present.dtype == pl.String else None
    if mark is not None:
        return {
            "kind": "categorical",
            "multivalued": True,
            "separator": mark,
        }, f"cells hold several values apart by {mark!r}"
    if side == "items" and present.dtype == pl.String and words_a_cell(texts) > 2.5 and different > 0.5 * len(present):
        return {"kind": "text"}, f"{words_a_cell(texts):.0f} words a cell, mostly different"
    if different <= max(20, 0.5 * len(present)):
        return {"kind": "categorical"}, f"{different} different values in {len(present)} rows"
    return None


def _guess_list(lists: pl.Series) -> tuple[dict[str, Any], str] | None:
    widths = lists.list.len().unique().to_list()
    numeric = lists.dtype.inner.is_float()  # type: ignore[attr-defined]
    if numeric and len(widths) == 1 and widths[0] >= 4:
        groups = min(8, widths[0] // 2)
        return {"kind": "multimodal", "dim": widths[0], "groups": groups}, f"vectors of {widths[0]} numbers"
    if numeric:
        return None
    return {"kind": "categorical", "multivalued": True}, f"lists of up to {max(widths)} values"


def _separator(texts: pl.Series) -> str | None:
    """The mark that divides many cells into parts that come again; a comma in a sentence does not."""
    for mark in _MARKS:
        cells = texts.filter(texts.str.contains(mark, literal=True))
        parts = cells.str.split(mark).explode().str.strip_chars()
        few_words = len(parts) > 0 and words_a_cell(parts) < 2.5
        if len(cells) > 0.2 * len(texts) and few_words and parts.n_unique() < 0.5 * len(parts):
            return mark
    return None


def _comment(text: str) -> str:
    return " ".join(text.split())[:200]


def _yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True, sort_keys=False)
    return text.removesuffix("...\n").strip()
