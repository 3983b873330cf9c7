"""The jobs as `python -m` starts them."""

import os
import runpy
import signal
import sys
from pathlib import Path

import pytest

from beam_jobs import preprocess, recommend


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # other tests have imported them before
@pytest.mark.parametrize(
    ("module", "reads", "arguments", "told"),
    [
        ("beam_jobs.preprocess", "tfrec.config.load", ["--config", "c.yaml"], "interrupted; nothing was written."),
        (
            "beam_jobs.recommend",
            "tfrec.batch.newest_job",
            ["models/shop", "--all-users", "data", "--out", "answers"],
            "interrupted; the same command goes on with what is missing.",
        ),
    ],
)
def test_a_job_that_is_stopped_says_so_in_one_line(monkeypatch, capsys, module, reads, arguments, told):
    def stop(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

    monkeypatch.setattr(reads, stop)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as stopped:
            runpy.run_module(module, run_name="__main__")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped.value.code == 1
    assert capsys.readouterr().err == f"tfrec: {told}\n"


OPTIONS = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]


@pytest.mark.parametrize(
    ("job", "reads", "arguments"),
    [
        (preprocess, "load", ["--config", "c.yaml"]),
        (recommend, "newest_job", ["models/shop", "--all-users", "data", "--out", "answers"]),
        (recommend, "newest_job", ["--all-users", "data", "--out", "answers", "models/shop"]),
    ],
)
def test_options_for_beam_stand_behind_two_dashes(monkeypatch, capsys, job, reads, arguments):
    heard = []

    def run(what, beam_options, **_):
        heard.append((what, list(beam_options)))
        return Path("answers") if job is preprocess else {"users": 3}

    monkeypatch.setattr(job, reads, lambda first, *_, **__: str(first))
    monkeypatch.setattr(job, "run", run)
    assert job.main([*arguments, "--", *OPTIONS]) == job.main(arguments) == 0
    assert heard == [(arguments[-1] if job is preprocess else "models/shop", given) for given in (OPTIONS, [])]
    assert capsys.readouterr().out == "answers\n" * 2
    with pytest.raises(SystemExit):
        job.main([*arguments, *OPTIONS])
    assert "unrecognized arguments: --direct_running_mode" in capsys.readouterr().err
