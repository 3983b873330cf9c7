"""A small made-up dataset directory, as `tfrec preprocess` writes one, for tests that start behind preprocessing.

Items stand on a ring. A user starts somewhere and mostly steps to the next item, so the last item of a history says
which comes next; categories and image vectors are neighbourhoods of the ring, brand and price are noise. The files are
written with plain TensorFlow; where it is missing, `write_cache` writes the column cache alone.
"""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.impressions import LABELS, make_impressions
from tests.side_features import EVENT_TYPES, MOOD, counted, side_features_of
from tfrec import columns as column_cache
from tfrec.columns import Catalogue, Histories, Impressions
from tfrec.manifest import write_json, write_manifest
from tfrec.schema import Feature, Label, Schema, Split
from tfrec.schema import Impressions as ImpressionColumns
from tfrec.transforms import (
    Bins,
    GroupQuantiles,
    Standard,
    Vocabulary,
    write_arrays,
    write_values,
)

TIME_ORIGIN = 1_600_000_000 - 1_600_000_000 % 86_400
_VECTOR_DIM = 8
_SESSION_GAP = 1800


@dataclass
class Made:
    """What the directory was made of, for tests that compare what was read with it."""

    schema: Schema
    item_ids: list[str]
    codes: np.ndarray
    train_count: np.ndarray
    vectors: np.ndarray
    titles: list[str]
    users: list[dict[str, Any]] = field(default_factory=list)


def make_dataset(
    directory: Path,
    *,
    users: int = 60,
    items: int = 40,
    seed: int = 0,
    has_time: bool = True,
    has_sessions: bool = True,
    has_event_types: bool = True,
    target_event_types: tuple[str, ...] | None = None,
    split: str = "leave_one_out",
    validation: bool = True,
    repeats: str = "first",
    min_events: int = 1,
    max_events: int = 20,
    side_features: bool = False,
    impressions: bool = False,
    follow: float = 0.85,
    files: int = 2,
    write_cache: bool = False,
) -> Path:
    """Writes a dataset directory and returns it.

    Args:
        directory: where; created.
        users: number of users.
        items: items of the catalogue (codes 2 .. items + 1).
        seed: of everything.
        has_time: write `time`.
        has_sessions: write `session`.
        has_event_types: write `event_type`, three views to a purchase.
        target_event_types: the types that are predicted; None = all.
        split: leave_one_out, temporal or last_fraction.
        validation: leave_one_out: whether there is a validation event.
        repeats: `first`: a user sees an item once; `keep`: items may come again.
        min_events: of a user, at least.
        max_events: of a user, at most (at most `items` without repeats).
        side_features: also a user feature `segment` and `tags` (with weights), event features `topics` (likewise),
            `device`, `network` (hashed), `mood` (their cross) and `again` (a counter of the brand's earlier purchases),
            a label `liked`, and standardised values of items' prices.
        impressions: also requests of one to five candidates before some events, with labels `click` (the event's item)
            and `cart` (sometimes unknown), weights, positions and requests, of which some have no number.
        follow: share of steps to the next item of the ring.
        files: history files.
        write_cache: also write the column cache, from which NumPy alone reads.
    """
    made = make(
        users=users,
        items=items,
        seed=seed,
        options={
            "has_time": has_time,
            "has_sessions": has_sessions,
            "has_event_types": has_event_types,
            "target_event_types": target_event_types,
            "split": split,
            "validation": validation,
            "repeats": repeats,
            "min_events": min_events,
            "max_events": max_events,
            "side_features": side_features,
            "impressions": impressions,
            "follow": follow,
        },
        directory=directory,
    )
    has_tensorflow = importlib.util.find_spec("tensorflow") is not None
    if not has_tensorflow and not write_cache:
        raise RuntimeError("Without TensorFlow a dataset can only be made with `write_cache=True`.")
    records = _write_records(directory, made, files) if has_tensorflow else {}
    write_json(directory / "statistics.json", {"users": users, "items": items})
    write_manifest(directory, {"format_version": 1}, records)
    if write_cache:
        _write_cache(directory, made, files)
    return directory


