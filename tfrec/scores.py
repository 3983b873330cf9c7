"""Judges a ranking run by its impressions: a probability of each candidate and label against what became of it.

Every candidate is scored behind exactly its latest L events and at the first place of the list, as in serving, and by
that order AUC is measured: places of the log would give its own order away. Where the log has places, each is scored at
its own as well, and these probabilities are compared with what became of it there. All are kept, so that runs can be
compared on equal resamples of users.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfrec.candidates import CandidateBatches
from tfrec.click_metrics import NAMES, ClickMetrics
from tfrec.columns import Histories
from tfrec.errors import UserError
from tfrec.metrics import interval_of, user_weights
from tfrec.schema import Schema
from tfrec.transforms import write_arrays
from tfrec.windows import Batch

Array = NDArray[Any]

_DAY = 86_400
_EDGES: dict[str, tuple[int, ...]] = {
    "history_length": (0, 1, 5, 20, 50, 200),
    "sessions": (0, 1, 2, 5, 10, 30),
    "item_age_days": (0, 1, 7, 30, 90),
}
_OWN = ("user", "place", "item", "time")
_PROBABILITY, _SHOWN, _LABEL = "probability_", "shown_probability_", "label_"
_OUTCOMES = ("candidate_label_", "candidate_weight")
_UNSEEN = ("user", "impression")


@dataclass(frozen=True)
class Scores:
    """The impressions of a split with their labels and probabilities, in the order of the dataset."""

    user: NDArray[np.int32]
    """Row of the user in the histories, `(Q,)`."""
    place: NDArray[np.int32]
    """Number of the user's events before it, `(Q,)`."""
    item: NDArray[np.int32]
    """The candidate, `(Q,)`; 1 = unknown."""
    time: NDArray[np.int32]
    """When it was shown, `(Q,)`; 0 where the log has no times."""
    labels: dict[str, NDArray[np.int8]]
    """What became of it, `(Q,)`: 0, 1, or -1 = not known; of the labels that the model predicts."""
    probabilities: dict[str, NDArray[np.float32]]
    """What the model said of it at the first place, `(Q,)`."""
    shown: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """What it said of it at its own place, `(Q,)`; nothing where the log has no places."""

    @property
    def queries(self) -> NDArray[np.int32]:
        """What was asked, `(Q, 3)`."""
        return np.stack([self.user, self.place, self.item], axis=1)

    def metrics(self, chosen: NDArray[np.bool_] | None = None) -> dict[str, float]:
        """Every metric of all impressions, or of chosen ones; those of a label behind the first end in its name.

        A metric that needs both outcomes is left out where one is missing.
        """
        values = np.concatenate([one.values()[0] for one in self._judged(chosen).values()])
        return {name: float(value) for name, value in zip(self.names, values, strict=True) if np.isfinite(value)}

    @property
    def names(self) -> list[str]:
        """Names of the metrics."""
        first, *_ = self.labels
        return [name if label == first else f"{name}_{label}" for label in self.labels for name in NAMES]

    def resampled(self, samples: int, seed: int) -> NDArray[np.float64]:
        """`(samples, M)`: the metrics, in the order of `metrics`, on resamples of the users with their impressions."""
        judged = self._judged()
        values = [
            np.concatenate([one.values(weights) for one in judged.values()], axis=1)
            for weights in user_weights(self.user, samples=samples, seed=seed)
        ]
        found = self.metrics()
        return np.concatenate(values)[:, [name in found for name in self.names]]

    def calibration(self, samples: int, seed: int) -> dict[str, Any]:
        """Of each label predicted over observed positives, with its 95 % interval, and the curve by decile."""
        judged = self._judged()
        ratios = [
            np.stack([one.ratio(weights) for one in judged.values()], axis=1)
            for weights in user_weights(self.user, samples=samples, seed=seed)
        ]
        low, high = np.percentile(np.concatenate(ratios), [2.5, 97.5], axis=0)
        return {
            label: {
                "ratio": _number(one.ratio()[0]),
                "confidence_interval": [_number(low[place]), _number(high[place])],
                "curve": one.curve(),
            }
            for place, (label, one) in enumerate(judged.items())
        }

    def write(self, path: Path) -> None:
        """Writes an .npz that `read` reads."""
        arrays: dict[str, Array] = {name: getattr(self, name) for name in _OWN}
        for prefix, named in ((_LABEL, self.labels), (_PROBABILITY, self.probabilities), (_SHOWN, self.shown)):
            arrays |= {f"{prefix}{name}": array for name, array in named.items()}
        write_arrays(path, arrays)

    @classmethod
    def read(cls, path: Path) -> "Scores":
        """Reads what `write` wrote."""
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)

        def of(prefix: str) -> dict[str, Any]:
            return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

        own = {name: arrays[name] for name in _OWN}
        return cls(**own, labels=of(_LABEL), probabilities=of(_PROBABILITY), shown=of(_SHOWN))

    def _judged(self, chosen: NDArray[np.bool_] | None = None) -> dict[str, ClickMetrics]:
        users, row = np.unique(self.user, return_inverse=True)
        part = slice(None) if chosen is None else chosen
        return {
            label: ClickMetrics(
                self.probabilities[label][part],
                outcome[part],
                row[part],
                len(users),
                self.shown[label][part] if self.shown else None,
            )
            for label, outcome in self.labels.items()
        }


