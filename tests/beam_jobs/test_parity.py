"""What the job writes for every kind of feature is what a SavedModel's graph gives for the same raw values."""

import numpy as np
import pytest
import tensorflow as tf

from beam_jobs.preprocess import run
from tests.beam_jobs.logs import config_of, make_items, write_logs
from tests.beam_jobs.records import read_examples
from tfrec.coders import SideCoder
from tfrec.config import parse
from tfrec.schema import Schema


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
