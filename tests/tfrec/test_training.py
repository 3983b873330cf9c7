import importlib.util
import json
import logging
import os
import shutil
import signal
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from tests.datasets import make_dataset
from tfrec import checkpoints, tasks
from tfrec.callbacks import StepWatch
from tfrec.config import parse
from tfrec.errors import UsageError, UserError
from tfrec.runs import load_run
from tfrec.training import silent_failures, train

# Keras' Variable takes no `copy` argument in __array__, which NumPy 2 asks for when weights are saved.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Users alike in length: a compiled backend compiles once a shape."""
    return make(tmp_path_factory.mktemp("data") / "shop")


def make(path, **options):
    return make_dataset(path, users=80, min_events=18, max_events=18, write_cache=True, **options)


def configure(data, *, model=None, objective=None, **training):
    small = {"epochs": 3, "batch_size": 16, "learning_rate": 0.01, **training}
    encoder = {"name": "sasrec", "embedding_dim": 8, "num_blocks": 0, "history_length": 12, **(model or {})}
    document = {"data": {"out": str(data)}, "model": encoder, "training": small, "evaluation": {"ks": [5]}}
    return parse(document if objective is None else {**document, "objective": objective})


def history(run):
    return [json.loads(line) for line in (run / "logs/metrics.jsonl").read_text().splitlines()]


def weights(run, name="model.weights.h5"):
    found = {}
    with h5py.File(run / name) as file:
        file.visititems(lambda name, node: found.update({name: node[()]}) if isinstance(node, h5py.Dataset) else None)
    return found


def assert_same_run(first, second):
    assert history(first) == history(second)
    assert weights(first).keys() == weights(second).keys()
    for name, value in weights(first).items():
        np.testing.assert_array_equal(value, weights(second)[name], err_msg=name)


def interrupt_at(monkeypatch, call):
    """Sends Ctrl-C in that call of the step callback."""
    original, calls = StepWatch.on_train_batch_begin, []

    def begin(self, batch, logs=None):
        calls.append(batch)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGINT)
        original(self, batch, logs)

    monkeypatch.setattr(StepWatch, "on_train_batch_begin", begin)


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """A run with everything that has state: dropout, averaged weights, schedule, random windows and negatives."""
    run = tmp_path_factory.mktemp("straight") / "run"
    return train(configure(data, **STATEFUL), run, progress=False)


STATEFUL = {
    "model": {"num_blocks": 1},
    "ema": 0.9,
    "schedule": "cosine",
    "warmup_steps": 3,
    "clip_norm": 1.0,
    "weight_decay": 0.01,
    "windows": "random",
}


@pytest.mark.jax
def test_training_learns_and_keeps_the_best_epoch(straight):
    entries = history(straight)
    record = json.loads((straight / "run.json").read_text())
    metrics = [entry["validation"]["ndcg@10"] for entry in entries]
    assert [entry["epoch"] for entry in entries] == [1, 2, 3]
    assert entries[-1]["loss"] < entries[0]["loss"]
    by_chance = sum(1 / np.log2(rank + 1) for rank in range(1, 11)) / 40  # each of 40 places alike
    assert metrics[-1] > 1.5 * by_chance
    assert record["best_epoch"] == 1 + int(np.argmax(metrics))
    assert record["validation"] == entries[record["best_epoch"] - 1]["validation"]
    assert not (straight / "checkpoints").exists()
    assert load_run(straight).model.count_params() > record["parameters"] == entries_parameters()


def entries_parameters():
    """Items, event types and places; one block of attention and feed-forward with two norms; all of width 8."""
    embeddings = 42 * 8 + 4 * 8 + 12 * 8
    attention = 8 * 24 + 24 + 8 * 8 + 8
    feed_forward = 2 * (8 * 8 + 8)
    return embeddings + attention + feed_forward + 2 * (8 + 8)


@pytest.mark.jax
def test_interrupted_training_ends_in_the_same_bits(data, straight, tmp_path, monkeypatch):
    config, run = configure(data, **STATEFUL), tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7)  # in the middle of the second epoch
        with pytest.raises(UserError, match="interrupted at step 7; run the same command again"):
            train(config, run, progress=False)
    with pytest.raises(UserError, match="not finished"):
        load_run(run)
    train(config, run, progress=False)
    assert_same_run(straight, run)


