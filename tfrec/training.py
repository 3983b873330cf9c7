"""Trains a model: Keras' fit on prepared batches, one call an epoch, so that any step can be gone on from.

A training is a pure function of configuration and dataset: initial weights and dropout come from `training.seed`, rows
and negatives from (seed, epoch, batch). What was interrupted goes on from its last checkpoint, and on a CPU ends in
the same bits as if it had never stopped.
"""

import importlib.util
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from tfrec import checkpoints
from tfrec.callbacks import Display, Interruption, StepWatch
from tfrec.checkpoints import Progress
from tfrec.config import CONFIG, Config, load, suggest
from tfrec.data import Batch, Dataset, prefetch, tf_dataset
from tfrec.errors import InterruptionError, UsageError, UserError, writing
from tfrec.evaluation import deciding_metric
from tfrec.initialization import check_fresh, initialize
from tfrec.metrics import effective_rank, larger_is_better
from tfrec.optimizers import exclude_from_decay, make_optimizer
from tfrec.runs import (
    RUN,
    UNTRAINED,
    Run,
    build_model,
    check_weights,
    load_weights,
    read_record,
    save_run,
    save_weights,
    start_run,
    write_config,
)
from tfrec.tasks import task_of
from tfrec.transforms import FIRST_VALUE
from tfrec.windows import PlannedBatches

_log = logging.getLogger(__name__)
_TRAINED_BY = ("data", "histories", "features", "ranking", "model", "objective", "training")
_LOGS = ("events", "items", "users", "impressions")
_PATHS = {"out": True, "forget": True, "recipe": {"path"}, **{name: {"files"} for name in _LOGS}}
_BESIDE = {"tensorboard", "jit_compile"}
_LEFT_OUT: dict[str, Any] = {"data": _PATHS, "training": _BESIDE}  # keys that make no other training
_NEGATIVES = 4  # stream of random numbers: [seed, stream, epoch, batch]; 1 to 3 are those of tfrec.windows
_RANK_SAMPLE = 4096
_SHUT_GATE = 0.02
_INACTIVE_MASK = 0.9  # attention is left as it is
_SETTLED = 3  # epochs until gates tell something
LOGS = "logs"
METRICS = "metrics.jsonl"


def train(config: Config, out: str | Path, *, progress: bool = True, verify: bool = False) -> Path:
    """Trains the model of a configuration into a run directory, or goes on where an interrupted training stopped.

    Args:
        config: the experiment; its dataset must have been made.
        out: the run directory.
        progress: show a bar and one line an epoch on stderr.
        verify: compare every hash of the dataset first, not presence and size of its files alone.

    Returns:
        The run directory.

    Raises:
        UserError: the dataset is missing or damaged, the directory holds another run, the loss is not finite, or the
            training was interrupted (the message says how to go on).
    """
    directory = Path(out)
    deciding_metric(config)
    dataset = Dataset.open(config.data.out, whole=verify)
    display = Display(shown=progress, epochs=config.training.epochs, batch_size=config.training.batch_size)
    if _is_finished(directory, config, dataset):
        display.line(f"{directory}: {_take_over(directory, config)}")
        return directory
    dataset.histories()  # a damaged dataset is told before anything is written
    with writing(directory), _precision(config.training.mixed_precision):
        keras.utils.set_random_seed(config.training.seed)
        model = build_model(config, dataset)
        inherited: list[keras.Variable] = []
        if config.training.initialize_from is not None:
            inherited = initialize(model, config, dataset, Path(config.training.initialize_from))
        else:
            check_fresh(model)
        start_run(directory, config, dataset)
        run = Run(directory, config, dataset.schema, dataset, model)
        _Training(run, display, inherited).to_the_end()
    return directory


