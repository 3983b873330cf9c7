"""A SavedModel loaded and run as TensorFlow Serving does: by TensorFlow's C++ loader, in a process without its Python.

    python -m tfrec.stock_loader < request.json > answer.json

Importing tensorflow registers kernels that the stock server lacks (PyFunc) and takes another path through the object
graph, so what answers there may fail in production. This module calls the C API of the wheel's own library by ctypes;
`ask` starts it as a subprocess, because TensorFlow's libraries cannot be loaded twice into one process.
"""

import ctypes
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfrec.errors import UserError

Inputs = Mapping[str, NDArray[Any]]
Outputs = dict[str, NDArray[Any]]

_STRING = 7
_DTYPES: dict[int, Any] = {1: np.float32, 2: np.float64, 3: np.int32, 9: np.int64, 10: np.bool_}
_STRING_BYTES = 24  # sizeof(TF_TString)
_METAGRAPH_SIGNATURES = 5  # field numbers of MetaGraphDef, SignatureDef, TensorInfo
_SIGNATURE_INPUTS, _SIGNATURE_OUTPUTS = 1, 2
_TENSOR_NAME, _TENSOR_DTYPE = 1, 2


class LoaderError(Exception):
    """The C++ loader refused: `code` is TensorFlow's status code (3 invalid argument, 5 not found, 15 data loss)."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{message} (code {code})")
        self.code = code
        self.message = message


@dataclass(frozen=True)
class Request:
    """One call: the signature and its inputs by name; strings as arrays of `bytes` or `str` objects."""

    signature: str
    inputs: Inputs


def scann_library() -> Path:
    """The shared library with ScaNN's ops, found without importing ScaNN."""
    spec = importlib.util.find_spec("scann")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("ScaNN is not installed; run `pip install scann`, or export with `--index exact`.")
    return Path(spec.submodule_search_locations[0]) / "scann_ops" / "cc" / "_scann_ops.so"