def test_damaged_newest_checkpoint_is_passed_over(data, straight, tmp_path, monkeypatch, caplog):
    config, run = configure(data, **STATEFUL), tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 13)
        with pytest.raises(UserError, match="interrupted at step 13"):
            train(config, run, progress=False)
    kept = sorted(path.name for path in (run / "checkpoints").glob("[0-9]*"))
    assert kept == ["000000010", "000000013"]
    state = run / "checkpoints/000000013/state.npz"
    state.write_bytes(state.read_bytes()[:-10] + b"0123456789")
    with caplog.at_level(logging.WARNING):
        train(config, run, progress=False)
    assert "000000013 is damaged and passed over" in caplog.text
    assert_same_run(straight, run)


def test_best_weights_are_those_of_the_epoch_that_the_checkpoint_names(data, tmp_path, monkeypatch):
    """Stopped after better weights were written and before the checkpoint that names them; they are not met again."""
    run, save, scores = tmp_path / "run", checkpoints.save, iter([0.5, 0.7, 0.2, 0.3])
    monkeypatch.setattr(tasks.Retrieval, "validate", lambda self: {"ndcg@10": next(scores)})

    def killed_at_the_second_epoch(directory, model, progress):
        if progress.epoch == 2:
            raise KeyboardInterrupt
        save(directory, model, progress)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", killed_at_the_second_epoch)
        with pytest.raises(KeyboardInterrupt):
            train(configure(data), run, progress=False)
    assert sorted(path.name for path in (run / "checkpoints").glob("best-*")) == [
        "best-1.weights.h5",
        "best-2.weights.h5",
    ]
    best, passed = (weights(run, f"checkpoints/best-{epoch}.weights.h5") for epoch in (1, 2))
    train(configure(data), run, progress=False)
    assert json.loads((run / "run.json").read_text())["best_epoch"] == 1
    for name, value in weights(run).items():
        np.testing.assert_array_equal(value, best[name])
    assert any((value != passed[name]).any() for name, value in best.items())


def test_best_weights_stay_as_long_as_a_checkpoint_names_them(data, tmp_path, monkeypatch):
    run, save, scores, seen = tmp_path / "run", checkpoints.save, iter([0.1, 0.2, 0.3, 0.4, 0.3]), []
    monkeypatch.setattr(tasks.Retrieval, "validate", lambda self: {"ndcg@10": next(scores)})

    def watched(directory, model, progress):
        save(directory, model, progress)
        seen.append(sorted(path.name.split(".")[0] for path in (directory / "checkpoints").glob("best-*")))

    monkeypatch.setattr(checkpoints, "save", watched)
    train(configure(data, epochs=5), run, progress=False)
    assert seen == [["best-1"], ["best-1", "best-2"], ["best-2", "best-3"], ["best-3", "best-4"], ["best-4"]]


def test_finished_run_is_left_alone(data, straight, capfd):
    before = {path: path.stat().st_mtime_ns for path in straight.rglob("*")}
    assert train(configure(data, **STATEFUL), straight) == straight
    assert "trained already; nothing to do" in " ".join(capfd.readouterr().err.split())
    assert {path: path.stat().st_mtime_ns for path in straight.rglob("*")} == before


def changed(config, **sections):
    document = config.model_dump(mode="json")
    for name, keys in sections.items():
        document[name] = {**document[name], **keys}
    return parse(document)


@pytest.fixture
def finished(straight, tmp_path):
    return Path(shutil.copytree(straight, tmp_path / "finished"))


def test_finished_run_takes_over_what_is_done_with_it(data, finished, capfd):
    before = configure(data, **STATEFUL)
    config = changed(before, evaluation={"filter_seen": False}, export={"k": 7}, training={"tensorboard": True})
    train(config, finished)
    said = " ".join(capfd.readouterr().err.split())
    assert "trained already; config.yaml takes over what changed in `evaluation`, `export`." in said
    run = load_run(finished)
    assert (run.config.evaluation.filter_seen, run.config.export.k) == (False, 7)
    assert run.config.training == before.training  # what it was trained by
    assert not list(finished.glob(".tmp-*"))