class _Training:
    """One training on its way; `to_the_end` is all there is to call."""

    def __init__(self, run: Run, display: Display, inherited: Sequence[keras.Variable] = ()) -> None:
        self.run = run
        self.inherited = inherited
        self.settings = run.config.training
        self.model = run.model
        self.display = display
        self.interruption = Interruption()
        self.progress = Progress()
        self.metrics: list[Any] | None = None  # of an epoch that is gone on with
        self.warned: set[str] = set()  # what was wrong in the epoch before too is not said again
        self.metric = deciding_metric(run.config)
        self.task = task_of(run)
        if not len(self.task.queries):
            _log.warning("%s has no validation events: the last weights are saved.", run.dataset.directory)
        self.tensorboard = self._tensorboard()

    def to_the_end(self) -> None:
        """Trains what is left, keeps the best weights and finishes the run."""
        if self.model.trainable_variables:
            self._compile()
            self._go_on()
            with self.interruption.heeded():
                while self.progress.epoch < self.settings.epochs and not self._is_stale():
                    self._epoch()
        else:
            self.progress.history.append(self._measure({}))
        self._finish()

    def _compile(self) -> None:
        steps = len(self.task.batches(0))
        if not steps:
            raise UserError(f"{self.run.dataset.directory}: {self.task.nothing}")
        optimizer = make_optimizer(self.settings, steps * self.settings.epochs)
        exclude_from_decay(optimizer, self.model, self.inherited)
        optimizer.build(self.model.trainable_variables)
        optimizer.slow_down(self.inherited, self.settings.inherited_learning_rate)
        self.model.compile(optimizer=optimizer, jit_compile=self.model.jit_compile)

    def _go_on(self) -> None:
        restored = checkpoints.restore(self.run.directory, self.model)
        if restored is None:
            return
        self.progress = restored
        if restored.batch:
            self.metrics = [ops.convert_to_numpy(variable) for variable in self.model.metrics_variables]
        self.display.line(f"Going on at step {restored.step:,} (epoch {restored.epoch + 1}).")

    def _epoch(self) -> None:
        progress, batches = self.progress, self.task.batches(self.progress.epoch)
        watch = StepWatch(
            self.model,
            self.interruption,
            self.display,
            first=progress.batch,
            metrics=self.metrics,
            keep_weights=self.settings.ema is not None,
        )
        begun = progress.step - progress.batch  # steps before this epoch
        with self.display.epoch(progress.epoch + 1, progress.batch, len(batches)):
            logs = self._fit(batches, watch)
        self.metrics = None
        progress.step = int(self.model.optimizer.iterations)
        progress.batch = progress.step - begun
        if watch.not_finite is not None:
            raise UserError(
                f"{self.run.directory}: the loss is not finite at step {begun + watch.not_finite:,}; "
                "lower `training.learning_rate`, set `training.clip_norm`, or look for extreme values in the data."
            )
        if progress.batch >= len(batches):
            self._end_epoch(logs)
        for variable, value in zip(self.model.trainable_variables, watch.weights, strict=False):
            variable.assign(value)  # training goes on from the weights, not from their moving average
        checkpoints.save(self.run.directory, self.model, progress)
        if self.interruption.requested and progress.epoch < self.settings.epochs:
            raise InterruptionError(
                f"{self.run.directory}: interrupted at step {progress.step:,}; run the same command again to go on."
            )

    def _fit(self, batches: PlannedBatches, watch: StepWatch) -> dict[str, float]:
        epoch, first = self.progress.epoch, self.progress.batch
        seed, objective = self.settings.seed, self.model.objective

        def prepare(index: int) -> Batch:
            return objective.prepare(batches[index], np.random.default_rng([seed, _NEGATIVES, epoch, index]))

        def rest() -> Iterator[Batch]:
            return prefetch(prepare, range(first, len(batches)))

        steps = len(batches) - first
        if keras.backend.backend() == "tensorflow":
            data = tf_dataset(rest, [prepare(index) for index in batches.one_of_each_shape()], steps)
        else:
            data = ((batch,) for batch in rest())  # Keras wants tuples of generators
        history = self.model.fit(
            data,
            initial_epoch=epoch,
            epochs=epoch + 1,
            steps_per_epoch=steps,
            verbose=0,
            shuffle=False,
            callbacks=[watch],
        )
        return {name: float(values[-1]) for name, values in history.history.items()}

    def _end_epoch(self, logs: dict[str, float]) -> None:
        progress = self.progress
        progress.epoch, progress.batch = progress.epoch + 1, 0
        entry = self._measure(logs)
        progress.history.append(entry)
        self._write_history()
        if self.tensorboard is not None:
            scalars = {f"val_{name}": value for name, value in entry.get("validation", {}).items()}
            self.tensorboard.on_epoch_end(progress.epoch, {**logs, **scalars})
        self._announce(entry)

    def _measure(self, logs: dict[str, float]) -> dict[str, Any]:
        """The entry of an epoch; validates where it is time to, keeps the best weights, warns of silent failures."""
        progress = self.progress
        entry: dict[str, Any] = {"epoch": progress.epoch, "step": progress.step, **logs}
        due = progress.epoch % self.settings.validate_every_epochs == 0 or progress.epoch == self.settings.epochs
        if due and len(self.task.queries):
            entry["validation"] = self.task.validate()
            self._keep_best(entry["validation"])
        if due and self.model.trainable_variables:
            entry["effective_rank"] = self._effective_rank()
        found = silent_failures(entry, self.model.embedding_dim)
        entry["warnings"] = list(found.values())
        for cause, warning in found.items():
            if cause not in self.warned:
                _log.warning("Epoch %d: %s", progress.epoch, warning)
        self.warned = set(found)
        return entry

    def _keep_best(self, validation: dict[str, float]) -> None:
        progress, value = self.progress, self._deciding(validation)
        if progress.best is None or (
            (value > progress.best) == larger_is_better(self.metric) and value != progress.best
        ):
            progress.best, progress.best_epoch, progress.stale = value, progress.epoch, 0
            if self.model.trainable_variables:
                best = checkpoints.best_weights(self.run.directory, progress.epoch)
                best.parent.mkdir(exist_ok=True)
                save_weights(self.model, best)
        else:
            progress.stale += 1

    def _deciding(self, validation: dict[str, float]) -> float:
        if self.metric not in validation:
            raise UsageError(f"`training.validation_metric`: not measured; {suggest(self.metric, list(validation))}")
        return validation[self.metric]

    def _is_stale(self) -> bool:
        return self.settings.patience is not None and self.progress.stale >= self.settings.patience

    def _effective_rank(self) -> float:
        rng = np.random.default_rng(self.settings.seed)
        items = np.arange(FIRST_VALUE, self.run.schema.num_items, dtype=np.int32)
        if len(items) > _RANK_SAMPLE:
            items = np.sort(rng.choice(items, _RANK_SAMPLE, replace=False))
        return float(effective_rank(ops.convert_to_numpy(self.model.encode_items(items))))

    def _finish(self) -> None:
        progress = self.progress
        if progress.best_epoch is not None and self.model.trainable_variables:
            load_weights(self.model, checkpoints.best_weights(self.run.directory, progress.best_epoch))
        self._write_history()
        entry = progress.history[(progress.best_epoch or len(progress.history)) - 1]
        record = {
            "epochs": progress.epoch,
            "best_epoch": progress.best_epoch,
            "steps": progress.step,
            "parameters": sum(int(np.prod(variable.shape)) for variable in self.model.trainable_variables),
            "validation": entry.get("validation", {}),
            "backend": keras.backend.backend(),
        }
        save_run(self.run, record)
        checkpoints.remove(self.run.directory)
        if self.model.trainable_variables:
            done = f"trained; epochs: {progress.epoch}, best: {progress.best_epoch or 'the last'}"
        else:
            done = "counted; there is nothing to train"
        self.display.line(f"{self.run.directory}: {done}.")

    def _write_history(self) -> None:
        logs = self.run.directory / LOGS
        logs.mkdir(exist_ok=True)
        lines = (json.dumps(entry, sort_keys=True) + "\n" for entry in self.progress.history)
        (logs / METRICS).write_text("".join(lines), encoding="utf-8")

    def _announce(self, entry: dict[str, Any]) -> None:
        name = self.metric
        parts = [f"epoch {entry['epoch']}/{self.settings.epochs}", f"loss {entry['loss']:.4f}"]
        if "validation" in entry:
            best = " (best)" if self.progress.best_epoch == entry["epoch"] else ""
            parts.append(f"{name} {entry['validation'][name]:.4f}{best}")
        parts.append(f"{self.display.speed():,.0f} examples/s")
        self.display.line("  ".join(parts))

    def _tensorboard(self) -> keras.callbacks.TensorBoard | None:
        if not self.settings.tensorboard:
            return None
        if importlib.util.find_spec("tensorflow") is None:
            _log.warning("`training.tensorboard`: TensorFlow is not installed here, so only %s is written.", METRICS)
            return None
        callback = keras.callbacks.TensorBoard(self.run.directory / LOGS / "tensorboard", write_graph=False)
        callback.set_model(self.model)
        return callback


