"""Reads a ModelInferRequest: the same request as over HTTP, with its values raw or typed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cotenant.serve.errors import BadRequest
from cotenant.serve.grpc import inference_pb2 as pb
from cotenant.serve.oip import BESIDES_SHARED, REGION, InferRequest, InputTensor, WantedTensor
from cotenant.serve.tensors import BINARY_ONLY, Array, TensorDecoder

CONTENTS: Mapping[str, str] = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Datatype -> the field of InferTensorContents that holds its elements; FP16 and BF16 have none."""

_WIRE_DTYPES: Mapping[str, np.dtype[Any]] = {
    "bool_contents": np.dtype(np.bool_),
    "int_contents": np.dtype(np.int32),
    "int64_contents": np.dtype(np.int64),
    "uint_contents": np.dtype(np.uint32),
    "uint64_contents": np.dtype(np.uint64),
    "fp32_contents": np.dtype(np.float32),
    "fp64_contents": np.dtype(np.float64),
}
PIECE_ELEMENTS = 8 * 1024
"""Elements converted in one call, which holds the GIL."""


TELLS_LAST = "triton_enable_empty_final_response"
"""A parameter by which clients ask to be told which answer on a stream is the last to its request. Each is
the only one, and says so unasked."""


def request_of(message: pb.ModelInferRequest) -> InferRequest:
    """The request without its values, which are left to `MessageData`. Raises BadRequest."""
    parameters = _parameters(message.parameters, "parameters") if message.parameters else None
    if parameters is not None:
        parameters.pop(TELLS_LAST, None)
    return InferRequest(
        inputs=[
            InputTensor(
                name=tensor.name,
                shape=tuple(tensor.shape),
                datatype=tensor.datatype,
                parameters=_parameters(tensor.parameters, f"inputs[{index}] '{tensor.name:.100}': parameters")
                if tensor.parameters
                else None,
            )
            for index, tensor in enumerate(message.inputs)
        ],
        id=message.id or None,
        parameters=parameters,
        outputs=[
            WantedTensor(
                name=output.name,
                parameters=_parameters(
                    output.parameters, f"outputs[{index}] '{output.name:.100}': parameters"
                )
                if output.parameters
                else None,
            )
            for index, output in enumerate(message.outputs)
        ]
        if message.outputs
        else None,
    )


def _parameters(found: Mapping[str, pb.InferParameter], field: str) -> dict[str, Any]:
    """A map of parameters as JSON would give it."""
    values: dict[str, Any] = {}
    for name, parameter in found.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is None:
            raise BadRequest(400, f"{field}.{name:.100}: has no value")
        values[name] = getattr(parameter, kind)
    return values


class MessageData:
    """The values of a request over gRPC: raw for every input, or typed in each."""

    def __init__(self, message: pb.ModelInferRequest) -> None:
        self._inputs = message.inputs
        self._raw: list[bytes] = list(message.raw_input_contents)
        self._n_read = 0
        self.raw_bytes = sum(map(len, self._raw))
        """Size of the raw values."""

    def read(self, index: int, tensor: InputTensor, decoder: TensorDecoder, field: str) -> Array:
        given = self._inputs[index]
        if not self._raw:
            return _typed(given.contents, tensor, decoder, field)
        if given.HasField("contents"):
            raise BadRequest(400, f"{field}: has contents besides raw_input_contents; expected one of them")
        if self._n_read == len(self._raw):
            raise self._misfit()
        self._n_read += 1
        return decoder.from_bytes(memoryview(self._raw[self._n_read - 1]), tensor.shape, field)

    def absent(self, index: int, tensor: InputTensor, field: str) -> None:
        if self._inputs[index].HasField("contents"):
            raise BadRequest(400, f"{field}: {BESIDES_SHARED}")

    def finish(self) -> None:
        if self._raw and self._n_read != len(self._raw):
            raise self._misfit()

    def _misfit(self) -> BadRequest:
        n_here = sum(not _is_shared(tensor) for tensor in self._inputs)
        beside = "" if n_here == len(self._inputs) else " that are not in shared memory"
        return BadRequest(
            400,
            f"raw_input_contents: has {len(self._raw)} entries for {n_here} inputs{beside}; "
            "expected one per input, or none",
        )


def _is_shared(tensor: pb.ModelInferRequest.InferInputTensor) -> bool:
    region = tensor.parameters.get(REGION)
    return region is not None and region.string_param != ""


def _typed(
    contents: pb.InferTensorContents, tensor: InputTensor, decoder: TensorDecoder, field: str
) -> Array:
    datatype = decoder.spec.datatype
    if datatype in BINARY_ONLY:
        raise BadRequest(400, f"{field}: {datatype} has no contents; send it in raw_input_contents")
    expected = CONTENTS[datatype]
    for filled, _ in contents.ListFields():
        if filled.name != expected:
            raise BadRequest(400, f"{field}: has contents.{filled.name}; expected {expected} for {datatype}")
    values = getattr(contents, expected)
    n = math.prod(tensor.shape)
    if len(values) != n:
        raise BadRequest(
            400, f"{field}: contents has {len(values)} elements, but shape {list(tensor.shape)} needs {n}"
        )
    if datatype == "BYTES":
        strings = np.empty(n, decoder.dtype)
        strings[:] = list(values)
        return strings.reshape(tensor.shape)
    return decoder.from_numbers(_numbers(values, _WIRE_DTYPES[expected]), tensor.shape, field)


def _numbers(values: Sequence[Any], dtype: np.dtype[Any]) -> Array:
    n = len(values)
    if n <= PIECE_ELEMENTS:
        return np.array(values, dtype)
    array = np.empty(n, dtype)
    for at in range(0, n, PIECE_ELEMENTS):
        array[at : at + PIECE_ELEMENTS] = values[at : at + PIECE_ELEMENTS]
    return array
