"""A version of two models in one request in the making: written, asked, and compared with both runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfrec import parity, publishing
from tfrec.errors import UserError
from tfrec.index import ExactSearch
from tfrec.ranking_export import RankingVersion, asking, score_weights
from tfrec.ranking_signatures import SCORE, RankingSignatures
from tfrec.ranks import encode_catalogue
from tfrec.runs import Run
from tfrec.signatures import RetrievalSignatures
from tfrec.stock_loader import Outputs, Request
from tfrec.transforms import FIRST_VALUE
from tfrec.two_stage import TwoStageSignatures
from tfrec.windows import Batch


@dataclass(frozen=True)
class TwoStageVersion:
    """What is written into a version directory of two models, and how it is checked.

    Args:
        run: the model that retrieves.
        ranker: how the other one is published, and asked of what was retrieved.
        vectors: `(N, D)` of the candidates by the first model.
        queries: of the first model, row by row those of `ranker.samples`.
    """

    run: Run
    ranker: RankingVersion
    vectors: NDArray[np.float32]
    queries: Sequence[Batch]

    @classmethod
    def of(cls, run: Run, ranking: Run) -> "TwoStageVersion":
        """The next version of a run of retrieval and one of ranking.

        Raises:
            UserError: they were trained on different datasets.
        """
        if run.dataset.fingerprint != ranking.dataset.fingerprint:
            raise UserError(
                f"{ranking.directory}: trained on another dataset than {run.directory}, so they do not know the same "
                "items; train both on one."
            )
        samples = parity.samples(ranking, run.config)
        ranker = RankingVersion(ranking, samples, score_weights(ranking))
        candidates = run.dataset.catalogue().candidates
        vectors = encode_catalogue(run.model, run.schema.num_items)[candidates - FIRST_VALUE]
        return cls(run, ranker, vectors, aligned(parity.samples(run), samples))

    @property
    def retrieved(self) -> int:
        """Items that the first model hands to the second."""
        settings = self.run.config.export
        return min(max(settings.candidates, settings.k), len(self.vectors))

    @property
    def k(self) -> int:
        """Items of an answer."""
        return min(self.run.config.export.k, self.retrieved)

    def save(self, directory: Path) -> dict[str, Any]:
        """Writes the SavedModel; returns what the manifest says of it."""
        run, ranking, catalogue = self.run, self.ranker.run, self.run.dataset.catalogue()
        items = catalogue.candidates
        retrieval = RetrievalSignatures(
            run.schema,
            run.dataset.directory,
            run.model,
            items=items,
            codes=catalogue.codes[items],
            item_ids=self.item_ids(),
            train_count=catalogue.train_count[items],
            search=ExactSearch(self.vectors),
            k=self.retrieved,
            filter_seen=run.config.evaluation.filter_seen,
        )
        weights = self.ranker.score_weights
        module = TwoStageSignatures(
            retrieval,
            RankingSignatures(ranking.schema, ranking.dataset.directory, ranking.model, score_weights=weights),
            k=self.k,
        )
        tf.saved_model.save(module, str(directory), signatures=module.trace(run.model, ranking.model))
        return {
            "k": self.k,
            "candidates": self.retrieved,
            "filter_seen": run.config.evaluation.filter_seen,
            "labels": list(ranking.model.labels),
            "score_weights": dict(weights),
        }

    def requests(self) -> list[Request]:
        """What both loaders are asked for the comparison."""
        return [Request("recommend", sample.request) for sample in self.ranker.samples]

    def warmup(self) -> list[Request]:
        """Requests of several batch sizes for every signature."""
        histories = self.ranker.samples[0].request
        rows = len(histories["history_length"])
        filters = dict.fromkeys(self.run.schema.filter_inputs(), np.full((rows, 1), "", object))
        candidates = {"candidate_ids": np.full((rows, 1), self.item_ids()[0], object)}
        return [
            *publishing.repeated(("serving_default", "recommend"), histories),
            *publishing.repeated(("recommend_filtered",), histories | filters),
            *publishing.repeated(("rank",), histories | candidates),
        ]

    def compare(self, by_python: Sequence[Outputs], by_loader: Sequence[Outputs]) -> dict[str, Any]:
        """How far the answers are from those of the runs, one after the other; the figures for the manifest.

        Raises:
            UserError: other lists.
        """
        differences: dict[str, list[parity.Difference]] = {"saved_model": [], "cpp_loader": []}
        queries = 0
        for sample, query, *answers in zip(self.ranker.samples, self.queries, by_python, by_loader, strict=False):
            scores, clear = self.expected(sample.batch, query)
            queries += int(clear.sum())
            for name, answer in zip(differences, answers, strict=True):
                chosen = {output: values[clear] for output, values in answer.items()}
                differences[name].append(parity.compare(scores[clear], chosen, self.item_ids(), name))
            parity.check_same(*answers)
        return {
            "queries": queries,
            "tolerance": parity.TOLERANCE,
            **{name: parity.summary(found) for name, found in differences.items()},
        }

    def expected(self, batch: Batch, query: Batch) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Scores `(B, N)` of the catalogue by both runs, -inf where the first does not retrieve an item.

        Also which rows `(B,)` are clear: where as good an item stands behind the last one retrieved, either may be.

        Args:
            batch: of the ranking run.
            query: the same rows, of the retrieval run.
        """
        found = parity.run_scores(self.run, query, self.vectors)
        order = np.argsort(-found, axis=1, kind="stable")[:, : self.retrieved]
        best = np.take_along_axis(found, order, axis=1)
        items = np.where(np.isfinite(best), self.run.dataset.catalogue().candidates[order], 0).astype(np.int32)
        ranked = self.ranker.expected(asking(self.ranker.run, batch, items))[SCORE]
        scores = np.full(found.shape, -np.inf, np.float32)
        np.put_along_axis(scores, order, np.where(np.isfinite(best), ranked, -np.inf).astype(np.float32), axis=1)
        if self.retrieved == found.shape[1]:
            return scores, np.ones(len(found), bool)
        following = -np.partition(-found, self.retrieved, axis=1)[:, self.retrieved]
        with np.errstate(invalid="ignore"):  # where there is nothing more to retrieve
            margin = best[:, -1] - following
        return scores, ~(margin <= 2 * parity.TOLERANCE * np.maximum(1, np.abs(best[:, -1])))

    def item_ids(self) -> list[str]:
        """Raw ids of the candidates."""
        catalogue = self.run.dataset.catalogue()
        return [catalogue.item_ids[item] for item in catalogue.candidates]


def aligned(samples: Sequence[parity.Sample], wanted: Sequence[parity.Sample]) -> list[Batch]:
    """The rows of the first samples in the order of the second ones, which are the same queries in other batches."""
    rows = {key: (sample.batch, row) for sample in samples for row, key in enumerate(_keys(sample.batch))}
    batches = []
    for sample in wanted:
        chosen = [rows[key] for key in _keys(sample.batch)]
        batches.append({name: _stack([batch[name][row] for batch, row in chosen]) for name in chosen[0][0]})
    return batches


def _keys(batch: Batch) -> list[tuple[int, int]]:
    """Of each query the user and the number of events before it."""
    return list(zip(batch["user"].tolist(), (batch["seen"] != 0).sum(axis=1).tolist(), strict=True))


def _stack(rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Rows of like or unlike lengths below each other, the shorter ones padded with 0."""
    if not rows[0].ndim:
        return np.stack(rows)
    longest = max(len(row) for row in rows)
    return np.stack([np.pad(row, [(0, longest - len(row)), *[(0, 0)] * (row.ndim - 1)]) for row in rows])


__all__ = ["TwoStageVersion", "aligned"]