def silent_failures(entry: dict[str, Any], embedding_dim: int) -> dict[str, str]:
    """What went wrong in an epoch without an error, in words, by cause.

    Args:
        entry: the epoch's entry of `logs/metrics.jsonl`.
        embedding_dim: width of the item vectors.
    """
    found = {}
    if entry.get("all_masked", 0.0) > 0:
        found["all_masked"] = (
            "every negative of some positions was masked, so they taught nothing; draw more negatives."
        )
    for name, value in entry.items():
        shut = name.startswith(("gate_open", "token_gate_open")) and value < _SHUT_GATE
        if shut and entry["epoch"] >= _SETTLED:
            found[name] = f"`{name}` is {value:.4f}: that step's gate is shut and its loss does next to nothing."
    mask = entry.get("preference_mask", 0.0)
    if mask > _INACTIVE_MASK:
        found["preference_mask"] = (
            f"PGSA is inactive: its mask is {mask:.2f} in the mean; lower `model.num_anchors` or `model.sigma`."
        )
    rank = entry.get("effective_rank", np.inf)
    if rank < max(2.0, embedding_dim / 32) and embedding_dim > 1:
        found["effective_rank"] = f"item vectors have collapsed: effective rank {rank:.2f} of {embedding_dim}."
    return found


def _is_finished(directory: Path, config: Config, dataset: Dataset) -> bool:
    """Whether the directory holds this very training, finished; another one there is a `UserError`."""
    if not (directory / CONFIG).is_file():
        return False
    there = load(directory / CONFIG)
    record = read_record(directory) if (directory / RUN).is_file() else {}
    differing = [section for section in _TRAINED_BY if _said(there, section) != _said(config, section)]
    if "weights" not in record and there.evaluation.filter_seen != config.evaluation.filter_seen:
        differing.append("evaluation.filter_seen")  # it decides which weights are the best
    if differing:
        raise UserError(
            f"{directory}: holds a run of another configuration (`{differing[0]}` differs); "
            "give another directory with `--out`, or remove this one."
        )
    if not record:
        return False
    if record["dataset"] != dataset.fingerprint:
        raise UserError(
            f"{directory}: begun on another dataset ({dataset.directory} changed since); "
            "give another directory with `--out`, or remove this one."
        )
    if "weights" not in record:
        return False
    check_weights(directory, record)
    return True


def identity(config: Config) -> dict[str, Any]:
    """What a configuration says of the training, by section: equal ones make equal runs of a dataset."""
    return {section: _said(config, section)[section] for section in _TRAINED_BY}


def _said(config: Config, section: str) -> Any:
    """What a section says of the training; where the raw logs and the dataset lie is not part of it."""
    return config.model_dump(include={section}, exclude={section: _LEFT_OUT.get(section, {})})


def _take_over(directory: Path, config: Config) -> str:
    """Writes what changed of the sections that a finished run can still change; returns what to say of it."""
    there = load(directory / CONFIG)
    changed = [name for name in ("data", *UNTRAINED) if getattr(there, name) != getattr(config, name)]
    if not changed:
        return "trained already; nothing to do."
    write_config(directory, there.model_copy(update={name: getattr(config, name) for name in changed}))
    named = ", ".join(f"`{name}`" for name in changed)
    return f"trained already; {CONFIG} takes over what changed in {named}."


@contextmanager
def _precision(mixed: bool) -> Iterator[None]:
    """Computes in bfloat16 inside the block, where asked."""
    before = keras.config.dtype_policy()
    if mixed:
        keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
