"""TensorProto to arrays and back, checked before a byte is allocated, and `Predict` on top of it.

Messages are handled by their fields alone, so nothing here imports TensorFlow.
"""

import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from serving.signatures import DEFAULT_SIGNATURE, Arrays, Servable, Signature
from serving.status import Code, ServingError, invalid_argument

MAX_TENSOR_BYTES = 1 << 28
_MAX_RANK = 64  # of a NumPy array; TensorFlow itself stops at 254
_STRING = 7

# Number of a type in TensorProto -> (NumPy's type, the field that holds its values).
_TYPES: dict[int, tuple[Any, str]] = {
    1: (np.float32, "float_val"),
    2: (np.float64, "double_val"),
    3: (np.int32, "int_val"),
    4: (np.uint8, "int_val"),
    5: (np.int16, "int_val"),
    6: (np.int8, "int_val"),
    _STRING: (object, "string_val"),
    8: (np.complex64, "scomplex_val"),
    9: (np.int64, "int64_val"),
    10: (np.bool_, "bool_val"),
    14: (ml_dtypes.bfloat16, "half_val"),
    17: (np.uint16, "int_val"),
    18: (np.complex128, "dcomplex_val"),
    19: (np.float16, "half_val"),
    22: (np.uint32, "uint32_val"),
    23: (np.uint64, "uint64_val"),
}
_TYPE_NAMES = {1: "float", 2: "double", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", _STRING: "string"}
_TYPE_NAMES |= {8: "complex64", 9: "int64", 10: "bool", 14: "bfloat16", 17: "uint16", 18: "complex128", 19: "half"}
_TYPE_NAMES |= {22: "uint32", 23: "uint64"}


def type_name(type_code: int) -> str:
    """TensorFlow's name of a type, as its messages write it."""
    return _TYPE_NAMES.get(type_code, f"type {type_code}")


def from_proto(proto: Any, alias: str) -> np.ndarray:
    """The array of a TensorProto.

    Its values must fill its shape exactly, or be one value that stands for all.

    Raises:
        ServingError: INVALID_ARGUMENT `tensor parsing error: ALIAS`, the reason behind it.
    """
    if proto.dtype not in _TYPES:
        raise _parsing_error(alias, f"type {proto.dtype} is not supported")
    shape = _shape(proto.tensor_shape, alias)
    count = math.prod(shape)  # in Python's integers, which cannot overflow
    room = math.prod(max(1, size) for size in shape)  # NumPy holds even an empty array to what memory can address
    dtype, field = _TYPES[proto.dtype]
    item_bytes = 16 if proto.dtype == _STRING else np.dtype(dtype).itemsize
    if room * item_bytes > MAX_TENSOR_BYTES:
        raise _parsing_error(alias, f"{room} values are more than a request may hold")
    if proto.tensor_content and proto.dtype != _STRING:
        if len(proto.tensor_content) != count * item_bytes:
            expected, came = count * item_bytes, len(proto.tensor_content)
            raise _parsing_error(alias, f"the shape needs {expected} bytes, tensor_content has {came}")
        return np.frombuffer(proto.tensor_content, dtype=dtype).reshape(shape)
    values = _values(getattr(proto, field), dtype, alias)
    if len(values) != count and (len(values) != 1 or count == 0):
        raise _parsing_error(alias, f"the shape needs {count} values, {field} has {len(values)}")
    return values.reshape(shape) if len(values) == count else np.full(shape, values[0], dtype=values.dtype)


def _from_protos(protos: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a request's inputs, which together must not take more than one may: one value can stand for all."""
    arrays: dict[str, np.ndarray] = {}
    taken = 0
    for alias in sorted(protos):
        arrays[alias] = from_proto(protos[alias], alias)
        taken += arrays[alias].nbytes
        if taken > MAX_TENSOR_BYTES:
            raise _parsing_error(alias, f"all inputs together take more than {MAX_TENSOR_BYTES} bytes")
    return arrays


def _parsing_error(alias: str, reason: str) -> ServingError:
    return invalid_argument(f"tensor parsing error: {alias} ({reason})")


def _shape(proto: Any, alias: str) -> tuple[int, ...]:
    shape = tuple(dimension.size for dimension in proto.dim)
    if proto.unknown_rank or len(shape) > _MAX_RANK or any(size < 0 for size in shape):
        raise _parsing_error(
            alias, f"its shape must be known, of at most {_MAX_RANK} dimensions, none of them negative"
        )
    return shape


def _values(field: Any, dtype: Any, alias: str) -> np.ndarray:
    if dtype is object:
        values = np.empty(len(field), dtype=object)
        values[:] = list(field)
        return values
    try:
        if dtype in (np.complex64, np.complex128):
            return np.array(field, dtype=np.float32 if dtype is np.complex64 else np.float64).view(dtype)
        if dtype in (np.float16, ml_dtypes.bfloat16):
            return np.array(field, dtype=np.uint16).view(dtype)
        return np.array(field, dtype=dtype)
    except (OverflowError, ValueError):
        raise _parsing_error(alias, f"a value is outside the range of {np.dtype(dtype).name}") from None


def fill_proto(proto: Any, array: np.ndarray, type_code: int, *, as_content: bool = False) -> None:
    """Writes an array into an empty TensorProto, as typed values or as one block of bytes; strings are always typed."""
    dtype, field = _TYPES[type_code]
    proto.dtype = type_code
    proto.tensor_shape.SetInParent()
    for size in array.shape:
        proto.tensor_shape.dim.add().size = size
    flat = array.reshape(-1)
    if as_content and type_code != _STRING:
        proto.tensor_content = flat.tobytes()
        return
    if dtype in (np.complex64, np.complex128):
        flat = flat.view(np.float32 if dtype is np.complex64 else np.float64)
    elif dtype in (np.float16, ml_dtypes.bfloat16):
        flat = flat.view(np.uint16)
    getattr(proto, field).extend(flat.tolist())


def run_predict(servable: Servable, request: Any) -> tuple[str, Arrays]:
    """Runs a PredictRequest; returns the signature's full name and the outputs that the request asks for."""
    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    signature = servable.signatures.get(name)
    if signature is None:
        raise ServingError(Code.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
    defaults = {alias: value for alias, value in signature.defaults.items() if alias not in request.inputs}
    _check_aliases(set(request.inputs) | defaults.keys(), set(signature.inputs))
    wanted = _wanted_outputs(list(request.output_filter), signature)
    inputs = _from_protos(request.inputs)
    check_types({alias: request.inputs[alias].dtype for alias in inputs}, signature)
    outputs = servable.run(name, {**inputs, **defaults})
    return name, {alias: outputs[alias] for alias in wanted}


def check_types(type_codes: Mapping[str, int], signature: Signature) -> None:
    """Refuses inputs whose type is not the signature's, in the words of TensorFlow's executor."""
    for position, (alias, code) in enumerate(type_codes.items()):
        expected = signature.inputs[alias]
        if code != expected.type_code:
            raise invalid_argument(
                f"Expects arg[{position}] to be {expected.type_name} but {type_name(code)} is provided"
            )


def _check_aliases(sent: set[str], expected: set[str]) -> None:
    if sent == expected:
        return
    lists = [",".join(sorted(names)) for names in (sent, expected, sent - expected, expected - sent)]
    raise invalid_argument(
        f"input size does not match signature: {len(sent)}!={len(expected)} len({{{lists[0]}}}) != "
        f"len({{{lists[1]}}}). Sent extra: {{{lists[2]}}}. Missing but required: {{{lists[3]}}}."
    )


def _wanted_outputs(output_filter: list[str], signature: Signature) -> list[str]:
    for position, alias in enumerate(output_filter):
        if alias not in signature.outputs:
            raise invalid_argument(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in the set "
                f"{{{','.join(signature.outputs)}}}."
            )
        if alias in output_filter[:position]:
            raise invalid_argument(f"duplicate output tensor alias: {alias}")
    return output_filter or list(signature.outputs)
