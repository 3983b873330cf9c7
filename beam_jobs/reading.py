"""The first pipeline: raw files to checked rows in buckets of users (or items), with the account of all rows."""

import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import polars as pl
from apache_beam.ml.inference.base import KeyedModelHandler, RunInference
from apache_beam.transforms.combiners import ToList

from beam_jobs.bigquery import ReadTable
from beam_jobs.contents import EncodeContents, Encoded
from beam_jobs.filters import COMPARE, filter_reasons
from beam_jobs.forgetting import REASON, forgotten_rows, hide_values
from beam_jobs.hashing import buckets_of
from beam_jobs.plan import EXCLUDE_PREFIX, LABEL_PREFIX, REQUIRE_PREFIX, LogPlan
from beam_jobs.sources import ROW, Batch, Fragment, as_bytes, from_bytes, list_fragments, read_batches
from beam_jobs.staging import Chunk, bucket_name, encode_texts, join_chunks, write_chunks
from beam_jobs.threads import InThreads
from beam_jobs.validation import REJECT_SCHEMA, broken_rejects, check_batch, empty_rejects, reject
from tfrec.schema import MISSING_LABEL

logger = logging.getLogger("beam_jobs")

CHUNKS = "chunks"
"""Folder of a log's rows on their way to their buckets."""
FIRST_TIME = "first_time"
"""File of a bucket of events: microseconds of the first row, whatever `repeats` drops."""
_SECONDS_BETWEEN_LINES = 5.0
_CONTENT_PREFIXES = ("item_", "display_")


@dataclass
class CheckedBatch:
    """What became of the rows of a batch."""

    accepted: pl.DataFrame
    """Checked columns of the rows that stay, with `file` and, for items and users, `ROW`."""
    rejects: pl.DataFrame
    counts: Counter[tuple[str, str, str]]
    """(file, outcome, reason) -> rows; outcomes are input, rejected, filtered, and of values, not rows, missing."""
    first_row: int
    file: int


def check_rows(batch: Batch, plan: LogPlan) -> CheckedBatch:
    """Checks the rows of a batch, makes labels, and takes out what `forget`, `exclude` and `require` filter."""
    name = batch.file.name
    rejects = broken_rejects(batch.broken, name)
    if plan.forget:
        rejects = hide_values(rejects, plan.forget)
    if len(batch.frame) == 0:
        counts = Counter({(name, "input", ""): len(rejects)}) + _by_rule(rejects)
        return CheckedBatch(pl.DataFrame(), rejects, counts, 1, batch.file.index)
    checked, passes, found = check_batch(batch.frame, plan.fields, name)
    first_row = int(checked[ROW][0])
    counts = Counter({(name, "input", ""): len(checked) + len(rejects)})
    if plan.forget:
        gone = forgotten_rows(checked, plan.forget)
        found = found.filter(~found["row"].is_in(checked[ROW].filter(gone).implode()))
        checked, passes = checked.filter(~gone), passes.filter(~gone)
        counts[name, "filtered", REASON] = int(gone.sum())
    rejects = pl.concat([rejects, found])
    counts += _by_rule(rejects)
    if plan.kind == "items":  # a rejected row still names an item; its content stays unknown
        checked, passes = _without_content(checked, passes)
    if not passes.all():
        checked = checked.filter(passes)
    checked, reasons = _filter_rows(checked, plan)
    counts.update({(name, "filtered", reason): count for reason, count in reasons.items()})
    kept = _finish_columns(checked, plan, batch.file.index)
    return CheckedBatch(kept, rejects, counts, first_row, batch.file.index)


def _by_rule(rejects: pl.DataFrame) -> Counter[tuple[str, str, str]]:
    groups = rejects.group_by("file", "column", "rule").len()
    return Counter(
        {
            (file, "rejected", f"{column}: {rule}" if column else rule): count
            for file, column, rule, count in groups.iter_rows()
        }
    )


def _without_content(checked: pl.DataFrame, passes: pl.Series) -> tuple[pl.DataFrame, pl.Series]:
    known = checked["item_id"].is_not_null()
    content = [column for column in checked.columns if column.startswith(_CONTENT_PREFIXES) and column != "item_id"]
    checked = checked.with_columns(pl.when(passes).then(pl.col(name)).alias(name) for name in content)
    return checked.with_columns(passes.alias("_accepted")), passes | known


