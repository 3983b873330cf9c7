"""What lies around the SavedModel in a version directory: its number, the items' titles, warm-up requests, manifest.

MODELS/NAME/<version>/
    saved_model.pb variables/ assets/       what TensorFlow Serving loads
    assets.extra/tf_serving_warmup_requests  what it asks before it takes traffic
    assets.extra/items.jsonl                 item ids and display fields, for people
    assets.extra/schema.json                 what the raw inputs mean
    assets.extra/evaluation.json ranks_*.npz what the run is worth, query by query, where it was evaluated
    manifest.json                            every file with its hash; where it came from; what it was checked for
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfrec.columns import Catalogue
from tfrec.comparison import differences, measure, verdict
from tfrec.config import suggest
from tfrec.errors import UserError
from tfrec.evaluation import EVALUATION, deciding_metric, ranks_file, read_evaluation
from tfrec.raw import Arrays, raw_values
from tfrec.runs import Run
from tfrec.schema import ITEM_ID, WEIGHTS, Schema
from tfrec.scores import scores_file
from tfrec.stock_loader import Request
from tfrec.transforms import Quantizer

EXTRA = "assets.extra"
ITEMS = f"{EXTRA}/items.jsonl"
WARMUP = f"{EXTRA}/tf_serving_warmup_requests"
SCANN_SUFFIX = "_scann"
_WITHDRAWN = ".withdrawn"  # what `tfrec rollback` puts behind the number of a version

_WARMUP_SIZES = (1, 8, 32)


def siblings(to: Path, index: str) -> dict[str, Path]:
    """The model directories that an export writes, by kind of index."""
    directories = {"exact": to}
    if index == "scann":
        directories["scann"] = to.with_name(to.name + SCANN_SUFFIX)
    return directories


def versions(model: Path) -> list[int]:
    """The versions in a model directory, rising; other names are not versions."""
    if not model.is_dir():
        return []
    return sorted(int(path.name) for path in model.iterdir() if path.name.isdecimal() and path.is_dir())


def next_version(to: Path) -> int:
    """One more than the highest version of the model and of its ScaNN sibling, withdrawn ones included."""
    directories = [path for path in siblings(to, "scann").values() if path.is_dir()]
    names = [path.name.removesuffix(_WITHDRAWN) for model in directories for path in model.iterdir() if path.is_dir()]
    return max([0, *(int(name) for name in names if name.isdecimal())]) + 1


def latest(model: Path) -> Path:
    """The directory of a model's highest version."""
    numbers = versions(model)
    if not numbers:
        raise UserError(f"{model}: no version there; `tfrec export RUN --to {model}` publishes the first.")
    return next(path for path in model.iterdir() if path.name.isdecimal() and int(path.name) == numbers[-1])


def write_display(directory: Path, catalogue: Catalogue) -> None:
    """Writes the items as JSON lines, `item_id` and the display fields, in the order of their codes."""
    path = directory / ITEMS
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for item in catalogue.candidates:
            fields = {name: texts[item] for name, texts in catalogue.display.items()}
            file.write(json.dumps({ITEM_ID: catalogue.item_ids[item], **fields}, ensure_ascii=False) + "\n")


def read_display(directory: Path) -> dict[str, dict[str, str]]:
    """The display fields of a version by item id."""
    with (directory / ITEMS).open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return {row.pop(ITEM_ID): row for row in rows}


def warmup_requests(schema: Schema, catalogue: Catalogue, directory: Path, histories: Arrays) -> Iterator[Request]:
    """Requests of several batch sizes for every signature.

    Args:
        schema: of the dataset.
        catalogue: of the dataset.
        directory: of the dataset.
        histories: a raw request of `recommend`, from which rows are taken.
    """
    items = catalogue.candidates
    yield from repeated(("serving_default", "recommend", "encode_user"), histories)
    nothing = np.full((len(histories["history_length"]), 1), "", object)
    yield from repeated(("recommend_filtered",), histories | dict.fromkeys(schema.filter_inputs(), nothing))
    for size in _WARMUP_SIZES:
        asked = raw_items(schema, catalogue, directory, np.resize(items, size))
        yield Request("encode_item", asked)
        yield Request("similar_items", {"item_ids": asked[ITEM_ID]})


