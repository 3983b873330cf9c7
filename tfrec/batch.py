"""Recommendations for every user of a dataset by a published model, as Parquet: a file for each file of histories.

OUT/
    job.json                                    which model answers for which dataset
    recommendations-00000-of-00004.parquet      user_id, item_ids, scores, best first; users in the order of histories
    manifest.json                               every file with its hash, and the account; written last

A file appears by one rename, so an interrupted job goes on with the files that are missing. Each is made by itself,
whoever makes it: `tfrec recommend` file by file in one process, or `beam_jobs.recommend` on many workers.

Importing this module imports TensorFlow.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
from numpy.typing import NDArray

from tfrec import publishing
from tfrec.columns import Histories
from tfrec.data import Dataset
from tfrec.errors import UserError, writing
from tfrec.index import scann_ops
from tfrec.manifest import MANIFEST, fingerprint, read_manifest, verify, write_json, write_manifest
from tfrec.raw import raw_histories
from tfrec.schema import Schema

logger = logging.getLogger("tfrec")

JOB = "job.json"
_USERS_AT_ONCE = 256
_EVENTS_AT_ONCE = 1 << 18
_TEMPORARY = ".tmp-"
_SCHEMA = pa.schema([("user_id", pa.string()), ("item_ids", pa.list_(pa.string())), ("scores", pa.list_(pa.float32()))])
SKIPPED = ("no_events", "nothing_left")
"""Why a user gets no row: there is no history, or every item is filtered out."""

Account = dict[str, int]
Answer = tuple[list[str], list[float]]


@dataclass(frozen=True)
class BatchJob:
    """Which model answers for which users, and where the answers go."""

    model: Path
    """MODELS/NAME/<version>."""
    dataset: Path
    """A dataset directory, not necessarily the one that the model was trained on."""
    out: Path
    """A folder of this job alone."""
    k: int | None = None
    """Items a user at most; None = as many as the model answers."""
    request_time: int | None = None
    """Unix seconds of the requests; None = each user's latest event."""
    allow: tuple[str, ...] = ()
    """These items alone; empty = all."""
    deny: tuple[str, ...] = ()
    """These items not."""

    def document(self) -> dict[str, Any]:
        """What identifies the answers: no path, no clock."""
        lists = {"allow": self.allow, "deny": self.deny}
        hashes = {name: hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest() for name, ids in lists.items()}
        return {
            "model": self.model.parent.name,
            "version": self.model.name,
            "model_fingerprint": fingerprint(self.model),
            "dataset": fingerprint(self.dataset),
            "k": self.k,
            "request_time": self.request_time,
            **{name: digest if lists[name] else None for name, digest in hashes.items()},
        }

    def parts(self) -> dict[str, Path]:
        """Where the answers for each file of histories go."""
        names = Dataset.open(self.dataset).history_files()
        return {name: self.out / f"{_part_name(name)}.parquet" for name in names}


def newest_job(
    model: Path,
    dataset: Path,
    out: Path,
    *,
    k: int | None = None,
    request_time: int | None = None,
    allow: Path | None = None,
    deny: Path | None = None,
) -> BatchJob:
    """A job for the newest version of MODELS/NAME; `allow` and `deny` are files with an item id a line.

    Raises:
        UserError: there is no version, or a file cannot be read.
    """
    version = publishing.latest(model)
    return BatchJob(version, dataset, out, k, request_time, _read_ids(allow), _read_ids(deny))


