"""Raw logs to a dataset directory: `python -m beam_jobs.preprocess --config C [--set a.b=c] [-- Beam options]`.

With `--from OLD` the new dataset grows from an older one: see `beam_jobs.growth`.
"""

import argparse
import logging
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import polars as pl

from beam_jobs import recipes
from beam_jobs.analysis import Fitted, fit, item_buckets, read_parts
from beam_jobs.arranging import FATES, ITEM_IDS, ArrangeBuckets
from beam_jobs.engine import Engine
from beam_jobs.exposures import Catalogue, MakeImpressions
from beam_jobs.filters import keep_frequent
from beam_jobs.growth import LINEAGE, Growth, check_log, open_growth
from beam_jobs.histories import HistoryFiles, WriteHistories
from beam_jobs.items import ItemFiles, WriteItems, count_files, stored_items, write_counter_keys
from beam_jobs.options import BEHIND, pipeline_options, split_arguments
from beam_jobs.parts import IMPRESSION_SPLIT
from beam_jobs.plan import Plan, make_plan
from beam_jobs.reading import CHUNKS, FIRST_TIME, ReadLog, WriteCounts, WriteRejects, first_rejects, read_counts
from beam_jobs.staging import (
    all_item_ids,
    bucket_folders,
    bucket_name,
    positions,
    read_frame,
    read_rows,
    read_texts,
    write_item_ids,
)
from beam_jobs.statistics import (
    Counts,
    account_table,
    add_up,
    check_missing,
    check_rejected,
    make_account,
    make_statistics,
    split_counts,
)
from beam_jobs.validation import MICROSECONDS
from tfrec.config import Config, Filters, load, suggest
from tfrec.errors import UsageError, UserError, mendable, writing
from tfrec.manifest import MANIFEST, published, read_manifest, staging_of, write_json, write_manifest
from tfrec.schema import Schema
from tfrec.transforms import FIRST_VALUE

logger = logging.getLogger("beam_jobs")

EVENTS_A_BUCKET = 500_000
_MOST_BUCKETS = 4096
_ITEMS_A_BUCKET = 200_000
_DAY_SECONDS = 86_400


def run(
    config: Config,
    beam_options: Sequence[str] = (),
    *,
    grow_from: str | Path | None = None,
    refit: Sequence[str] = (),
    shared_disk: bool = False,
) -> Path:
    """Makes the dataset that a configuration describes and returns its directory, `data.out`.

    Everything is written to a temporary sibling first, and what pipelines hand to each other to another; a failed or
    killed job leaves nothing under the final name.

    Args:
        config: the experiment; its sections data, histories and features are used.
        beam_options: options for Beam, such as `--runner=...`; without a runner the Fn API runner of this machine.
        grow_from: an older dataset whose ids stay and whose fitted parts are taken over.
        refit: features that are fitted anew all the same.
        shared_disk: workers on other machines see the folder of `data.out` under the same path.
    """
    engine = Engine(pipeline_options(beam_options, shared_disk=shared_disk))
    if "://" in config.data.out:
        raise UsageError(f"`data.out`: must be a folder of this machine. Received: {config.data.out!r}.")
    config = recipes.prepare(config)
    plan = make_plan(config)
    target = Path(config.data.out)
    _check_target(target)
    growth = _open_growth(plan, grow_from, refit)
    with writing(target), published(target) as directory, _staging(directory) as staging, engine:
        num_buckets = count_buckets(plan)
        logger.info("reading %s into %d buckets", ", ".join(log.kind for log in plan.logs), num_buckets)
        read_logs(plan, staging, directory, num_buckets, engine)
        arrange_buckets(plan, staging, num_buckets, engine, growth)
        logger.info("fitting vocabularies, bins and quantisers")
        fitted = fit(staging, directory, config, growth)
        if config.data.impressions_from_events is not None:
            logger.info("making impressions of events")
            make_impressions(plan, staging, fitted, engine)
        schema = make_schema(plan, staging, fitted, growth)
        for feature in schema.features:
            if feature.kind == "categorical" and feature.table_sizes == (FIRST_VALUE,):
                logger.warning("%s: no value of it was kept (see its min_count), so it tells nothing", feature.name)
        records = write_dataset(plan, staging, directory, schema, fitted, num_buckets, engine)
        finish(plan, staging, directory, schema, fitted, records, growth.lineage() if growth else [])
    logger.info("%s", account_table(read_manifest(target)["account"]))
    return target