def test_dataset_and_logs_may_move(data, finished):
    moved = data.with_name("moved")
    shutil.copytree(data, moved)
    try:
        config = changed(configure(data, **STATEFUL), data={"out": str(moved), "events": {"files": ["elsewhere.csv"]}})
        with pytest.raises(UserError, match=r"`data` differs"):  # it was made of no logs
            train(config, finished, progress=False)
        train(changed(configure(data, **STATEFUL), data={"out": str(moved)}), finished, progress=False)
        assert load_run(finished).dataset.directory == moved
        with pytest.raises(UserError, match=r"`data` differs"):
            train(changed(configure(data, **STATEFUL), data={"repeats": "first"}), finished, progress=False)
    finally:
        shutil.rmtree(moved)


def test_unfinished_run_keeps_what_decides_on_its_best_weights(data, tmp_path, monkeypatch):
    config, run = configure(data), tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        with pytest.raises(UserError, match="interrupted at step 2"):
            train(config, run, progress=False)
    with pytest.raises(UserError, match=r"\(`evaluation.filter_seen` differs\)"):
        train(changed(config, evaluation={"filter_seen": False}), run, progress=False)
    train(changed(config, export={"k": 7}, training={"tensorboard": True}), run, progress=False)
    assert load_run(run).config.export.k == 7


def test_directory_of_another_configuration_is_refused(data, straight):
    with pytest.raises(UserError, match=r"holds a run of another configuration \(`training` differs\).*--out"):
        train(configure(data, **STATEFUL, epochs=4), straight, progress=False)


def test_dataset_that_changed_is_refused(straight, data, tmp_path):
    moved = data.rename(tmp_path / "kept")
    try:
        make(data, seed=5)
        with pytest.raises(UserError, match="begun on another dataset"):
            train(configure(data, **STATEFUL), straight, progress=False)
    finally:
        data.rename(tmp_path / "other")
        moved.rename(data)


