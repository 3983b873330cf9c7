"""Amazon review sets as S3-Rec (Zhou et al., 2020) gives them out: `Beauty.txt` and `Beauty_item2attributes.json`.

A line of the text file is a user and their items in order; there are no times. Attributes are numbers of categories
and brands. What else is known of the items (title, text) comes from a file of your own, `options.meta`.
"""

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl

from beam_jobs.recipes.published import existing_path, read_as_published
from tfrec.config import Section
from tfrec.errors import UserError

PUBLISHER = "S3-Rec's repository (github.com/RUCAIBox/CIKM2020-S3Rec, folder data)"
SOURCES: dict[str, dict[str, str]] = {}


class Options(Section):
    """Which set of a folder, and what else describes its items."""

    set: str | None = None
    """Name of the set (`Beauty`); needed where the folder holds several."""
    meta: str | None = None
    """A .csv, .parquet or .jsonl file with a column `item_id` and further columns for the items."""


def find_inputs(path: str | None, options: Options, needed: frozenset[str]) -> list[Path]:
    """The sequences, the attributes where they are there, and the file of `options.meta`."""
    found = existing_path(path, "amazon_s3rec", PUBLISHER)
    sequences = _sequences(found, options.set)
    attributes = [
        sequences.with_name(f"{sequences.stem}_item2attributes.json"),
        sequences.with_name("item2attributes.json"),
    ]
    inputs = [sequences]
    if "items" in needed:
        inputs += [path for path in attributes if path.is_file()][:1]
        if options.meta is not None:
            inputs.append(Path(options.meta).expanduser())
            if not inputs[-1].is_file():
                raise UserError(f"data.recipe.options.meta: {options.meta}: no such file.")
    return inputs


def write(directory: Path, inputs: list[Path], options: Options, needed: frozenset[str]) -> None:
    """Writes `events.parquet`, and `items.parquet` where attributes or further columns are there."""
    sequences, *others = inputs
    if "events" in needed:
        read_as_published(_read_sequences, sequences).write_parquet(directory / "events.parquet")
    tables = [
        read_as_published(_read_attributes if path.name.endswith("item2attributes.json") else _read_meta, path)
        for path in others
    ]
    if tables:
        items = tables[0]
        for table in tables[1:]:
            items = items.join(table, on="item_id", how="full", coalesce=True, maintain_order="left_right")
        items.write_parquet(directory / "items.parquet")


def _sequences(found: Path, name: str | None) -> Path:
    if found.is_file():
        return found
    candidates = sorted(path for path in found.glob("*.txt") if not path.stem.endswith("_sample"))
    if name is not None:
        candidates = [path for path in candidates if path.stem == name]
    if len(candidates) != 1:
        names = ", ".join(path.stem for path in candidates) or "none"
        raise UserError(f"data.recipe.path: {found}: must hold one set, or `options.set` name it. Found: {names}.")
    return candidates[0]


def _read_sequences(path: Path) -> pl.DataFrame:
    users: list[str] = []
    items: list[str] = []
    orders: list[int] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        user, *history = line.split()
        if not history:
            raise UserError(
                f"{path}: line {number}: must be a user and items. Received: {line!r:.60}; get the file again."
            )
        users += [user] * len(history)
        items += history
        orders += range(len(history))
    return pl.DataFrame({"user_id": users, "item_id": items, "order": orders})


def _read_attributes(path: Path) -> pl.DataFrame:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        rows = {item: [str(value) for value in values] for item, values in document.items()}
    except (ValueError, AttributeError, TypeError):
        raise UserError(f"{path}: must be a JSON object, item to list of attributes; get the file again.") from None
    attributes = pl.Series("attributes", list(rows.values()), pl.List(pl.String))
    return pl.DataFrame([pl.Series("item_id", list(rows), pl.String), attributes])


def _read_meta(path: Path) -> pl.DataFrame:
    readers: dict[str, Callable[[Path], pl.DataFrame]] = {
        ".csv": lambda path: pl.read_csv(path, infer_schema_length=None, glob=False),
        ".parquet": lambda path: pl.read_parquet(path, glob=False),
        ".jsonl": lambda path: pl.read_ndjson(path.read_bytes()),
    }
    if path.suffix not in readers:
        raise UserError(f"{path}: `options.meta` must be a .csv, .parquet or .jsonl file.")
    frame = readers[path.suffix](path)
    if "item_id" not in frame.columns:
        raise UserError(f"{path}: has no column `item_id`; it has {', '.join(frame.columns)}.")
    return frame.with_columns(pl.col("item_id").cast(pl.String))
