"""The configurations that are shipped: named by model and data set, valid, and alike where models are compared."""

import os
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from beam_jobs import preprocess
from beam_jobs.recipes import RECIPES
from tfrec.config import load, load_sweep
from tfrec.data import Dataset
from tfrec.models import check_options, is_ranking, resolve
from tfrec.objectives import build_objective
from tfrec.sweep import plan

FOLDER = Path(__file__).parents[1] / "configs"
MODELS = ("heterrec", "sasrec", "hstu", "popularity", "two_tower")
BASELINES = ("bert4rec", "gru4rec", "pinnerformer")
DATASETS = ("shop", "amazon_beauty", "movielens_1m", "online_retail")
SWEEPS = sorted(FOLDER.glob("sweep_*.yaml"))
EXPERIMENTS = sorted({*FOLDER.glob("*.yaml")} - {*SWEEPS})


@pytest.fixture(autouse=True)
def data_folder(monkeypatch):
    monkeypatch.setenv("TFREC_DATA", "somewhere")


def test_there_is_one_of_every_model_and_data_set():
    wanted = {f"{model}_{dataset}.yaml" for model in MODELS for dataset in DATASETS}
    wanted |= {f"{model}_{dataset}.yaml" for model in BASELINES for dataset in DATASETS if dataset != "movielens_1m"}
    assert wanted <= set(os.listdir(FOLDER))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_config_is_valid_and_named_after_model_and_data_set(path):
    config = load(path)
    model, dataset = config.model["name"], Path(config.data.out).name
    assert path.stem in (f"{model}_{dataset}", f"{model}_large_{dataset}")
    assert config.data.out == f"datasets/{dataset}"
    assert config.data.recipe is None or config.data.recipe.name in RECIPES
    assert config.data.recipe is not None or config.data.events is not None


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_model_and_objective_have_the_options(path):
    config = load(path)
    options = {key: value for key, value in config.model.items() if key != "name"}
    assert check_options(resolve(config.model["name"]), config.model["name"], options) == options
    if config.objective is not None:
        built = build_objective(config.objective).get_config()
        assert {key: built[key] for key in config.objective if key != "name"} == {
            key: value for key, value in config.objective.items() if key != "name"
        }


@pytest.mark.parametrize("path", [*EXPERIMENTS, *SWEEPS], ids=lambda path: path.stem)
def test_paths_are_free_of_this_machine(path):
    def texts(value):
        if isinstance(value, dict):
            value = list(value.values())
        return list(chain.from_iterable(map(texts, value))) if isinstance(value, list) else [value]

    for text in texts(yaml.safe_load(path.read_text("utf-8"))):
        assert not str(text).startswith(("/", "~")), text


def test_the_sweep_tries_every_ranking_model_of_the_shop(tmp_path, monkeypatch):
    monkeypatch.chdir(FOLDER.parent)
    monkeypatch.setattr("tfrec.sweep.Dataset.open", lambda path: SimpleNamespace(fingerprint=str(path)))
    path = FOLDER / "sweep_shop_impressions.yaml"
    rows = plan(load_sweep(path), path, tmp_path, [])
    tried = {trials[0].config.model["name"] for row in rows for trials in row.trials}
    shipped = {load(one).model["name"] for one in EXPERIMENTS if one.stem.endswith("_shop_impressions")}
    assert tried == {name for name in shipped if is_ranking(resolve(name))}
    assert {(len(row.trials), len(trials)) for row in rows for trials in row.trials} == {(4, 3)}
    assert {row.plan["dataset"] for row in rows} == {"datasets/shop_impressions"}
    staged = [row.first for row in rows if row.name.startswith("hpgr")]
    assert len(staged) == 4
    assert {first.directory for first in staged} == {staged[0].directory}  # trained once
    assert staged[0].config.model["name"] == "hpgr_pretrain"


@pytest.mark.parametrize("dataset", DATASETS)
def test_models_of_a_data_set_share_the_dataset_and_the_metrics(dataset):
    first, *others = (load(path) for path in sorted(FOLDER.glob(f"*_{dataset}.yaml")))
    for other in others:
        assert other.data == first.data
        assert other.histories == first.histories
        # What a model sees of the request's time is no part of the dataset.
        assert other.features.model_copy(update={"request_time": first.features.request_time}) == first.features
        assert other.evaluation == first.evaluation


def test_impressions_of_the_shop_are_one_dataset():
    configs = [load(path) for path in EXPERIMENTS if path.stem.endswith("_shop_impressions")]
    assert len(configs) == 12
    for config in configs:
        assert (config.data, config.histories, config.features) == (
            configs[0].data,
            configs[0].histories,
            configs[0].features,
        )


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_seen_items_are_left_out_only_where_nobody_repeats_one(path):
    config = load(path)
    if not is_ranking(resolve(config.model["name"])):
        assert config.evaluation.filter_seen == (config.data.repeats == "first" or "movielens" in path.stem)


def test_the_shop_is_made_and_read(tmp_path):
    small = {"users": 60, "items": 100, "days": 20}
    options = [f"data.recipe.options.{name}={value}" for name, value in small.items()]
    config = load(FOLDER / "sasrec_shop.yaml", [*options, f"data.out={tmp_path / 'shop'}"])
    histories = Dataset.open(preprocess.run(config)).histories()
    assert len(histories.user_ids) > 40
    assert {"item", "time", "event_type", "session"} <= histories.columns.keys()
    assert "label_click" not in histories.columns  # a label of impressions


@pytest.mark.parametrize(("name", "num_blocks", "num_heads"), [("sasrec", 2, 1), ("hstu", 2, 1), ("hstu_large", 8, 2)])
def test_movielens_has_the_published_settings(name, num_blocks, num_heads):
    config = load(FOLDER / f"{name}_movielens_1m.yaml")
    assert config.model == {
        "name": name.removesuffix("_large"),
        "history_length": 200,
        "embedding_dim": 50,
        "num_blocks": num_blocks,
        "num_heads": num_heads,
        "dropout": 0.2,
    }
    assert config.objective == {"name": "sampled_softmax", "num_negatives": 128, "temperature": 0.05}
    assert (config.training.epochs, config.training.batch_size, config.training.learning_rate) == (101, 128, 1e-3)
    assert (config.training.beta_1, config.training.beta_2, config.training.weight_decay) == (0.9, 0.98, 0.0)
    assert not config.data.split.validation