def ask(directory: Path, requests: Sequence[Request], libraries: Sequence[Path] = ()) -> list[Outputs]:
    """Loads `directory` in a subprocess by the C++ loader and answers the requests in order.

    Raises:
        LoaderError: the loader refused the model or one of the requests.
        UserError: the process ended without an answer.
    """
    document = {
        "directory": os.path.abspath(directory),
        "libraries": [os.path.abspath(library) for library in libraries],
        "requests": [
            {"signature": request.signature, "inputs": {name: _to_json(v) for name, v in request.inputs.items()}}
            for request in requests
        ],
    }
    command = [sys.executable, "-m", "tfrec.stock_loader"]
    root = Path(__file__).resolve().parent.parent
    # On the CPU: the caller may hold all of a GPU's memory, and the stock server's image has no GPU.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    finished = subprocess.run(
        command, input=json.dumps(document), capture_output=True, text=True, cwd=root, env=environment
    )
    if finished.returncode != 0:
        last = (finished.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{directory}: the C++ loader ended with exit code {finished.returncode}: {last}")
    answer = json.loads(finished.stdout)
    if "error" in answer:
        raise LoaderError(answer["error"]["code"], answer["error"]["message"])
    return [{name: _from_json(value) for name, value in outputs.items()} for outputs in answer["outputs"]]


class StockModel:
    """A SavedModel in TensorFlow's C++ runtime; only for a process that never imports tensorflow.

    Args:
        directory: of the SavedModel.
        libraries: shared libraries with further ops, loaded first.
    """

    def __init__(self, directory: Path, libraries: Sequence[Path] = ()) -> None:
        self._c = _CApi()
        self._status = self._c.TF_NewStatus()
        for library in libraries:
            self._c.TF_LoadLibrary(str(library).encode(), self._status)
            self._check()
        self._graph = self._c.TF_NewGraph()
        options = self._c.TF_NewSessionOptions()
        meta = self._c.TF_NewBuffer()
        tags = (ctypes.c_char_p * 1)(b"serve")
        self._session = self._c.TF_LoadSessionFromSavedModel(
            options, None, str(directory).encode(), tags, 1, self._graph, meta, self._status
        )
        self._check()
        content = ctypes.cast(meta, ctypes.POINTER(_Buffer)).contents
        self.signatures = read_signatures(ctypes.string_at(content.data, content.length))

    def run(self, request: Request) -> Outputs:
        """The outputs of one call by name; strings come as arrays of `bytes`."""
        inputs, outputs = self.signatures[request.signature]
        if set(inputs) != set(request.inputs):
            raise LoaderError(3, f"inputs must be {sorted(inputs)}. Received: {sorted(request.inputs)}")
        names = list(inputs)
        results = list(outputs)
        fed = (_Output * len(names))(*(self._output(inputs[name][0]) for name in names))
        values = [self._tensor(inputs[name][1], request.inputs[name]) for name in names]
        fetched = (_Output * len(results))(*(self._output(outputs[name][0]) for name in results))
        answers = (ctypes.c_void_p * len(results))()
        self._c.TF_SessionRun(
            self._session, None, fed, (ctypes.c_void_p * len(values))(*values), len(values),
            fetched, answers, len(results), None, 0, None, self._status,
        )  # fmt: skip
        for value in values:
            self._c.TF_DeleteTensor(value)
        self._check()
        return {name: self._array(answer) for name, answer in zip(results, answers, strict=True)}

    def _check(self) -> None:
        if code := self._c.TF_GetCode(self._status):
            raise LoaderError(code, self._c.TF_Message(self._status).decode("utf-8", "replace"))

    def _output(self, tensor_name: str) -> "_Output":
        name, _, index = tensor_name.rpartition(":")
        return _Output(self._c.TF_GraphOperationByName(self._graph, name.encode()), int(index))

    def _tensor(self, dtype: int, array: NDArray[Any]) -> int:
        shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        if dtype != _STRING:
            array = np.ascontiguousarray(array, _DTYPES[dtype])
            tensor = self._c.TF_AllocateTensor(dtype, shape, array.ndim, array.nbytes)
            ctypes.memmove(self._c.TF_TensorData(tensor), array.ctypes.data, array.nbytes)
            return int(tensor)
        tensor = self._c.TF_AllocateTensor(dtype, shape, array.ndim, array.size * _STRING_BYTES)
        start = self._c.TF_TensorData(tensor) or 0
        for position, value in enumerate(array.ravel()):
            text = value if isinstance(value, bytes) else value.encode()
            self._c.TF_StringInit(start + position * _STRING_BYTES)
            self._c.TF_StringCopy(start + position * _STRING_BYTES, text, len(text))
        return int(tensor)

    def _array(self, tensor: int) -> NDArray[Any]:
        dtype = self._c.TF_TensorType(tensor)
        shape = [self._c.TF_Dim(tensor, axis) for axis in range(self._c.TF_NumDims(tensor))]
        data = self._c.TF_TensorData(tensor) or 0
        if dtype == _STRING:
            result = np.empty(int(np.prod(shape)), object)
            for position in range(result.size):
                place = data + position * _STRING_BYTES
                pointer, size = self._c.TF_StringGetDataPointer(place), self._c.TF_StringGetSize(place)
                result[position] = ctypes.string_at(pointer, size)
            result = result.reshape(shape)
        else:
            content = ctypes.string_at(data, self._c.TF_TensorByteSize(tensor))
            result = np.frombuffer(content, _DTYPES[dtype]).reshape(shape)
        self._c.TF_DeleteTensor(tensor)
        return result


class _Output(ctypes.Structure):
    _fields_ = (("operation", ctypes.c_void_p), ("index", ctypes.c_int))


class _Buffer(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("length", ctypes.c_size_t), ("deallocator", ctypes.c_void_p))


_P, _I, _S, _N = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "TF_NewStatus": (_P, []),
    "TF_GetCode": (_I, [_P]),
    "TF_Message": (_S, [_P]),
    "TF_LoadLibrary": (_P, [_S, _P]),
    "TF_NewGraph": (_P, []),
    "TF_NewSessionOptions": (_P, []),
    "TF_NewBuffer": (_P, []),
    "TF_LoadSessionFromSavedModel": (_P, [_P, _P, _S, _P, _I, _P, _P, _P]),
    "TF_GraphOperationByName": (_P, [_P, _S]),
    "TF_SessionRun": (None, [_P, _P, _P, _P, _I, _P, _P, _I, _P, _I, _P, _P]),
    "TF_AllocateTensor": (_P, [_I, _P, _I, _N]),
    "TF_DeleteTensor": (None, [_P]),
    "TF_TensorData": (_P, [_P]),
    "TF_TensorByteSize": (_N, [_P]),
    "TF_TensorType": (_I, [_P]),
    "TF_NumDims": (_I, [_P]),
    "TF_Dim": (ctypes.c_int64, [_P, _I]),
    "TF_StringInit": (None, [_P]),
    "TF_StringCopy": (None, [_P, _S, _N]),
    "TF_StringGetDataPointer": (_P, [_P]),
    "TF_StringGetSize": (_N, [_P]),
}


