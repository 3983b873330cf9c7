"""Ranking on the made-up shop: from its logs of what was shown to an evaluation."""

import numpy as np
import pytest

from beam_jobs import preprocess
from beam_jobs.recipes.shop import START
from tests.tfrec.models.tiny import NAME
from tfrec.candidates import CandidateBatches
from tfrec.config import parse
from tfrec.data import Dataset
from tfrec.evaluation import evaluate
from tfrec.runs import load_run
from tfrec.training import train

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
DAY = 86_400


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    options = {"users": 250, "items": 150, "days": 30, "sessions": 6, "impressions": 1.0}
    return parse(
        {
            "data": {
                "out": str(tmp_path_factory.mktemp("data") / "shop"),
                "recipe": {"name": "shop", "options": options},
                "labels": [{"name": name, "column": name, "operator": "==", "value": 1} for name in ("click", "cart")],
                "split": {
                    "kind": "temporal",
                    "validation_from": START + 20 * DAY,
                    "test_from": START + 25 * DAY,
                },
            },
            "features": {"items": [{"name": "brand", "kind": "categorical"}]},
            "model": {"name": NAME, "history_length": 20},
            "training": {"epochs": 3, "batch_size": 64, "learning_rate": 0.02},
            "evaluation": {"bootstrap_samples": 100},
        }
    )


@pytest.fixture(scope="module")
def dataset(config):
    return Dataset.open(preprocess.run(config))


def test_no_impression_sees_what_became_of_it(dataset):
    """A click is an event of its own with the time of the list or a later one: it stands behind the impression."""
    assert dataset.schema.impressions.model_dump() == {
        "labels": ("click", "cart"),
        "has_positions": True,
        "has_requests": True,
        "has_weights": False,
    }
    first = {"train": 0, "validation": 20 * DAY, "test": 25 * DAY}
    origin = dataset.schema.time_origin - START
    for split, begin in first.items():
        for group in ("request", "user"):
            batches = CandidateBatches(
                dataset.schema, dataset.histories(), split, history_length=20, batch_size=64, group=group
            )
            for batch in batches:
                real = batch["candidate_weight"] > 0
                assert (batch["candidate_time"][real] + origin >= begin).all()
                place = np.arange(batch["item"].shape[1])
                seen = (place < batch["candidate_history"][..., None]) & real[..., None]  # (B, C, L)
                later = batch["time"][:, None, :] >= batch["candidate_time"][..., None]
                assert not (seen & later).any()
                assert set(np.unique(batch["candidate_position"][real])) <= set(range(1, 30))


def test_clicks_are_learnt(config, dataset, tmp_path):
    run = load_run(train(config, tmp_path / "run", progress=False))
    found = evaluate(run)
    assert found.protocol["queries"] > 1000
    low, _ = found.confidence_intervals["auc"]
    assert low > 0.5
    assert found.metrics["normalised_entropy"] < 1
    assert found.calibration["click"]["ratio"] == pytest.approx(1, abs=0.3)
