"""JSON to arrays and back, by TensorFlow Serving's rules for `predict`: row (`instances`) and columnar (`inputs`).

Lists are walked level by level, never by recursion, so that deep nesting is a 400 and not a crash.
"""

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from serving.signatures import Tensor
from serving.status import Code, ServingError, invalid_argument

MAX_DEPTH = 64  # of a NumPy array's dimensions; TensorFlow itself stops at 254
_SHOWN_CHARACTERS = 256
_INTEGERS = ("int32", "int16", "int8", "uint8", "uint16", "int64", "uint32", "uint64")
_NUMPY_TYPES: dict[str, Any] = {name: np.dtype(name) for name in _INTEGERS}
_NUMPY_TYPES |= {"float": np.dtype(np.float32), "double": np.dtype(np.float64)}
_NUMPY_TYPES |= {"bool": np.dtype(bool), "string": np.dtype(object)}
_LEAF_TYPES: dict[str, set[type]] = {name: {int} for name in _INTEGERS}
_LEAF_TYPES |= {"float": {int, float}, "double": {int, float}, "bool": {bool}, "string": {str, bytes}}

# What the JSON parser that TensorFlow Serving uses says where Python's says something else.
_PARSER_MESSAGES = {
    "Expecting value": "Invalid value.",
    "Illegal trailing comma before end of object": "Missing a name for object member.",
    "Expecting property name enclosed in double quotes": "Missing a name for object member.",
    "Expecting ':' delimiter": "Missing a colon after a name of object member.",
    "Expecting ',' delimiter": "Missing a comma or closing bracket after a member or element.",
    "Extra data": "The document root must not be followed by other values.",
    "Unterminated string starting at": "Missing a closing quotation mark in string.",
    "Invalid control character at": "Invalid encoding in string.",
    "Invalid \\escape": "Invalid escape character in string.",
    "Invalid \\uXXXX escape": "Incorrect hex digit after \\u escape in string.",
}


class _DuplicateError(ValueError):
    """The same key twice in one object."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateError(next(name for name in names if names.count(name) > 1))
    return members


def parse(body: bytes) -> dict[str, Any]:
    """Parses a request body: one JSON object, NaN and Infinity allowed, no key twice.

    Raises:
        ServingError: INVALID_ARGUMENT, whatever is wrong with the body.
    """
    try:
        text = body.decode("utf-8-sig")
        if not text.strip(" \t\r\n"):
            raise invalid_argument("JSON Parse error: The document is empty")
        document = json.loads(text, object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise invalid_argument(f"JSON Parse error: Invalid encoding in string. at offset: {error.start}") from None
    except json.JSONDecodeError as error:
        reason = _PARSER_MESSAGES.get(error.msg, error.msg)
        raise invalid_argument(f"JSON Parse error: {reason} at offset: {error.pos}") from None
    except RecursionError:
        raise invalid_argument("JSON Parse error: The document is nested too deeply.") from None
    except _DuplicateError as error:
        raise invalid_argument(f"JSON Parse error: The name {show(str(error))} occurs twice in one object.") from None
    except ValueError:  # an integer of more than 4300 digits
        raise invalid_argument("JSON Parse error: Number too big to be stored.") from None
    if not isinstance(document, dict):
        raise invalid_argument(f"JSON Value: {show(document)} Is not object")
    return document


def signature_name(document: Mapping[str, Any]) -> str:
    """The request's signature name, "" where it names none."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid_argument(
            f"JSON Value: {show(document)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return name


@dataclass(frozen=True)
class PredictInputs:
    """The arrays of a predict request and whether it came by rows."""

    arrays: dict[str, np.ndarray]
    by_row: bool


def predict_inputs(document: Mapping[str, Any], inputs: Mapping[str, Tensor], signature: str) -> PredictInputs:
    """Turns the `instances` or the `inputs` of a request into arrays.

    Args:
        document: the parsed request.
        inputs: the signature's inputs by alias.
        signature: the signature's name, for messages.
    """
    if not inputs:
        raise invalid_argument(f"Failed to get input map for signature: {signature or 'DEFAULT'}")
    if "instances" in document and "inputs" in document:
        raise invalid_argument(
            f"JSON Value: {show(document)} Not formatted correctly expecting only one of 'inputs' or 'instances' "
            "keys to exist "
        )
    if "instances" in document:
        rows = document["instances"]
        if not isinstance(rows, list):
            raise invalid_argument(f"JSON Value: {show(document)} Expecting 'instances' to be an list/array")
        if not rows:
            raise invalid_argument(f"JSON Value: {show(document)} No values in 'instances' array")
        return PredictInputs(_from_rows(rows, inputs), by_row=True)
    if "inputs" in document:
        return PredictInputs(_from_columns(document["inputs"], inputs), by_row=False)
    raise invalid_argument("Missing 'inputs' or 'instances' key")


