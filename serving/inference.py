"""Classify, Regress and MultiInference: lists of tf.Example in, labels, scores and values out."""

from typing import Any

import numpy as np
from tensorflow_serving.apis import classification_pb2, inference_pb2, regression_pb2

from serving.signatures import DEFAULT_SIGNATURE, Arrays, Servable, Signature
from serving.status import Code, ServingError, invalid_argument

CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"
PREDICT = "tensorflow/serving/predict"
_METHODS = (PREDICT, CLASSIFY, REGRESS)
_INPUTS = "inputs"
_CLASSES, _SCORES, _OUTPUTS = "classes", "scores", "outputs"


class Inference:
    """Answers the methods that take examples.

    Args:
        check_method_names: whether a signature's own method name must be that of the call.
    """

    def __init__(self, *, check_method_names: bool = False) -> None:
        self._check_method_names = check_method_names

    def check_predict(self, servable: Servable, signature_name: str) -> None:
        """Refuses to predict by a signature of no known method, where method names are checked."""
        name = signature_name or DEFAULT_SIGNATURE
        signature = servable.signatures.get(name)
        if self._check_method_names and signature is not None and signature.method_name not in _METHODS:
            raise ServingError(
                Code.INTERNAL,
                f"Expected prediction signature method_name to be one of {', '.join(_METHODS)}. "
                f"Was: {signature.method_name}",
            )

    def classify(self, servable: Servable, signature_name: str, examples: Any) -> Any:
        """The ClassificationResult of an Input."""
        name = signature_name or DEFAULT_SIGNATURE
        signature = _signature(servable, name)
        self._check_classification(signature)
        rows = serialized(examples)
        return _classifications(servable.run(name, {_INPUTS: rows}), len(rows))

    def regress(self, servable: Servable, signature_name: str, examples: Any) -> Any:
        """The RegressionResult of an Input."""
        name = signature_name or DEFAULT_SIGNATURE
        signature = _signature(servable, name)
        self._check_regression(signature)
        rows = serialized(examples)
        return _regressions(servable.run(name, {_INPUTS: rows}), len(rows))

    def multi(self, servable: Servable, request: Any) -> Any:
        """The MultiInferenceResponse of a MultiInferenceRequest, its model specs without a version."""
        names = [task.model_spec.signature_name or DEFAULT_SIGNATURE for task in request.tasks]
        for position, (task, name) in enumerate(zip(request.tasks, names, strict=True)):
            if name in names[:position]:
                raise invalid_argument(f"Duplicate evaluation of signature: {name}")
            if name not in servable.signatures:
                raise invalid_argument(f"Requested signature not found in model graph: {name}")
            if task.method_name == CLASSIFY:
                self._check_classification(servable.signatures[name])
            elif task.method_name == REGRESS:
                self._check_regression(servable.signatures[name])
            else:
                raise ServingError(Code.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}")
        rows = serialized(request.input)
        response = inference_pb2.MultiInferenceResponse()
        for task, name in zip(request.tasks, names, strict=True):
            outputs = servable.run(name, {_INPUTS: rows})
            result = response.results.add()
            if task.method_name == CLASSIFY:
                result.classification_result.CopyFrom(_classifications(outputs, len(rows)))
            else:
                result.regression_result.CopyFrom(_regressions(outputs, len(rows)))
            result.model_spec.signature_name = name
        return response

    def _check_classification(self, signature: Signature) -> None:
        self._check_method(signature, CLASSIFY, "classification")
        _check_input(signature, "classification")
        if len(signature.outputs) not in (1, 2):
            raise invalid_argument(f"Expected one or two output Tensors, found {len(signature.outputs)}")
        if not {_CLASSES, _SCORES} & signature.outputs.keys():
            raise invalid_argument(
                'Expected classification signature outputs to contain at least one of "classes" or "scores".'
            )

    def _check_regression(self, signature: Signature) -> None:
        self._check_method(signature, REGRESS, "regression")
        _check_input(signature, "regression")
        if len(signature.outputs) != 1:
            raise invalid_argument("Expected one output Tensor.")
        if _OUTPUTS not in signature.outputs:
            raise invalid_argument("No regression outputs found in SignatureDef.")

    def _check_method(self, signature: Signature, method: str, kind: str) -> None:
        if self._check_method_names and signature.method_name != method:
            raise invalid_argument(
                f"Expected {kind} signature method_name to be {method}. Was: {signature.method_name}"
            )