def _read_ids(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        ids = tuple(line for line in path.read_text("utf-8").splitlines() if line)
    except (FileNotFoundError, IsADirectoryError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a list of item ids ({error}).") from None
    if not ids:
        raise UserError(f"{path}: holds no item id; leave the option out to filter nothing.")
    return ids


def recommend_all(job: BatchJob) -> Account:
    """Answers for every user in this process, file by file, and returns the account."""
    missing = begin(job)
    recommender = Recommender(job)
    for place, name in enumerate(missing):
        logger.info("recommending: %s (%d of %d to do)", name, place + 1, len(missing))
        recommender.write(name)
    return finish(job)


def begin(job: BatchJob) -> list[str]:
    """Makes the folder, or goes on with it; returns the files of histories that are still to be answered.

    Raises:
        UserError: the folder holds something else.
    """
    for directory in (job.model, job.dataset):
        verify(directory)
    document, path = job.document(), job.out / JOB
    if path.is_file():
        if json.loads(path.read_text("utf-8")) != document:
            raise UserError(f"{job.out}: holds the answers of another job ({JOB}); choose another folder.")
    elif job.out.exists() and (not job.out.is_dir() or any(job.out.iterdir())):
        raise UserError(f"{job.out}: exists and holds no {JOB}, so nothing is written there; choose another folder.")
    else:
        with writing(job.out):
            job.out.mkdir(parents=True, exist_ok=True)
            temporary = job.out / f"{_TEMPORARY}{JOB}"
            write_json(temporary, document)
            temporary.replace(path)
    return [name for name, part in job.parts().items() if not part.is_file()]


def finish(job: BatchJob) -> Account:
    """Writes the manifest once every file is there, and returns the account.

    Raises:
        UserError: users are missing.
    """
    parts = job.parts()
    accounts = {part.name: read_account(part) for part in parts.values()}
    account: Account = dict.fromkeys(("users", "written", *SKIPPED), 0)
    for one in accounts.values():
        account = {name: count + one[name] for name, count in account.items()}
    users = sum(Dataset.open(job.dataset).history_files().values())
    if account["users"] != users or users != account["written"] + sum(account[reason] for reason in SKIPPED):
        raise UserError(f"{job.out}: answers for {account['users']} of {users} users; remove it and run this again.")
    if not (job.out / MANIFEST).is_file() or read_manifest(job.out)["account"] != account:
        for leftover in job.out.glob(f"{_TEMPORARY}*"):
            leftover.unlink()
        records = {name: one["written"] for name, one in accounts.items()}
        write_manifest(job.out, {"kind": "recommendations", "account": account}, records)
    return account


def read_account(part: Path) -> Account:
    """The account that a file carries."""
    try:
        account: Account = json.loads(pq.read_schema(part).metadata[b"account"])
    except (OSError, pa.ArrowInvalid, KeyError, TypeError) as error:
        raise UserError(f"{part}: no file of recommendations ({error}); remove it and run this again.") from None
    return account


class Recommender:
    """A published model in this process that answers file after file; loaded on the first.

    Args:
        job: what is to be answered.
    """

    def __init__(self, job: BatchJob) -> None:
        self.job = job
        self.dataset = Dataset.open(job.dataset)
        self.item_ids = ["", "", *self.dataset.schema.item_vocabulary.read(job.dataset)]

    @cached_property
    def _recommend(self) -> Any:
        if read_manifest(self.job.model).get("index", {}).get("kind") == "scann":
            scann_ops()  # its operations, which the graph names
        loaded = tf.saved_model.load(str(self.job.model))
        self._loaded = loaded  # a signature does not keep its model alive
        name = "recommend_filtered" if self.job.allow or self.job.deny else "recommend"
        if name not in loaded.signatures:
            raise UserError(f"{self.job.model}: has no signature `{name}`; only retrieval models answer for all users.")
        return loaded.signatures[name]

    @cached_property
    def _inputs(self) -> dict[str, Any]:
        inputs: dict[str, Any] = self._recommend.structured_input_signature[1]
        return inputs

    @cached_property
    def _filters(self) -> dict[str, Any]:
        """One row of filters, which counts for all users."""
        asked = {"allow_item_ids": self.job.allow, "deny_item_ids": self.job.deny}
        names = Schema.read(self.job.model / publishing.EXTRA).filter_inputs()
        return {name: tf.constant([list(asked.get(name, ())) or [""]]) for name in names if name in self._inputs}

    def write(self, file: str) -> Account:
        """Answers for the users of one file of histories and returns its account.

        Args:
            file: of `Dataset.history_files`.
        """
        users = self.dataset.history_files()[file]
        user_ids: list[str] = []
        answers: list[Answer] = []
        account: Account = {"users": users, "written": 0, "no_events": 0, "nothing_left": 0}
        if users:
            histories = self.dataset.histories_of(file)
            found = self._answers(histories)
            account["no_events"] = found.count(None)
            kept = [user for user, answer in enumerate(found) if answer and answer[0]]
            user_ids = [histories.user_ids[user] for user in kept]
            answers = [answer for answer in found if answer and answer[0]]
        account["written"] = len(user_ids)
        account["nothing_left"] = users - account["no_events"] - len(user_ids)
        columns = [user_ids, [items for items, _ in answers], [scores for _, scores in answers]]
        arrays = [pa.array(values, each.type) for values, each in zip(columns, _SCHEMA, strict=True)]
        schema = _SCHEMA.with_metadata({"account": json.dumps(account)})
        _write_part(pa.Table.from_arrays(arrays, schema=schema), self.job.out / f"{_part_name(file)}.parquet")
        return account

    def _answers(self, histories: Histories) -> list[Answer | None]:
        """What each user is answered; None for those without events."""
        answers: list[Answer | None] = [None] * histories.num_users
        for users in _chunks(np.diff(histories.offsets)):
            for user, answer in zip(users, self._ask(histories, users), strict=True):
                answers[user] = answer
        return answers

    def _ask(self, histories: Histories, users: NDArray[np.int64]) -> Iterator[Answer]:
        """Items and scores of some users, each with events, best first."""
        request = self._request(histories, users)
        tensors = {name: tf.constant(values.tolist(), self._inputs[name].dtype) for name, values in request.items()}
        outputs = self._recommend(**tensors, **self._filters)
        k = self.job.k
        for ids, scores in zip(outputs["item_ids"].numpy()[:, :k], outputs["scores"].numpy()[:, :k], strict=True):
            count = int((ids != b"").sum())
            yield [item.decode() for item in ids[:count]], scores[:count].tolist()

    def _request(self, histories: Histories, users: NDArray[np.int64]) -> Mapping[str, NDArray[Any]]:
        schema = self.dataset.schema
        time = None
        if schema.has_time:
            latest = histories.columns["time"][histories.offsets[users + 1] - 1].astype(np.int64) + schema.time_origin
            time = latest if self.job.request_time is None else np.full(len(users), self.job.request_time)
        lengths = histories.offsets[users + 1] - histories.offsets[users]
        request = raw_histories(schema, self.job.dataset, self.item_ids, histories, users, lengths, request_time=time)
        wanted = [name for name in self._inputs if name not in self._filters]
        missing = sorted(set(wanted) - set(request))
        if missing:
            raise UserError(
                f"{self.job.dataset}: has no {', '.join(missing)}, which {self.job.model} asks for; take the "
                "dataset that the model was trained on, or one that grew from it."
            )
        return {name: request[name] for name in wanted}


def _part_name(file: str) -> str:
    return Path(file).stem.replace("histories", "recommendations", 1)


def _chunks(lengths: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Users that have events, those of like length together: few enough at once for their events to fit in memory."""
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    while len(order):
        longest = lengths[order[:_USERS_AT_ONCE][-1]]
        count = max(1, min(_USERS_AT_ONCE, _EVENTS_AT_ONCE // int(longest)))
        yield order[:count]
        order = order[count:]


def _write_part(table: pa.Table, part: Path) -> None:
    """By one rename, so that a file that has its name is whole."""
    temporary = part.with_name(f"{_TEMPORARY}{part.name}-{os.getpid()}")
    with writing(part):
        pq.write_table(table, temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(part)