class _CApi:
    """TensorFlow's C functions with their argument types, from the two libraries of the installed wheel."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec("tensorflow")
        if spec is None or not spec.submodule_search_locations:
            raise UserError("TensorFlow is not installed; run `pip install tensorflow`.")
        folder = Path(spec.submodule_search_locations[0])
        framework = ctypes.CDLL(str(folder / "libtensorflow_framework.so.2"), ctypes.RTLD_GLOBAL)
        main = ctypes.CDLL(str(folder / "libtensorflow_cc.so.2"), ctypes.RTLD_GLOBAL)
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(main, name, None) or getattr(framework, name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


Tensors = dict[str, tuple[str, int]]


def read_signatures(meta_graph: bytes) -> dict[str, tuple[Tensors, Tensors]]:
    """Signatures of a serialised MetaGraphDef: (inputs, outputs), each alias -> (tensor name, dtype number).

    Read from the wire format, because importing TensorFlow's protos imports TensorFlow.
    """
    signatures = {}
    for number, entry in _fields(meta_graph):
        if number == _METAGRAPH_SIGNATURES:
            name, definition = _map_entry(entry)
            tensors: dict[int, Tensors] = {_SIGNATURE_INPUTS: {}, _SIGNATURE_OUTPUTS: {}}
            for part, content in _fields(definition):
                if part in tensors:
                    alias, info = _map_entry(content)
                    parsed = dict(_fields(info))
                    # The initialisation's own signature names an operation, which has no type.
                    tensors[part][alias] = (parsed[_TENSOR_NAME].decode(), parsed.get(_TENSOR_DTYPE, 0))
            if not name.startswith("__saved_model"):
                signatures[name] = (tensors[_SIGNATURE_INPUTS], tensors[_SIGNATURE_OUTPUTS])
    return signatures


def _map_entry(message: bytes) -> tuple[str, bytes]:
    parsed = dict(_fields(message))
    return parsed.get(1, b"").decode(), parsed.get(2, b"")


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protobuf message: varints as int, everything else as bytes."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        kind = key & 7
        if kind == 0:
            value: Any
            value, position = _varint(message, position)
        else:
            size = {1: 8, 5: 4}.get(kind)
            if size is None:
                size, position = _varint(message, position)
            value = message[position : position + size]
            position += size
        yield key >> 3, value


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position


def _to_json(array: NDArray[Any]) -> dict[str, Any]:
    array = np.asarray(array)
    if array.dtype.kind in "OSU":
        values = [(v if isinstance(v, bytes) else str(v).encode()).decode("latin-1") for v in array.ravel()]
        return {"dtype": "string", "shape": array.shape, "values": values}
    return {"dtype": str(array.dtype), "shape": array.shape, "values": array.ravel().tolist()}


def _from_json(document: Mapping[str, Any]) -> NDArray[Any]:
    if document["dtype"] == "string":
        array = np.empty(len(document["values"]), object)
        array[:] = [value.encode("latin-1") for value in document["values"]]
        return array.reshape(document["shape"])
    return np.array(document["values"], document["dtype"]).reshape(document["shape"])


def main() -> None:
    """Answers the JSON document on stdin with one on stdout (the form that `ask` writes and reads)."""
    document = json.load(sys.stdin)
    try:
        model = StockModel(Path(document["directory"]), [Path(library) for library in document["libraries"]])
        answers = []
        for request in document["requests"]:
            inputs = {name: _from_json(value) for name, value in request["inputs"].items()}
            answers.append(model.run(Request(request["signature"], inputs)))
    except LoaderError as error:
        json.dump({"error": {"code": error.code, "message": error.message}}, sys.stdout)
        return
    outputs = [{name: _to_json(value) for name, value in answer.items()} for answer in answers]
    json.dump({"outputs": outputs}, sys.stdout)


if __name__ == "__main__":
    main()
