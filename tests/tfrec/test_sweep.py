"""Sweeps on small runs: what is tried, what is taken up, what fails, and the same end by any way."""

import csv
import json

import numpy as np
import pytest
import yaml

from tests.datasets import make_dataset
from tests.tfrec.test_training import interrupt_at
from tfrec import training
from tfrec.config import load_sweep
from tfrec.errors import InterruptionError, UsageError, UserError
from tfrec.runs import load_run
from tfrec.sweep import sweep

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
MODEL = {"name": "sasrec", "embedding_dim": 8, "num_blocks": 0, "history_length": 12}
TWO_STAGES = "two, stages"
SWEEP = {
    "models": {
        "popularity": {"set": {"model": {"name": "popularity"}}},
        "sas rec": {"space": {"training.learning_rate": [0.01, 1e39]}},
        TWO_STAGES: {
            "first": {"set": {"training.epochs": 1}},
            "space": {"model.dropout": [0.0, 0.1]},
        },
    },
    "seeds": [3, 4],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "shop", users=80, min_events=18, max_events=18)


def configure(path, data, section=None, **training):
    document = {
        "data": {"out": str(data)},
        "model": MODEL,
        "training": {"epochs": 2, "batch_size": 32, "learning_rate": 0.01, **training},
        "evaluation": {"ks": [5], "bootstrap_samples": 100},
        "sweep": section or SWEEP,
    }
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    return sweep(configure(folder / "shop.yaml", data), folder / "out", progress=False).out


def test_every_model_is_tried_and_its_best_setting_judged(straight):
    models = json.loads((straight / "results.json").read_text())["models"]
    assert list(models) == sorted(SWEEP["models"])  # as JSON is written
    assert [len(models[name]["trials"]) for name in SWEEP["models"]] == [1, 2, 2]
    trials = models[TWO_STAGES]["trials"]
    for trial in trials:
        record = json.loads((straight / trial["run"] / "run.json").read_text())
        assert trial["value"] == record["validation"]["ndcg@10"]
    best = int(np.argmax([trial["value"] for trial in trials]))
    assert models[TWO_STAGES]["best"] == best + 1
    runs = [f"two_stages/trial{best + 1}-seed{seed}" for seed in (3, 4)]
    assert models[TWO_STAGES]["runs"] == runs
    evaluations = [json.loads((straight / run / "evaluation.json").read_text())["metrics"] for run in runs]
    for name, mean in models[TWO_STAGES]["test"]["metrics"].items():
        assert mean == pytest.approx(np.mean([metrics[name] for metrics in evaluations]))
    popularity = models["popularity"]["test"]["metrics"]["ndcg@10"]
    difference = models[TWO_STAGES]["difference"]["ndcg@10"]["difference"]
    assert difference == pytest.approx(models[TWO_STAGES]["test"]["metrics"]["ndcg@10"] - popularity)


def test_runs_have_their_setting_their_seed_and_what_they_start_from(straight):
    run = load_run(straight / "two_stages/trial2-seed3")
    assert (run.config.model["dropout"], run.config.training.seed) == (0.1, 3)
    (first,) = straight.glob("first-*")
    assert run.config.training.initialize_from.endswith(f"/{first.name}")
    assert json.loads((first / "run.json").read_text())["epochs"] == 1
    assert run.config.sweep is None


def test_a_trial_that_fails_is_told_and_stops_nothing(straight):
    models = json.loads((straight / "results.json").read_text())["models"]
    failed = models["sas rec"]["trials"][1]
    assert failed["failed"].startswith("the loss is not finite at step")
    assert failed["value"] is None
    assert models["sas rec"]["best"] == 1
    rows = list(csv.DictReader((straight / "trials.csv").open(encoding="utf-8")))
    assert [row["model"] for row in rows] == ["popularity", *["sas rec"] * 2, *[TWO_STAGES] * 2]
    assert rows[2]["failed"] == failed["failed"]
    assert float(rows[1]["value"]) == models["sas rec"]["trials"][0]["value"]
    assert rows[1]["training.learning_rate"] == "0.01"
    assert "| sas rec | 2 | training.learning_rate=1e+39 | - |" in (straight / "results.md").read_text()