def _open_growth(plan: Plan, path: str | Path | None, refit: Sequence[str]) -> Growth | None:
    if path is None:
        if refit:
            raise UsageError("`--refit` needs `--from`: without an older dataset everything is fitted anew.")
        return None
    growth = open_growth(path, plan.config, plan.events.forget, refit)
    check_log(growth, has_time=plan.has_time, has_event_types=plan.events.has("event_type"))
    return growth


def _check_target(target: Path) -> None:
    """A dataset may be replaced, anything else may not."""
    if target.exists() and not (target / MANIFEST).exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: exists and is no dataset, so it is not replaced; choose another `data.out`.")


@contextmanager
def _staging(directory: Path) -> Iterator[Path]:
    staging = staging_of(directory)
    staging.mkdir()
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def count_buckets(plan: Plan) -> int:
    """Buckets of users, from the size of the events alone: as many history files come out."""
    return min(max(-(-plan.events.log.estimated_rows // EVENTS_A_BUCKET), 1), _MOST_BUCKETS)


def read_logs(plan: Plan, staging: Path, directory: Path, num_buckets: int, engine: Engine) -> None:
    """First pipeline: logs to checked rows in buckets, rejects, and the first part of the account."""
    with engine.running() as pipeline:
        counts, rejects = [], []
        for log in plan.logs:
            buckets = num_buckets
            if log.kind == "items":
                buckets = max(-(-log.log.estimated_rows // _ITEMS_A_BUCKET), 1)
            read = ReadLog(log, staging / log.kind, buckets, plan.config.data.repeats)
            log_counts, log_rejects = pipeline | f"Read {log.kind} log" >> read
            counts.append(log_counts)
            rejects.append(log_rejects)
        _ = counts | "Flatten counts" >> beam.Flatten() | "Write the account" >> WriteCounts(staging / "read.json")
        _ = rejects | "Flatten rejects" >> beam.Flatten() | "Write all rejects" >> WriteRejects(directory)
    for log in plan.logs:
        shutil.rmtree(staging / log.kind / CHUNKS, ignore_errors=True)
    found = read_counts(staging / "read.json")
    check_rejected(found, first_rejects(directory), plan.config.data.max_rejected)
    check_missing(found, plan.config.data.max_rejected)
    for log in plan.logs:
        if not any(key[0] == log.kind and key[2] == "input" for key in found):
            raise UserError(f"{log.log.files[0].path}: holds no rows.")


def arrange_buckets(plan: Plan, staging: Path, num_buckets: int, engine: Engine, growth: Growth | None = None) -> None:
    """Second pipeline: filters over all buckets, then sessions, splits and lengths bucket by bucket."""
    _number_items(staging, growth.item_ids() if growth else [])
    filters = plan.config.data.filters
    if filters.k_core or filters.min_item_events > 1 or filters.min_user_events > 1:
        _filter_infrequent(staging, filters)
    with engine.running() as pipeline:
        names = [bucket_name(bucket) for bucket in range(num_buckets)]
        _ = (
            pipeline
            | "List buckets" >> beam.Create(names)
            | "Spread buckets" >> beam.Reshuffle()
            | "Arrange buckets" >> ArrangeBuckets(plan, staging)
            | "Write the account" >> WriteCounts(staging / "arranged.json")
        )
    if not bucket_folders(staging / "arranged"):
        raise UserError(
            "`data.filters`: no event is left after validation and filters; see the rejected rows or loosen them."
        )


def _number_items(staging: Path, old_ids: Sequence[str]) -> None:
    """Writes the ids of every item that any log names: items are their places in it until they get codes.

    Of a dataset that grows, the ids of the older one too; what was forgotten has none.
    """
    ids = [
        read_texts(folder, "item_id") for kind in ("events", "impressions") for folder in bucket_folders(staging / kind)
    ]
    ids += [read_frame(path, ["item_id"])["item_id"] for path in item_buckets(staging)]
    ids.append(pl.Series([item_id for item_id in old_ids if item_id], dtype=pl.String))
    write_item_ids(staging / ITEM_IDS, ids)


def _filter_infrequent(staging: Path, filters: Filters) -> None:
    ids = all_item_ids(staging / ITEM_IDS)
    folders = bucket_folders(staging / "events")
    buckets = []
    for folder in folders:
        rows = read_rows(folder, ("user_id", "item_id"))
        places = positions(read_texts(folder, "item_id"), ids).to_numpy().astype(np.int32)
        buckets.append((rows["user_id"].to_numpy().astype(np.int32), places[rows["item_id"].to_numpy()]))
    kept = keep_frequent(buckets, len(ids), filters)
    (staging / FATES).mkdir()
    np.save(staging / FATES / "items.npy", kept.item_fate)
    for folder, fate in zip(folders, kept.user_fates, strict=True):
        np.save(staging / FATES / f"{folder.name}.npy", fate)


def make_impressions(plan: Plan, staging: Path, fitted: Fitted, engine: Engine) -> None:
    """Between the pipelines: impressions of buckets whose log has none."""
    with engine.running() as pipeline:
        _ = (
            pipeline
            | "List buckets" >> beam.Create([folder.name for folder in bucket_folders(staging / "arranged")])
            | "Spread buckets" >> beam.Reshuffle()
            | "Impressions of buckets" >> MakeImpressions(plan, staging, Catalogue.of(staging, fitted))
        )


def make_schema(plan: Plan, staging: Path, fitted: Fitted, growth: Growth | None = None) -> Schema:
    """The contract of the dataset."""
    config, counts = plan.config, read_counts(staging / "arranged.json")
    events = _stored(counts, "events")
    parts = [read_frame(path) for path in sorted((staging / "parts").glob("*/split.arrow"))]
    train = pl.concat(parts).filter(pl.col("split") == 0)["events"].sum()
    lengths = [read_frame(path) for path in sorted((staging / "parts").glob("*/length.arrow"))]
    targets = config.data.target_events
    for name in () if targets == "all" else targets:
        if name not in fitted.event_types:
            raise UserError(
                f"`data.target_events`: no training event of type `{name}`; {suggest(name, fitted.event_types)}"
            )
    _check_targets(plan, staging)
    time_origin = _first_day(staging) if plan.has_time else 0
    return Schema(
        features=fitted.features,
        event_types=fitted.event_types,
        target_event_types=None if targets == "all" else targets,
        labels=config.data.labels,
        display=config.features.display,
        title=config.features.display[0] if config.features.display else None,
        has_time=plan.has_time,
        has_sessions=plan.has_sessions,
        session_gap_seconds=_session_gap(plan),
        impressions=plan.stored_impressions,
        time_origin=growth.time_origin(time_origin) if growth else time_origin,
        max_events=config.histories.max_events,
        repeats=config.data.repeats,
        split=config.data.split,
        counts={
            "users": int(pl.concat(lengths)["users"].sum()),
            "items": int((~fitted.retired[FIRST_VALUE:]).sum()),
            "events": events,
            "train_events": int(train),
            "impressions": sum(split_counts(read_parts(staging, IMPRESSION_SPLIT), "impressions"))
            if plan.stored_impressions is not None
            else 0,
        },
    )


def _check_targets(plan: Plan, staging: Path) -> None:
    """Nothing to train on is an error, nothing to validate or test on a warning."""
    train, *held_out = split_counts(read_parts(staging, "target_split"), "events")
    if not train:
        raise UserError(
            "`data.split`: no event of a target type is left for training; change `data.split`, `data.target_events` "
            "or `data.filters`."
        )
    for name, queries in zip(("validation", "test"), held_out, strict=True):
        if not queries and (name == "test" or plan.config.data.split.validation):
            logger.warning("`data.split`: no %s queries: no event of a target type is in that split", name)


def _session_gap(plan: Plan) -> int | None:
    """Seconds of inactivity that ended a session; None where the log has its own sessions, or none."""
    by_gap = plan.has_sessions and not plan.events.has("session")
    return plan.config.histories.session_gap_seconds if by_gap else None


def _stored(counts: Counts, kind: str) -> int:
    return sum(count for key, count in counts.items() if key[0] == kind and key[2] == "stored")


def _first_day(staging: Path) -> int:
    first = min(int(path.read_text(encoding="utf-8")) for path in (staging / "events").glob(f"*/{FIRST_TIME}"))
    return first // (MICROSECONDS * _DAY_SECONDS) * _DAY_SECONDS


def write_dataset(
    plan: Plan,
    staging: Path,
    directory: Path,
    schema: Schema,
    fitted: Fitted,
    num_buckets: int,
    engine: Engine,
) -> dict[str, int]:
    """Third pipeline: items and histories as TFRecords; returns the number of records of each file."""
    (directory / "items").mkdir()
    (directory / "histories").mkdir()
    num_files = count_files(len(fitted.train_count) - 2)
    items = ItemFiles(staging, directory, schema.side("item"), schema.display, num_files)
    write_counter_keys(staging, directory, schema, plan.items)
    histories = HistoryFiles(staging, directory, schema, num_buckets)
    with engine.running() as pipeline:
        written = (
            pipeline | "Write the catalogue" >> WriteItems(items, plan.items, fitted.train_count),
            pipeline | "Write all histories" >> WriteHistories(histories),
        )
        pairs = (
            written
            | "All files" >> beam.Flatten()
            | "Key by file" >> beam.MapTuple(lambda file, count: ((file,), count))
        )
        _ = pairs | "Write records" >> WriteCounts(staging / "records.json")
    return {file: count for (file,), count in read_counts(staging / "records.json").items()}


def finish(
    plan: Plan,
    staging: Path,
    directory: Path,
    schema: Schema,
    fitted: Fitted,
    records: Mapping[str, int],
    lineage: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Writes schema, statistics and, last, the manifest with the account."""
    counts = [read_counts(staging / "read.json"), read_counts(staging / "arranged.json")]
    if plan.items is not None:
        counts.append(stored_items(staging, plan.items))
    account = make_account(add_up(*counts))
    schema.write(directory)
    write_json(directory / "statistics.json", make_statistics(staging, directory, plan, schema, fitted))
    for path in (directory / "rejected").glob("*.jsonl"):
        with path.open("rb") as file:
            records = {**records, path.relative_to(directory).as_posix(): sum(1 for _ in file)}
    content = {"kind": "dataset", "account": account} | ({LINEAGE: lineage} if lineage else {})
    write_manifest(directory, content, records)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: prints the dataset's path; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m beam_jobs.preprocess", description=__doc__, epilog=BEHIND)
    parser.add_argument("--config", required=True, help="the experiment's YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="overrides a key of the file")
    parser.add_argument("--from", dest="grow_from", metavar="OLD", help="an older dataset to grow from")
    parser.add_argument("--refit", action="append", default=[], metavar="FEATURE", help="fitted anew despite --from")
    parser.add_argument("--shared-disk", action="store_true", help="all workers see the folder of data.out")
    own, beam_options = split_arguments(arguments)
    parsed = parser.parse_args(own)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s", force=True)
    logger.setLevel(logging.INFO)
    try:
        config = load(parsed.config, parsed.set)
        path = run(
            config,
            beam_options,
            grow_from=parsed.grow_from,
            refit=parsed.refit,
            shared_disk=parsed.shared_disk,
        )
    except KeyboardInterrupt:
        sys.stderr.write("tfrec: interrupted; nothing was written.\n")
        return 1
    except Exception as error:
        told = mendable(error)
        if told is None:
            raise
        sys.stderr.write(f"tfrec: {' '.join(str(told).split())}\n")
        return told.exit_code
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what Ctrl-C cleans up, a stopped job cleans up too
    sys.exit(main())
