"""Answers for every user by many workers: `python -m beam_jobs.recommend MODELS/NAME --all-users DATASET --out DIR`.

What is written, and that an interrupted job goes on with what is missing, is told in `tfrec.batch`; the files are the
same as those of `tfrec recommend`, byte by byte. Workers must see the three folders under the same paths.
"""

import argparse
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.utils.shared import Shared

from beam_jobs.engine import Engine
from beam_jobs.options import BEHIND, pipeline_options, split_arguments
from tfrec.batch import Account, BatchJob, Recommender, begin, finish, newest_job
from tfrec.errors import mendable

logger = logging.getLogger("beam_jobs")


class _RecommendFile(beam.DoFn):
    def __init__(self, job: BatchJob, shared: Shared) -> None:
        self.job, self.shared = job, shared

    def setup(self) -> None:
        self.recommender: Recommender = self.shared.acquire(lambda: Recommender(self.job))  # once a worker process

    def process(self, file: str) -> Iterator[int]:
        yield self.recommender.write(file)["written"]


@dataclass
class RecommendFiles(beam.PTransform[Any, Any]):
    """PCollection[file of histories] → PCollection[users answered]: writes the answers for each file."""

    job: BatchJob
    shared: Shared = field(default_factory=Shared)

    def expand(self, files: Any) -> Any:
        """Wires the answering of each file."""
        return (
            files
            | "Spread files" >> beam.Reshuffle()
            | "Recommend" >> beam.ParDo(_RecommendFile(self.job, self.shared))
        )


def run(job: BatchJob, beam_options: Sequence[str] = (), *, shared_disk: bool = False) -> Account:
    """Answers for every user whose file is not there yet, and returns the account of all.

    Args:
        job: which model answers for which users.
        beam_options: options for Beam, such as `--runner=...`; without a runner the Fn API runner of this machine.
        shared_disk: workers on other machines see model, dataset and answers under the same paths.
    """
    engine = Engine(pipeline_options(beam_options, shared_disk=shared_disk))
    missing = begin(job)
    logger.info("recommending for %d files of histories, %d are there", len(missing), len(job.parts()) - len(missing))
    if missing:
        with engine, engine.running() as pipeline:
            _ = pipeline | "List files" >> beam.Create(missing) | "Recommend for files" >> RecommendFiles(job)
    return finish(job)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: prints the folder of the answers; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m beam_jobs.recommend", description=__doc__, epilog=BEHIND)
    parser.add_argument("model", type=Path, metavar="MODELS/NAME", help="its newest version answers")
    parser.add_argument("--all-users", type=Path, required=True, metavar="DATASET", help="whose users")
    parser.add_argument("--out", type=Path, required=True, help="where the answers go")
    parser.add_argument("--k", type=int, help="items a user at most; default: as many as the model answers")
    parser.add_argument("--request-time", type=int, help="Unix seconds; default: each user's latest event")
    parser.add_argument("--allow", type=Path, metavar="FILE", help="items that may be answered, an id a line")
    parser.add_argument("--deny", type=Path, metavar="FILE", help="items that may not, an id a line")
    parser.add_argument("--shared-disk", action="store_true", help="all workers see the folders under the same paths")
    own, beam_options = split_arguments(arguments)
    parsed = parser.parse_args(own)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s", force=True)
    logger.setLevel(logging.INFO)
    try:
        job = newest_job(
            parsed.model,
            parsed.all_users,
            parsed.out,
            k=parsed.k,
            request_time=parsed.request_time,
            allow=parsed.allow,
            deny=parsed.deny,
        )
        account = run(job, beam_options, shared_disk=parsed.shared_disk)
    except KeyboardInterrupt:
        sys.stderr.write("tfrec: interrupted; the same command goes on with what is missing.\n")
        return 1
    except Exception as error:
        told = mendable(error)
        if told is None:
            raise
        sys.stderr.write(f"tfrec: {' '.join(str(told).split())}\n")
        return told.exit_code
    logger.info("%s", ", ".join(f"{name} {count}" for name, count in account.items()))
    sys.stdout.write(f"{parsed.out}\n")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what Ctrl-C cleans up, a stopped job cleans up too
    sys.exit(main())