def repeated(signatures: Sequence[str], inputs: Arrays) -> Iterator[Request]:
    """A raw request's rows as requests of several batch sizes for each signature."""
    available = len(inputs["history_length"])
    for size in _WARMUP_SIZES:
        chosen = np.resize(np.arange(available), size)
        rows = {name: values[chosen] for name, values in inputs.items()}
        yield from (Request(signature, rows) for signature in signatures)


def raw_items(schema: Schema, catalogue: Catalogue, directory: Path, items: NDArray[np.int64]) -> Arrays:
    """Raw features that have the codes of these items; vectors are the stored ones, else zeros.

    Args:
        schema: of the dataset.
        catalogue: of the dataset.
        directory: of the dataset.
        items: codes `(N,)`.
    """
    raw: Arrays = {ITEM_ID: np.array(catalogue.item_ids, object)[items]}
    for feature in schema.inputs("item"):
        if isinstance(feature.transform, Quantizer):
            shape = (len(items), feature.transform.input_dim)
            stored = catalogue.vectors.get(feature.name)
            raw[feature.name] = np.zeros(shape, np.float32) if stored is None else stored[items].astype(np.float32)
        elif feature.name != ITEM_ID:
            codes = catalogue.codes[items, schema.item_columns()[feature.name]]
            raw[feature.name] = raw_values(feature, codes, directory)
        if feature.weight_separator is not None:
            raw[feature.name + WEIGHTS] = catalogue.vectors[feature.name][items].astype(np.float32)
        if feature.standard is not None:
            values = feature.standard.mean + feature.standard.deviation * catalogue.vectors[feature.name][items, 0]
            raw[feature.name] = np.where(np.isnan(raw[feature.name]), np.nan, values.astype(np.float64))
    return raw


def write_warmup(directory: Path, model_name: str, requests: Sequence[Request]) -> None:
    """Writes the requests as TensorFlow Serving reads them: a TFRecord of PredictionLog."""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    path = directory / WARMUP
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for request in requests:
            predict = predict_pb2.PredictRequest()
            predict.model_spec.name = model_name
            predict.model_spec.signature_name = request.signature
            for name, values in request.inputs.items():
                predict.inputs[name].CopyFrom(tf.make_tensor_proto(values))
            log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=predict))
            writer.write(log.SerializeToString(deterministic=True))


def copy_evaluation(run: Run, directory: Path) -> Mapping[str, Any] | None:
    """Copies the evaluation on the test split and its answers into a version; None where the run has none."""
    path = run.directory / EVALUATION
    if not path.is_file():
        return None
    document = read_evaluation(run.directory)
    for file in (path, ranks_file(run.directory, "test"), scores_file(run.directory, "test")):
        if file.is_file():
            shutil.copyfile(file, directory / EXTRA / file.name)
    return document


def refuse_worse(run: Run, served: Path) -> None:
    """Raises a `UserError` where a run is worse than the latest version of a served model.

    Both must be evaluated on the test split of the same dataset. Worse is: the 95 % interval of the paired difference
    of `training.validation_metric`, bootstrapped over users, lies on the worse side of 0. A model that wants the time
    of the request where the served one does not, or the other way round, is refused too: it takes other inputs.

    Args:
        run: what is to be published.
        served: MODELS/NAME.
    """
    version = latest(served)
    if not (version / EXTRA / EVALUATION).is_file():
        raise UserError(
            f"{version}: was published without an evaluation, so nothing can be compared with it; run `tfrec evaluate` "
            "on its run and publish that again."
        )
    here, there = (
        read_evaluation(directory)["protocol"].get("request_time") for directory in (run.directory, version / EXTRA)
    )
    if here != there:
        raise UserError(
            f"{run.directory}: `features.request_time` is {here}, of {version} it is {there}, so clients would have to "
            "change; publish it under another name."
        )
    found = differences(measure(run.directory), measure(version / EXTRA))
    metric = deciding_metric(run.config)
    if metric not in found:
        raise UserError(f"`training.validation_metric`: {metric} is not evaluated; {suggest(metric, list(found))}")
    if verdict(metric, found[metric]) == "worse":
        raise UserError(
            f"{run.directory}: worse than {version}: {metric} differs by {found[metric].difference:+.4f} "
            f"(95 % interval {found[metric].low:+.4f} to {found[metric].high:+.4f}); not published."
        )
