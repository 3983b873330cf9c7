"""A ranking run from its dataset to its evaluation, by the tiniest model."""

import json
from dataclasses import replace

import keras
import numpy as np
import pytest

from tests.checks import seed_weights
from tests.datasets import make_dataset
from tests.tfrec.models.tiny import NAME
from tests.tfrec.test_training import assert_same_run, history, interrupt_at
from tfrec.candidates import CandidateBatches
from tfrec.config import parse
from tfrec.data import Dataset
from tfrec.errors import UsageError, UserError
from tfrec.evaluation import evaluate
from tfrec.initialization import initialize
from tfrec.runs import build_model, load_run
from tfrec.scores import read_scores, score_candidates
from tfrec.training import train

pytestmark = [
    pytest.mark.jax,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "shop"
    return make_dataset(path, users=120, min_events=8, impressions=True, split="last_fraction", write_cache=True)


def configure(data, **sections):
    document = {
        "data": {"out": str(data)},
        "model": {"name": NAME, "history_length": 12},
        "training": {"epochs": 4, "batch_size": 32, "learning_rate": 0.05},
        "evaluation": {"bootstrap_samples": 100},
    }
    for name, section in sections.items():
        document[name] = section if "name" in section else {**document.get(name, {}), **section}
    return parse(document)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    run = train(configure(data), tmp_path_factory.mktemp("runs") / "tiny", progress=False)
    evaluate(load_run(run)).write(run)
    return run


def test_training_learns_which_candidate_comes_next(trained):
    record = json.loads((trained / "run.json").read_text())
    assert record["validation"]["auc"] > 0.7
    assert {"auc", "grouped_auc", "log_loss", "normalised_entropy", "calibration_error", "auc_cart"} <= set(
        record["validation"]
    )
    entries = history(trained)
    assert entries[-1]["loss"] < entries[0]["loss"]
    assert {"loss_click", "loss_cart", "with_history", "effective_rank"} <= set(entries[0])
    best = max(entries, key=lambda entry: entry["validation"]["auc"])
    assert record["best_epoch"] == best["epoch"]


def test_evaluation_says_what_each_impression_was_given(trained, data):
    document = json.loads((trained / "evaluation.json").read_text())
    scores = read_scores(trained, "test")
    impressions = load_run(trained).dataset.histories().impressions.columns
    assert document["protocol"]["task"] == "ranking"
    assert document["protocol"]["queries"] == (impressions["split"] == 2).sum() == len(scores.user)
    np.testing.assert_array_equal(scores.labels["click"], impressions["label_click"][impressions["split"] == 2])
    assert set(document["metrics"]) == set(document["confidence_intervals"])
    for name, (low, high) in document["confidence_intervals"].items():
        assert low <= document["metrics"][name] <= high or name.startswith("calibration_error"), name
    for label in ("click", "cart"):
        calibration = document["calibration"][label]
        low, high = calibration["confidence_interval"]
        assert low <= calibration["ratio"] <= high
        known = scores.labels[label] >= 0
        assert sum(one["count"] for one in calibration["curve"]) == known.sum()
    for slices in document["slices"].values():
        assert sum(one["queries"] for one in slices.values()) == len(scores.user)
    assert set(document["slices"]) == {"history_length", "sessions", "item_age_days"}
    chosen = scores.place >= 5
    assert document["slices"]["history_length"]["5-19"]["queries"] == chosen.sum()
    assert scores.resampled(3, 0).shape == (3, len(document["metrics"]))


def test_order_is_judged_at_the_first_place_and_probabilities_where_shown(trained):
    found, scores, run = (
        json.loads((trained / "evaluation.json").read_text()),
        read_scores(trained, "test"),
        load_run(trained),
    )
    columns = run.dataset.histories().impressions.columns
    position = columns["position"][columns["split"] == 2]
    at_first, shown, outcome = scores.probabilities["cart"], scores.shown["cart"], scores.labels["cart"]
    top = position == columns["position"][columns["position"] >= 0].min()
    assert 0 < top.sum() < len(top)
    np.testing.assert_allclose(shown[top], at_first[top], atol=1e-7)
    assert (np.abs(shown - at_first)[~top] > 1e-5).mean() > 0.9

    known = outcome >= 0
    at_first, shown, outcome = at_first[known].astype(float), shown[known].astype(float), outcome[known]
    positive, negative = at_first[outcome == 1][:, None], at_first[outcome == 0]
    auc = (positive > negative).mean() + (positive == negative).mean() / 2
    loss = -np.log(np.where(outcome == 1, shown, 1 - shown)).mean()
    assert found["metrics"]["auc_cart"] == pytest.approx(auc)
    assert found["metrics"]["log_loss_cart"] == pytest.approx(loss)
    assert found["calibration"]["cart"]["ratio"] == pytest.approx(shown.sum() / outcome.sum())
    assert found["protocol"]["position"] == "the first; of log loss, entropy and calibration as shown"


def test_without_places_one_probability_is_judged(trained):
    run = load_run(trained)
    histories = run.dataset.histories()
    columns = {name: values for name, values in histories.impressions.columns.items() if name != "position"}
    without = replace(histories, impressions=replace(histories.impressions, columns=columns))
    batches = CandidateBatches(run.schema, without, "test", history_length=12, batch_size=64)
    scores = score_candidates(run.model, batches)
    assert scores.shown == {}
    np.testing.assert_allclose(
        scores.probabilities["click"], read_scores(trained, "test").probabilities["click"], atol=1e-6
    )


def test_rows_of_users_are_judged_alike(trained, data, tmp_path):
    run = load_run(trained)
    grouped = run.config.ranking.model_copy(update={"group": "user", "max_candidates": 8})
    other = type(run)(run.directory, run.config.model_copy(update={"ranking": grouped}), *list(vars(run).values())[2:])
    first, second = evaluate(run).answers, evaluate(other).answers
    np.testing.assert_array_equal(first.queries, second.queries)
    np.testing.assert_allclose(first.probabilities["click"], second.probabilities["click"], atol=1e-6)


def test_an_interrupted_training_ends_in_the_same_bits(data, trained, tmp_path, monkeypatch):
    interrupt_at(monkeypatch, 5)
    with pytest.raises(UserError, match="interrupted at step"):
        train(configure(data), tmp_path / "run", progress=False)
    monkeypatch.undo()
    assert_same_run(train(configure(data), tmp_path / "run", progress=False), trained)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"features": {"request_time": True}}, "`features.request_time`: must be false: a ranking model knows when"),
        ({"training": {"windows": "random"}}, "`training.windows`: says nothing to a ranking model; leave it out."),
        ({"training": {"validation_metric": "ndcg@10"}}, "must be auc, grouped_auc, log_loss, normalised_entropy, "),
        ({"training": {"validation_metric": "auc_buy"}}, "not measured; did you mean `auc"),
        ({"objective": {"name": "full_softmax"}}, "`objective.name`: FullSoftmax is none for a ranking model"),
        (
            {"model": {"causal": False}, "ranking": {"group": "user"}},
            "`ranking.group`: must be request: tests.tfrec.models.tiny:tiny_ranking is not causal",
        ),
        ({"model": {"name": "sasrec"}, "objective": {"name": "binary_crossentropy"}}, "is none for a retrieval model"),
    ],
)
def test_what_a_ranking_model_does_not_do_is_one_line(data, tmp_path, sections, message):
    with pytest.raises(UsageError) as error:
        train(configure(data, **sections), tmp_path / "run", progress=False)
    assert message in str(error.value)


