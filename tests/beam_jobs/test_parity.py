"""What the job writes for every kind of feature is what a SavedModel's graph gives for the same raw values."""

import numpy as np
import polars as pl
import pytest
import tensorflow as tf

from beam_jobs.preprocess import run
from tests.beam_jobs.logs import config_of, make_items, write_logs
from tests.beam_jobs.records import read_examples
from tfrec.coders import SideCoder
from tfrec.config import parse
from tfrec.schema import Schema
from tfrec.transforms import FIRST_VALUE, read_values


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    write_logs(folder)
    return run(parse(config_of(folder, folder / "dataset")))


def raw_value(feature, value, directory):
    """A value of the log as the graph takes it."""
    if feature.vector_dim is not None:
        if feature.encoder is not None:
            return feature.encoder.encode([value], directory)[0]
        return np.full(feature.vector_dim, np.nan) if value is None else value
    if feature.weight_separator is not None:
        value = [one.partition(":")[0] for one in value or []]
    if feature.multivalued:
        return ([*(value or [])] + [""] * feature.num_codes)[: feature.num_codes]
    return (np.nan if value is None else value) if feature.kind == "numerical" else value or ""


def rows_of(rows, examples):
    return [rows[example["item_id"][0].decode()] for example in examples]


def saved(module, specs, path):
    """Signatures of a module that was written and read back."""

    signature = tf.function(lambda **inputs: module.coder(inputs), autograph=False).get_concrete_function(**specs)
    tf.saved_model.save(module, str(path), signatures=signature)
    return tf.saved_model.load(str(path)).signatures["serving_default"]


def test_items_have_the_codes_that_a_saved_model_gives(dataset, tmp_path):
    schema = Schema.read(dataset)
    module = tf.Module()
    module.coder = SideCoder(schema.side("item")[1:], dataset)
    specs = module.coder.signature()
    code = saved(module, specs, tmp_path / "saved")
    rows = {row["item_id"]: row for row in make_items()}
    examples = [one for one in read_examples(dataset, "items") if one["item_id"][0].decode() in rows]
    inputs = {}
    for name, one in module.coder.coders.items():
        column = one.feature.column
        values = [raw_value(one.feature, rows[each["item_id"][0].decode()][column], dataset) for each in examples]
        inputs[name] = tf.constant(values, specs[name].dtype)
    weights = [[float(one.partition(":")[2] or 1) for one in row["blend"] or []] for row in rows_of(rows, examples)]
    inputs["blend_weights"] = tf.constant([(one + [0.0] * 3)[:3] for one in weights], tf.float32)
    for name in ("price", "blend"):
        stored = module.coder.vectors(inputs, name).numpy()
        np.testing.assert_array_equal(stored, [example[f"vector_{name}"] for example in examples], name)
    for example, given in zip(examples, weights, strict=True):
        expected = np.array(given or [1.0]) / max(given or [1.0])
        found_weights = np.array(example["vector_blend"])
        np.testing.assert_allclose(found_weights[: len(expected)] / found_weights.max(), expected, rtol=1e-6)
    found = code(**inputs)
    assert set(found) == {feature.name for feature in schema.side("item")} - {"item_id"}
    for name, codes in found.items():
        assert codes.numpy().tolist() == [example[f"item_{name}"] for example in examples], name


LARGEST = np.finfo(float).max
NUMBERS = [
    0.0,
    -0.0,
    5e-324,
    1e300,
    -1e300,
    LARGEST,
    -LARGEST,
    None,
    np.nan,
    2.5,
    np.nextafter(2.5, 3),
    1e16 + 2,
    1 / 3,
]
TEXTS = [
    *("", " ", "a", "a ", "A", "\u00e9", "e\u0301", "\u65e5\u672c", "\U0001f600", "\u202eabc", "nan", "1", "1.0"),
    *("a\x00b", "a\tb", '"', "\\n", "a\u2028b", "a\x85b", "x" * 5000),
]


