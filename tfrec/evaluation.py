"""Judges a run on the full catalogue, exactly: every target's place among all items, with ties by expectation.

What is judged is what is served: the last L events are encoded, the whole history counts as seen, a query without
history is answered by training popularity. An unknown target is a miss, and counted.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tfrec.candidates import CandidateBatches
from tfrec.click_metrics import NAMES
from tfrec.config import Config
from tfrec.data import Batch, Batches, Dataset
from tfrec.errors import UsageError, UserError
from tfrec.manifest import write_json
from tfrec.metrics import bootstrap_interval
from tfrec.models import is_ranking, resolve
from tfrec.models.shells import RankingModel
from tfrec.ranks import Ranks, encode_catalogue, encode_users, item_columns, products, rank_queries
from tfrec.runs import Run
from tfrec.schema import Schema
from tfrec.scores import Scores, judge, score_candidates, scores_file
from tfrec.transforms import FIRST_VALUE, UNKNOWN

Array = NDArray[Any]

EVALUATION = "evaluation.json"

SEED = 0
"""Of all resampling: runs that answered the same queries are resampled alike."""
_COLD_BELOW = (1, 5)
_DECILES = 10
_CUT_OFF = r"(?:recall|ndcg)@([1-9][0-9]*)"


@dataclass(frozen=True)
class Evaluation:
    """What a run is worth, and by which protocol that was measured."""

    protocol: dict[str, Any]
    metrics: dict[str, float]
    confidence_intervals: dict[str, tuple[float, float]]
    slices: dict[str, Any]
    answers: Ranks | Scores
    """Query by query, of a retrieval or a ranking run."""
    calibration: dict[str, Any] | None = None
    """Of a ranking run, by label."""

    def document(self) -> dict[str, Any]:
        """What is written."""
        names = ("protocol", "metrics", "confidence_intervals", "calibration", "slices")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def write(self, directory: Path) -> None:
        """Writes `evaluation.json` (`evaluation_validation.json`), and the answers, so that runs can be compared."""
        split = self.protocol["split"]
        path = ranks_file if isinstance(self.answers, Ranks) else scores_file
        self.answers.write(path(Path(directory), split))
        write_json(evaluation_file(Path(directory), split), self.document())


def evaluate(run: Run, split: Literal["test", "validation"] = "test") -> Evaluation:
    """Ranks every query of a split over the full catalogue; of a ranking run judges its impressions.

    Args:
        run: the run, as `tfrec.load_run` gives it.
        split: which queries.

    Raises:
        UserError: the split has no queries, or seen items cannot be filtered because users repeat them.
    """
    if isinstance(run.model, RankingModel):
        return _evaluate_ranking(run, split)
    settings, dataset = run.config.evaluation, run.dataset
    check_filter_seen(dataset, filter_seen=settings.filter_seen)
    queries = Batches(
        run.schema,
        dataset.histories(),
        split,
        history_length=run.model.history_length,
        batch_size=settings.batch_size,
        request_time=run.config.features.request_time,
    )
    if not len(queries):
        raise UserError(f"{dataset.directory}: no {split} queries; look at `data.split` and `data.target_events`.")
    catalogue = dataset.catalogue()
    ks = cut_offs(run.config)
    ranks = rank_queries(run.model, catalogue, queries, filter_seen=settings.filter_seen)
    values = ranks.values(ks)
    intervals = bootstrap_interval(
        np.stack(list(values.values()), axis=1), ranks.user, samples=settings.bootstrap_samples, seed=SEED
    )
    protocol = {
        **_protocol(run, split, ranks.user),
        "task": "retrieval",
        "unknown_targets": int((~ranks.known).sum()),
        "empty_histories": int((ranks.place == 0).sum()),
        "candidates": len(catalogue.candidates),
        "ks": ks,
        "filter_seen": settings.filter_seen,
        "ties": "expectation",
        "request_time": run.config.features.request_time,
    }
    return Evaluation(
        protocol=protocol,
        metrics={name: float(value.mean()) for name, value in values.items()},
        confidence_intervals={name: (low, high) for name, (low, high) in zip(values, intervals, strict=True)},
        slices=_slices(ranks, values, catalogue.train_count),
        answers=ranks,
    )


def _evaluate_ranking(run: Run, split: Literal["test", "validation"]) -> Evaluation:
    histories, settings = run.dataset.histories(), run.config.evaluation
    batches = CandidateBatches(
        run.schema,
        histories,
        split,
        history_length=run.model.history_length,
        batch_size=settings.batch_size,
        group=run.config.ranking.group,
        max_candidates=run.config.ranking.max_candidates,
    )
    if not len(batches):
        raise UserError(f"{run.dataset.directory}: no {split} impressions; look at `data.split`.")
    scores = score_candidates(run.model, batches)
    protocol = {
        **_protocol(run, split, scores.user),
        "task": "ranking",
        "labels": list(run.model.labels),
        "unknown_candidates": int((scores.item < FIRST_VALUE).sum()),
        "empty_histories": int((scores.place == 0).sum()),
        "position": "the first" + ("; of log loss, entropy and calibration as shown" if scores.shown else ""),
    }
    judged = judge(scores, run.schema, histories, samples=settings.bootstrap_samples, seed=SEED)
    return Evaluation(protocol=protocol, answers=scores, **judged)


def _protocol(run: Run, split: str, user: NDArray[np.int32]) -> dict[str, Any]:
    """What both kinds of evaluation say of themselves."""
    samples = run.config.evaluation.bootstrap_samples
    return {
        "split": split,
        "queries": len(user),
        "users": len(np.unique(user)),
        "history_length": run.model.history_length,
        "confidence_intervals": f"95 %, bootstrap over users, {samples} samples",
        "bootstrap_samples": samples,
        "model": run.config.model.get("name"),
        "dataset": run.dataset.fingerprint,
    }


def deciding_metric(config: Config) -> str:
    """The metric that decides on early stopping and the best weights: `training.validation_metric`.

    Raises:
        UsageError: one that the model's kind does not have.
    """
    ranking = is_ranking(resolve(config.model.get("name")))
    name = config.training.validation_metric or ("auc" if ranking else "ndcg@10")
    if ranking and not name.startswith(NAMES):
        raise UsageError(
            f"`training.validation_metric`: must be {', '.join(NAMES)}, or one of them with _ and a further label "
            f"behind it, for a ranking model. Received: {name!r}."
        )
    if not ranking and name != "mrr" and not re.fullmatch(_CUT_OFF, name):
        raise UsageError(f"`training.validation_metric`: must be recall@k, ndcg@k or mrr. Received: {name!r}.")
    return name


def cut_offs(config: Config) -> list[int]:
    """The cut-offs that are measured: those of the evaluation and the one that decides in training."""
    found = re.fullmatch(_CUT_OFF, deciding_metric(config))
    return sorted({*config.evaluation.ks, *([int(found[1])] if found else [])})


def check_filter_seen(dataset: Dataset, *, filter_seen: bool) -> None:
    """Refuses to filter seen items where users repeat items: sparing the target alone would give it away.

    Raises:
        UserError: says which key to change.
    """
    if not filter_seen or dataset.schema.repeats == "first":
        return
    histories = dataset.histories()
    item = histories.columns["item"].astype(np.int64)
    user = np.repeat(np.arange(histories.num_users), np.diff(histories.offsets))
    pairs = (user * dataset.schema.num_items + item)[item >= FIRST_VALUE]
    if len(np.unique(pairs)) < len(pairs):
        raise UserError(
            f"{dataset.directory}: users repeat items, so seen items cannot be filtered without giving the target "
            "away; set `evaluation.filter_seen: false`, or `data.repeats: first` and run `tfrec preprocess` again."
        )


def recommend(
    run: Run,
    history: Sequence[str],
    *,
    times: Sequence[int] | None = None,
    event_types: Sequence[str] | None = None,
    request_time: int | None = None,
    k: int = 10,
) -> list[tuple[str, float]]:
    """The k best items for a raw history, best first, as an export of the run answers.

    Args:
        run: the run, as `tfrec.load_run` gives it.
        history: raw item ids, oldest first unless `times` says otherwise; an unknown one stays as unknown.
        times: Unix seconds of the events; left out, they are a minute apart and the last one is at `request_time`.
        event_types: left out, every event is of unknown type.
        request_time: Unix seconds of the request; left out, the latest event's.
        k: items at most.

    Returns:
        `(item_id, score)`; items of the history are left out where `evaluation.filter_seen` says so. Without history:
        by training popularity, and the score is the item's share of training events.
    """
    for name, given in (("times", times), ("event_types", event_types)):
        if given is not None and len(given) != len(history):
            raise ValueError(f"`{name}` must be as long as `history`. Received: {len(given)} and {len(history)}.")
    catalogue = run.dataset.catalogue()
    if not history:
        scores = (catalogue.train_count[FIRST_VALUE:] / max(catalogue.train_count.sum(), 1)).astype(np.float32)
        seen = np.zeros(0, np.int32)
    else:
        code_of = {item_id: code for code, item_id in enumerate(catalogue.item_ids) if item_id}
        seen = np.array([code_of.get(item_id, UNKNOWN) for item_id in history], np.int32)
        length = run.model.history_length
        batch = _request(run.schema, seen, times, event_types, request_time, length, catalogue.codes)
        user = encode_users(run.model, batch, 1)
        scores = products(user, item_columns(encode_catalogue(run.model, len(catalogue.train_count))))[0]
    candidates = catalogue.candidates
    if run.config.evaluation.filter_seen:
        candidates = np.setdiff1d(candidates, seen)
    best = candidates[np.argsort(-scores[candidates - FIRST_VALUE], kind="stable")[:k]]
    return [(catalogue.item_ids[item], float(scores[item - FIRST_VALUE])) for item in best]


def _slices(ranks: Ranks, values: Mapping[str, NDArray[np.float64]], train_count: NDArray[np.int64]) -> dict[str, Any]:
    """The metrics of targets that are rare in training, and of each tenth of the training events by popularity."""
    count = train_count[ranks.target]
    decile = _popularity_decile(train_count)
    target_decile = np.where(ranks.known, decile[ranks.target], 0)
    items = np.bincount(decile[FIRST_VALUE:], minlength=_DECILES + 1)
    return {
        "cold_items": {
            f"train_count<{limit}": _mean_where(values, ranks.known & (count < limit)) for limit in _COLD_BELOW
        },
        "popularity_decile": {
            str(number): {"items": int(items[number]), **_mean_where(values, target_decile == number)}
            for number in range(1, _DECILES + 1)
        },
    }


def _popularity_decile(train_count: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of each item 1..10: the tenth of all training events that it falls into, the most popular items in 1."""
    order = np.argsort(-train_count[FIRST_VALUE:], kind="stable") + FIRST_VALUE
    before = np.cumsum(train_count[order]) - train_count[order]
    decile = np.full(len(train_count), _DECILES)
    decile[order] = np.minimum(before * _DECILES // max(int(train_count.sum()), 1) + 1, _DECILES)
    return decile


def _mean_where(values: Mapping[str, NDArray[np.float64]], chosen: NDArray[np.bool_]) -> dict[str, Any]:
    queries = int(chosen.sum())
    means = {name: float(value[chosen].mean()) for name, value in values.items()} if queries else {}
    return {"queries": queries, **means}


def _request(
    schema: Schema,
    items: NDArray[np.int32],
    times: Sequence[int] | None,
    event_types: Sequence[str] | None,
    request_time: int | None,
    length: int,
    item_codes: NDArray[np.int32],
) -> Batch:
    """One row `(1, L)` of the last events by time, as batches hold them; what nobody gave is unknown."""
    count = len(items)
    given = np.array(schema.times_of(count, request_time) if times is None else times, np.int64)
    seconds = np.clip(given - schema.time_origin, 0, np.iinfo(np.int32).max).astype(np.int32)
    whole = np.argsort(given, kind="stable") if schema.has_time else np.arange(count)
    order = whole[-length:]
    row: dict[str, NDArray[Any]] = {"item": items[order]}
    types = np.zeros(count, np.int64)
    if schema.has_time:
        row["time"] = seconds[order]
    if schema.event_types:
        code_of = {name: code for code, name in enumerate(schema.event_types, FIRST_VALUE)}
        types = np.array([code_of.get(name, UNKNOWN) for name in event_types or [""] * count])[whole]
        row["event_type"] = types[-length:]
    if schema.has_sessions:
        gap = schema.session_gap_seconds
        begins = np.diff(seconds[order]) > gap if gap is not None else np.zeros(len(order) - 1, bool)
        row["session"] = 1 + np.concatenate([[0], np.cumsum(begins)])
    counts = _counts(schema, item_codes[items[whole]], seconds[whole], types)
    for feature in schema.side("event"):
        codes = np.repeat(_missing(feature.num_codes, feature.multivalued), count, axis=0)
        row[f"event_{feature.name}"] = counts.get(feature.name, codes)[-length:]
    batch: Batch = {
        name: np.pad(values, [(0, length - len(order))] + [(0, 0)] * (values.ndim - 1))[None].astype(np.int32)
        for name, values in row.items()
    }
    for feature in schema.side("event"):
        if feature.num_codes == 1:
            batch[f"event_{feature.name}"] = batch[f"event_{feature.name}"][..., 0]
    for feature in schema.side("user"):
        codes = _missing(feature.num_codes, feature.multivalued)
        batch[f"user_{feature.name}"] = codes[:, 0] if feature.num_codes == 1 else codes
    if schema.has_time:
        asked = seconds[order][-1] if request_time is None else max(request_time - schema.time_origin, 0)
        batch["request_time"] = np.array([asked], np.int32)
    return batch


def _counts(
    schema: Schema, item_codes: NDArray[np.int32], seconds: NDArray[np.int32], types: NDArray[np.int64]
) -> dict[str, NDArray[np.int32]]:
    """The codes `(N, 1)` of each counter, of one user's N events in the order of time."""
    found = {}
    for name, counter in schema.counters().items():
        keys = np.zeros(len(seconds), np.int64)
        if counter.of != "user":
            codes = item_codes[:, schema.item_columns()[counter.of].start]
            keys = np.where(codes == UNKNOWN, -1, codes)
        counted = schema.counted_types(counter)
        found[name] = counter.encode(keys, seconds, None if counted is None else np.isin(types, counted))[:, None]
    return found


def _missing(num_codes: int, multivalued: bool) -> NDArray[np.int32]:
    """The codes `(1, num_codes)` of a feature whose value is not known."""
    codes = np.full((1, num_codes), UNKNOWN, np.int32)
    if multivalued:
        codes[:, 1:] = 0
    return codes


def ranks_file(directory: Path, split: str) -> Path:
    """Where the ranks of a split lie in a directory."""
    return directory / f"ranks_{split}.npz"


def evaluation_file(directory: Path, split: str) -> Path:
    """Where the evaluation on a split lies in a directory; that on the test split has the plain name."""
    return directory / (EVALUATION if split == "test" else f"evaluation_{split}.json")


def read_evaluation(directory: Path, split: str = "test") -> dict[str, Any]:
    """What `Evaluation.write` wrote.

    Raises:
        UserError: nothing there, or nothing of that split.
    """
    path, again = evaluation_file(directory, split), f"run `tfrec evaluate {directory} --split {split}`"
    try:
        document = dict(json.loads(path.read_text("utf-8")))
        found = document["protocol"]["split"]
    except FileNotFoundError:
        raise UserError(f"{path}: not there; {again} first.") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not an evaluation; {again} again.") from None
    if found != split:
        raise UserError(f"{path}: is one of the {found} queries; {again} again.")
    return document


def read_ranks(directory: Path, split: str) -> Ranks:
    """What `Evaluation.write` wrote of the ranks.

    Raises:
        UserError: nothing there, or not readable.
    """
    path = ranks_file(directory, split)
    try:
        return Ranks.read(path)
    except FileNotFoundError:
        raise UserError(f"{path}: not there; run `tfrec evaluate {directory} --split {split}` first.") from None
    except (ValueError, TypeError, OSError, EOFError) as error:
        raise UserError(f"{path}: not readable ({error}); run `tfrec evaluate {directory}` again.") from None


__all__ = [
    "EVALUATION",
    "Evaluation",
    "Ranks",
    "check_filter_seen",
    "cut_offs",
    "deciding_metric",
    "evaluate",
    "evaluation_file",
    "ranks_file",
    "read_evaluation",
    "read_ranks",
    "recommend",
]
