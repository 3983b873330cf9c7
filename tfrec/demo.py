"""`tfrec demo`: the whole way on a made-up shop, from raw logs to an answer over REST and gRPC, in minutes.

Every stage writes a directory that is complete or absent, so an interrupted demo goes on with the first stage whose
directory is missing. The configurations that it runs are written as files: the same commands work on them.
"""

import hashlib
import json
import os
import shutil
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from tfrec.answers import history_inputs
from tfrec.config import Config, load
from tfrec.errors import UserError

MODELS = ("popularity", "sasrec", "heterrec")
METRICS = ("recall@10", "ndcg@10", "recall@50", "ndcg@50", "mrr")
SERVED_MODEL = "heterrec"
SERVED = "shop"
ANSWERS = 10
_PARAMETERS = "demo.json"
_SMALL = {"history_length": 32, "embedding_dim": 32}
_SECTIONS: dict[str, dict[str, Any]] = {  # small, for a machine of two cores; both learners score the whole catalogue
    "popularity": {"model": {}, "training": {"epochs": 1}},
    "sasrec": {
        "model": _SMALL,
        "objective": {"name": "full_softmax"},
        "training": {"epochs": 20, "learning_rate": 0.004},  # an epoch teaches it less, and costs it less
    },
    "heterrec": {
        "model": {**_SMALL, "num_token_blocks": 1, "num_item_blocks": 1},
        "objective": {"name": "listwise_multi_step", "negatives": "full", "token_weight": 0.1},
        "training": {"epochs": 8, "learning_rate": 0.003},
    },
}
_NEXT = """
Done in {seconds:.0f} s. Everything is in {out}:
  {out}/*.yaml        the configurations          {out}/runs/      weights, logs, evaluation.json
  {out}/dataset/      histories, items, schema    {out}/models/    SavedModels

Try next:
{activate}  tfrec recommend {out}/models/{served} --history {history}
  tfrec serve {out}/models
  tfrec train --config {out}/heterrec.yaml --set training.epochs=30 --out {out}/runs/longer
  tfrec init YOUR_EVENTS.csv YOUR_ITEMS.csv"""


@dataclass(frozen=True)
class Sizes:
    """What a demo was asked for; one directory holds one demo."""

    users: int = 2500
    items: int = 2500
    epochs: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Question:
    """A test user's history as a client would send it, and what the user took next."""

    user: str
    items: list[str]
    times: list[int]
    event_types: list[str]
    next_item: str


@dataclass(frozen=True)
class Outcome:
    """What a demo found: evaluation documents by model, and the answers of both doors of the server."""

    evaluations: dict[str, dict[str, Any]]
    question: Question
    rest: list[tuple[str, float]]
    grpc: list[tuple[str, float]]


def run(out: Path, *, users: int = Sizes.users, epochs: int | None = None, seed: int = 0) -> Outcome:
    """Generates, preprocesses, trains, evaluates, exports, serves and asks; prints what it found.

    Args:
        out: where everything is written; a demo that was interrupted there goes on.
        users: users of the made-up shop.
        epochs: training epochs at most; None = as many as the demo's configurations say.
        seed: seeds the shop and the training.

    Raises:
        UserError: `out` holds a demo of other sizes.
    """
    began = time.monotonic()
    sizes = Sizes(users=users, items=max(200, min(Sizes.items, users)), epochs=epochs, seed=seed)
    configs = _write_configs(out, sizes)
    _preprocess(configs[MODELS[0]])
    evaluations = {name: _train(config, out / "runs" / name) for name, config in configs.items()}
    _export(out)
    question = choose_question(Path(configs[SERVED_MODEL].data.out), seed)
    outcome = Outcome(evaluations, question, *_ask(out / "models", question))
    _report(out, outcome, time.monotonic() - began)
    return outcome


def _write_configs(out: Path, sizes: Sizes) -> dict[str, Config]:
    record = out / _PARAMETERS
    documents = {name: configuration(name, out, sizes) for name in MODELS}
    digest = hashlib.sha256(json.dumps(documents, sort_keys=True).replace(str(out), "").encode()).hexdigest()
    parameters = json.dumps({**asdict(sizes), "configurations": digest}, indent=2) + "\n"
    if record.is_file() and record.read_text("utf-8") != parameters:
        raise UserError(
            f"{out}: holds a demo of other sizes or configurations ({record}); remove the directory or say --out "
            "elsewhere."
        )
    out.mkdir(parents=True, exist_ok=True)
    record.write_text(parameters, encoding="utf-8")
    configs = {}
    for name, document in documents.items():
        path = out / f"{name}.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
        configs[name] = load(path)
    return configs