def make(*, users: int, items: int, seed: int, options: Mapping[str, Any], directory: Path) -> Made:
    """Makes the content; writes the schema, vocabularies and artefacts into `directory`."""
    rng = np.random.default_rng(seed)
    directory.mkdir(parents=True, exist_ok=True)
    ring = np.arange(items)
    histories = [_history(rng, user, items, options) for user in range(users)]
    counts = np.zeros(items, np.int64)
    for history in histories:
        np.add.at(counts, history["place"][history["split"] == 0], 1)
    names = [f"item-{place:03d}" for place in ring]
    order = sorted(ring, key=lambda place: (-counts[place], names[place]))  # codes by falling count, ties by value
    code_of = np.empty(items, np.int64)
    code_of[order] = np.arange(2, items + 2)
    for history in histories:
        history["item"] = code_of[history.pop("place")]
        if options.get("impressions"):
            history |= make_impressions(rng, history, items)
    schema = _schema(rng, directory, [names[place] for place in order], histories, options)
    vectors = _vectors(rng, np.array(order), items)
    codes = _item_codes(rng, schema, directory, np.array(order), vectors)
    for history in histories if options["side_features"] else ():
        history["event_again"] = counted(schema, history, codes[history["item"], 1])
    return Made(
        schema=schema,
        item_ids=["", "", *(names[place] for place in order)],
        codes=codes,
        train_count=np.concatenate([[0, 0], counts[order]]),
        vectors=np.concatenate([np.zeros((2, _VECTOR_DIM)), vectors]).astype(np.float32),
        titles=["", "", *(f"Title of {names[place]}" for place in order)],
        users=histories,
    )


def _history(rng: np.random.Generator, user: int, items: int, options: Mapping[str, Any]) -> dict[str, Any]:
    keep = options["repeats"] == "keep"
    longest = options["max_events"] if keep else min(options["max_events"], items)
    length = int(rng.integers(options["min_events"], longest + 1))
    places: list[int] = [int(rng.integers(items))]
    while len(places) < length:
        place = (places[-1] + 1) % items if rng.random() < options["follow"] else int(rng.integers(items))
        while not keep and place in places:
            place = int(rng.integers(items))
        places.append(place)
    gaps = np.where(rng.random(length) < 0.3, rng.integers(7_200, 90_000, length), rng.integers(0, 600, length))
    time = np.cumsum(gaps)
    types = np.where(rng.random(length) < 0.75, 2, 3)
    history = {
        "user_id": f"user-{user:04d}",
        "place": np.array(places),
        "time": time,
        "event_type": types,
        "session": 1 + np.cumsum(np.diff(time, prepend=time[0]) > _SESSION_GAP),
        "split": np.zeros(length, np.int64),
        "event_device": rng.integers(2, 4, length),
        "label_liked": (rng.random(length) < 0.5).astype(np.int64),
        "user_segment": rng.integers(1, 5, 1),
        "user_tags": np.sort(rng.choice(np.arange(2, 6), 2, replace=False)),
        "user_tags_weights": np.array([0.5, (1 + user % 7) / 8, 0.0], np.float32),
        "event_topics": np.stack([2 + time % 2, 3 - time % 2], axis=1),
        "event_topics_weights": np.stack([np.full(length, 0.5), (1 + time % 3) / 4], axis=1).astype(np.float32),
    }
    history["event_network"] = 2 + time % 4
    history["event_mood"] = MOOD.encode_codes(history["event_device"], history["event_network"])
    _set_split(history, options)
    return history


def _set_split(history: dict[str, Any], options: Mapping[str, Any]) -> None:
    names = options["target_event_types"] if options["has_event_types"] else None
    wanted = [EVENT_TYPES.index(name) + 2 for name in names] if names else [2, 3]
    targets = np.flatnonzero(np.isin(history["event_type"], wanted))
    split, length = history["split"], len(history["split"])
    if options["split"] == "leave_one_out":
        if len(targets) >= 3:
            if options["validation"]:
                split[targets[-2] :] = 1
            split[targets[-1] :] = 2
    elif options["split"] == "temporal":
        split[history["time"] >= 150_000] = 1
        split[history["time"] >= 220_000] = 2
    else:
        split[int(length * 0.8) :] = 1
        split[int(length * 0.9) :] = 2


