"""The way that the README shows, command by command, on made-up logs in CSV files."""

import json
import random
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

from serving.app import ModelServer
from tfrec.cli import app

RUNNER = CliRunner()
SMALL = [
    "--set=training.epochs=1",
    "--set=model.history_length=8",
    "--set=model.embedding_dim=8",
    "--set=model.num_token_blocks=1",
    "--set=model.num_item_blocks=1",
    "--set=export.k=5",
    "--set=evaluation.ks=[5, 10]",
    "--set=training.validation_metric=ndcg@10",
]


def run(*arguments: str) -> str:
    done = RUNNER.invoke(app, list(arguments))
    assert done.exit_code == 0, f"{arguments}: {done.exception!r}\n{done.output}"
    return done.stdout


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    random.seed(0)
    events = ["user_id,item_id,time,event"]
    for user in range(60):
        for step, item in enumerate(random.sample(range(40), random.randrange(4, 12))):
            kind = random.choice(["view", "view", "cart"])
            events.append(f"u{user},item_{item},{1_700_000_000 + user * 1000 + step * 60},{kind}")
    (tmp_path / "events.csv").write_text("\n".join(events) + "\n")
    words = ["red", "blue", "oak", "pine", "chair", "table", "lamp", "small", "large"]
    items = ["item_id,title,brand,price"]
    for item in range(40):
        items.append(f"item_{item},{' '.join(random.sample(words, 4))} {item},{item % 4},{random.uniform(1, 90):.2f}")
    (tmp_path / "items.csv").write_text("\n".join(items) + "\n")
    return tmp_path


def test_raw_logs_become_a_served_answer(logs: Path) -> None:
    run("init", "events.csv", "items.csv", "--out", "shop.yaml")
    assert "fail" not in run("doctor", "--config", "shop.yaml", *SMALL)
    run("preprocess", "--config", "shop.yaml", *SMALL)
    assert "accepted" in run("data", "inspect", "datasets/shop")
    run("data", "verify", "datasets/shop")
    assert run("train", "--config", "shop.yaml", "--out", "runs/shop", "--quiet", *SMALL).strip() == "runs/shop"
    assert "ndcg@10" in run("evaluate", "runs/shop")
    assert run("export", "runs/shop", "--to", "models/shop").strip() == "models/shop/1"
    asked = ["--history", "item_12,item_7", "--times", "1700000000,1700000060", "--event-types", "view,cart"]
    answer = run("recommend", "models/shop", *asked, "--k", "3")
    assert "item_" in answer
    assert "item_12" not in answer
    assert "item_" in run("recommend", "models/shop", "--similar", "item_12").replace("Items like item_12", "")
    assert "written" in run("recommend", "models/shop", "--all-users", "datasets/shop", "--out", "recommendations/shop")
    assert len(list(Path("recommendations/shop").glob("*.parquet"))) == len(
        list(Path("datasets/shop/histories").iterdir())
    )
    with ModelServer(Path("models"), rest_port=0, grpc_port=0) as server:
        url = f"http://127.0.0.1:{server.rest_port}/v1/models/shop:predict"
        question = {"history_item_ids": [["item_12", "item_7"]], "history_length": [2]}
        question |= {"history_times": [[1_700_000_000, 1_700_000_060]], "history_event_types": [["view", "cart"]]}
        request = urllib.request.Request(url, json.dumps({"inputs": question}).encode())
        with urllib.request.urlopen(request, timeout=60) as response:
            outputs = json.load(response)["outputs"]
    assert len(outputs["item_ids"][0]) == 5
    for item in outputs["item_ids"][0][:3]:
        assert item in answer
