"""The demo: its pieces in seconds, the whole way in minutes (slow)."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tfrec import demo
from tfrec.answers import history_inputs
from tfrec.config import parse
from tfrec.errors import UserError
from tfrec.evaluation import ranks_file
from tfrec.ranks import Ranks


@pytest.mark.parametrize("model", demo.MODELS)
def test_configuration_is_valid(model: str, tmp_path: Path) -> None:
    config = parse(demo.configuration(model, tmp_path, demo.Sizes(users=500, epochs=3, seed=7)))
    assert config.model["name"] == model
    assert config.training.seed == 7
    assert config.data.recipe is not None
    assert config.data.recipe.options["users"] == 500


def test_directory_of_another_demo_is_refused(tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text(json.dumps({"users": 100}))
    with pytest.raises(UserError, match="holds a demo of other sizes"):
        demo.run(tmp_path, users=200)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.json"]


def test_demo_of_other_configurations_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class StoppedError(Exception):
        pass

    def begin(_: object) -> None:
        raise StoppedError

    monkeypatch.setattr(demo, "_preprocess", begin)
    for _ in range(2):
        with pytest.raises(StoppedError):
            demo.run(tmp_path, users=200)
    monkeypatch.setitem(demo._SECTIONS["sasrec"], "training", {"epochs": 99})
    with pytest.raises(UserError, match="other sizes or configurations"):
        demo.run(tmp_path, users=200)


def test_history_inputs_are_one_row_of_the_signature_s_types() -> None:
    names = ["history_item_ids", "history_length", "history_times", "history_event_types", "request_time"]
    inputs = history_inputs(names, ["a", "ü"], [5, 7], ["view", "cart"])
    assert inputs["history_item_ids"].tolist() == [[b"a", "ü".encode()]]
    assert inputs["history_length"].tolist() == [2]
    assert inputs["history_length"].dtype == np.int32
    assert inputs["history_times"].tolist() == [[5, 7]]
    assert inputs["history_times"].dtype == np.int64
    assert inputs["history_event_types"].tolist() == [[b"view", b"cart"]]
    assert inputs["request_time"].tolist() == [7]


def test_commands_to_try_next_are_preceded_by_what_finds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert demo._activation() == "  source .venv/bin/activate\n"
    (tmp_path / "tfrec").touch(mode=0o755)
    assert demo._activation() == ""


def test_empty_history_has_no_columns() -> None:
    inputs = history_inputs(["history_item_ids", "history_times", "history_length"], [], [])
    assert inputs["history_item_ids"].shape == (1, 0)
    assert inputs["history_times"].shape == (1, 0)
    assert inputs["history_length"].tolist() == [0]


@pytest.mark.slow
def test_whole_demo_answers_and_goes_on_where_it_was(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "tfrec", "demo", "--out", str(out), "--users", "600", "--epochs", "2"]
    first = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert first.returncode == 0, first.stderr
    for model in demo.MODELS:
        assert model in first.stdout
        assert (out / "runs" / model / "evaluation.json").is_file()
    assert (out / "models" / "shop" / "1" / "saved_model.pb").is_file()
    assert (out / "models" / "shop_scann" / "1" / "saved_model.pb").is_file()
    assert "what the server recommends" in first.stdout
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    stages = [line for line in again.stderr.splitlines() if line.startswith("== ")]
    assert stages == ["== Serving on free ports, asking over REST and gRPC"]


@pytest.mark.slow
def test_heterrec_beats_popularity_and_sasrec_over_three_shops(tmp_path: Path) -> None:
    values: dict[str, list[np.ndarray]] = {model: [] for model in demo.MODELS}
    for seed in (11, 12, 13):  # shops that no setting of the demo was chosen on
        outcome = demo.run(tmp_path / str(seed), seed=seed)
        assert [item for item, _ in outcome.rest[:3]] == [item for item, _ in outcome.grpc[:3]]
        for model in demo.MODELS:
            ranks = Ranks.read(ranks_file(tmp_path / str(seed) / "runs" / model, "test"))
            values[model].append(ranks.values([10])["ndcg@10"])
    heterrec, sasrec, popularity = (np.concatenate(values[model]) for model in ("heterrec", "sasrec", "popularity"))
    assert heterrec.mean() > 3 * popularity.mean()
    difference = heterrec - sasrec  # one query a user
    drawn = np.random.default_rng(0).integers(0, len(difference), (1000, len(difference)))
    low = np.percentile(difference[drawn].mean(axis=1), 2.5)
    assert low > 0
