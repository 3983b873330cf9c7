"""Checkpoints: everything that the rest of a training depends on, so that going on equals never having stopped.

One is a directory `checkpoints/<step>/` with the weights, the state of optimizer, dropout seeds and metrics, the place
in the epoch, and a manifest with hashes. It appears by one rename; the last two are kept, and a damaged one is passed
over for the one before. The best weights lie beside them, in a file for each epoch that a checkpoint names.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfrec.errors import UserError
from tfrec.manifest import published, verify, write_json, write_manifest
from tfrec.runs import WEIGHTS, load_weights, save_weights

FOLDER = "checkpoints"
_STATE = "state.npz"
_PROGRESS = "progress.json"
_KEPT = 2
_log = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far a training is."""

    step: int = 0
    """Optimizer steps taken."""
    epoch: int = 0
    """Epochs finished."""
    batch: int = 0
    """Batches taken of the epoch that is under way."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """What was measured, one entry an epoch."""
    best: float | None = None
    """The best validation metric so far."""
    best_epoch: int | None = None
    """Its epoch, from 1."""
    stale: int = 0
    """Validations since."""


def best_weights(directory: Path, epoch: int) -> Path:
    """Where the best weights lie that were those of an epoch; the next best ones leave them alone."""
    return directory / FOLDER / f"best-{epoch}.weights.h5"


def save(directory: Path, model: keras.Model, progress: Progress) -> None:
    """Writes a checkpoint of a compiled model into a run directory, drops the oldest ones and weights of no use."""
    folder = directory / FOLDER
    with published(folder / f"{progress.step:09d}") as target:
        save_weights(model, target / WEIGHTS)
        arrays = {name: keras.ops.convert_to_numpy(variable) for name, variable in _state(model).items()}
        np.savez(target / _STATE, **arrays)
        write_json(target / _PROGRESS, asdict(progress))
        write_manifest(target, {"format_version": 1})
    kept, dropped = _found(directory)[:_KEPT], _found(directory)[_KEPT:]
    for old in dropped:
        shutil.rmtree(old)
    named = {best_weights(directory, epoch) for epoch in map(_best_epoch, kept) if epoch is not None}
    for weights in set(folder.glob("best-*")) - named:
        weights.unlink()


def restore(directory: Path, model: keras.Model) -> Progress | None:
    """Puts the newest undamaged checkpoint of a run directory into a compiled model; None where there is none."""
    for path in _found(directory):
        try:
            verify(path, whole=True)
        except UserError as error:
            _log.warning("Checkpoint %s is damaged and passed over: %s", path, error)
            continue
        load_weights(model, path / WEIGHTS)
        with np.load(path / _STATE, allow_pickle=False) as arrays:
            _assign(path, _state(model), arrays)
        return Progress(**json.loads((path / _PROGRESS).read_text(encoding="utf-8")))
    return None


def remove(directory: Path) -> None:
    """Removes all checkpoints of a run directory."""
    shutil.rmtree(directory / FOLDER, ignore_errors=True)


def _best_epoch(checkpoint: Path) -> int | None:
    """The epoch whose weights a checkpoint names; None also where it is damaged, since nothing goes on from it."""
    try:
        epoch = json.loads((checkpoint / _PROGRESS).read_text(encoding="utf-8"))["best_epoch"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return int(epoch) if epoch is not None else None


def _found(directory: Path) -> list[Path]:
    """Checkpoints, the newest first."""
    return sorted((path for path in (directory / FOLDER).glob("[0-9]*") if path.is_dir()), reverse=True)


def _state(model: keras.Model) -> dict[str, keras.Variable]:
    """Variables beside the weights: optimizer, random seeds, running metrics."""
    weights = {id(variable) for variable in model.weights}
    seeds = [variable for variable in model.variables if id(variable) not in weights]
    groups = {"optimizer": model.optimizer.variables, "seed": seeds, "metric": model.metrics_variables}
    return {f"{group}_{place}": variable for group, found in groups.items() for place, variable in enumerate(found)}


def _assign(path: Path, state: Mapping[str, keras.Variable], arrays: Mapping[str, Any]) -> None:
    if set(state) != set(arrays):
        raise UserError(f"{path}: made by another version of the model; train into another directory.")
    for name, variable in state.items():
        variable.assign(arrays[name])
