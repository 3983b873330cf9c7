"""What a servable's signatures take and give, in plain Python (nothing here imports TensorFlow)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

DEFAULT_SIGNATURE = "serving_default"

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Tensor:
    """One input or output of a signature.

    Attributes:
        name: the tensor's name in the graph, "" where it is not a plain tensor.
        type_name: TensorFlow's name of its type, such as `float`, `int64`, `string`.
        type_code: the same as the number that a TensorProto carries.
        shape: its declared sizes, -1 for what varies; None where even their number does.
    """

    name: str
    type_name: str
    type_code: int
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Signature:
    """The named inputs and outputs of one way to call a servable; both in alphabetical order.

    Attributes:
        inputs: what it takes.
        outputs: what it gives.
        method_name: what kind of call it was made for, such as `tensorflow/serving/predict`.
        defaults: what stands in for inputs that a gRPC request leaves out.
    """

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    method_name: str = ""
    defaults: Mapping[str, np.ndarray] = field(default_factory=dict)


class Servable(Protocol):
    """A loaded version: what `versions` hands out and `rest` and `grpc` call."""

    signatures: Mapping[str, Signature]
    signature_def: Any
    """The SignatureDefMap message, for GetModelMetadata."""
    signature_def_json: dict[str, Any]
    """The same in proto3's JSON form."""

    def run(self, signature_name: str, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Runs one signature and returns every output by its alias."""

    def close(self) -> None:
        """Frees everything that the servable holds."""