def configuration(model: str, out: Path, sizes: Sizes) -> dict[str, Any]:
    """The configuration that the demo runs for one of `MODELS`, as it is written to `OUT/<model>.yaml`."""
    sections = _SECTIONS[model]
    return {
        "data": {
            "out": str(out / "dataset"),
            "recipe": {
                "name": "shop",
                "options": {"users": sizes.users, "items": sizes.items, "impressions": 0, "seed": sizes.seed},
            },
            "repeats": "first",
            "split": {"kind": "leave_one_out"},
        },
        "features": {
            "items": [
                {"name": "brand", "kind": "categorical"},
                {"name": "category", "kind": "categorical", "multivalued": True},
                {"name": "price", "kind": "numerical", "bins": 16},
                {"name": "title", "kind": "text", "dim": 32, "groups": 4},
                {"name": "image", "kind": "multimodal", "dim": 32, "groups": 4},
            ],
            "display": ["title"],
        },
        "model": {"name": model, **sections["model"]},
        "objective": sections.get("objective"),
        "training": {
            "batch_size": 64,
            "warmup_steps": 50,
            "validation_users": 1000,
            "seed": sizes.seed,
            **sections["training"],
            **({"epochs": sizes.epochs} if sizes.epochs else {}),
        },
        "evaluation": {"ks": [10, 50]},
    }


