"""A run directory: the configuration, the schema and the weights that together are a trained model.

Loading builds the model from the configuration by the program's own builders, fills the item table from the dataset,
and reads the weights: no code and no pickle is ever deserialised.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from tfrec.config import CONFIG, Config, load, write
from tfrec.data import Dataset
from tfrec.errors import UsageError, UserError
from tfrec.manifest import sha256_of, write_json
from tfrec.models import build
from tfrec.models.shells import RetrievalModel
from tfrec.schema import SCHEMA, Schema
from tfrec.windows import target_counts

RUN = "run.json"
WEIGHTS = "model.weights.h5"
UNTRAINED = ("evaluation", "export", "index")  # sections of the configuration that say what is done with a run
_FORMAT_VERSION = 1


@dataclass(frozen=True)
class Run:
    """A trained model and everything it was trained with."""

    directory: Path
    config: Config
    schema: Schema
    dataset: Dataset
    model: keras.Model


def build_model(config: Config, dataset: Dataset) -> keras.Model:
    """The model of a configuration with fresh weights, its item table filled from the dataset."""
    model = build(
        dataset.schema,
        config.model,
        config.objective,
        request_time=config.features.request_time,
        labels=config.ranking.labels,
    )
    catalogue = dataset.catalogue()
    counts = {}
    if isinstance(model, RetrievalModel) and dataset.schema.event_types and dataset.schema.target_event_types:
        counts["target_count"] = target_counts(dataset.schema, dataset.histories())
    model.set_catalogue(catalogue.codes, catalogue.train_count, catalogue.vectors, **counts)
    jit = config.training.jit_compile
    model.jit_compile = keras.backend.backend() == "jax" if jit == "auto" else jit
    return model


def start_run(directory: Path, config: Config, dataset: Dataset) -> None:
    """Writes what identifies a run before its training begins: configuration, schema, the dataset's fingerprint."""
    directory.mkdir(parents=True, exist_ok=True)
    write_config(directory, config)
    dataset.schema.write(directory)
    _write_record(directory, {"format_version": _FORMAT_VERSION, "dataset": dataset.fingerprint})


def write_config(directory: Path, config: Config) -> None:
    """Writes the configuration of a run by one rename."""
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=directory) as folder:
        write(config, Path(folder))
        _move(Path(folder) / CONFIG, directory / CONFIG)


def save_run(run: Run, record: Mapping[str, Any]) -> None:
    """Writes the weights by one rename, and then `run.json`, which says that the run is finished.

    Args:
        run: whose model is saved.
        record: what else `run.json` says (best epoch, validation metrics, ...).
    """
    save_weights(run.model, run.directory / WEIGHTS)
    identity = {"format_version": _FORMAT_VERSION, "dataset": run.dataset.fingerprint}
    _write_record(run.directory, {**record, **identity, "weights": sha256_of(run.directory / WEIGHTS)})


def save_weights(model: keras.Model, path: Path) -> None:
    """Saves the weights, without the optimizer's state, so that the file is either whole or not there."""
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        with _without_optimizer(model):
            model.save_weights(temporary, overwrite=True)
        _move(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_record(directory: Path) -> dict[str, Any]:
    """Reads `run.json`; a missing or damaged one is a `UserError`."""
    path = directory / RUN
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{directory}: no run there ({RUN} is missing); `tfrec train` makes one.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); train again into another directory.") from None
    version = record.get("format_version") if isinstance(record, dict) else None
    if version != _FORMAT_VERSION:
        raise UserError(f"{path}: format version {version!r}, this tfrec reads {_FORMAT_VERSION}; train again.")
    return dict(record)


def load_run(path: str | Path, *, data: str | Path | None = None, overrides: Sequence[str] = ()) -> Run:
    """Loads a finished run.

    Args:
        path: the run directory.
        data: the dataset directory, where it is no longer the one that the run's configuration names.
        overrides: `section.key=value` of the configuration, of the sections that say nothing of the training.

    Raises:
        UsageError: an override of what the model was trained by.
        UserError: no run, an unfinished or damaged one, or a dataset that is not the one it was trained on.
    """
    directory = Path(path)
    for override in overrides:
        if override.partition("=")[0].partition(".")[0] not in UNTRAINED:
            known = ", ".join(f"{section}.*" for section in UNTRAINED)
            raise UsageError(f"--set {override}: a run is trained already; what can be set is {known}.")
    record = read_record(directory)
    for name in (CONFIG, SCHEMA):
        if not (directory / name).is_file():
            raise UserError(f"{directory / name}: missing, so the run is not whole; train again.")
    check_weights(directory, record)
    config = load(directory / CONFIG, overrides)
    dataset = Dataset.open(data or config.data.out)
    if dataset.fingerprint != record["dataset"]:
        raise UserError(
            f"{dataset.directory}: not the dataset that {directory} was trained on (it changed since); "
            "give the right one with `--data`, or train again."
        )
    model = build_model(config, dataset)
    load_weights(model, directory / WEIGHTS)
    return Run(directory, config, Schema.read(directory), dataset, model)


def check_weights(directory: Path, record: Mapping[str, Any]) -> None:
    """Raises a `UserError` unless the training is finished and its weights are the ones it saved."""
    if "weights" not in record:
        raise UserError(f"{directory}: its training is not finished; run the same `tfrec train` again to go on.")
    weights = directory / WEIGHTS
    if not weights.is_file():
        raise UserError(f"{weights}: missing; train again into another directory.")
    if sha256_of(weights) != record["weights"]:
        raise UserError(f"{weights}: not the weights that {RUN} names (changed or cut short); train again.")


def load_weights(model: keras.Model, path: Path) -> None:
    """Loads weights into a built model; a file that does not fit is a `UserError`."""
    try:
        with _without_optimizer(model):
            model.load_weights(path)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: does not fit the model that is to be loaded ({reason}).") from None


@contextmanager
def _without_optimizer(model: keras.Model) -> Iterator[None]:
    """Hides the optimizer of a compiled model, which Keras would otherwise save and load with its weights."""
    optimizer, model.optimizer = getattr(model, "optimizer", None), None
    try:
        yield
    finally:
        model.optimizer = optimizer


def _write_record(directory: Path, record: Mapping[str, Any]) -> None:
    temporary = directory / f".tmp-{RUN}"
    write_json(temporary, record)
    _move(temporary, directory / RUN)


def _move(temporary: Path, path: Path) -> None:
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
