"""A version of a ranking model in the making: its SavedModel written, asked, and compared with the run.

The queries of the gate are those of retrieval models, each with candidates of the whole catalogue: what is compared is
that the graph reads a request as training code reads a dataset, which any candidates show.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfrec import parity, publishing
from tfrec.config import suggest
from tfrec.errors import UsageError, UserError
from tfrec.ranking_signatures import CANDIDATES, SCORE, RankingSignatures
from tfrec.runs import Run
from tfrec.stock_loader import Outputs, Request
from tfrec.transforms import PADDING, UNKNOWN
from tfrec.windows import Batch

_CANDIDATES = 16
_UNKNOWN_ID = "\0"


@dataclass(frozen=True)
class RankingVersion:
    """What is written into a version directory of a ranking model, and how it is checked.

    Args:
        run: what is published.
        samples: queries with candidates.
        score_weights: of the labels.
    """

    run: Run
    samples: Sequence[parity.Sample]
    score_weights: Mapping[str, float]

    @classmethod
    def of(cls, run: Run) -> "RankingVersion":
        """The next version of a run.

        Raises:
            UsageError: `export.score_weights` names a label that the model does not predict.
        """
        rng = np.random.default_rng(run.config.training.seed)
        samples = [with_candidates(run, sample, rng) for sample in parity.samples(run)]
        return cls(run, samples, score_weights(run))

    def save(self, directory: Path) -> dict[str, Any]:
        """Writes the SavedModel; returns what the manifest says of it."""
        run = self.run
        module = RankingSignatures(run.schema, run.dataset.directory, run.model, score_weights=self.score_weights)
        tf.saved_model.save(module, str(directory), signatures=module.trace(run.model))
        return {"labels": list(run.model.labels), "score_weights": dict(self.score_weights)}

    def requests(self) -> list[Request]:
        """What both loaders are asked for the comparison."""
        return [Request("rank", sample.request) for sample in self.samples]

    def warmup(self) -> list[Request]:
        """Requests of several batch sizes for every signature."""
        signatures = ("serving_default", "rank")
        return list(publishing.repeated(signatures, self.samples[0].request))

    def compare(self, by_python: Sequence[Outputs], by_loader: Sequence[Outputs]) -> dict[str, Any]:
        """How far the answers are from the run's; returns the figures for the manifest.

        Raises:
            UserError: further than `parity.TOLERANCE`.
        """
        figures: dict[str, Any] = {
            "queries": sum(len(sample.batch["user"]) for sample in self.samples),
            "tolerance": parity.TOLERANCE,
        }
        for name, answers in (("saved_model", by_python), ("cpp_loader", by_loader)):
            furthest = [
                difference(self.expected(sample.batch), answer, name)
                for sample, answer in zip(self.samples, answers, strict=False)
            ]
            figures[name] = {"probability_difference": max(furthest)}
        return figures

    def expected(self, batch: Batch) -> dict[str, NDArray[np.float64]]:
        """Probabilities and scores `(B, C)` by the run itself; 0 and the lowest score at padding."""
        logits = self.run.model(batch, training=False)
        real = batch["candidate"] != PADDING
        answer = {label: 1 / (1 + np.exp(-np.asarray(logit, np.float64))) * real for label, logit in logits.items()}
        score = np.sum([weight * answer[label] for label, weight in self.score_weights.items()], axis=0)
        return {**answer, SCORE: np.where(real, score, float(np.finfo(np.float32).min))}


def with_candidates(run: Run, sample: parity.Sample, rng: np.random.Generator) -> parity.Sample:
    """A query with candidates to rank at its request time, the last of each row unknown or padding.

    Args:
        run: whose catalogue they are of.
        sample: a query.
        rng: draws them.
    """
    catalogue, batch = run.dataset.catalogue(), sample.batch
    rows = len(batch["user"])
    items = rng.choice(catalogue.candidates, (rows, _CANDIDATES)).astype(np.int32)
    items[:, -1] = np.where(np.arange(rows) % 2, PADDING, UNKNOWN)
    ids = np.array(["", _UNKNOWN_ID, *catalogue.item_ids[2:]], object)[items]
    return parity.Sample(asking(run, batch, items), {**sample.request, CANDIDATES: ids})


def asking(run: Run, batch: Batch, items: NDArray[np.int32]) -> Batch:
    """A batch of queries with candidates `(B, C)` at their request times, as a ranking model takes it."""
    real = items != PADDING
    before = (batch["item"] != PADDING).sum(axis=1)[:, None]
    asked: Batch = {**batch, "candidate": items, "candidate_history": (before * real).astype(np.int32)}
    if run.schema.has_time:
        asked["candidate_time"] = (batch["request_time"][:, None] * real).astype(np.int32)
    return asked


def score_weights(run: Run) -> dict[str, float]:
    """The weight of each label's probability in the score.

    Raises:
        UsageError: a weight of a label that the model does not predict.
    """
    labels, given = run.model.labels, run.config.export.score_weights
    for label in given:
        if label not in labels:
            raise UsageError(f"`export.score_weights.{label}`: not a label of the model; {suggest(label, labels)}")
    return dict(given) or dict.fromkeys(labels, 1 / len(labels))


def difference(expected: Mapping[str, NDArray[Any]], answer: Mapping[str, NDArray[Any]], name: str) -> float:
    """The greatest difference of a probability or score, as a share of the score where that exceeds 1.

    Args:
        expected: by the run.
        answer: of `rank`.
        name: of who answered, for the message.

    Raises:
        UserError: a difference of more than `parity.TOLERANCE`.
    """
    furthest = 0.0
    for output, values in expected.items():
        gaps = np.abs(answer[output] - values) / np.maximum(1, np.abs(values))
        if not (gaps <= parity.TOLERANCE).all():
            raise UserError(
                f"parity: {name} answers otherwise than the run (`{output}` differs by {gaps.max():.3g}, "
                f"{parity.TOLERANCE:g} is allowed); nothing was published."
            )
        furthest = max(furthest, float(gaps.max(initial=0)))
    return furthest


__all__ = ["RankingVersion", "asking", "difference", "score_weights", "with_candidates"]