def contents(out):
    """The bytes of everything but weights, whose file holds times."""
    names = ("*.json", "*.md", "*.csv", "*.jsonl")
    return {path.relative_to(out): path.read_bytes() for name in names for path in sorted(out.rglob(name))}


@pytest.mark.slow
def test_interrupted_sweep_ends_as_if_it_had_not_stopped(data, straight, tmp_path, monkeypatch):
    section = {"models": {TWO_STAGES: SWEEP["models"][TWO_STAGES]}, "seeds": SWEEP["seeds"]}
    config, stops = configure(tmp_path / "shop.yaml", data, section), 0
    while True:
        with monkeypatch.context() as patch:
            interrupt_at(patch, 8)  # batches of any training
            try:
                sweep(config, tmp_path / "out", progress=False)
                break
            except InterruptionError:
                stops += 1
    assert stops >= 2
    ours, theirs = (json.loads((out / "results.json").read_text())["models"] for out in (tmp_path / "out", straight))
    for key in ("trials", "best", "runs", "test"):
        assert ours[TWO_STAGES][key] == theirs[TWO_STAGES][key]
    for run in ("two_stages/trial1-seed3", "two_stages/trial2-seed3"):
        logs = [(out / run / "logs/metrics.jsonl").read_text() for out in (tmp_path / "out", straight)]
        assert logs[0] == logs[1]


def test_finished_sweep_trains_nothing_and_takes_up_more_models(data, straight, tmp_path, monkeypatch):
    monkeypatch.setattr("tfrec.sweep.train", lambda *_, **__: pytest.fail("trained again"))
    before = contents(straight)
    fewer = {**SWEEP, "models": dict(list(SWEEP["models"].items())[:2])}
    sweep(configure(tmp_path / "fewer.yaml", data, fewer), straight, progress=False)
    assert TWO_STAGES not in (straight / "results.md").read_text()
    sweep(configure(tmp_path / "all.yaml", data), straight, progress=False)
    assert contents(straight) == before


@pytest.mark.parametrize(
    ("section", "options", "key"),
    [
        ({**SWEEP, "seeds": [5]}, {}, "training"),
        ({**SWEEP, "metric": "mrr"}, {}, "training"),
        (SWEEP, {"epochs": 3}, "training"),
        ({"models": {"sas rec": {"space": {"training.learning_rate": [0.02, 1e39]}}}, "seeds": [3]}, {}, "settings"),
        ({"models": {"sas rec": {"set": {"model.num_heads": 1}}}, "seeds": [3]}, {}, "model"),
    ],
)
def test_changed_sweep_is_noticed(data, straight, tmp_path, section, options, key):
    config = configure(tmp_path / "shop.yaml", data, section, **options)
    with pytest.raises(UserError, match=rf"holds a sweep of another configuration \(`{key}` of .* differs\)"):
        sweep(config, straight, progress=False)


def test_mistakes_are_told_before_anything_is_trained(data, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "train", lambda *_, **__: pytest.fail("trained"))
    section = {"models": {"a": {}, "b": {"space": {"model.dropuot": [0.1]}}}}
    with pytest.raises(UsageError, match=r"`model.dropuot`: unknown option of sasrec; did you mean `dropout`\?"):
        sweep(configure(tmp_path / "shop.yaml", data, section), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "none.yaml").write_text("data: {out: d}\n")
    with pytest.raises(UsageError, match="has no section `sweep`"):
        load_sweep(tmp_path / "none.yaml")


def test_file_of_a_sweep_alone_names_files_of_experiments(data, tmp_path):
    experiment = configure(tmp_path / "popularity.yaml", data)
    path = tmp_path / "sweep.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "sweep": {
                    "models": {"p": {"config": str(experiment), "set": {"model": {"name": "popularity"}}}},
                    "seeds": [0],
                }
            }
        )
    )
    found = sweep(path, tmp_path / "out", ["training.seed=9", "evaluation.ks=[3]"], progress=False)
    assert [one.name for one in found.tested] == ["p"]
    assert "recall@3" in found.tested[0].metrics
