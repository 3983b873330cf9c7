"""The same job on several engines: worker processes, and a job server that speaks Beam's portable protocol."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from beam_jobs.preprocess import run
from tests.beam_jobs.logs import config_of, write_logs
from tests.beam_jobs.test_preprocess import bytes_of
from tfrec.config import parse
from tfrec.errors import UserError

pytestmark = pytest.mark.slow  # every worker process imports Beam


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    write_logs(folder)
    return folder


@pytest.fixture(scope="module")
def expected(logs):
    return bytes_of(run(parse(config_of(logs, logs / "dataset"))))


@pytest.fixture(scope="module")
def job_server(tmp_path_factory):
    """Beam's own job server in another process; yields its address."""
    folder = tmp_path_factory.mktemp("server")
    command = [sys.executable, "-m", "apache_beam.runners.portability.local_job_service_main"]
    options = [f"--staging_dir={folder}/staging", f"--port_file={folder}/port"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([*command, *options], stdout=log, stderr=log)
    try:
        for _ in range(600):
            if (folder / "port").exists() and (folder / "port").read_text().strip():
                break
            assert server.poll() is None, (folder / "log").read_text()
            time.sleep(0.2)
        yield f"localhost:{(folder / 'port').read_text().strip()}"
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def worker_pool(tmp_path_factory):
    """Beam's own pool of workers in a third process, as the workers of a cluster are; yields its address."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    path = tmp_path_factory.mktemp("pool") / "log"
    with path.open("wb") as log:
        command = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={port}"]
        pool = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for _ in range(600):
            with socket.socket() as client:
                if client.connect_ex(("localhost", port)) == 0:
                    break
            assert pool.poll() is None, path.read_text()
            time.sleep(0.2)
        yield f"localhost:{port}"
    finally:
        pool.terminate()
        pool.wait()


def portable(job_server):
    return ["--runner=PortableRunner", f"--job_endpoint={job_server}", "--environment_type=LOOPBACK"]


def test_portable_runner_gives_the_same_bytes(logs, expected, job_server, tmp_path):
    config = parse(config_of(logs, tmp_path / "dataset"))
    assert bytes_of(run(config, portable(job_server), shared_disk=True)) == expected


def test_workers_of_their_own_give_the_same_bytes(logs, expected, job_server, worker_pool, tmp_path):
    config = parse(config_of(logs, tmp_path / "dataset"))
    options = ["--runner=PortableRunner", f"--job_endpoint={job_server}"]
    options += ["--environment_type=EXTERNAL", f"--environment_config={worker_pool}"]
    assert bytes_of(run(config, options, shared_disk=True)) == expected


def test_mistakes_are_one_line_on_the_portable_runner(logs, job_server, tmp_path):
    write_logs(tmp_path)
    header = "user_id,item_id,time,event_type,device,price,topics,stars"
    (tmp_path / "events.csv").write_text(f"{header}\nu1,i1,never,buy,d,1,,1\n")
    with pytest.raises(UserError, match=r"events.csv: 1 of 1 rows of the events rejected"):
        run(parse(config_of(tmp_path, tmp_path / "dataset")), portable(job_server), shared_disk=True)


@pytest.mark.parametrize("workers", [2, 4])
def test_worker_processes_give_the_same_bytes_and_keep_quiet(logs, expected, workers, tmp_path, capfd, caplog):
    config = parse(config_of(logs, tmp_path / "dataset"))
    options = ["--direct_running_mode=multi_processing", f"--direct_num_workers={workers}"]
    with caplog.at_level(logging.INFO):
        assert bytes_of(run(config, options)) == expected
    shown = capfd.readouterr()
    lines = [line for line in (shown.out + shown.err).splitlines() if line.strip()]
    assert [line for line in lines if not line.startswith(("arranged bucket", "events:"))] == []
    assert any(line.startswith("arranged bucket 00000") for line in lines)  # said by a worker


def children_of(pid):
    found = [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]
    return found + [pid for child in found for pid in children_of(child)]


def test_a_killed_worker_ends_the_job_with_one_line(logs, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(config_of(logs, tmp_path / "dataset")))
    command = [sys.executable, "-m", "beam_jobs.preprocess", "--config", str(config), "--"]
    command += ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as job:
        while len(workers := children_of(job.pid)) < 2:  # the process that forks workers, and the first of them
            assert job.poll() is None, job.stderr.read()
            time.sleep(0.001)
        for worker in workers[1:]:
            os.kill(worker, signal.SIGKILL)
        said = [line for line in job.stderr.read().splitlines() if line.startswith("tfrec")]
    assert job.returncode == 1
    assert said in (
        ["tfrec: a worker process was killed, for want of memory perhaps: fewer of them need less."],
        ["tfrec: a worker process could not be started; what it said last stands above."],
    )
    assert not (tmp_path / "dataset").exists()


def test_a_killed_job_leaves_no_name_and_the_next_one_the_same_bytes(logs, expected, tmp_path):
    """Killed as soon as it has staged events, which is in the middle of its second pipeline or before."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(config_of(logs, tmp_path / "dataset")))
    job = subprocess.Popen(
        [sys.executable, "-m", "beam_jobs.preprocess", "--config", str(config)], stderr=subprocess.PIPE
    )
    while not list(tmp_path.glob(".*/events/0*")):
        assert job.poll() is None, job.stderr.read()
        time.sleep(0.01)
    job.kill()
    job.communicate()
    assert not (tmp_path / "dataset").exists()
    assert list(tmp_path.glob(".*"))
    assert bytes_of(run(parse(config_of(logs, tmp_path / "dataset")))) == expected
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"dataset"}