def _filter_rows(checked: pl.DataFrame, plan: LogPlan) -> tuple[pl.DataFrame, dict[str, int]]:
    texts = {column: checked[EXCLUDE_PREFIX + column] for column in plan.filters.exclude}
    required = {column: checked[REQUIRE_PREFIX + column] for column in plan.filters.require}
    if not texts and not required:
        return checked, {}
    reasons = filter_reasons(texts, required, plan.filters)
    counts = dict(reasons.drop_nulls().value_counts().iter_rows())
    return checked.filter(reasons.is_null()), counts


def _finish_columns(checked: pl.DataFrame, plan: LogPlan, file: int) -> pl.DataFrame:
    labels = [
        COMPARE[label.operator](checked[LABEL_PREFIX + label.name], label.value)
        .cast(pl.Int8)
        .fill_null(MISSING_LABEL)
        .alias(f"label_{label.name}")
        for label in plan.labels
    ]
    hidden = [name for name in checked.columns if name.startswith((LABEL_PREFIX, EXCLUDE_PREFIX, REQUIRE_PREFIX))]
    if plan.kind in ("events", "impressions"):
        hidden.append(ROW)
    return checked.with_columns(*labels, pl.lit(file, pl.UInt16).alias("file")).drop(hidden)


def with_vectors(batch: CheckedBatch, encoded: Encoded, plan: LogPlan) -> CheckedBatch:
    """A batch whose texts and images have been encoded; values without a vector are noted, their rows stay."""
    name = plan.file_names[batch.file]
    missing = encoded.missing.with_columns(pl.lit(name).alias("file"))
    counts = batch.counts + Counter({(file, "missing", rule): n for (file, _, rule), n in _by_rule(missing).items()})
    return replace(batch, accepted=encoded.frame, rejects=pl.concat([batch.rejects, missing]), counts=counts)


def split_by_bucket(batch: CheckedBatch, id_column: str, num_buckets: int, folder: Path) -> dict[int, Chunk]:
    """Writes the accepted rows of a batch to `folder`; returns the chunk of each bucket that has any."""
    if len(batch.accepted) == 0:
        return {}
    bucket = pl.Series("_bucket", buckets_of(batch.accepted[id_column], num_buckets))
    parts = batch.accepted.with_columns(bucket).partition_by("_bucket", as_dict=True, include_key=False)
    frames = {int(number): part for (number,), part in parts.items()}
    return write_chunks(folder / CHUNKS, batch.file, batch.first_row, frames)


def stage_events(folder: Path, bucket: int, chunks: Iterable[Chunk], *, repeats: str) -> Counter[tuple[int, str, str]]:
    """Writes the rows of a bucket by (user, time, order, place in the log); returns what `repeats: first` drops."""
    frame = join_chunks(folder / CHUNKS, chunks)
    table = encode_texts(frame, ids=("user_id", "item_id"))
    rows = sort_rows(table.rows)
    first_time = rows["time"].min() if "time" in rows.columns else None
    counts: Counter[tuple[int, str, str]] = Counter()
    if repeats == "first":
        first = rows.select(pl.struct("user_id", "item_id").is_first_distinct()).to_series()
        dropped = rows.filter(~first)["file"].value_counts()
        counts.update({(file, "filtered", "repeats: first"): count for file, count in dropped.iter_rows()})
        rows = rows.filter(first)
    table.rows = rows
    table.write(folder / bucket_name(bucket))
    if first_time is not None:
        (folder / bucket_name(bucket) / FIRST_TIME).write_text(str(first_time), encoding="utf-8")
    return counts


