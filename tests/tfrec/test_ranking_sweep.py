"""A sweep over ranking models, one of which starts from a first stage: its table, a comparison, the page of a run."""

import json

import keras
import numpy as np
import pytest
import yaml

from tests.datasets import make_dataset
from tests.tfrec.models.tiny import NAME
from tests.tfrec.test_report import Parsed, assert_drawn_like, drawn
from tfrec import publishing
from tfrec.comparison import differences, measure, obstacles
from tfrec.errors import UserError
from tfrec.evaluation import evaluate
from tfrec.publishing import EXTRA, copy_evaluation, refuse_worse
from tfrec.report import write_report
from tfrec.runs import load_run
from tfrec.sweep import sweep

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
SIZES = {"embedding_dim": 8, "history_length": 12, "item_features": ["item_id"]}
HPGR = {"name": "hpgr", **SIZES, "num_blocks": 1, "session_enhancement": False, "num_anchors": 2, "sigma": 0.7}
FIRST = {"name": "sasrec", **SIZES, "num_blocks": 0}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranking")
    data = make_dataset(folder / "shop", users=48, min_events=8, impressions=True, split="last_fraction")
    document = {
        "data": {"out": str(data)},
        "model": {"name": NAME, "history_length": 12},
        "training": {"epochs": 1, "batch_size": 64, "length_buckets": False},
        "evaluation": {"bootstrap_samples": 100},
        "sweep": {
            "models": {
                "tiny": {"space": {"training.learning_rate": [0.01, 0.05]}},
                "hpgr": {"set": {"model": HPGR}, "first": {"set": {"model": FIRST}}},
            },
            "metric": "log_loss",
            "seeds": [0],
        },
    }
    (folder / "shop.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    return sweep(folder / "shop.yaml", folder / "out", progress=False)


def test_the_best_setting_has_the_smallest_loss(swept):
    models = json.loads((swept.out / "results.json").read_text())["models"]
    tried = [
        json.loads((swept.out / trial["run"] / "run.json").read_text())["validation"]["log_loss"]
        for trial in models["tiny"]["trials"]
    ]
    assert models["tiny"]["best"] == int(np.argmin(tried)) + 1
    (first,) = swept.out.glob("first-*")
    assert load_run(swept.out / "hpgr/trial1-seed0").config.training.initialize_from.endswith(first.name)
    written = [
        json.loads((swept.out / models[name]["runs"][0] / "evaluation.json").read_text()) for name in ("tiny", "hpgr")
    ]
    for one, document in zip(swept.tested, written, strict=True):
        assert one.metrics == document["metrics"]
        assert {name: list(pair) for name, pair in one.intervals.items()} == document["confidence_intervals"]
    for name in ("auc", "log_loss", "auc_cart"):
        found = models["hpgr"]["difference"][name]["difference"]
        assert found == pytest.approx(written[1]["metrics"][name] - written[0]["metrics"][name])


def test_a_ranking_run_is_compared_with_its_like_alone(swept):
    tiny, hpgr = (measure(swept.out / row.best[0].directory) for row in swept.rows)
    found = differences(hpgr, tiny)["grouped_auc"]
    assert found.low <= found.difference <= found.high
    (first,) = swept.out.glob("first-*")
    evaluate(load_run(first)).write(first)
    assert "`task` is 'ranking' and 'retrieval'" in obstacles(tiny, measure(first))


def test_a_version_is_compared_with_by_its_scores(swept, tmp_path, monkeypatch):
    run = load_run(swept.rows[0].best[0].directory)
    (tmp_path / "1" / EXTRA).mkdir(parents=True)
    copy_evaluation(run, tmp_path / "1")
    monkeypatch.setattr(publishing, "latest", lambda served: served / "1")
    assert refuse_worse(run, tmp_path) is None  # equal is not worse
    path = tmp_path / "1" / EXTRA / "scores_test.npz"
    arrays = dict(np.load(path))
    better = np.clip(arrays["label_click"], 0.001, 0.999).astype(np.float32)
    np.savez(path, **{**arrays, "shown_probability_click": better})
    with pytest.raises(UserError, match=r"worse than .*: log_loss differs by \+0\.\d+ .*; not published"):
        refuse_worse(run, tmp_path)


@pytest.fixture(scope="module")
def page(swept):
    path = swept.out / "hpgr.html"
    write_report(swept.rows[1].best[0].directory, path, others=[swept.out / "tiny/trial1-seed0"])
    return path.read_text("utf-8")


def test_page_shows_slices_calibration_and_states(swept, page):
    document = json.loads((swept.rows[1].best[0].directory / "evaluation.json").read_text())
    parsed = Parsed(page)
    slices = {(row[0], row[1]): row[3] for row in parsed.rows("group", "slice", "queries", "log_loss")}
    for name, found in document["slices"]["history_length"].items():
        assert slices["history length", name] == f"{found['log_loss']:.6g}"
    curve = document["calibration"]["click"]["curve"]
    assert_drawn_like(drawn(page, "calibration/click")[:, 0], [point["predicted"] for point in curve])
    states = parsed.rows(
        "state", "smallest norm", "median", "99 %", "largest", "effective rank", "variance on two axes"
    )
    (first,) = swept.out.glob("first-*")
    runs = ["tiny/trial1-seed0", "hpgr/trial1-seed0"]  # named by what tells them apart
    assert [row[0] for row in states] == ["before training", f"{first.name} (start)", *runs]


def test_preferences_are_those_of_the_loop(swept, page):
    run = load_run(swept.rows[1].best[0].directory)
    (table,) = [
        keras.ops.convert_to_numpy(variable)
        for variable in run.model.variables
        if variable.path.endswith("frozen_embedder/tokens/item_id_table/embeddings")
    ]
    catalogue = run.dataset.catalogue()
    code_of = {title: code for code, title in enumerate(catalogue.display["title"])}
    shares = {}
    for candidate, event, share in Parsed(page).rows("candidate", "event", "share"):
        shares.setdefault(candidate, {})[int(event.split()[0]), event.split(maxsplit=1)[1]] = float(share)
    assert len(shares) > 1
    for candidate, row in shares.items():
        assert [place for place, _ in row] == list(range(1, len(row) + 1))
        events = table[[code_of[title] for _, title in row]]
        likeness = events @ table[code_of[candidate]]
        anchors = np.argsort(-likeness, kind="stable")[: HPGR["num_anchors"]]
        for place, share in enumerate(row.values()):
            distance = min(abs(place - anchor) for anchor in anchors)
            gauss = np.exp(-((distance / HPGR["sigma"]) ** 2) / 2)
            assert share == pytest.approx(gauss if distance <= np.ceil(3 * HPGR["sigma"]) else 0, rel=1e-5)


def test_a_model_without_a_guide_has_no_preferences(swept):
    path = swept.out / "tiny.html"
    write_report(swept.rows[0].best[0].directory, path)
    assert "Preferences" not in path.read_text("utf-8")