def _schema(
    rng: np.random.Generator,
    directory: Path,
    item_ids: Sequence[str],
    histories: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
) -> Schema:
    def vocabulary(name: str, values: Sequence[str]) -> Vocabulary:
        write_values(directory / f"vocabularies/{name}.txt", values)
        return Vocabulary(file=f"vocabularies/{name}.txt", size=len(values) + 2)

    quantizer = GroupQuantiles(
        file="artifacts/image.npz", groups=2, dims_per_group=2, quantiles=3, input_dim=_VECTOR_DIM
    )
    features = [
        Feature(
            name="item_id",
            side="item",
            kind="categorical",
            column="item_id",
            transform=vocabulary("item_id", item_ids),
        ),
        Feature(
            name="brand",
            side="item",
            kind="categorical",
            column="brand",
            transform=vocabulary("brand", [f"brand-{n}" for n in range(5)]),
        ),
        Feature(
            name="categories",
            side="item",
            kind="categorical",
            column="categories",
            transform=vocabulary("categories", [f"category-{n}" for n in range(6)]),
            multivalued=True,
            separator="|",
            num_codes=3,
        ),
        Feature(
            name="price",
            side="item",
            kind="numerical",
            column="price",
            transform=Bins(boundaries=(1.0, 5.0, 20.0)),
            standard=Standard(mean=10.0, deviation=8.0) if options["side_features"] else None,
        ),
        Feature(
            name="image",
            side="item",
            kind="multimodal",
            column="image",
            transform=quantizer,
            num_codes=2,
            keep_vectors=True,
        ),
    ]
    if options["side_features"]:
        features += side_features_of(vocabulary, options)
    write_arrays(
        directory / quantizer.file,
        {
            "mean": np.zeros(_VECTOR_DIM, np.float32),
            "rotation": np.linalg.qr(rng.normal(size=(_VECTOR_DIM, 4)))[0].astype(np.float32),
            "edges": np.tile(np.array([-0.3, 0.3], np.float32), (4, 1)),
        },
    )
    splits = np.concatenate([history["split"] for history in histories])
    schema = Schema(
        features=tuple(features),
        event_types=EVENT_TYPES if options["has_event_types"] else (),
        target_event_types=options["target_event_types"] if options["has_event_types"] else None,
        labels=tuple(_labels(options)),
        impressions=ImpressionColumns(labels=LABELS, has_positions=True, has_requests=True, has_weights=True)
        if options.get("impressions")
        else None,
        display=("title",),
        title="title",
        has_time=options["has_time"],
        has_sessions=options["has_sessions"],
        session_gap_seconds=_SESSION_GAP if options["has_sessions"] and options["has_time"] else None,
        time_origin=TIME_ORIGIN,
        max_events=10_000,
        repeats=options["repeats"],
        split=_split(options),
        counts={
            "users": len(histories),
            "items": len(item_ids),
            "events": len(splits),
            "train_events": int((splits == 0).sum()),
            "impressions": sum(len(history.get("impression_item", ())) for history in histories),
        },
    )
    schema.write(directory)
    return schema


def _labels(options: Mapping[str, Any]) -> Iterator[Label]:
    if options["side_features"]:
        yield Label(name="liked", column="rating", operator=">=", value=4.0)
    if options.get("impressions"):
        yield Label(name="click", column="click", operator="==", value=1.0)
        yield Label(name="cart", column="cart", operator="==", value=1.0)


def _split(options: Mapping[str, Any]) -> Split:
    kind = options["split"]
    if kind == "temporal":
        return Split(kind=kind, validation_from=TIME_ORIGIN + 150_000, test_from=TIME_ORIGIN + 220_000)
    return Split(kind=kind, validation=options["validation"], fraction=0.1 if kind == "last_fraction" else None)


def _vectors(rng: np.random.Generator, places: np.ndarray, items: int) -> np.ndarray:
    """Unit-scale vectors: neighbours on the ring are near each other."""
    angles = 2 * np.pi * places / items
    waves = [f(angles * n) for n in (1, 2, 3, 4) for f in (np.sin, np.cos)]
    return np.stack(waves, axis=1) + rng.normal(scale=0.1, size=(len(places), _VECTOR_DIM))


def _item_codes(
    rng: np.random.Generator, schema: Schema, directory: Path, places: np.ndarray, vectors: np.ndarray
) -> np.ndarray:
    columns = schema.item_columns()
    codes = np.zeros((len(places) + 2, max(part.stop for part in columns.values())), np.int64)
    codes[1] = 1
    codes[1, columns["categories"]] = [1, 0, 0]
    codes[:, 0] = np.arange(len(codes))
    brands = rng.integers(-1, 5, len(places))
    codes[2:, columns["brand"]] = np.where(brands < 0, 1, brands + 2)[:, None]
    first = places * 6 // len(places)
    second = np.where(rng.random(len(places)) < 0.5, (first + 1) % 6 + 2, 0)
    codes[2:, columns["categories"]] = np.stack([first + 2, second, np.zeros_like(first)], axis=1)
    prices = np.where(rng.random(len(places)) < 0.1, np.nan, rng.lognormal(1.5, 1.0, len(places)))
    codes[2:, columns["price"]] = schema.feature("price").transform.encode(prices, directory)[:, None]
    codes[2:, columns["image"]] = schema.feature("image").transform.encode(vectors.astype(np.float32), directory)
    return codes


def _write_records(directory: Path, made: Made, files: int) -> dict[str, int]:
    import tensorflow as tf

    def write(name: str, examples: Sequence[Mapping[str, Any]]) -> None:
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        with tf.io.TFRecordWriter(str(path)) as writer:
            for example in examples:
                writer.write(_example(tf, example).SerializeToString(deterministic=True))
        records[name] = len(examples)

    records: dict[str, int] = {}
    write("items/items-00000-of-00001.tfrecord", list(_item_examples(made)))
    for number in range(files):
        name = f"histories/histories-{number:05d}-of-{files:05d}.tfrecord"
        write(name, [_user_example(made.schema, user) for user in made.users[number::files]])
    return records


