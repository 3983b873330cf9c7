"""Classify and regress requests as JSON to lists of tf.Example, and their results to JSON."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from tensorflow_serving.apis import input_pb2

from serving import json_tensor
from serving.status import ServingError, invalid_argument

_INT64 = range(-(2**63), 2**63)


def request_input(document: Mapping[str, Any]) -> Any:
    """The Input of a parsed classify or regress request: its `examples`, each with the features of `context`."""
    result = input_pb2.Input()
    if "context" in document:
        _fill(result.example_list_with_context.context, document["context"])
        listed = result.example_list_with_context.examples
    else:
        listed = result.example_list.examples
    shown = json_tensor.show(document)
    if "examples" not in document:
        raise invalid_argument(
            f"JSON Value: {shown} When method is classify, key 'examples' is expected and was not found"
        )
    examples = document["examples"]
    if not isinstance(examples, list):
        raise invalid_argument(f"JSON Value: {shown} Expecting 'examples' value to be an list/array")
    if not examples:
        raise invalid_argument(f"JSON Value: {shown} 'examples' value is an empty array")
    for features in examples:
        _fill(listed.add(), features)
    return result


def _fill(example: Any, features: Any) -> None:
    if not isinstance(features, dict):
        raise invalid_argument(f"Example must be JSON object but got JSON {json_tensor.kind(features)}")
    for name, content in features.items():
        try:
            _fill_feature(example.features.feature[name], name, content if isinstance(content, list) else [content])
        except UnicodeEncodeError:
            raise invalid_argument("JSON Parse error: The surrogate pair in string is invalid.") from None


def _fill_feature(feature: Any, name: str, values: list[Any]) -> None:
    lists = {"bytes": feature.bytes_list, "float": feature.float_list, "int64": feature.int64_list}
    first: str | None = None
    for value in values:
        kind, converted = _feature_value(name, value)
        first = first or kind
        if kind != first:
            raise invalid_argument(f"Unexpected element type in feature: {name} expecting type: {first}")
        lists[kind].value.append(converted)


def _feature_value(name: str, value: Any) -> tuple[str, Any]:
    """The kind of list that a JSON value belongs to, and what is put there."""
    if isinstance(value, bool):
        return "int64", int(value)
    if isinstance(value, str):
        return "bytes", value.encode()
    if json_tensor.is_base64(value):
        return "bytes", json_tensor.decode_base64(value)
    if isinstance(value, int):
        if value not in _INT64:
            raise invalid_argument(f"Feature: {name} has uint64_t element. Only int64_t is supported.")
        return "int64", value
    if isinstance(value, float):
        with np.errstate(over="ignore", under="ignore"):
            return "float", float(np.float32(value))
    raise _unexpected(name, value)


def _unexpected(name: str, value: Any) -> ServingError:
    kind = json_tensor.kind(value)
    return invalid_argument(f"Feature: {name} has element with unexpected JSON type: {kind}")


def classification_json(result: Any) -> str:
    """`results`: for each example a list of `[label, score]`."""
    if not result.classifications:
        raise invalid_argument("Cannot convert empty ClassificationResults to JSON")
    rows = []
    for each in result.classifications:
        scores = json_tensor.float_texts(np.array([found.score for found in each.classes], dtype=np.float32))
        pairs = (
            f"[{json_tensor.quote(found.label)}, {score}]" for found, score in zip(each.classes, scores, strict=True)
        )
        rows.append("        [" + ", ".join(pairs) + "]")
    return json_tensor.document_text("results", "[\n" + ",\n".join(rows) + "\n    ]")


def regression_json(result: Any) -> str:
    """`results`: a value for each example."""
    if not result.regressions:
        raise invalid_argument("Cannot convert empty RegressionResults to JSON")
    values = np.array([found.value for found in result.regressions], dtype=np.float32)
    return json_tensor.document_text("results", "[" + ", ".join(json_tensor.float_texts(values)) + "]")
