"""V2 tensor data: JSON or binary in, validated C-contiguous numpy arrays out, and back.

How this works: JSON data is decoded by typed msgspec decoders, so element type and range are checked in C
and an error names the element. Large numeric data is decoded in pieces of `PIECE_BYTES`: one long C call
would hold the GIL, and so the event loop, even from another thread.

Decisions: numbers in JSON are never cast from strings or booleans, and integers must have no decimal point.
FP16 and BF16 travel in binary only. A NaN or infinite output is `null` in JSON, which has neither; a client
that must tell them apart asks for binary output. BYTES elements are `bytes` in object arrays; in JSON
they are UTF-8 strings.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import ml_dtypes
import msgspec
import numpy as np
import orjson
from msgspec import Meta

from cotenant.domain import TensorSpec
from cotenant.serve.errors import BadRequest

Array = np.ndarray[Any, Any]

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(object),
}
"""Every V2 datatype and the numpy type that holds it."""

BINARY_ONLY = frozenset({"FP16", "BF16"})
"""Datatypes that JSON cannot carry."""

PIECE_BYTES = 64 * 1024
PIECE_ELEMENTS = 8 * 1024
LARGEST_FP32 = 3.4028235e38
INT64_MAX = 2**63 - 1

_NESTED = re.compile(rb"\[\s*\[")
_PLACE = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?$", re.DOTALL)
_NOT_STRUCTURE = bytes(c for c in range(256) if c not in b"[],")
_LENGTH = struct.Struct("<I")


def json_problem(error: Exception, root: str) -> str:
    """A decoder's complaint as `root[3]: expected ...`, without its backquotes and `$`."""
    if isinstance(error, RecursionError):
        return f"{root}: nested too deeply"
    match = _PLACE.match(str(error))
    assert match is not None
    what = match["what"].replace("`", "")
    return f"{root}{match['path'] or ''}: {what if what.startswith('JSON') else what[:1].lower() + what[1:]}"