def _signature(servable: Servable, name: str) -> Signature:
    if name not in servable.signatures:
        raise invalid_argument(f"No signature was found with the name: {name}")
    return servable.signatures[name]


def _check_input(signature: Signature, kind: str) -> None:
    if len(signature.inputs) != 1:
        raise invalid_argument("Expected one input Tensor.")
    if _INPUTS not in signature.inputs:
        raise invalid_argument(f"No {kind} inputs found in SignatureDef.")
    if signature.inputs[_INPUTS].type_name != "string":
        given = signature.inputs[_INPUTS].type_name
        raise invalid_argument(f"Expects arg[0] to be {given} but string is provided")


def serialized(examples: Any) -> np.ndarray:
    """The examples of an Input as serialised tf.Example, the context's features merged into each."""
    kind = examples.WhichOneof("kind")
    listed = getattr(examples, kind).examples if kind else ()
    if not listed:
        raise invalid_argument("Input is empty.")
    # Serialised messages one after the other are the serialised form of both merged.
    context = examples.example_list_with_context.context.SerializeToString() if "context" in kind else b""
    rows = np.empty(len(listed), dtype=object)
    rows[:] = [context + example.SerializeToString() for example in listed]
    return rows


def _shape(array: np.ndarray) -> str:
    return "[" + ",".join(map(str, array.shape)) + "]"


def _classifications(outputs: Arrays, examples: int) -> Any:
    classes, scores = outputs.get(_CLASSES), outputs.get(_SCORES)
    for name, array, right, wanted in (
        (_CLASSES, classes, np.dtype(object), "DT_STRING"),
        (_SCORES, scores, np.dtype(np.float32), "DT_FLOAT"),
    ):
        if array is None:
            continue
        if array.ndim != 2:
            raise invalid_argument(f"Expected Tensor shape: [batch_size num_classes] but got {_shape(array)}")
        if array.dtype != right:
            raise invalid_argument(f"Expected {name} Tensor of {wanted}. Got: {array.dtype.name}")
        if len(array) != examples:
            raise invalid_argument(f"Expected {name} output batch size of {examples}. Got: {len(array)}")
    if classes is not None and scores is not None and classes.shape[1] != scores.shape[1]:
        raise invalid_argument(
            f"Tensors class and score should match in dim_size(1). Got {classes.shape[1]} vs. {scores.shape[1]}"
        )
    return _classification_message(classes, scores, examples)


def _classification_message(classes: np.ndarray | None, scores: np.ndarray | None, examples: int) -> Any:
    result = classification_pb2.ClassificationResult()
    columns = next(len(array[0]) for array in (classes, scores) if array is not None)
    labels = classes.tolist() if classes is not None else [[b""] * columns] * examples
    values = scores.tolist() if scores is not None else [[0.0] * columns] * examples
    for row_labels, row_values in zip(labels, values, strict=True):
        row = result.classifications.add()
        for label, value in zip(row_labels, row_values, strict=True):
            row.classes.add(label=label.decode("utf-8", "replace"), score=value)
    return result


def _regressions(outputs: Arrays, examples: int) -> Any:
    values = outputs[_OUTPUTS]
    if values.ndim != 1 and not (values.ndim == 2 and values.shape[1] == 1):
        raise invalid_argument(
            f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got {_shape(values)}"
        )
    if len(values) != examples:
        raise invalid_argument(f"Input batch size did not match output batch size: {examples} vs. {len(values)}")
    if values.dtype != np.float32:
        raise invalid_argument(f"Expected output Tensor of DT_FLOAT.  Got: {values.dtype.name}")
    result = regression_pb2.RegressionResult()
    for value in values.reshape(-1).tolist():
        result.regressions.add(value=value)
    return result