def score_candidates(model: Any, batches: CandidateBatches) -> Scores:
    """The probabilities of all candidates of all batches, by a `RankingModel`."""
    shown = batches.impressions.columns
    ways = 2 if "position" in shown else 1
    probabilities = [
        {label: np.full(len(shown["item"]), np.nan, np.float32) for label in model.labels} for _ in range(ways)
    ]
    most_rows = 0
    for batch in batches:
        most_rows = max(most_rows, len(batch["item"]))
        place: Array = batch["impression"]
        for label, logit in _logits(model, batch, most_rows).items():
            for way, found in enumerate(probabilities):
                found[label][place[place >= 0]] = _sigmoid(logit[place >= 0, way])
    scored = np.flatnonzero(~np.isnan(probabilities[0][model.labels[0]]))
    user = np.searchsorted(batches.impressions.offsets, scored, side="right") - 1
    kept = [{label: values[scored] for label, values in found.items()} for found in probabilities]
    return Scores(
        user.astype(np.int32),
        shown["history"][scored].astype(np.int32),
        shown["item"][scored].astype(np.int32),
        shown["time"][scored].astype(np.int32) if "time" in shown else np.zeros(len(scored), np.int32),
        {label: shown[f"{_LABEL}{label}"][scored].astype(np.int8) for label in model.labels},
        *kept,
    )


def judge(scores: Scores, schema: Schema, histories: Histories, *, samples: int, seed: int) -> dict[str, Any]:
    """Metrics, their 95 % intervals (users resampled), calibration, and the metrics of slices.

    Slices are by what is known of the user, events and sessions, and by how long the item has been known.
    """
    metrics = scores.metrics()
    return {
        "metrics": metrics,
        "confidence_intervals": dict(zip(metrics, interval_of(scores.resampled(samples, seed)), strict=True)),
        "calibration": scores.calibration(samples, seed),
        "slices": {
            name: _by_bucket(scores, value, _EDGES[name]) for name, value in _known(scores, schema, histories).items()
        },
    }


def _known(scores: Scores, schema: Schema, histories: Histories) -> dict[str, NDArray[np.int64]]:
    """What slices go by, of each impression; of an item's age -1 where it was in no event before."""
    values = {"history_length": scores.place.astype(np.int64)}
    if schema.has_sessions:
        last = histories.columns["session"][np.maximum(histories.offsets[scores.user] + scores.place - 1, 0)]
        values["sessions"] = np.where(scores.place > 0, last, 0).astype(np.int64)
    if schema.has_time:
        born = np.full(schema.num_items, np.iinfo(np.int64).max)
        np.minimum.at(born, histories.columns["item"], histories.columns["time"].astype(np.int64))
        age = scores.time - np.minimum(born[scores.item], scores.time)
        values["item_age_days"] = np.where(born[scores.item] < scores.time, age // _DAY, -1)
    return values


def _by_bucket(scores: Scores, value: NDArray[np.int64], edges: tuple[int, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for low, high in zip((-1, *edges), (*edges, None), strict=True):
        chosen = (value >= low) & (value < (np.iinfo(np.int64).max if high is None else high))
        if chosen.any():
            found[_bucket_name(low, high)] = {"queries": int(chosen.sum()), **scores.metrics(chosen)}
    return found


def _bucket_name(low: int, high: int | None) -> str:
    if low < 0:
        return "not known before"
    if high is None:
        return f"{low}+"
    return str(low) if high == low + 1 else f"{low}-{high - 1}"


def _logits(model: Any, batch: Batch, rows: int) -> Mapping[str, Array]:
    """The logits `(B, C, P)` of each label, at the first place and, where the log has places, at the candidate's own.

    The model sees at least `rows` rows, so that few shapes are compiled.
    """
    count = len(batch["item"])
    missing = max(rows - count, 0)
    known = {name: values for name, values in batch.items() if name not in _UNSEEN and not name.startswith(_OUTCOMES)}
    padded = {name: np.pad(values, [(0, missing)] + [(0, 0)] * (values.ndim - 1)) for name, values in known.items()}
    first = (padded["candidate"] != 0).astype(np.int32)
    own = padded.pop("candidate_position", None)
    padded["compared_position"] = np.stack([first] if own is None else [first, own], axis=-1)
    found: Mapping[str, Array] = model.predict_on_batch(padded)
    return {label: logit[:count] for label, logit in found.items()}


def _sigmoid(logit: Array) -> NDArray[np.float32]:
    return np.asarray(np.exp(-np.logaddexp(0, -logit.astype(np.float64))), np.float32)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def scores_file(directory: Path, split: str) -> Path:
    """Where the scores of a split lie in a directory."""
    return directory / f"scores_{split}.npz"


def read_scores(directory: Path, split: str) -> Scores:
    """What `tfrec evaluate` kept of a ranking run.

    Raises:
        UserError: nothing there, or not readable.
    """
    path = scores_file(Path(directory), split)
    try:
        return Scores.read(path)
    except FileNotFoundError:
        raise UserError(f"{path}: not there; run `tfrec evaluate {directory} --split {split}` first.") from None
    except (ValueError, KeyError, OSError, EOFError) as error:
        raise UserError(f"{path}: not readable ({error}); run `tfrec evaluate {directory}` again.") from None


__all__ = ["Scores", "judge", "read_scores", "score_candidates", "scores_file"]
