"""The jobs as `python -m` starts them."""

import os
import runpy
import signal
import sys

import pytest


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
