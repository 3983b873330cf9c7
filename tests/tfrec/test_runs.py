import json
from collections import Counter

import numpy as np
import pytest
from keras import ops

from tests.datasets import make_dataset
from tfrec.config import parse
from tfrec.data import Batches, Dataset
from tfrec.errors import UsageError, UserError
from tfrec.runs import Run, build_model, load_run, save_run, start_run

pytestmark = [
    pytest.mark.jax,
    # Keras' Variable takes no `copy` argument in __array__, which NumPy 2 asks for when weights are copied.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]


@pytest.fixture
def run(tmp_path):
    path = make_dataset(tmp_path / "shop", users=20, write_cache=True)
    config = parse(
        {
            "data": {"out": str(path)},
            "model": {"name": "sasrec", "embedding_dim": 8, "num_blocks": 1, "history_length": 10},
        }
    )
    dataset = Dataset.open(path)
    start_run(tmp_path / "run", config, dataset)
    return Run(tmp_path / "run", config, dataset.schema, dataset, build_model(config, dataset))


def encode(run):
    query = Batches(run.schema, run.dataset.histories(), "test", history_length=10, batch_size=4)[0]
    return ops.convert_to_numpy(run.model.encode_users(query))


def test_loaded_run_encodes_as_the_saved_one(run):
    save_run(run, {"epochs": 3})
    loaded = load_run(run.directory)
    np.testing.assert_array_equal(encode(loaded), encode(run))
    assert np.abs(encode(run)).sum() > 0
    assert loaded.config == run.config
    assert loaded.schema == run.schema
    assert json.loads((run.directory / "run.json").read_text())["epochs"] == 3


def test_negatives_are_corrected_by_the_targets_among_views_and_purchases(tmp_path):
    path = make_dataset(tmp_path / "shop", repeats="keep", target_event_types=("purchase",), write_cache=True)
    dataset = Dataset.open(path)
    objective = {"name": "in_batch_softmax", "num_negatives": 16}
    model = {"name": "sasrec", "embedding_dim": 8, "num_blocks": 1, "history_length": 10}
    made = build_model(parse({"data": {"out": str(path)}, "model": model, "objective": objective}), dataset)

    columns, purchase = dataset.histories().columns, 2 + dataset.schema.event_types.index("purchase")
    events = zip(columns["item"], columns["event_type"], columns["split"], strict=True)
    bought = Counter(int(item) for item, kind, split in events if kind == purchase and split == 0)
    batch = Batches(dataset.schema, dataset.histories(), "train", history_length=10, batch_size=8)[0]
    prepared = made.objective.prepare(batch, np.random.default_rng(0))
    drawn = zip(prepared["unique_item"].tolist(), prepared["unique_log_probability"].tolist(), strict=True)
    found = {item: value for item, value in drawn if item > 1}
    assert set(found) <= set(bought)
    assert found == pytest.approx({item: np.log(bought[item] / bought.total()) for item in found}, rel=1e-5)
    assert bought.total() < dataset.catalogue().train_count.sum()
    counts = ops.convert_to_numpy(made.item_table.train_count(np.arange(2, 42)))
    np.testing.assert_array_equal(counts, dataset.catalogue().train_count[2:])  # popularity counts views too


def test_dataset_that_moved_is_found_by_data(run):
    save_run(run, {})
    moved = run.dataset.directory.rename(run.directory.parent / "moved")
    with pytest.raises(UserError, match="no dataset there"):
        load_run(run.directory)
    np.testing.assert_array_equal(encode(load_run(run.directory, data=moved)), encode(run))


def test_dataset_that_changed_since_training_is_refused(run):
    save_run(run, {})
    other = make_dataset(run.directory.parent / "other", users=20, seed=9, write_cache=True)
    with pytest.raises(UserError, match=r"other: not the dataset that .*run was trained on.*`--data`"):
        load_run(run.directory, data=other)


def test_unfinished_run_says_how_to_go_on(run):
    with pytest.raises(UserError, match="not finished; run the same `tfrec train` again"):
        load_run(run.directory)


def test_no_run_there(tmp_path):
    with pytest.raises(UserError, match=r"no run there \(run\.json is missing\); `tfrec train`"):
        load_run(tmp_path)


@pytest.mark.parametrize("name", ["config.yaml", "schema.json", "model.weights.h5"])
def test_missing_file_is_named(run, name):
    save_run(run, {})
    (run.directory / name).unlink()
    with pytest.raises(UserError, match=f"{name}: missing"):
        load_run(run.directory)


def test_weights_cut_short_are_refused(run):
    save_run(run, {})
    weights = run.directory / "model.weights.h5"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.weights\.h5: not the weights that run\.json names"):
        load_run(run.directory)


def test_damaged_or_foreign_record_is_refused(run):
    (run.directory / "run.json").write_text('{"format_version": 99}')
    with pytest.raises(UserError, match=r"format version 99, this tfrec reads 1"):
        load_run(run.directory)
    (run.directory / "run.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        load_run(run.directory)


def test_what_is_done_with_a_run_can_be_set(run):
    save_run(run, {})
    loaded = load_run(run.directory, overrides=["evaluation.ks=[3, 7]", "export.k=5", "index.kind=scann"])
    assert (loaded.config.evaluation.ks, loaded.config.export.k, loaded.config.index.kind) == ((3, 7), 5, "scann")
    assert load_run(run.directory).config.export.k == 100
    for override in ("training.epochs=3", "data.out=x", "exports.k=3", "k=3"):
        with pytest.raises(UsageError, match=rf"--set {override}: .* evaluation\.\*, export\.\*, index\.\*"):
            load_run(run.directory, overrides=[override])
