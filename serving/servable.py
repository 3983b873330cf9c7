"""A version directory, admitted and loaded: the SavedModel in a TensorFlow session of its own.

The session is built from the graph, as TensorFlow Serving does, and not from Python objects: what fails there fails
here too.
"""

import importlib
import importlib.util
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2, saved_model_pb2
from tensorflow_serving.apis import get_model_metadata_pb2

from serving.signatures import Arrays, Signature, Tensor
from serving.status import Code, ServingError, invalid_argument
from tfrec import manifest
from tfrec.errors import UserError

WARMUP_REQUESTS = "assets.extra/tf_serving_warmup_requests"
_VARIABLE_OPERATIONS = {"VarHandleOp", "VariableV2", "Variable"}
_PYTHON_OPERATIONS = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}
# How the names of some operations begin -> the package that brings them.
_OPERATION_LIBRARIES = {"Scann>": "scann", "TFText>": "tensorflow_text"}
_TEXT_LIBRARY = "tensorflow_text"  # most of whose operations have names of every kind

_Callable = Callable[..., list[Any]]


class SavedModelServable:
    """A loaded SavedModel.

    Args:
        directory: the version directory; it may vanish once this returns.
        intra_op_threads: threads of one operation; 0 = one a processor.
        inter_op_threads: operations at once; 0 = one a processor, and on a single one in the thread that calls.

    Raises:
        ServingError: the version is incomplete, altered, or does not load.
    """

    def __init__(self, directory: Path, *, intra_op_threads: int = 0, inter_op_threads: int = 0) -> None:
        check_files(directory)
        _check_operations(_operations(directory), directory)
        config = config_pb2.ConfigProto(
            intra_op_parallelism_threads=intra_op_threads,
            inter_op_parallelism_threads=inter_op_threads or _inter_op_threads(),
        )
        self._session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
        try:
            meta_graph = _load(self._session, directory)
            self.signature_def = get_model_metadata_pb2.SignatureDefMap()
            for name, definition in meta_graph.signature_def.items():
                self.signature_def.signature_def[name].CopyFrom(definition)
            self.signature_def_json: dict[str, Any] = MessageToDict(
                self.signature_def, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )
            self.signatures: Mapping[str, Signature] = {
                name: _signature(d) for name, d in sorted(meta_graph.signature_def.items())
            }
            self._callables: dict[str, _Callable] = {}
            self._lock = threading.Lock()
        except BaseException:
            self._session.close()
            raise

    def run(self, signature_name: str, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Runs one signature and returns every output by its alias.

        Args:
            signature_name: one of `signatures`.
            inputs: an array for each of its inputs, of its type.
        """
        signature = self.signatures[signature_name]
        call = self._callables.get(signature_name) or self._make_callable(signature_name, signature)
        try:
            values = call(*[inputs[alias] for alias in signature.inputs])
        except tf.errors.OpError as error:
            raise _from_tensorflow(error) from None
        by_name = dict(zip(_names(signature.outputs), values, strict=True))
        return {alias: np.asarray(by_name[tensor.name]) for alias, tensor in signature.outputs.items()}

    def _make_callable(self, name: str, signature: Signature) -> _Callable:
        tensors = [*signature.inputs.values(), *signature.outputs.values()]
        if not signature.outputs or not all(":" in tensor.name for tensor in tensors):
            raise invalid_argument(f'Serving signature "{name}" cannot be called: it has no plain tensors.')
        options = config_pb2.CallableOptions(
            feed=[tensor.name for tensor in signature.inputs.values()], fetch=_names(signature.outputs)
        )
        with self._lock:
            try:
                return self._callables.setdefault(name, self._session._make_callable_from_options(options))
            except tf.errors.OpError as error:
                raise _from_tensorflow(error) from None

    def close(self) -> None:
        """Frees the session and everything in it."""
        self._callables.clear()
        self._session.close()


def _inter_op_threads() -> int:
    """On one processor a thread for operations only costs the way there and back: -1 is the calling thread."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return -1 if processors == 1 else 0


def _names(tensors: Mapping[str, Tensor]) -> list[str]:
    """The graph's names of some tensors, each once: two aliases may share one."""
    return list(dict.fromkeys(tensor.name for tensor in tensors.values()))


def _signature(definition: Any) -> Signature:
    def tensors(infos: Mapping[str, Any]) -> dict[str, Tensor]:
        return {alias: _tensor(info) for alias, info in sorted(infos.items())}

    defaults = {alias: tf.make_ndarray(value) for alias, value in sorted(definition.defaults.items())}
    return Signature(tensors(definition.inputs), tensors(definition.outputs), definition.method_name, defaults)


def _tensor(info: Any) -> Tensor:
    name = "" if info.dtype == 0 else tf.dtypes.as_dtype(info.dtype).name
    name = {"float32": "float", "float64": "double", "float16": "half"}.get(name, name)
    shape = None if info.tensor_shape.unknown_rank else tuple(dim.size for dim in info.tensor_shape.dim)
    return Tensor(info.name, name, info.dtype, shape)


def _from_tensorflow(error: Any) -> ServingError:
    return ServingError(Code(error.error_code), error.message or type(error).__name__)


def check_files(directory: Path) -> None:
    """Compares a version directory with its manifest, where it has one: no file missing, altered or added."""
    if not (directory / manifest.MANIFEST).exists():
        return
    try:
        content = manifest.read_manifest(directory)
        for name in content["files"]:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                raise UserError(f"{manifest.MANIFEST} names `{name}`, which is outside the version.")
        manifest.verify(directory, whole=True)
        added = sorted(set(manifest.list_files(directory)) - set(content["files"]))
        if added:
            raise UserError(f"`{added[0]}` is not named in {manifest.MANIFEST}.")
    except UserError as error:
        raise ServingError(Code.DATA_LOSS, str(error)) from None
    except (KeyError, TypeError):
        raise ServingError(Code.DATA_LOSS, f"{manifest.MANIFEST} has an entry without `bytes` or `sha256`.") from None


def _operations(directory: Path) -> set[str]:
    """The operations of the `serve` graph and of its functions; none where the file cannot be parsed."""
    saved_model = saved_model_pb2.SavedModel()
    try:
        saved_model.ParseFromString((directory / "saved_model.pb").read_bytes())
    except (OSError, DecodeError):
        return set()  # loading says what is wrong
    graphs = [
        graph.graph_def for graph in saved_model.meta_graphs if tf.saved_model.SERVING in graph.meta_info_def.tags
    ]
    functions = [function for graph in graphs for function in graph.library.function]
    nodes = chain(chain.from_iterable(each.node_def for each in functions), *(graph.node for graph in graphs))
    return {node.op for node in nodes} - {function.signature.name for function in functions}


def _check_operations(operations: set[str], directory: Path) -> None:
    """Imports the packages that bring operations, and refuses what would load and then fail every request."""
    for prefix, package in _OPERATION_LIBRARIES.items():
        needing = sorted(name for name in operations if name.startswith(prefix))
        if needing:
            _import(package, needing[0])
    unknown = {name for name in operations if ">" not in name and not hasattr(tf.raw_ops, name)}
    if unknown and importlib.util.find_spec(_TEXT_LIBRARY) is not None:
        importlib.import_module(_TEXT_LIBRARY)
    python = sorted(operations & _PYTHON_OPERATIONS)
    if python:
        raise ServingError(
            Code.FAILED_PRECONDITION,
            f"No OpKernel was registered to support Op '{python[0]}': a Python function cannot be exported.",
        )
    if operations & _VARIABLE_OPERATIONS and not (directory / "variables" / "variables.index").is_file():
        raise ServingError(Code.DATA_LOSS, "The graph has variables, but variables/variables.index is missing.")


def _import(package: str, operation: str) -> None:
    try:
        importlib.import_module(package)
    except ImportError:
        raise ServingError(
            Code.NOT_FOUND,
            f"Op type not registered '{operation}': the model needs the package `{package}`, which is not installed "
            "here.",
        ) from None


def _load(session: Any, directory: Path) -> meta_graph_pb2.MetaGraphDef:
    tf.get_logger().setLevel(logging.ERROR)
    try:
        with session.graph.as_default():
            return tf.compat.v1.saved_model.load(session, [tf.saved_model.SERVING], str(directory))
    except tf.errors.OpError as error:
        raise _from_tensorflow(error) from None
    except (OSError, DecodeError) as error:
        code = Code.DATA_LOSS if (directory / "saved_model.pb").is_file() else Code.NOT_FOUND
        raise ServingError(code, f"The SavedModel cannot be read: {error}") from None
    except (RuntimeError, ValueError, KeyError, TypeError) as error:  # no `serve` graph, or one that cannot be built
        raise ServingError(Code.FAILED_PRECONDITION, f"The SavedModel cannot be loaded: {error}") from None


def read_warmup(directory: Path) -> Iterator[bytes]:
    """The serialised PredictionLog records of a version, none where it has no warm-up file."""
    path = directory / WARMUP_REQUESTS
    if not path.is_file():
        return
    try:
        for record in tf.data.TFRecordDataset(str(path)):
            yield record.numpy()
    except tf.errors.OpError as error:
        raise _from_tensorflow(error) from None
