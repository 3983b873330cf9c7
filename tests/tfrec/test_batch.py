"""Recommendations for all users: the model is asked as a client asks it, whatever was interrupted."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from beam_jobs.recommend import run as run_on_beam
from tests.datasets import TIME_ORIGIN
from tests.exports import K, answer, make_run
from tfrec.batch import BatchJob, begin, newest_job, recommend_all
from tfrec.errors import UserError
from tfrec.export import export
from tfrec.manifest import verify


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("batch")


@pytest.fixture(scope="module")
def made(root):
    """A run, and a version of it that is published."""
    run = make_run(root, config={"features": {"request_time": True}}, users=50, items=40)
    (version,) = export(run, root / "models" / "shop")
    return run, version


def rows_of(out):
    return [row for part in sorted(out.glob("*.parquet")) for row in pq.read_table(part).to_pylist()]


@pytest.fixture(scope="module")
def whole(made, root):
    run, version = made
    account = recommend_all(BatchJob(version, run.dataset.directory, root / "whole"))
    return root / "whole", account


def test_every_user_is_answered_as_a_client_that_sends_the_history(made, whole):
    run, version = made
    out, account = whole
    histories, catalogue = run.dataset.histories(), run.dataset.catalogue()
    recommend = tf.saved_model.load(str(version)).signatures["recommend"]
    assert account == {"users": 50, "written": 50, "no_events": 0, "nothing_left": 0}
    rows = rows_of(out)
    assert [row["user_id"] for row in rows] == histories.user_ids
    for user in range(0, 50, 7):
        events = slice(histories.offsets[user], histories.offsets[user + 1])
        times = TIME_ORIGIN + histories.columns["time"][events].astype(np.int64)
        types = [["", "", *run.schema.event_types][code] for code in histories.columns["event_type"][events]]
        got = answer(
            recommend,
            {
                "history_item_ids": np.array(
                    [[catalogue.item_ids[item] for item in histories.columns["item"][events]]]
                ),
                "history_length": np.array([len(times)], np.int32),
                "history_times": times[None],
                "history_event_types": np.array([types]),
                "request_time": times[-1:],
            },
        )
        assert rows[user]["item_ids"] == [item.decode() for item in got["item_ids"][0]]
        np.testing.assert_allclose(rows[user]["scores"], got["scores"][0], rtol=1e-5)
        assert len(rows[user]["scores"]) == K


def test_interrupted_job_goes_on_to_the_same_bytes(made, whole, tmp_path):
    run, version = made
    job = BatchJob(version, run.dataset.directory, tmp_path / "again")
    first, *others = begin(job)
    assert others
    kept = job.parts()[first]
    shutil.copyfile(whole[0] / kept.name, kept)
    (job.out / ".tmp-recommendations-99").write_text("left by a killed one")
    assert begin(job) == others
    assert recommend_all(job) == whole[1]
    assert {path.name: path.read_bytes() for path in job.out.iterdir()} == {
        path.name: path.read_bytes() for path in whole[0].iterdir()
    }
    assert verify(job.out, whole=True)["account"] == whole[1]


def test_beam_writes_the_same_bytes(made, whole, tmp_path):
    run, version = made
    job = BatchJob(version, run.dataset.directory, tmp_path / "beam")
    assert run_on_beam(job) == whole[1]
    for path in whole[0].iterdir():
        assert (job.out / path.name).read_bytes() == path.read_bytes()


def test_filters_and_k_count_for_every_user_and_who_has_nothing_left_is_counted(made, tmp_path):
    run, version = made
    histories, ids = run.dataset.histories(), run.dataset.catalogue().item_ids
    allowed = ids[5:8]
    (tmp_path / "allowed.txt").write_text("\n".join([*allowed, "unheard of"]))
    (tmp_path / "denied.txt").write_text(ids[6] + "\n")
    lists = {"allow": tmp_path / "allowed.txt", "deny": tmp_path / "denied.txt"}
    job = newest_job(version.parent, run.dataset.directory, tmp_path / "few", k=1, **lists)
    account = recommend_all(job)
    expected = {}
    for user, user_id in enumerate(histories.user_ids):
        seen = histories.columns["item"][histories.offsets[user] : histories.offsets[user + 1]]
        if left := {ids[5], ids[7]} - {ids[item] for item in seen}:
            expected[user_id] = left
    rows = rows_of(tmp_path / "few")
    assert [row["user_id"] for row in rows] == list(expected)
    assert all(len(row["item_ids"]) == 1 and row["item_ids"][0] in expected[row["user_id"]] for row in rows)
    assert 0 < account["nothing_left"] == 50 - len(expected)
    assert account["written"] == len(expected)


class TestRefusals:
    def test_folder_of_another_job_is_left_alone(self, made, whole, tmp_path):
        run, version = made
        with pytest.raises(UserError, match=r"whole: holds the answers of another job \(job.json\)"):
            begin(BatchJob(version, run.dataset.directory, whole[0], k=3))
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(UserError, match=r"exists and holds no job.json, so nothing is written there"):
            begin(BatchJob(version, run.dataset.directory, tmp_path))

    def test_dataset_without_an_input_of_the_model(self, made, tmp_path):
        _, version = made
        plain = make_run(tmp_path, has_time=False, users=9, items=8)
        with pytest.raises(UserError, match=r"has no history_times, request_time, which .*shop/1 asks for"):
            recommend_all(BatchJob(version, plain.dataset.directory, tmp_path / "out"))

    def test_empty_list_and_missing_version(self, made, tmp_path):
        run, version = made
        (tmp_path / "none.txt").write_text("\n")
        with pytest.raises(UserError, match=r"none\.txt: holds no item id"):
            newest_job(version.parent, run.dataset.directory, tmp_path / "out", deny=tmp_path / "none.txt")
        with pytest.raises(UserError, match="no version there"):
            newest_job(tmp_path, run.dataset.directory, tmp_path / "out")


def test_job_names_no_path(whole, root):
    document = json.loads((whole[0] / "job.json").read_text())
    assert document["model"] == "shop"
    assert document["version"] == "1"
    assert str(root) not in json.dumps(document) + (whole[0] / "manifest.json").read_text()