def _from_columns(columns: Any, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    if not isinstance(columns, dict) or is_base64(columns):
        if len(inputs) > 1:
            raise invalid_argument(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                "tensorinfo_map"
            )
        (alias,) = inputs
        return {alias: to_array(columns, inputs[alias].type_name)}
    for alias in inputs:
        if alias not in columns:
            raise invalid_argument(f"Missing named input: {alias} in 'inputs' object.")
    return {alias: to_array(columns[alias], tensor.type_name) for alias, tensor in inputs.items()}


def _from_rows(rows: list[Any], inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    if not isinstance(rows[0], dict) and len(inputs) > 1:
        raise invalid_argument(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map"
        )
    if not _is_object(rows[0]):
        for number, row in enumerate(rows):
            if _is_object(row):
                raise invalid_argument(f"Expecting value/list but got object at item {number} of input list")
        alias, tensor = next(iter(inputs.items()))
        return {alias: _stack(rows, tensor, "")}
    _check_objects(rows, inputs)
    return {alias: _stack([row[alias] for row in rows], inputs[alias], f" key: {alias}") for alias in inputs}


def _check_objects(rows: list[Any], inputs: Mapping[str, Tensor]) -> None:
    expected = set(inputs)
    for number, row in enumerate(rows):
        if not _is_object(row):
            raise invalid_argument(f"Expecting object but got list at item {number} of input list")
        if row.keys() == expected:
            continue
        extra = [alias for alias in row if alias not in expected]
        if extra:
            raise _in_element(number, f" key: {extra[0]}", f"JSON object: does not have named input: {extra[0]}")
        raise invalid_argument(
            f"Failed to process element: {number} of 'instances' list. JSON object: {show(row)} keys must be equal "
            f"to: {','.join(sorted(expected))}"
        )


def _stack(rows: list[Any], tensor: Tensor, key: str) -> np.ndarray:
    """All rows of one input as one array; where that fails, the rows one by one to name the first bad one."""
    try:
        return to_array(rows, tensor.type_name)
    except ServingError as error:
        first_shape: tuple[int, ...] | None = None
        for number, row in enumerate(rows):
            try:
                shape = to_array(row, tensor.type_name).shape
            except ServingError as found:
                raise _in_element(number, key, found.message) from None
            if first_shape is None:
                first_shape = shape
            elif np.prod(shape) != np.prod(first_shape):
                expected, came = int(np.prod(first_shape)), int(np.prod(shape))
                raise _in_element(number, key, f"Expecting tensor size: {expected} but got: {came}") from None
            elif shape != first_shape:
                message = f"Expecting shape {_shape_text(first_shape)} but got: {_shape_text(shape)}"
                raise _in_element(number, key, message) from None
        raise error


def _in_element(number: int, key: str, message: str) -> ServingError:
    return invalid_argument(
        f"Failed to process element: {number}{key} of 'instances' list. Error: INVALID_ARGUMENT: {message}"
    )


def _shape_text(shape: tuple[int, ...]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def to_array(value: Any, type_name: str) -> np.ndarray:
    """A JSON value or nested list as an array of TensorFlow's type `type_name`.

    Raises:
        ServingError: UNIMPLEMENTED for a type that JSON cannot carry, else INVALID_ARGUMENT.
    """
    leaves, shape = _flatten(value)
    if type_name not in _NUMPY_TYPES:
        raise ServingError(
            Code.UNIMPLEMENTED,
            f"Conversion of JSON Value: {show(leaves[0] if leaves else value)} to type: {type_name}",
        )
    array = np.empty(len(leaves), dtype=object)
    if type_name == "string":
        array[:] = _decode_strings(leaves)
        return array.reshape(shape)
    _check_types(leaves, type_name)
    return _numbers(leaves, type_name).reshape(shape)


def _flatten(value: Any) -> tuple[list[Any], tuple[int, ...]]:
    """The values of a nested list in order, and its shape, which must be that of a dense array."""
    shape: list[int] = []
    level = [value]
    while level and isinstance(level[0], list):
        size = len(level[0])
        if len(shape) == MAX_DEPTH:
            raise invalid_argument(f"Encountered list at unexpected level: {MAX_DEPTH} expected < {MAX_DEPTH}")
        for item in level:
            if not isinstance(item, list):
                raise invalid_argument(
                    f"JSON Value: {show(item)} found at incorrect level: {len(shape) + 1} in the JSON DOM. "
                    f"Expected at level: {_rank(value)}"
                )
            if len(item) != size:
                raise invalid_argument(
                    f"Encountered list at unexpected size: {len(item)} at level: {len(shape)} expected size: {size}"
                )
        shape.append(size)
        level = list(chain.from_iterable(level))
    if list in set(map(type, level)):
        rank = len(shape)
        raise invalid_argument(f"Encountered list at unexpected level: {rank} expected < {rank}")
    return level, tuple(shape)


def _rank(value: Any) -> int:
    rank = 0
    while isinstance(value, list):
        rank += 1
        value = value[0] if value else None
    return rank


def _check_types(leaves: list[Any], type_name: str) -> None:
    allowed = _LEAF_TYPES[type_name]
    if not set(map(type, leaves)) <= allowed:
        raise _type_error(next(leaf for leaf in leaves if type(leaf) not in allowed), type_name)


def _numbers(leaves: list[Any], type_name: str) -> np.ndarray:
    dtype = _NUMPY_TYPES[type_name]
    try:
        if type_name == "float":
            with np.errstate(over="ignore", under="ignore"):
                return np.array(leaves, dtype=np.float64).astype(np.float32)
        return np.array(leaves, dtype=dtype)
    except OverflowError:
        if dtype.kind == "f":
            raise invalid_argument("JSON Parse error: Number too big to be stored in double.") from None
        limits = np.iinfo(dtype)
        raise _type_error(next(leaf for leaf in leaves if not limits.min <= leaf <= limits.max), type_name) from None


def _decode_strings(leaves: list[Any]) -> list[bytes]:
    try:
        return [leaf.encode() if type(leaf) is str else decode_base64(leaf) for leaf in leaves]
    except UnicodeEncodeError:
        raise invalid_argument("JSON Parse error: The surrogate pair in string is invalid.") from None


def decode_base64(leaf: Any) -> bytes:
    """The bytes of a `{"b64": ...}` object."""
    if not isinstance(leaf, dict):
        raise _type_error(leaf, "string")
    if not is_base64(leaf):
        raise invalid_argument(f"JSON Value: {show(leaf)} not formatted correctly for base64 data")
    text = "".join(leaf["b64"].split()).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise invalid_argument("Unable to base64 decode") from None


def is_base64(value: Any) -> bool:
    """Whether it is a `{"b64": ...}` object."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and not is_base64(value)


def kind(value: Any) -> str:
    """What kind of JSON value it is, in messages."""
    kinds = {type(None): "Null", dict: "Object", list: "Array", str: "String", int: "Number", float: "Number"}
    return str(value) if isinstance(value, bool) else kinds[type(value)]


def _type_error(value: Any, type_name: str) -> ServingError:
    return invalid_argument(f"JSON Value: {show(value)} Type: {kind(value)} is not of expected type: {type_name}")


def show(value: Any) -> str:
    """A value in a message: its JSON, cut at 256 characters, whatever its size or depth."""
    pieces: list[str] = []
    length = 0
    try:
        for piece in json.JSONEncoder(ensure_ascii=False).iterencode(value):
            pieces.append(piece)
            length += len(piece)
            if length > _SHOWN_CHARACTERS:
                break
    except RecursionError:
        pieces.append("...")
    text = "".join(pieces)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


def predict_json(outputs: Mapping[str, np.ndarray], *, by_row: bool) -> str:
    """The reply to a predict request: `predictions` by row or `outputs` by column.

    Bytes of outputs whose alias ends in `_bytes` are written as `{"b64": ...}`; other strings as text, in which bytes
    that are not UTF-8 become U+FFFD. Floats are written as short as they can be and still read back the same.
    """
    if not outputs:
        raise invalid_argument("Cannot convert empty tensor map to JSON")
    if by_row:
        return document_text("predictions", _rows_json(outputs))
    columns = {alias: _nest(_texts(alias, array), array.shape, 0)[0] for alias, array in outputs.items()}
    if len(columns) == 1:
        return document_text("outputs", next(iter(columns.values())))
    members = ",\n".join(f"        {quote(alias)}: {text}" for alias, text in columns.items())
    return document_text("outputs", f"{{\n{members}\n    }}")


def document_text(key: str, text: str) -> str:
    """A reply with one key, its value as JSON."""
    return f'{{\n    "{key}": {text}\n}}\n'


def _rows_json(outputs: Mapping[str, np.ndarray]) -> str:
    batch: int | None = None
    for alias, array in outputs.items():
        if array.ndim == 0:
            raise invalid_argument(f"Tensor name: {alias} has no shape information ")
        if batch is not None and len(array) != batch:
            raise invalid_argument(f"Tensor name: {alias} has inconsistent batch size: {len(array)} expecting: {batch}")
        batch = len(array)
    columns = [_row_texts(alias, array) for alias, array in outputs.items()]
    if len(columns) == 1:
        return "[" + ", ".join(columns[0]) + "]"
    names = [quote(alias) for alias in outputs]
    rows = (
        "        {\n"
        + ",\n".join(f"            {name}: {text}" for name, text in zip(names, row, strict=True))
        + "\n        }"
        for row in zip(*columns, strict=True)
    )
    return "[\n" + ",\n".join(rows) + "\n    ]" if batch else "[]"


def _row_texts(alias: str, array: np.ndarray) -> list[str]:
    return _nest(_texts(alias, array), array.shape, 1)


def _nest(texts: list[str], shape: tuple[int, ...], first_axis: int) -> list[str]:
    """Joins flat texts to lists, from the last axis down to `first_axis`; an empty axis gives empty lists."""
    for axis in range(len(shape) - 1, first_axis - 1, -1):
        size = shape[axis]
        if size == 0:
            texts = ["[]"] * int(np.prod(shape[:axis]))
        else:
            texts = ["[" + ", ".join(texts[start : start + size]) + "]" for start in range(0, len(texts), size)]
    return texts


def _texts(alias: str, array: np.ndarray) -> list[str]:
    """Every element of an array as JSON, flat."""
    flat = array.reshape(-1)
    if flat.dtype.kind in "iu":
        return [str(value) for value in flat.tolist()]
    if flat.dtype.kind == "b":
        return ["true" if value else "false" for value in flat.tolist()]
    if flat.dtype in (np.float32, np.float64):
        return float_texts(flat)
    if flat.dtype.kind in "OSU":
        write = _base64_text if alias.endswith("_bytes") else _string_text
        return [write(value) for value in flat.tolist()]
    raise invalid_argument(f"Tensor name: {alias} has unsupported tensor type: {flat.dtype.name}")


quote: Callable[[str], str] = json.encoder.encode_basestring


def _string_text(value: bytes | str) -> str:
    return quote(value.decode("utf-8", "replace") if isinstance(value, bytes) else value)


def _base64_text(value: bytes | str) -> str:
    data = value if isinstance(value, bytes) else value.encode()
    return '{"b64": "' + base64.b64encode(data).decode("ascii") + '"}'


def float_texts(flat: np.ndarray) -> list[str]:
    """`%g` where six digits read back the same (9e+06, 0.2), else the shortest that does."""
    if not len(flat):
        return []
    values = flat.tolist()
    texts = (("%g " * len(values)) % tuple(values)).split()
    with np.errstate(over="ignore"):
        read_back = np.array([float(text) for text in texts]).astype(flat.dtype)
    for index in np.flatnonzero(read_back != flat).tolist():
        texts[index] = str(flat[index])
    for index in np.flatnonzero(~np.isfinite(flat)).tolist():
        texts[index] = "NaN" if np.isnan(flat[index]) else "Infinity" if flat[index] > 0 else "-Infinity"
    return [text if "." in text or "e" in text or text[-1] in "Ny" else text + ".0" for text in texts]
