"""Ranking batches in memory, for tests of models."""

import numpy as np

from tests.tfrec.models.made import SIZES, make_batch, make_schema
from tfrec.schema import Label

LABELS = ("click", "buy")


def make_ranking_schema(**options):
    labels = tuple(Label(name=name, column=name, operator="==", value=1) for name in LABELS)
    return make_schema(**options).model_copy(update={"labels": labels, "has_impressions": True})


def make_rows(schema, rows=6, length=8, candidates=5, seed=0, *, group="user"):
    """Ranking rows whose labels the candidate's and the last event's items tell.

    With `group="user"` candidates stand all over the history, else after it.
    """
    rng = np.random.default_rng(seed)
    events = make_batch(schema, rows, length, seed)
    batch = {key: value if key.startswith("user_") else value[:, :-1] for key, value in events.items()}
    del batch["target_mask"]
    counts = (batch["item"] > 0).sum(axis=1, keepdims=True)
    shape = (rows, candidates)
    before = rng.integers(0, counts + 1, shape) if group == "user" else np.broadcast_to(counts, shape)
    real = np.arange(candidates) < rng.integers(2, candidates + 1, (rows, 1))
    candidate = rng.integers(2, SIZES["item_id"], shape)
    last = np.take_along_axis(batch["item"], np.maximum(before - 1, 0), axis=1) * (before > 0)
    batch |= {"candidate": candidate, "candidate_history": before, "candidate_position": 1 + 0 * candidate}
    batch["candidate_position"] = 1 + np.arange(candidates) + 0 * candidate
    if schema.has_time:
        stamps = np.concatenate([np.zeros((rows, 1), np.int32), batch["time"]], axis=1)
        batch["candidate_time"] = np.take_along_axis(stamps, before, axis=1) + rng.integers(0, 4000, shape)
    batch = {
        key: np.where(real, value, 0).astype(np.int32) if key.startswith("candidate") else value
        for key, value in batch.items()
    }
    for name, rule in (("click", (candidate + last) % 2), ("buy", candidate % 3 == 0)):
        batch[f"candidate_label_{name}"] = (rule * real).astype(np.float32)
    batch["candidate_weight"] = real.astype(np.float32)
    return batch