class TensorDecoder:
    """Decodes the data of one input of one model; made once per model and reused."""

    def __init__(self, spec: TensorSpec) -> None:
        self.spec = spec
        self.dtype = DTYPES[spec.datatype]
        self._lowest, self._highest = self._bounds()
        element = self._element()
        self._flat: msgspec.json.Decoder[Any] = msgspec.json.Decoder(list[element])  # type: ignore[valid-type]
        nested: Any = element
        for _ in spec.shape:
            nested = list[nested]
        self._nested: msgspec.json.Decoder[Any] = msgspec.json.Decoder(nested)

    def _bounds(self) -> tuple[int, int]:
        """The valid integers, both ends included; (0, 0) for other types."""
        if self.dtype.kind not in "iu":
            return 0, 0
        limits = np.iinfo(self.dtype)
        low, high = int(limits.min), int(limits.max)
        if self.spec.low is not None:
            low = max(low, self.spec.low)
        if self.spec.high is not None:
            high = min(high, self.spec.high - 1)
        return low, high

    def _element(self) -> Any:
        match self.dtype.kind:
            case "b":
                return bool
            case "O":
                return str
            case "i" | "u":
                # msgspec takes no bound beyond int64; numpy then refuses what does not fit UINT64
                highest = self._highest if self._highest <= INT64_MAX else None
                return Annotated[int, Meta(ge=self._lowest, le=highest)]
            case _ if self.spec.datatype == "FP32":
                return Annotated[float, Meta(ge=-LARGEST_FP32, le=LARGEST_FP32)]
            case _:
                return float

    # --- JSON -------------------------------------------------------------------------------------

    def from_json(self, raw: msgspec.Raw, shape: Sequence[int], field: str) -> Array:
        """The array in `data`, nested as `shape` or flat in row-major order. `field` names the input."""
        if self.spec.datatype in BINARY_ONLY:
            raise BadRequest(
                400,
                f"{field}: {self.spec.datatype} cannot be sent as JSON; send it in binary (binary_data_size)",
            )
        text = bytes(raw)
        nested = len(self.spec.shape) > 1 and _NESTED.match(text) is not None
        try:
            if len(text) > PIECE_BYTES and self.dtype.kind != "O":
                return self._in_pieces(text, nested, shape, field)
            if nested:
                return self._from_nested(self._nested.decode(text), shape, field)
            return self._from_flat(self._flat.decode(text), shape, field)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise BadRequest(400, json_problem(error, f"{field}: data")) from None
        except UnicodeDecodeError:
            raise BadRequest(400, f"{field}: data: a string is not UTF-8") from None
        except UnicodeEncodeError:
            raise BadRequest(400, f"{field}: data: a string holds half a surrogate pair, not text") from None
        except OverflowError:
            raise BadRequest(400, f"{field}: data: a value does not fit {self.spec.datatype}") from None

    def _from_flat(self, values: list[Any], shape: Sequence[int], field: str) -> Array:
        if len(values) != math.prod(shape):
            raise BadRequest(400, _count_problem(field, len(values), shape))
        if self.dtype.kind == "O":
            array = np.empty(len(values), self.dtype)
            array[:] = [value.encode() for value in values]
        else:
            array = np.array(values, self.dtype)
        return array.reshape(shape)

    def _from_nested(self, values: list[Any], shape: Sequence[int], field: str) -> Array:
        try:
            array = np.array(values, self.dtype)
        except ValueError:
            raise BadRequest(400, f"{field}: data: rows of unequal length; shape is {list(shape)}") from None
        if array.shape != tuple(shape):
            found = "unequally" if array.ndim != len(shape) else f"as {list(array.shape)}"
            raise BadRequest(400, f"{field}: data is nested {found}, but shape is {list(shape)}")
        if self.dtype.kind == "O":
            return self._from_flat(list(array.flat), shape, field)
        return array

    def _in_pieces(self, text: bytes, nested: bool, shape: Sequence[int], field: str) -> Array:
        n = math.prod(shape)
        structure = b"".join(piece.translate(None, _NOT_STRUCTURE) for piece in _pieces(text))
        n_found = structure.count(b",") + 1
        if n_found != n:
            raise BadRequest(400, _count_problem(field, n_found, shape))
        if structure != _structure(shape if nested else (n,)):
            raise BadRequest(400, f"{field}: data is not nested as its shape {list(shape)} says")
        array = np.empty(n, self.dtype)
        at = 0
        for piece in _pieces(text):
            flat = piece.translate(None, b"[]").strip(b", \t\r\n")
            try:
                values = self._flat.decode(b"[" + flat + b"]")
            except msgspec.MsgspecError as error:
                problem = json_problem(error, "").removeprefix(": ")
                raise BadRequest(400, f"{field}: data: counting from element {at}: {problem}") from None
            array[at : at + len(values)] = values
            at += len(values)
        if at != n:
            raise BadRequest(400, _count_problem(field, at, shape))
        return array.reshape(shape)

    # --- binary -----------------------------------------------------------------------------------

    def from_bytes(self, view: memoryview, shape: Sequence[int], field: str) -> Array:
        """The array in `view`, little-endian and row-major. It may share the memory of the body."""
        if self.dtype.kind == "O":
            return self._from_strings(view, shape, field)
        n_bytes = math.prod(shape) * self.dtype.itemsize
        if len(view) != n_bytes:
            raise BadRequest(
                400,
                f"{field}: {len(view)} bytes of binary data, but shape {list(shape)} of "
                f"{self.spec.datatype} needs {n_bytes}",
            )
        if self.dtype.kind == "b" and n_bytes and np.frombuffer(view, np.uint8).max() > 1:
            raise BadRequest(400, f"{field}: BOOL bytes must be 0 or 1")
        array = np.frombuffer(view, self.dtype) if n_bytes else np.empty(0, self.dtype)
        if self.spec.low is not None or self.spec.high is not None:
            self._check_range(array, field)
        return (array if array.flags.aligned else array.copy()).reshape(shape)

    def from_numbers(self, array: Array, shape: Sequence[int], field: str) -> Array:
        """The array of these numbers, as many as `shape` needs, whose type is this one or a wider one."""
        self._check_range(array, field)
        return array.astype(self.dtype, copy=False).reshape(shape)

    def _check_range(self, array: Array, field: str) -> None:
        if self.dtype.kind not in "iu" or not array.size:
            return
        if array.min() >= self._lowest and array.max() <= self._highest:
            return
        at = int(np.argmax((array < self._lowest) | (array > self._highest)))
        raise BadRequest(
            400, f"{field}: element {at} is {array[at]}, expected {self._lowest} to {self._highest}"
        )

    def _from_strings(self, view: memoryview, shape: Sequence[int], field: str) -> Array:
        n = math.prod(shape)
        if n * 4 > len(view):
            raise BadRequest(
                400,
                f"{field}: {len(view)} bytes of binary data cannot hold the {n} BYTES elements "
                f"of shape {list(shape)}",
            )
        array = np.empty(n, self.dtype)
        at = 0
        for index in range(n):
            start = at + 4
            end = start + (_LENGTH.unpack_from(view, at)[0] if start <= len(view) else 0)
            if start > len(view) or end > len(view):
                raise BadRequest(400, f"{field}: BYTES element {index} ends beyond the binary data")
            array[index] = bytes(view[start:end])
            at = end
        if at != len(view):
            raise BadRequest(400, f"{field}: {len(view) - at} bytes follow the last of {n} BYTES elements")
        return array.reshape(shape)