def _example(tf: Any, values: Mapping[str, Any]) -> Any:
    features = {}
    for name, value in values.items():
        if isinstance(value, str):
            features[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[value.encode()]))
        elif np.asarray(value).dtype.kind == "f":
            features[name] = tf.train.Feature(float_list=tf.train.FloatList(value=np.ravel(value)))
        else:
            features[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=np.ravel(value)))
    return tf.train.Example(features=tf.train.Features(feature=features))


def _item_examples(made: Made) -> Iterator[dict[str, Any]]:
    for item in range(2, len(made.item_ids)):
        example = {
            "item_id": made.item_ids[item],
            "item": item,
            "train_count": made.train_count[item],
            "display_title": made.titles[item],
            "vector_image": made.vectors[item],
        }
        if made.schema.feature("price").standard is not None:
            example["vector_price"] = _standard_prices(made)[item]
        for name, part in made.schema.item_columns().items():
            if name != "item_id":
                example[f"item_{name}"] = made.codes[item, part]
        yield example


def _standard_prices(made: Made) -> np.ndarray:
    """Of each item the standardised price, one of 0.5, 3, 12 and 30 by its bin; 0 where it is missing."""
    prices = np.array([10.0, 10.0, 0.5, 3.0, 12.0, 30.0])[made.codes[:, made.schema.item_columns()["price"]][:, 0]]
    return ((prices - 10) / 8).astype(np.float16)


def _user_example(schema: Schema, user: Mapping[str, Any]) -> dict[str, Any]:
    example = {"user_id": user["user_id"], "item": user["item"], "split": user["split"]}
    if schema.has_time:
        example["time"] = user["time"]
    if schema.has_sessions:
        example["session"] = user["session"]
    if schema.event_types:
        example["event_type"] = user["event_type"]
    example |= {name: values for name, values in user.items() if name.startswith("impression_")}
    if not schema.has_time:
        example.pop("impression_time", None)
    if schema.side("user"):
        tags = np.zeros(3, np.int64)
        tags[: len(user["user_tags"])] = user["user_tags"]
        example |= {
            **{name: user[name] for name in ("event_device", "event_network", "event_mood", "event_again")},
            **{name: user[name] for name in ("event_topics", "event_topics_weights", "user_tags_weights")},
            "label_liked": user["label_liked"],
            "user_segment": user["user_segment"],
            "user_tags": tags,
        }
    return example


def _write_cache(directory: Path, made: Made, files: int) -> None:
    users = [user for number in range(files) for user in made.users[number::files]]  # the order of the files
    examples = [_user_example(made.schema, user) for user in users]
    names = sorted(set(examples[0]) - {"user_id", "user_segment", "user_tags", "user_tags_weights"})
    shown = [name for name in names if name.startswith("impression_")]
    names = [name for name in names if name not in shown]
    floats = ("impression_weight", "event_topics_weights")
    types = {name: np.float32 if name in floats else np.int32 for name in names}
    columns = {name: np.concatenate([example[name] for example in examples]).astype(types[name]) for name in names}
    for feature in made.schema.side("event"):
        columns[f"event_{feature.name}"] = columns[f"event_{feature.name}"].reshape(-1, feature.num_codes)
    histories = Histories(
        offsets=np.cumsum([0, *(len(user["item"]) for user in users)]),
        user_ids=[user["user_id"] for user in users],
        columns=columns,
        user={
            feature.name: np.stack([example[f"user_{feature.name}"] for example in examples]).astype(np.int32)
            for feature in made.schema.side("user")
        }
        | {
            f"{feature.name}_weights": np.stack([example[f"user_{feature.name}_weights"] for example in examples])
            for feature in made.schema.weighted("user")
        },
        impressions=Impressions(
            np.cumsum([0, *(len(example["impression_item"]) for example in examples)]),
            {
                name.removeprefix("impression_"): np.concatenate([one[name] for one in examples]).astype(
                    np.float32 if name == "impression_weight" else np.int32
                )
                for name in shown
            },
        )
        if shown
        else None,
    )
    catalogue = Catalogue(
        codes=made.codes.astype(np.int32),
        train_count=made.train_count,
        retired=np.zeros(len(made.train_count), np.bool_),
        vectors={
            "image": made.vectors.astype(np.float16),
            **({"price": _standard_prices(made)[:, None]} if made.schema.feature("price").standard is not None else {}),
        },
        item_ids=made.item_ids,
        display={"title": made.titles},
    )
    column_cache.write_cache(directory, catalogue, histories)