@contextmanager
def _stage(title: str) -> Iterator[None]:
    """Says on stderr what begins, and how long it took."""
    print(f"\n== {title}", file=sys.stderr, flush=True)
    began = time.monotonic()
    yield
    print(f"   done in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def _preprocess(config: Config) -> None:
    from beam_jobs import preprocess

    dataset = Path(config.data.out)
    if (dataset / "manifest.json").is_file():
        return
    with _stage(f"A made-up shop's logs -> {dataset} (Apache Beam)"):
        preprocess.run(config)


def _train(config: Config, run_directory: Path) -> dict[str, Any]:
    """Trains and evaluates one model, or reads what an earlier demo measured."""
    path = run_directory / "evaluation.json"
    if not path.is_file():
        from tfrec.evaluation import evaluate
        from tfrec.runs import load_run
        from tfrec.training import train

        with _stage(f"{config.model['name']} -> {run_directory}"):
            train(config, run_directory)
            evaluate(load_run(run_directory)).write(run_directory)
    document: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return document


def _export(out: Path) -> None:
    target = out / "models" / SERVED
    if any(target.glob("[0-9]*/manifest.json")):
        return
    from tfrec.export import export
    from tfrec.runs import load_run

    with _stage(f"{SERVED_MODEL} -> {target} and {target}_scann (SavedModels)"):
        export(load_run(out / "runs" / SERVED_MODEL), target, index="scann")


def choose_question(dataset_directory: Path, seed: int) -> Question:
    """The history of a test user with a dozen events, so that a person can judge the answer."""
    from tfrec.data import Dataset

    dataset = Dataset.open(dataset_directory)
    histories, catalogue, schema = dataset.histories(), dataset.catalogue(), dataset.schema
    lengths = histories.offsets[1:] - histories.offsets[:-1]
    tested = [user for user in range(len(lengths)) if histories.columns["split"][histories.offsets[user + 1] - 1] == 2]
    wanted = sorted(tested, key=lambda user: (abs(int(lengths[user]) - 12), user))
    user = wanted[seed % min(20, len(wanted))]
    events = slice(int(histories.offsets[user]), int(histories.offsets[user + 1]))
    items = [catalogue.item_ids[code] for code in histories.columns["item"][events]]
    return Question(
        user=histories.user_ids[user],
        items=items[:-1],
        times=[int(seconds) + schema.time_origin for seconds in histories.columns["time"][events]][:-1],
        event_types=[schema.event_types[code - 2] for code in histories.columns["event_type"][events]][:-1],
        next_item=items[-1],
    )


def _ask(models: Path, question: Question) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    from serving.app import ModelServer

    with (
        _stage("Serving on free ports, asking over REST and gRPC"),
        ModelServer(models, rest_port=0, grpc_port=0) as server,
    ):
        return (
            ask_rest(f"http://127.0.0.1:{server.rest_port}", SERVED, question),
            ask_grpc(f"127.0.0.1:{server.grpc_port}", f"{SERVED}_scann", question),
        )


def ask_rest(address: str, model: str, question: Question) -> list[tuple[str, float]]:
    """The answer of `POST /v1/models/MODEL:predict`: item ids with their scores."""
    metadata = _get_json(f"{address}/v1/models/{model}/metadata")["metadata"]["signature_def"]["signature_def"]
    inputs = history_inputs(metadata["serving_default"]["inputs"], question.items, question.times, question.event_types)
    rows = {name: array.tolist() for name, array in inputs.items()}
    body = json.dumps({"inputs": rows}, default=bytes.decode).encode()
    outputs = _get_json(f"{address}/v1/models/{model}:predict", body)["outputs"]
    return list(zip(outputs["item_ids"][0], outputs["scores"][0], strict=True))


def _get_json(url: str, body: bytes | None = None) -> Any:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def ask_grpc(address: str, model: str, question: Question) -> list[tuple[str, float]]:
    """The answer of `PredictionService.Predict`: item ids with their scores."""
    import grpc
    from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_service_pb2_grpc

    from serving.tensor_proto import fill_proto, from_proto

    with grpc.insecure_channel(address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        wanted = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        wanted.model_spec.name = model
        signatures = get_model_metadata_pb2.SignatureDefMap()
        stub.GetModelMetadata(wanted, timeout=60).metadata["signature_def"].Unpack(signatures)
        infos = signatures.signature_def["serving_default"].inputs
        request = predict_pb2.PredictRequest()
        request.model_spec.name = model
        for name, array in history_inputs(infos, question.items, question.times, question.event_types).items():
            fill_proto(request.inputs[name], array, infos[name].dtype)
        outputs = stub.Predict(request, timeout=60).outputs
    ids = from_proto(outputs["item_ids"], "item_ids")[0]
    return [
        (item.decode(), float(score))
        for item, score in zip(ids, from_proto(outputs["scores"], "scores")[0], strict=True)
    ]


def _report(out: Path, outcome: Outcome, seconds: float) -> None:
    from rich.console import Console
    from rich.markup import escape

    from tfrec.tables import metrics_table, rows_table

    titles = _titles(out)
    question = outcome.question
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=140)
    console.print(metrics_table(outcome.evaluations, title="test users, whole catalogue ranked", names=_shown(outcome)))
    history = [
        (item, titles.get(item, ""), kind) for item, kind in zip(question.items, question.event_types, strict=True)
    ]
    title = f"what user {question.user} did"
    console.print(rows_table(history, ("item", "title", "event"), title=title, numbered=True))
    answer = [(item, titles.get(item, ""), f"{score:.3f}") for item, score in outcome.rest[:ANSWERS]]
    title = "what the server recommends (REST, exact)"
    console.print(rows_table(answer, ("item", "title", "score"), title=title, numbered=True))
    shared = len({item for item, _ in outcome.rest[:ANSWERS]} & {item for item, _ in outcome.grpc[:ANSWERS]})
    console.print(f"Over gRPC the ScaNN sibling has {shared} of the same {len(answer)} items on top.")
    asked = [item for item, _ in outcome.rest]
    place = f"number {asked.index(question.next_item) + 1}" if question.next_item in asked else "none"
    title = titles.get(question.next_item, "")
    console.print(
        escape(f"The user's next item was {question.next_item} ({title}): {place} of the {len(asked)} answers.")
    )
    history_ids = ",".join(question.items[-3:])
    told = _NEXT.format(out=out, history=history_ids, served=SERVED, seconds=seconds, activate=_activation())
    console.print(escape(told))


def _activation() -> str:
    """The line that puts `tfrec` on PATH, where it is not there: `make demo` runs it from .venv."""
    return "" if shutil.which("tfrec") else f"  source {os.path.relpath(sys.prefix)}/bin/activate\n"


def _shown(outcome: Outcome) -> list[str]:
    measured = outcome.evaluations[SERVED_MODEL]["metrics"]
    return [name for name in METRICS if name in measured]


def _titles(out: Path) -> dict[str, str]:
    from tfrec.data import Dataset

    catalogue = Dataset.open(out / "dataset").catalogue()
    return dict(zip(catalogue.item_ids, catalogue.display["title"], strict=True))