# Starting from a run of another model.

PRETRAINED = {"name": "hpgr_pretrain", "embedding_dim": 8, "num_blocks": 1, "history_length": 12}
TABLE = "embedder/tokens/item_id_table/embeddings"


@pytest.fixture(scope="module")
def pretrained(data, tmp_path_factory):
    config = configure(data, model=PRETRAINED, training={"epochs": 1})
    return train(config, tmp_path_factory.mktemp("runs") / "pretrained", progress=False)


def named(model):
    return {variable.path: keras.ops.convert_to_numpy(variable) for variable in model.weights}


def of_part(weights, part):
    (found,) = [value for path, value in weights.items() if path.endswith(part)]
    return found


def test_item_embeddings_are_taken_over_and_other_tables_start_afresh(data, pretrained):
    config, dataset = configure(data), Dataset.open(data)
    seed_weights(0)
    model = build_model(config, dataset)
    fresh = named(model)
    inherited = initialize(model, config, dataset, pretrained)
    start, after = named(load_run(pretrained).model), named(model)
    assert [variable.path.endswith(TABLE) for variable in inherited] == [True]
    np.testing.assert_array_equal(of_part(after, TABLE), of_part(start, TABLE))
    for path, value in fresh.items():
        if not path.endswith(TABLE):
            np.testing.assert_array_equal(after[path], value, err_msg=path)


