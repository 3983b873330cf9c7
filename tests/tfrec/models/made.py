"""A schema, a catalogue and batches in memory, for tests of models."""

import numpy as np

from tfrec.schema import Feature, Impressions, Schema, Split
from tfrec.transforms import GroupQuantiles, Vocabulary

NUM_ITEMS = 42
SIZES = {"item_id": NUM_ITEMS, "brand": 7, "tags": 9, "segment": 5, "device": 4}


def make_schema(*, has_time=True, event_types=("view", "buy"), keep_vectors=True, context=True, labels=()):
    """`labels`: of impressions, which have positions too; a ranking model needs at least one."""

    def vocabulary(name):
        return Vocabulary(file=f"vocabularies/{name}.txt", size=SIZES[name])

    def categorical(name, side, **more):
        return Feature(name=name, side=side, kind="categorical", column=name, transform=vocabulary(name), **more)

    quantiles = GroupQuantiles(file="a.npz", groups=2, dims_per_group=2, quantiles=3, input_dim=6)
    features = [
        categorical("item_id", "item"),
        categorical("brand", "item"),
        categorical("tags", "item", multivalued=True, num_codes=2),
        Feature(
            name="image",
            side="item",
            kind="multimodal",
            column="image",
            transform=quantiles,
            num_codes=2,
            keep_vectors=keep_vectors,
        ),
    ]
    if context:
        features += [categorical("segment", "user"), categorical("device", "event")]
    return Schema(
        features=tuple(features),
        event_types=event_types,
        has_time=has_time,
        max_events=100,
        repeats="keep",
        split=Split(kind="leave_one_out"),
        impressions=Impressions(labels=labels, has_positions=True) if labels else None,
        counts={"users": 64, "items": NUM_ITEMS - 2, "events": 900, "train_events": 900, "impressions": 0},
    )


def with_weights(schema):
    """The same with weights of tags."""
    tags = schema.feature("tags").model_copy(update={"weight_separator": ":"})
    features = tuple(tags if feature.name == "tags" else feature for feature in schema.features)
    return schema.model_copy(update={"features": features})


def make_catalogue():
    rng = np.random.default_rng(0)
    codes = np.concatenate(
        [
            np.arange(NUM_ITEMS)[:, None],
            rng.integers(2, SIZES["brand"], (NUM_ITEMS, 1)),
            rng.integers(0, SIZES["tags"], (NUM_ITEMS, 2)),
            rng.integers(2, 11, (NUM_ITEMS, 2)),
        ],
        axis=1,
    ).astype(np.int32)
    codes[0], codes[1, 1:] = 0, 1
    vectors = {"image": rng.normal(size=(NUM_ITEMS, 6)).astype(np.float16)}
    return codes, np.arange(NUM_ITEMS) * 3, vectors


def make_batch(schema, rows, length, seed=0):
    """A training batch: users walk round the catalogue in steps of three, so that the last item tells the next."""
    rng = np.random.default_rng(seed)
    places = np.arange(length + 1)
    valid = places[None] < rng.integers(4, length + 2, rows)[:, None]
    walk = (rng.integers(0, NUM_ITEMS - 2, (rows, 1)) + 3 * places) % (NUM_ITEMS - 2) + 2
    batch = {"item": walk, "session": 1 + places[None] // 4 + 0 * walk}
    if schema.has_time:
        batch["time"] = np.cumsum(rng.integers(1, 10 ** rng.integers(1, 6, walk.shape)), axis=1)
    if schema.event_types:
        batch["event_type"] = rng.integers(2, 2 + len(schema.event_types), walk.shape)
    for feature in schema.side("event"):
        batch[f"event_{feature.name}"] = rng.integers(2, SIZES[feature.name], walk.shape)
    batch = {key: np.where(valid, value, 0).astype(np.int32) for key, value in batch.items()}
    for feature in schema.side("user"):
        batch[f"user_{feature.name}"] = rng.integers(2, SIZES[feature.name], rows).astype(np.int32)
    return {**batch, "target_mask": valid}


def make_query(schema, rows=6, length=8, seed=0):
    """An evaluation batch of the same users."""
    batch = make_batch(schema, rows, length, seed)
    query = {key: value if key.startswith("user_") else value[:, :-1] for key, value in batch.items()}
    if schema.has_time:
        query["request_time"] = query["time"].max(axis=1) + np.arange(rows, dtype=np.int32) * 50_000
    return query


def make_ranking_batch(schema, rows, length, candidates, seed=0, *, by_user=False):
    """A ranking batch: of a row's candidates some come next in its user's walk, which is the first label.

    A further label holds of every other item that the first one holds of. The last candidates of most rows are padding.
    Positions are from 1 on; the first user has no history. `by_user`: the candidates of a row stand behind different
    numbers of its events, some behind none; else behind all of them.
    """
    rng = np.random.default_rng([seed, 1])
    made = make_batch(schema, rows, length, seed)
    following = made["item"]
    batch = {key: value if key.startswith("user_") else value[:, :-1] for key, value in made.items()}
    del batch["target_mask"]
    batch["item"] = batch["item"] * (following[:, 1:] != 0)
    batch["item"][0] = 0
    events = (batch["item"] != 0).sum(axis=1)
    for key in ("time", "session", "event_type", *(f"event_{feature.name}" for feature in schema.side("event"))):
        if key in batch:
            batch[key] = batch[key] * (batch["item"] != 0)
    shape = (rows, candidates)
    real = np.arange(candidates) < rng.integers(1, candidates + 1, rows)[:, None]
    before = np.tile(events[:, None], candidates)
    if by_user:
        before = np.sort(rng.integers(0, before + 1), axis=1)
    comes_next = rng.random(shape) < 0.5
    item = np.where(comes_next, np.take_along_axis(following, before, axis=1), rng.integers(2, NUM_ITEMS, shape))
    batch["candidate"] = np.where(real, item, 0).astype(np.int32)
    batch["candidate_history"] = np.where(real, before, 0).astype(np.int32)
    batch["candidate_position"] = np.where(real, np.arange(candidates) + 1, 0).astype(np.int32)
    batch["candidate_weight"] = real.astype(np.float32)
    if schema.has_time:
        last = np.take_along_axis(batch["time"], np.maximum(before - 1, 0), axis=1)
        batch["candidate_time"] = np.where(real, np.where(before > 0, last, 0) + 30, 0).astype(np.int32)
    for place, label in enumerate(schema.impressions.labels):
        holds = comes_next & ((place == 0) | (item % 2 == 0)) & real
        batch[f"candidate_label_{label}"] = holds.astype(np.float32)
    return batch
