"""What training asks of a kind of model: its batches of an epoch, its validation queries, and what they say."""

from typing import Any, TypeAlias

from tfrec.candidates import CandidateBatches
from tfrec.config import Config, Section
from tfrec.data import Batches
from tfrec.errors import UsageError
from tfrec.evaluation import check_filter_seen, cut_offs
from tfrec.models.shells import RankingModel
from tfrec.ranks import rank_queries
from tfrec.runs import Run
from tfrec.scores import score_candidates
from tfrec.windows import SplitName

_SHARE = "inherited_learning_rate"


class Retrieval:
    """Histories in, the place of what came next among all items out."""

    nothing = (
        "no user has two training events of which a later one is a target, so there is nothing to train on; look at "
        "`data.filters`, `data.split` and `data.target_events`."
    )

    def __init__(self, run: Run) -> None:
        self.run = run
        self.ks = cut_offs(run.config)
        settings, evaluation = run.config.training, run.config.evaluation
        self.queries = Batches(
            run.schema,
            run.dataset.histories(),
            "validation",
            history_length=run.model.history_length,
            batch_size=evaluation.batch_size,
            seed=settings.seed,
            request_time=run.config.features.request_time,
            max_queries=settings.validation_users,
        )
        if len(self.queries):
            check_filter_seen(run.dataset, filter_seen=evaluation.filter_seen)

    def batches(self, epoch: int) -> Batches:
        """Windows of training events."""
        settings = self.run.config.training
        return Batches(
            self.run.schema,
            self.run.dataset.histories(),
            "train",
            history_length=self.run.model.history_length,
            batch_size=settings.batch_size,
            windows=settings.windows,
            length_buckets=settings.length_buckets,
            seed=settings.seed,
            epoch=epoch,
        )

    def validate(self) -> dict[str, float]:
        """Full-catalogue metrics."""
        filter_seen = self.run.config.evaluation.filter_seen
        ranks = rank_queries(self.run.model, self.run.dataset.catalogue(), self.queries, filter_seen=filter_seen)
        return ranks.metrics(self.ks)


class Ranking:
    """Impressions in, probabilities of what becomes of them out."""

    nothing = "no impression is of the training split, so there is nothing to train on; look at `data.split`."

    def __init__(self, run: Run) -> None:
        check_ranking_options(run.config, run.model)
        self.run = run
        self.queries = self._batches("validation", max_rows=run.config.training.validation_users)

    def batches(self, epoch: int) -> CandidateBatches:
        """Rows of impressions."""
        return self._batches("train", epoch=epoch)

    def validate(self) -> dict[str, float]:
        """Metrics of the probabilities."""
        return score_candidates(self.run.model, self.queries).metrics()

    def _batches(self, split: SplitName, *, epoch: int = 0, max_rows: int | None = None) -> CandidateBatches:
        config = self.run.config
        return CandidateBatches(
            self.run.schema,
            self.run.dataset.histories(),
            split,
            history_length=self.run.model.history_length,
            batch_size=config.training.batch_size if split == "train" else config.evaluation.batch_size,
            group=config.ranking.group,
            max_candidates=config.ranking.max_candidates,
            seed=config.training.seed,
            length_buckets=config.training.length_buckets,
            epoch=epoch,
            max_rows=max_rows,
        )


Task: TypeAlias = Retrieval | Ranking
"""One kind of model in training."""


def task_of(run: Run) -> Task:
    """What kind of training a run's model needs."""
    return Ranking(run) if isinstance(run.model, RankingModel) else Retrieval(run)


def check_ranking_options(config: Config, model: RankingModel) -> None:
    """Raises a `UsageError` where the configuration asks a ranking model for what it does not do."""
    if config.ranking.group == "user" and not model.causal:
        why = model.why_not_causal or f"{config.model.get('name')} is not causal"
        raise UsageError(f"`ranking.group`: must be request: {why}, so events would be seen before they take place.")
    settings = config.training
    if settings.initialize_from is None and settings.inherited_learning_rate != _default(settings, _SHARE):
        raise UsageError(f"`training.{_SHARE}`: says nothing without `training.initialize_from`; leave it out.")
    if settings.windows != _default(settings, "windows"):
        raise UsageError("`training.windows`: says nothing to a ranking model; leave it out.")


def _default(section: Section, key: str) -> Any:
    return type(section).model_fields[key].default


__all__ = ["Ranking", "Retrieval", "Task", "check_ranking_options", "task_of"]