def test_a_byte_that_changed_is_found_where_hashes_are_compared(data, tmp_path):
    copy = shutil.copytree(data, tmp_path / "copy")
    content = bytearray((copy / "statistics.json").read_bytes())
    content[-2] ^= 1
    (copy / "statistics.json").write_bytes(content)
    with pytest.raises(UserError, match=r"statistics.json.*Run `tfrec preprocess`"):
        train(configure(copy, **STATEFUL), tmp_path / "run", progress=False, verify=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.jax
def test_loss_that_is_not_finite_names_the_step(data, tmp_path):
    with pytest.raises(UserError, match=r"the loss is not finite at step 2; lower `training.learning_rate`"):
        train(configure(data, learning_rate=1e38, model={"normalize": False}), tmp_path / "run", progress=False)
    assert not (tmp_path / "run/model.weights.h5").exists()


def test_training_stops_when_validation_no_longer_improves(data, tmp_path):
    run = train(configure(data, epochs=9, learning_rate=1e-12, patience=2), tmp_path / "run", progress=False)
    assert [entry["epoch"] for entry in history(run)] == [1, 2, 3]
    assert json.loads((run / "run.json").read_text())["best_epoch"] == 1


def test_validation_can_be_rarer_and_on_a_sample(data, tmp_path, capfd):
    settings = {"epochs": 3, "validate_every_epochs": 2, "validation_users": 7, "validation_metric": "recall@3"}
    run = train(configure(data, **settings), tmp_path / "run")
    entries = history(run)
    assert ["validation" in entry for entry in entries] == [False, True, True]
    recalls = [entry["validation"]["recall@3"] * 7 for entry in entries[1:]]
    np.testing.assert_allclose(recalls, np.round(recalls), atol=1e-9)
    shown = capfd.readouterr().err
    assert "epoch 2/3  loss " in shown
    assert "recall@3 " in shown


def test_without_validation_events_the_last_weights_are_saved(tmp_path, caplog):
    data = make_dataset(tmp_path / "shop", users=40, validation=False, write_cache=True)
    run = train(configure(data, epochs=1), tmp_path / "run", progress=False)
    assert "no validation events" in caplog.text
    assert json.loads((run / "run.json").read_text())["best_epoch"] is None
    assert load_run(run).model.history_length == 12


@pytest.mark.jax
def test_popularity_is_saved_without_training(data, tmp_path):
    config = parse({"data": {"out": str(data)}, "model": {"name": "popularity"}})
    run = train(config, tmp_path / "run", progress=False)
    record = json.loads((run / "run.json").read_text())
    assert record["parameters"] == record["steps"] == 0
    assert 0 < record["validation"]["ndcg@10"] < 0.5
    assert load_run(run).model.name == "popularity"


@pytest.mark.jax
def test_mixed_precision_keeps_float32_weights_and_ends_with_the_run(data, tmp_path):
    run = train(configure(data, epochs=1, mixed_precision=True), tmp_path / "run", progress=False)
    assert {value.dtype for value in weights(run).values()} == {np.dtype("float32")}
    assert keras.config.dtype_policy().name == "float32"


def test_weights_of_another_run_are_the_start(data, straight, tmp_path):
    model = STATEFUL["model"]
    config = configure(data, model=model, epochs=1, learning_rate=1e-12, initialize_from=str(straight))
    run = train(config, tmp_path / "run", progress=False)
    for name, value in weights(straight).items():
        np.testing.assert_allclose(weights(run)[name], value, atol=1e-6)


def test_weights_of_a_model_that_does_not_fit_are_refused(data, straight, tmp_path):
    wider = configure(data, model={"embedding_dim": 16, "num_blocks": 1}, initialize_from=str(straight))
    with pytest.raises(UserError, match=r"straight.*has \(8,\) for `.*`, this model \(16,\)"):
        train(wider, tmp_path / "wider", progress=False)
    shallower = configure(data, initialize_from=str(straight))
    with pytest.raises(UserError, match=r"for `.*block.*`, this model nothing"):
        train(shallower, tmp_path / "shallower", progress=False)
    other = configure(data, model={"name": "hstu"}, initialize_from=str(straight))
    with pytest.raises(UserError, match="is a run of sasrec, this is one of hstu"):
        train(other, tmp_path / "other", progress=False)


@pytest.mark.jax
def test_nothing_to_train_on_is_one_line(tmp_path):
    data = make_dataset(tmp_path / "shop", users=10, max_events=1, write_cache=True)
    with pytest.raises(UserError, match=r"no user has two training events .*`data\.filters`"):
        train(configure(data), tmp_path / "run", progress=False)


def test_unknown_metric_is_wrong_use(data, tmp_path):
    with pytest.raises(UsageError, match=r"`training\.validation_metric`: must be recall@k, .* Received: 'auc'"):
        train(configure(data, validation_metric="auc"), tmp_path / "run", progress=False)


@pytest.mark.jax
@pytest.mark.parametrize("tensorflow", [True, False])
def test_tensorboard_is_written_where_tensorflow_is(data, tmp_path, tensorflow, monkeypatch, caplog):
    if importlib.util.find_spec("tensorflow") is None and tensorflow:
        pytest.skip("needs TensorFlow")
    find = importlib.util.find_spec
    if not tensorflow:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorflow" else find(name))
    run = train(configure(data, epochs=1, tensorboard=True), tmp_path / "run", progress=False)
    assert bool(list(run.glob("logs/tensorboard/**/events*"))) == tensorflow
    assert ("TensorFlow is not installed" in caplog.text) != tensorflow


@pytest.mark.jax
def test_silent_failures_are_put_into_words():
    healthy = {"epoch": 3, "loss": 1.0, "all_masked": 0.0, "gate_open_2": 0.4, "effective_rank": 20.0}
    assert silent_failures(healthy, 64) == {}
    assert "every negative" in silent_failures({**healthy, "all_masked": 0.1}, 64)["all_masked"]
    assert "`gate_open_2` is 0.0150" in silent_failures({**healthy, "gate_open_2": 0.015}, 64)["gate_open_2"]
    assert "is 0.0002" in silent_failures({**healthy, "token_gate_open_3": 2e-4}, 64)["token_gate_open_3"]
    assert silent_failures({**healthy, "gate_open_2": 0.0, "epoch": 2}, 64) == {}  # it opens as step 1 is learnt
    assert "effective rank 1.20 of 64" in silent_failures({**healthy, "effective_rank": 1.2}, 64)["effective_rank"]
    assert "its mask is 0.95" in silent_failures({**healthy, "preference_mask": 0.95}, 64)["preference_mask"]
    assert silent_failures({**healthy, "preference_mask": 0.85}, 64) == {}
