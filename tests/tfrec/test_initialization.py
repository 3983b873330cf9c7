import dataclasses
import json
import math

import keras
import numpy as np
import pytest

from tests.checks import seed_weights
from tests.datasets import make_dataset
from tfrec.config import parse
from tfrec.data import Dataset
from tfrec.errors import UserError
from tfrec.initialization import code_sets, initialize
from tfrec.manifest import fingerprint, write_json
from tfrec.runs import build_model, load_run
from tfrec.training import train

MODEL = {"name": "sasrec", "embedding_dim": 8, "num_blocks": 1, "history_length": 8, "item_features": "all"}


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("old") / "data", items=30)


@pytest.fixture(scope="module")
def trained(old, tmp_path_factory):
    return train(configure(old, epochs=1, learning_rate=0.05), tmp_path_factory.mktemp("runs") / "old", progress=False)


@pytest.fixture(scope="module")
def grown(old, tmp_path_factory):
    return grow(old, tmp_path_factory.mktemp("grown") / "data")


def grow(old, directory, *refitted, ancestor=None):
    """A larger dataset whose manifest says that it grew from the other; what its ids mean does not matter here."""
    make_dataset(directory, items=45, seed=1)
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["lineage"] = [{"dataset": ancestor or fingerprint(old), "refitted": list(refitted)}]
    write_json(directory / "manifest.json", manifest)
    return directory


def configure(data, *, model=None, objective=None, features=None, **training):
    document = {
        "data": {"out": str(data)},
        "model": {**MODEL, **(model or {})},
        "training": {"epochs": 1, "batch_size": 16, **training},
        "evaluation": {"ks": [5]},
    }
    return parse(document if objective is None else {**document, "objective": objective})


def weights(model):
    return {variable.path: keras.ops.convert_to_numpy(variable) for variable in model.trainable_weights}


def started(data, source, *, catalogue=None, **settings):
    """Fresh and initialised weights of a model on a dataset."""
    config, dataset = configure(data, **settings), Dataset.open(data)
    if catalogue is not None:
        dataset._catalogue = dataclasses.replace(dataset.catalogue(), **catalogue)
    seed_weights(7)
    model = build_model(config, dataset)
    fresh = weights(model)
    initialize(model, config, dataset, source)
    return fresh, weights(model), dataset


def content_of(dataset):
    """Of each item its codes as a dictionary of weights, log(items / items that have the code)."""
    catalogue, columns = dataset.catalogue(), dataset.schema.item_columns()
    values = []
    for codes in catalogue.codes:
        own = set()
        for name, part in columns.items():
            if name != "item_id":
                own |= {
                    (name, place if name == "image" else 0, int(code))
                    for place, code in enumerate(codes[part])
                    if code > 1
                }
        values.append(own)
    count = {value: sum(value in own for own in values) for value in set().union(*values)}
    return [{value: math.log(len(values) / count[value]) for value in own} for own in values]


def cosine(left, right):
    product = sum(left[value] * right[value] for value in left.keys() & right.keys())
    lengths = [math.sqrt(sum(weight**2 for weight in each.values())) for each in (left, right)]
    return product / (lengths[0] * lengths[1]) if all(lengths) else 0.0


def test_trained_rows_stay_and_new_items_start_like_their_neighbours(trained, grown):
    before = weights(load_run(trained).model)
    _, after, dataset = started(grown, trained)
    table = "user_encoder/embedder/tokens/item_id_table/embeddings"
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name][: len(value)], value, err_msg=name)
        assert (len(after[name]) > len(value)) == (name == table)
    content, count = content_of(dataset), dataset.catalogue().train_count
    assert len(after[table]) == 47
    for item in range(32, 47):
        likeness = {old: cosine(content[item], content[old]) for old in range(2, 32) if count[old] > 0}
        nearest = sorted(likeness, key=lambda old: (-likeness[old], old))[:10]
        total = sum(likeness[old] for old in nearest)
        expected = sum(likeness[old] * before[table][old] for old in nearest) / total
        np.testing.assert_allclose(after[table][item], expected, rtol=1e-4, atol=1e-6)


def test_content_is_a_unit_vector_of_codes(grown):
    dataset = Dataset.open(grown)
    found = code_sets(dataset.catalogue(), dataset.schema).toarray()
    content = content_of(dataset)
    np.testing.assert_allclose(
        found @ found.T, [[cosine(left, right) for right in content] for left in content], atol=1e-5
    )


def test_items_that_are_like_none_start_at_the_mean_and_forgotten_ones_anew(trained, grown):
    catalogue = Dataset.open(grown).catalogue()
    codes, ids = catalogue.codes.copy(), list(catalogue.item_ids)
    codes[40, 1:] = 0
    ids[5] = ""
    fresh, after, _ = started(grown, trained, catalogue={"codes": codes, "item_ids": ids})
    before = weights(load_run(trained).model)
    table = "user_encoder/embedder/tokens/item_id_table/embeddings"
    np.testing.assert_allclose(after[table][40], before[table][2:].mean(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(after[table][5], fresh[table][5])
    np.testing.assert_array_equal(after[table][[4, 6]], before[table][[4, 6]])


def test_tables_of_refitted_features_stay_fresh(trained, old, tmp_path):
    directory = grow(old, tmp_path / "data", "brand", "price")
    before = weights(load_run(trained).model)
    fresh, after, _ = started(directory, trained)
    for name, value in after.items():
        refitted = "brand_table" in name or "price_table" in name
        np.testing.assert_array_equal(value[: len(before[name])], fresh[name] if refitted else before[name])


def test_a_training_begins_there(trained, grown, tmp_path):
    config = configure(grown, learning_rate=1e-12, initialize_from=str(trained))
    run = load_run(train(config, tmp_path / "run", progress=False))
    before = weights(load_run(trained).model)
    for name, value in weights(run.model).items():
        np.testing.assert_allclose(value[: len(before[name])], before[name], atol=1e-6, err_msg=name)


def test_what_does_not_fit_is_one_line(trained, old, grown, tmp_path):
    stranger = grow(old, tmp_path / "stranger", ancestor="of another")
    with pytest.raises(
        UserError, match=r"stranger did not grow from the dataset that .*old was trained on, so its ids"
    ):
        started(stranger, trained)
    with pytest.raises(UserError, match=r"old has \(8,\) for `user_encoder/block_0/.*`, this model nothing"):
        started(grown, trained, model={"num_blocks": 0})
    with pytest.raises(UserError, match=r"has \(8,\) for `user_encoder/block_0/.*`, this model \(16,\)"):
        started(grown, trained, model={"embedding_dim": 16})
    with pytest.raises(UserError, match="is a run of sasrec, this is one of hstu"):
        started(grown, trained, model={"name": "hstu"})
    with pytest.raises(UserError, match=r"nowhere: no run there"):
        started(grown, tmp_path / "nowhere")
