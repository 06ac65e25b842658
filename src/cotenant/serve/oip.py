"""Open Inference Protocol V2: the infer request as it stands on the wire, and its parameters.

A body is JSON, or JSON followed by binary tensors (`Inference-Header-Content-Length` says where the JSON
ends), or nothing but the raw data of a single input (that header is 0). Nothing is ignored: a member or a
parameter that no part of this server reads is refused by name, for the client expects something of it.
Everything else is checked too, and every failure is a `BadRequest` that names the field.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec
from msgspec import Raw, Struct

from cotenant.domain import Axes, TensorSpec
from cotenant.serve.errors import BadRequest
from cotenant.serve.shared_memory import Place
from cotenant.serve.tensors import Array, TensorDecoder, json_problem

__all__ = [
    "REQUEST",
    "BadRequest",
    "BodyData",
    "Encoded",
    "InferRequest",
    "Inference",
    "InputTensor",
    "TensorData",
    "Wanted",
    "WantedTensor",
]

REGION = "shared_memory_region"
_PLACE = (REGION, "shared_memory_offset", "shared_memory_byte_size")
OF_REQUEST = ("timeout", "priority", "binary_data_output")
"""Parameters of a request."""
OF_INPUT = ("binary_data_size", *_PLACE)
"""Parameters of an input."""
OF_OUTPUT = ("binary_data", "classification", *_PLACE)
"""Parameters of a requested output."""
BESIDES_SHARED = "has parameters.shared_memory_region and data besides; expected one"
UNSUPPORTED = ("sequence_id", "sequence_start", "sequence_end")
"""Parameters that ask for what this server cannot do; asking for nothing (0, false) they may stand."""


class InputTensor(Struct, gc=False, forbid_unknown_fields=True):
    """One entry of `inputs` as it stands in the JSON."""

    name: str
    shape: tuple[int, ...]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: Raw = Raw(b"")


class WantedTensor(Struct, gc=False, forbid_unknown_fields=True):
    """One entry of `outputs` as it stands in the JSON."""

    name: str
    parameters: dict[str, Any] | None = None


class InferRequest(Struct, gc=False, forbid_unknown_fields=True):
    """The JSON of an infer request. `model_name` says once more what the path says: KServe's client does."""

    inputs: list[InputTensor]
    id: str | None = None
    model_name: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[WantedTensor] | None = None


REQUEST = msgspec.json.Decoder(InferRequest)


class Wanted(Struct, frozen=True):
    """An output that was asked for: in binary or as JSON, all of it or its `n_classes` highest (0: all), sent
    or written to a `place`."""

    spec: TensorSpec
    binary: bool = False
    n_classes: int = 0
    place: Place | None = None


class Inference(Struct, frozen=True, kw_only=True):
    """A validated infer request. `axes` are bucket sizes. `timeout_us` and `priority` are as the client gave
    them; the data plane checks them."""

    id: str | None
    inputs: dict[str, Array]
    rows: int
    axes: Axes
    wanted: tuple[Wanted, ...]
    timeout_us: object = None
    priority: object = 0


class Encoded(Struct, frozen=True):
    """An encoded answer; `json_bytes` is the length of its JSON when binary data follows, else None."""

    body: bytes
    json_bytes: int | None


def decode_json(decoder: msgspec.json.Decoder[Any], text: bytes | bytearray | memoryview) -> Any:
    """Decode, or raise a `BadRequest` that says where the text is wrong."""
    try:
        return decoder.decode(text)
    except msgspec.ValidationError as error:
        raise BadRequest(400, json_problem(error, "").removeprefix(".").removeprefix(": ")) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRequest(400, json_problem(error, "body")) from None
    except UnicodeDecodeError:
        raise BadRequest(400, "body: holds a string that is not UTF-8") from None


def check_parameters(parameters: dict[str, Any], known: tuple[str, ...], field: str) -> None:
    """Raise a BadRequest for a parameter that is not `known` here."""
    for name, value in parameters.items():
        if name in known or (name in UNSUPPORTED and not value):
            continue
        if name in UNSUPPORTED:
            raise BadRequest(400, f"{field}.{name}: not supported by this server")
        raise BadRequest(400, f"{field}.{name:.100}: unknown parameter; known here: {', '.join(known)}")


def boolean(parameters: dict[str, Any], name: str, field: str, default: bool) -> bool:
    """A true-or-false parameter. Raises BadRequest."""
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise BadRequest(400, f"{field}.{name}: expected true or false, got {value!r:.40}")
    return value


class TensorData(Protocol):
    """Where the values of a request's inputs are, which its protocol puts where it likes."""

    def read(self, index: int, tensor: InputTensor, decoder: TensorDecoder, field: str) -> Array:
        """The values of input `index`, whose shape has been checked. Raises BadRequest."""
        ...

    def absent(self, index: int, tensor: InputTensor, field: str) -> None:
        """The values of input `index` lie in shared memory. Raises BadRequest when they are here too."""
        ...

    def finish(self) -> None:
        """Every input has been read. Raises BadRequest when something is left over."""
        ...


class BodyData:
    """The values of a request over HTTP: in its JSON, or in the binary data that follows it."""

    def __init__(self, binary: memoryview, *, has_binary: bool) -> None:
        """`has_binary`: whether the request says where binary data begins."""
        self._binary = binary
        self._has_binary = has_binary
        self._at = 0

    def read(self, index: int, tensor: InputTensor, decoder: TensorDecoder, field: str) -> Array:
        n_bytes = _binary_size(tensor, field, self._has_binary)
        if n_bytes is None:
            return decoder.from_json(tensor.data, tensor.shape, field)
        at, left = self._at, len(self._binary) - self._at
        if n_bytes > left:
            raise BadRequest(
                400,
                f"{field}: parameters.binary_data_size is {n_bytes}, but {left} bytes of binary data are "
                "left in the body",
            )
        self._at += n_bytes
        return decoder.from_bytes(self._binary[at : at + n_bytes], tensor.shape, field)

    def absent(self, index: int, tensor: InputTensor, field: str) -> None:
        if tensor.data or (tensor.parameters or {}).get("binary_data_size") is not None:
            raise BadRequest(400, f"{field}: {BESIDES_SHARED}")

    def finish(self) -> None:
        if self._at != len(self._binary):
            raise BadRequest(
                400,
                f"the body has {len(self._binary)} bytes of binary data, but the inputs claim {self._at} of "
                "them",
            )


def _binary_size(tensor: InputTensor, field: str, has_binary: bool) -> int | None:
    """The length of the input's binary data, or None when it stands in the JSON."""
    parameters = tensor.parameters
    if parameters:
        size = parameters.get("binary_data_size")
        if size is not None:
            if type(size) is not int or size < 0:
                raise BadRequest(
                    400, f"{field}: parameters.binary_data_size: expected a count of bytes, got {size!r:.40}"
                )
            if tensor.data:
                raise BadRequest(400, f"{field}: has both data and parameters.binary_data_size; expected one")
            if not has_binary:
                raise BadRequest(
                    400,
                    f"{field}: has parameters.binary_data_size, but the header "
                    "Inference-Header-Content-Length, which says where binary data begins, is missing",
                )
            return size
    if not tensor.data:
        raise BadRequest(400, f"{field}: has neither data nor parameters.binary_data_size")
    return None
