"""A disk that is full: one line, nothing under the final name, and the same command again goes on."""

import errno
import sys
from pathlib import Path

import keras
import pytest
import tensorflow as tf
import yaml

from tests.datasets import make_dataset
from tfrec.cli import main

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("full")
    data = make_dataset(root / "data", users=30, min_events=8, max_events=8, write_cache=True)
    document = {
        "data": {"out": str(data)},
        "model": {"name": "sasrec", "embedding_dim": 8, "num_blocks": 0, "history_length": 8},
        "training": {"epochs": 1, "batch_size": 16},
        "export": {"k": 5, "parity_users": 4},
    }
    (root / "shop.yaml").write_text(yaml.safe_dump(document))
    return root / "shop.yaml"


@pytest.fixture(scope="module")
def run(config):
    command(config, config.parent / "whole")
    return config.parent / "whole"


def tfrec(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["tfrec", *map(str, arguments)])
    main()


def command(config, out):
    from tfrec.config import load
    from tfrec.training import train

    train(load(config), out, progress=False)


def one_line(capfd, place):
    shown = capfd.readouterr()
    assert shown.out == ""
    lines = [line for line in shown.err.splitlines() if line.startswith("tfrec: ")]
    assert len(lines) == 1
    assert lines[0].endswith("No space left on device; free some and run the same command again.")
    assert lines[0].removeprefix("tfrec: ").startswith(str(place))
    assert "Traceback" not in shown.err


@pytest.mark.parametrize("call", [1, 2, 3])
def test_training(config, tmp_path, monkeypatch, capfd, call):
    """The disk is full at the best weights, in the checkpoint, at the weights of the run."""
    save, calls, run = keras.Model.save_weights, [], tmp_path / "run"

    def fill(model, path, **options):
        calls.append(path)
        if len(calls) == call:
            Path(path).write_bytes(b"\x89HDF half of it")
            raise FULL
        save(model, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(keras.Model, "save_weights", fill)
        with pytest.raises(SystemExit, match="1"):
            tfrec(patch, "train", "--config", config, "--out", run, "--quiet")
    one_line(capfd, run)
    assert not list(run.rglob(".tmp-*"))
    assert not (run / "model.weights.h5").exists()
    assert len(list(run.glob("checkpoints/best-*"))) == (call > 1)
    assert len(list(run.glob("checkpoints/0*"))) == (call > 2)
    command(config, run)
    assert (run / "model.weights.h5").is_file()


@pytest.mark.parametrize("moment", ["saved_model", "display"])
def test_export(run, tmp_path, monkeypatch, capfd, moment):
    def fill(*arguments, **options):
        if moment == "display":
            raise FULL
        (Path(arguments[1]) / "saved_model.pb").write_bytes(b"half")
        raise tf.errors.ResourceExhaustedError(None, None, "variables; No space left on device")

    with monkeypatch.context() as patch:
        if moment == "display":
            patch.setattr("tfrec.publishing.write_display", fill)
        else:
            patch.setattr(tf.saved_model, "save", fill)
        with pytest.raises(SystemExit, match="1"):
            tfrec(patch, "export", run, "--to", tmp_path / "models/shop")
    one_line(capfd, tmp_path / "models/shop")
    assert list((tmp_path / "models/shop").iterdir()) == []