def _count_problem(field: str, n_found: int, shape: Sequence[int]) -> str:
    return f"{field}: data has {n_found} elements, but shape {list(shape)} needs {math.prod(shape)}"


def _pieces(text: bytes) -> Iterator[bytes]:
    """`text` cut after commas, about `PIECE_BYTES` each."""
    start = 0
    while start < len(text):
        cut = text.find(b",", start + PIECE_BYTES)
        end = len(text) if cut < 0 else cut + 1
        yield text[start:end]
        start = end


def _structure(shape: Sequence[int]) -> bytes:
    """The brackets and commas of JSON data nested as `shape`."""
    inner = b""
    for size in reversed(shape):
        inner = b"[" + (inner + b",") * (size - 1) + inner + b"]"
    return inner


# --- out ------------------------------------------------------------------------------------------


def to_json(array: Array, name: str) -> orjson.Fragment:
    """The elements as a flat JSON array in row-major order."""
    if array.dtype.kind == "O":
        try:
            return orjson.Fragment(orjson.dumps([_text(value) for value in array.flat]))
        except UnicodeDecodeError:
            raise BadRequest(
                400, f"output '{name}' holds bytes that are not UTF-8; ask for it in binary (binary_data)"
            ) from None
    flat = array.reshape(-1)
    pieces = [
        orjson.dumps(flat[at : at + PIECE_ELEMENTS], option=orjson.OPT_SERIALIZE_NUMPY)
        for at in range(0, max(1, flat.size), PIECE_ELEMENTS)
    ]
    if len(pieces) == 1:
        return orjson.Fragment(pieces[0])
    return orjson.Fragment(b"[" + b",".join(piece[1:-1] for piece in pieces) + b"]")


def to_bytes(array: Array) -> bytes:
    """The elements in the V2 binary form."""
    if array.dtype.kind != "O":
        return array.tobytes()
    parts: list[bytes] = []
    for value in array.flat:
        data = value.encode() if isinstance(value, str) else bytes(value)
        parts += (_LENGTH.pack(len(data)), data)
    return b"".join(parts)


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode()