def nasty_features(side):
    numbers = [
        {"name": f"{side}_{spacing}", "bins": 4, "spacing": spacing} for spacing in ("quantile", "uniform", "log")
    ]
    numbers.append({"name": f"{side}_given", "boundaries": [-1e300, 0, 2.5]})
    if side == "i":
        numbers.append({"name": "i_standard", "bins": 3, "standardize": True})
    texts = [{"name": f"{side}_known"}, {"name": f"{side}_hashed", "hash_buckets": 11}]
    cross = {"name": f"{side}_cross", "cross": [f"{side}_known", f"{side}_quantile"], "hash_buckets": 97}
    return [
        *({"kind": "numerical", "column": "number", **one} for one in numbers),
        *({"kind": "categorical", "column": "text", **one} for one in texts),
        {"kind": "categorical", "column": "texts", "name": f"{side}_several", "multivalued": True, "max_values": 2},
        {"kind": "categorical", **cross},
    ]


def nasty_values(count):
    texts = [TEXTS[place % len(TEXTS)] for place in range(count)]
    return {
        "number": pl.Series([NUMBERS[place % len(NUMBERS)] for place in range(count)], dtype=pl.Float64),
        "text": texts,
        "texts": [texts[place : place + 2] if place % 5 else None for place in range(count)],
    }


def test_nasty_values_have_the_same_codes_on_every_side(tmp_path):
    """Each item and user has a number and a text, and each event of a user those of its item."""
    count = len(NUMBERS) * len(TEXTS)
    values = nasty_values(count)
    users, items = [f"u{place}" for place in range(count)], [f"i{place}" for place in range(count)]
    pl.DataFrame({"item_id": items, **values}).write_parquet(tmp_path / "items.parquet")
    pl.DataFrame({"user_id": users, **values}).write_parquet(tmp_path / "users.parquet")
    events = [
        pl.DataFrame({"user_id": users, "item_id": items, **values}).select(
            pl.col("user_id").shift(-step).fill_null("u0"),
            pl.exclude("user_id"),
            pl.lit(1_600_000_000 + step).alias("time"),
        )
        for step in range(3)
    ]
    pl.concat(events).write_parquet(tmp_path / "events.parquet")
    document = {
        "data": {name: {"files": [str(tmp_path / f"{name}.parquet")]} for name in ("events", "items", "users")},
        "features": {f"{name}s": nasty_features(name[0]) for name in ("event", "item", "user")},
    }
    dataset = run(parse(document | {"data": document["data"] | {"out": str(tmp_path / "dataset")}}))
    schema = Schema.read(dataset)
    names = read_values(dataset / schema.features[0].transform.file)
    place_of = {item: place for place, item in enumerate(items)}
    histories, catalogue = read_examples(dataset, "histories"), read_examples(dataset, "items")
    stored = {
        "item": [(place_of[one["item_id"][0].decode()], one) for one in catalogue],
        "user": [(int(one["user_id"][0].decode()[1:]), one) for one in histories],
        "event": [
            (place_of[names[item - FIRST_VALUE]], (one, at)) for one in histories for at, item in enumerate(one["item"])
        ],
    }
    for side, rows in stored.items():
        module = tf.Module()
        module.coder = SideCoder(schema.side(side)[1:] if side == "item" else schema.side(side), dataset)
        specs = module.coder.signature()
        inputs = {
            name: tf.constant(
                [raw_value(one.feature, values[one.feature.column][place], dataset) for place, _ in rows],
                specs[name].dtype,
            )
            for name, one in module.coder.coders.items()
        }
        if side == "item":
            standardised = [one["vector_i_standard"] for _, one in rows]
            np.testing.assert_array_equal(module.coder.vectors(inputs, "i_standard").numpy(), standardised)
        found = saved(module, specs, tmp_path / side)(**inputs)
        assert len(found) == len(schema.side(side)) - (side == "item")
        for name, codes in found.items():
            width = codes.shape[-1]
            if side == "event":
                expected = [one[f"event_{name}"][at * width : (at + 1) * width] for _, (one, at) in rows]
            else:
                expected = [one[f"{side}_{name}"] for _, one in rows]
            assert codes.numpy().tolist() == expected, name
            assert len({tuple(one) for one in expected}) > 2, name