def sort_rows(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows by user, then time, then order, rows equal in all of them as they stood."""
    keys = [name for name in ("time", "order") if name in rows.columns]
    if (keys and not rows.select(keys[0]).to_series().is_sorted()) or len(keys) > 1:
        rows = rows.sort(keys, maintain_order=True)
    return rows.sort("user_id", maintain_order=True)


def stage_distinct(
    folder: Path, bucket: int, chunks: Iterable[Chunk], *, id_column: str, names: Sequence[str]
) -> tuple[Counter[tuple[int, str, str]], pl.DataFrame]:
    """Writes the rows of a bucket of items or users, the first of each id; the later ones are rejects.

    Of an item whose content was rejected in one row and accepted in another the accepted row counts.
    """
    frame = join_chunks(folder / CHUNKS, chunks).with_columns(pl.col(id_column).cast(pl.String))
    if "_accepted" in frame.columns:
        frame = frame.sort("_accepted", descending=True, maintain_order=True)
    first = frame[id_column].is_first_distinct()
    later = frame.filter(~first)
    if "_accepted" in frame.columns:  # what was rejected already is not rejected twice
        later = later.filter("_accepted")
    frame.filter(first).sort(id_column).write_ipc(
        _made(folder) / f"{bucket_name(bucket)}.arrow", compression="uncompressed"
    )
    rule = "repeats an id; the first row with it counts"
    counts: Counter[tuple[int, str, str]] = Counter()
    rejects = [empty_rejects()]
    for (file,), rows in later.partition_by("file", as_dict=True).items():
        counts[(int(file), "rejected", f"{id_column}: {rule}")] = len(rows)
        rules = pl.repeat(rule, len(rows), dtype=pl.String, eager=True)
        everything = pl.repeat(True, len(rows), dtype=pl.Boolean, eager=True)
        rejects.append(reject(rows[ROW], rows[id_column], rules, names[int(file)], everything))
    return counts, pl.concat(rejects)


def write_rejects(directory: Path, kind: str, parts: Iterable[bytes]) -> None:
    """Writes `rejected/<kind>.jsonl`, by file and row."""
    frame = pl.concat([pl.DataFrame(schema=REJECT_SCHEMA), *(from_bytes(part) for part in parts)])
    path = _made(directory / "rejected") / f"{kind}.jsonl"
    frame.sort("file", "row", "column", "rule", maintain_order=True).write_ndjson(path)


def first_rejects(directory: Path) -> dict[str, dict[str, Any]]:
    """Of each `kind/file/column: rule` the first reject."""
    first: dict[str, dict[str, Any]] = {}
    for path in sorted((directory / "rejected").glob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            for line in file:
                found = json.loads(line)
                reason = f"{found['column']}: {found['rule']}" if found["column"] else found["rule"]
                first.setdefault(f"{path.stem}/{found['file']}/{reason}", found)
    return first


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class _ReadAndCheck(beam.DoFn):
    def __init__(self, plan: LogPlan) -> None:
        self.plan = plan

    def setup(self) -> None:
        self.rows, self.last_line = 0, time.monotonic()

    def process(self, fragment: Fragment) -> Iterator[CheckedBatch]:
        for batch in read_batches(fragment, self.plan.columns, self.plan.log.source, self.plan.images):
            yield check_rows(batch, self.plan)
            self.rows += len(batch.frame)
            if time.monotonic() - self.last_line > _SECONDS_BETWEEN_LINES:
                self.last_line = time.monotonic()
                logger.info("%s: %s rows read", self.plan.kind, f"{self.rows:,}")


class _Scatter(InThreads):
    def __init__(self, plan: LogPlan, id_column: str, num_buckets: int, folder: Path) -> None:
        self.plan, self.id_column, self.num_buckets, self.folder = plan, id_column, num_buckets, folder

    def work(self, element: CheckedBatch) -> list[Any]:
        kind = self.plan.kind
        outputs: list[Any] = list(split_by_bucket(element, self.id_column, self.num_buckets, self.folder).items())
        for (file, outcome, reason), count in sorted(element.counts.items()):
            outputs.append(beam.pvalue.TaggedOutput("counts", ((kind, file, outcome, reason), count)))
        if len(element.rejects):
            outputs.append(beam.pvalue.TaggedOutput("rejects", (kind, as_bytes(element.rejects))))
        return outputs


class _Stage(InThreads):
    def __init__(self, plan: LogPlan, folder: Path, repeats: str) -> None:
        self.plan, self.folder, self.repeats = plan, folder, repeats

    def process(self, element: tuple[int, Iterable[Chunk]]) -> Iterator[Any]:
        bucket, chunks = element
        yield from super().process((bucket, list(chunks)))

    def work(self, element: tuple[int, list[Chunk]]) -> list[Any]:
        (bucket, chunks), kind, names = element, self.plan.kind, self.plan.file_names
        outputs: list[Any] = []
        if kind in ("events", "impressions"):
            counts = stage_events(self.folder, bucket, chunks, repeats=self.repeats if kind == "events" else "keep")
        else:
            id_column = f"{kind.removesuffix('s')}_id"
            counts, rejects = stage_distinct(self.folder, bucket, chunks, id_column=id_column, names=names)
            if len(rejects):
                outputs.append(beam.pvalue.TaggedOutput("rejects", (kind, as_bytes(rejects))))
        for (file, outcome, reason), count in sorted(counts.items()):
            outputs.append(beam.pvalue.TaggedOutput("counts", ((kind, names[file], outcome, reason), count)))
        return outputs


@dataclass
class _Encode(beam.PTransform[Any, Any]):
    """PCollection[CheckedBatch] → the same with vectors for texts and images: these are what passes the shuffle."""

    plan: LogPlan

    def expand(self, batches: Any) -> Any:
        """Wires the encoders, each batch being the key of its rows."""
        return (
            batches
            | "Key by batch" >> beam.Map(lambda batch: (batch, batch.accepted))
            | "Run encoders" >> RunInference(KeyedModelHandler(EncodeContents(self.plan.encoded)))
            | "Take vectors" >> beam.MapTuple(lambda batch, encoded: with_vectors(batch, encoded, self.plan))
        )


@dataclass
class ReadLog(beam.PTransform[Any, Any]):
    """Pipeline → (counts, rejects): reads a log, checks its rows, writes them to `folder`, a table a bucket of ids.

    `counts` are ((kind, file, outcome, reason), rows), `rejects` are (kind, Arrow IPC bytes). Buckets are by the hash
    of the user id (for items: the item id), so that equal ids meet; rows wait for each other in `folder`.
    """

    plan: LogPlan
    folder: Path
    num_buckets: int
    repeats: str = "keep"

    def expand(self, pipeline: Any) -> Any:
        """Wires reading, checking, shuffling and staging."""
        kind = self.plan.kind
        id_column = "item_id" if kind == "items" else "user_id"
        checked = (
            pipeline
            | f"List {kind}" >> beam.Create(list_fragments(self.plan.log))
            | f"Spread {kind}" >> beam.Reshuffle()
            | f"Read and check {kind}" >> beam.ParDo(_ReadAndCheck(self.plan))
        )
        tables = [
            pipeline
            | f"Read {file.name}" >> ReadTable(file, self.plan.columns)
            | f"Check {file.name}" >> beam.Map(lambda batch: check_rows(batch, self.plan))
            for file in self.plan.log.files
            if file.format == "bigquery"
        ]
        if tables:
            checked = (checked, *tables) | f"Files and tables of {kind}" >> beam.Flatten()
        scattered = (
            checked | f"Encode {kind}" >> _Encode(self.plan) if self.plan.encoded else checked
        ) | f"Scatter {kind}" >> beam.ParDo(_Scatter(self.plan, id_column, self.num_buckets, self.folder)).with_outputs(
            "counts", "rejects", main="chunks"
        )
        staged = (
            scattered.chunks
            | f"Gather {kind}" >> beam.GroupByKey()
            | f"Stage {kind}"
            >> beam.ParDo(_Stage(self.plan, self.folder, self.repeats)).with_outputs("counts", "rejects")
        )
        counts = (scattered.counts, staged.counts) | f"All counts of {kind}" >> beam.Flatten()
        rejects = (scattered.rejects, staged.rejects) | f"All rejects of {kind}" >> beam.Flatten()
        return counts, rejects


@dataclass
class WriteCounts(beam.PTransform[Any, Any]):
    """PCollection[(key, number)] → one JSON file of [key, sum] pairs, sorted."""

    path: Path

    def expand(self, counts: Any) -> Any:
        """Wires the sums and the file."""
        return (
            counts
            | "Add up" >> beam.CombinePerKey(sum)
            | "All in one place" >> ToList()
            | "Write counts" >> beam.Map(_write_counts, self.path)
        )


def _write_counts(counts: list[tuple[tuple[str, ...], int]], path: Path) -> None:
    path.write_text(json.dumps(sorted(counts)), encoding="utf-8")


def read_counts(path: Path) -> dict[tuple[str, ...], int]:
    """Reads what `WriteCounts` wrote."""
    return {tuple(key): count for key, count in json.loads(path.read_text(encoding="utf-8"))}


@dataclass
class WriteRejects(beam.PTransform[Any, Any]):
    """PCollection[(kind, Arrow IPC bytes)] → `rejected/<kind>.jsonl` in `directory`."""

    directory: Path

    def expand(self, rejects: Any) -> Any:
        """Wires the grouping and the files."""
        return (
            rejects
            | "Group rejects" >> beam.GroupByKey()
            | "Write rejects" >> beam.MapTuple(lambda kind, parts: write_rejects(self.directory, kind, parts))
        )