def test_what_was_taken_over_learns_slower_and_a_training_goes_on_in_the_same_bits(
    data, pretrained, tmp_path, monkeypatch
):
    start = of_part(named(load_run(pretrained).model), TABLE)

    def trained_with(share, name, **more):
        steps = {"initialize_from": str(pretrained), "inherited_learning_rate": share, "epochs": 1}
        return train(configure(data, training={**steps, **more}), tmp_path / name, progress=False)

    def moved(run):
        change = of_part(named(load_run(run).model), TABLE) - start
        return np.abs(change[2:]).mean()

    slow, fast = trained_with(0.1, "slow"), trained_with(1.0, "fast")
    assert 0 < moved(slow) < 0.3 * moved(fast)
    interrupt_at(monkeypatch, 2)
    with pytest.raises(UserError, match="interrupted at step"):
        trained_with(0.1, "again")
    monkeypatch.undo()
    assert_same_run(trained_with(0.1, "again"), slow)
    pretrained_moved = tmp_path / "elsewhere"
    pretrained.rename(pretrained_moved)
    try:
        load_run(slow)  # the run that it began from is not read again
    finally:
        pretrained_moved.rename(pretrained)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"embedding_dim": 4}}, "a run of hpgr_pretrain, has (42, 8) for `embedder/tokens/item_id_table/"),
        ({"training": {"inherited_learning_rate": 0.5}}, "says nothing without `training.initialize_from`"),
    ],
)
def test_what_does_not_fit_is_one_line(data, pretrained, tmp_path, sections, message):
    if "training" not in sections:
        sections = {**sections, "training": {"initialize_from": str(pretrained)}}
    with pytest.raises(UserError) as error:
        train(configure(data, **sections), tmp_path / "run", progress=False)
    assert message in str(error.value)


def test_a_model_without_item_embeddings_is_no_start(data, tmp_path):
    counted = train(configure(data, model={"name": "popularity"}), tmp_path / "counted", progress=False)
    with pytest.raises(UserError, match="a run of popularity, has nothing for `embedder/tokens/item_id_table"):
        train(configure(data, training={"initialize_from": str(counted)}), tmp_path / "run", progress=False)


def test_hpgr_compares_by_the_items_of_its_first_stage_and_never_by_random_ones(data, tmp_path):
    sizes = {"history_length": 12, "embedding_dim": 8, "num_heads": 2, "dropout": 0.0}
    one_step = {"batch_size": 1000, "length_buckets": False}  # of one shape, compiled once
    short = {"epochs": 1, "learning_rate": 0.01, "validation_users": 8, **one_step}
    sessions = {"num_intra_blocks": 0, "num_inter_blocks": 1}
    hpgr = {"name": "hpgr", "num_blocks": 0, **sizes, **sessions}
    with pytest.raises(UsageError, match="must name a run of `hpgr_pretrain`"):
        train(configure(data, model=hpgr, training=short), tmp_path / "run", progress=False)
    first = {"name": "hpgr_pretrain", "num_blocks": 0, "item_features": "all", **sizes, **sessions}
    stage = train(configure(data, model=first, training=short), tmp_path / "first", progress=False)
    run = train(
        configure(data, model=hpgr, training={**short, "initialize_from": str(stage)}), tmp_path / "run", progress=False
    )
    start, after = named(load_run(stage).model), named(load_run(run).model)
    frozen = {path: value for path, value in after.items() if "/frozen_embedder/" in path}
    assert frozen
    for path, value in frozen.items():
        part = path.split("/frozen_embedder/")[1]
        np.testing.assert_array_equal(value, of_part(start, "/embedder/" + part), err_msg=path)
