"""A `.onnx` file without its weights: the graph and what it says of its tensors.

To parse a whole file keeps the interpreter for some milliseconds per megabyte, and with it a server that
loads a model while it serves others. Nearly all of a file are the contents of its initializers, of which
nobody here reads more than small ones. So the file is walked in its wire form (protobuf: fields of a number,
a type and a length) and the large contents are stepped over, unread.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

LARGE_BYTES = 16 * 1024
"""Contents longer than this are left out; 1024 elements of any type are shorter."""
WINDOW_BYTES = 64 * 1024
GRAPH, INITIALIZER = 7, 5
"""Numbers of fields: of `ModelProto`, of `GraphProto`."""
CONTENTS = frozenset({4, 5, 6, 7, 9, 10, 11})
"""Of `TensorProto`: `float_data, int32_data, string_data, int64_data, raw_data, double_data, uint64_data`."""
NOT_PROTOBUF = "it is no protobuf message, or cut short"


class Kind(IntEnum):
    """Types of fields on the wire."""

    VARINT = 0
    FIXED_64 = 1
    LENGTH = 2
    FIXED_32 = 5


class _Field(NamedTuple):
    """Where a field lies in the file: its tag from `at`, what it holds from `begin` to `end`."""

    number: int
    kind: int
    at: int
    begin: int
    end: int


def without_weights(path: Path) -> bytes:
    """The file's message without the large contents of the graph's initializers. Raises ValueError when it is
    none, OSError when it cannot be read."""
    with path.open("rb") as file:
        wire = _Wire(file.fileno())
        return b"".join(wire.model(0, os.fstat(file.fileno()).st_size))


class _Wire:
    """Reads one file, in windows: fields are many and small."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._window, self._from = b"", 0

    # --- what to keep ---------------------------------------------------------------------------------

    def model(self, begin: int, end: int) -> Iterator[bytes]:
        """A `ModelProto`."""
        for field in self._fields(begin, end):
            if field.number == GRAPH and field.kind == Kind.LENGTH:
                yield from self._rewritten(field, b"".join(self._graph(field.begin, field.end)))
            else:
                yield self._read(field.at, field.end)

    def _graph(self, begin: int, end: int) -> Iterator[bytes]:
        for field in self._fields(begin, end):
            is_large = field.end - field.begin > LARGE_BYTES
            if field.number == INITIALIZER and field.kind == Kind.LENGTH and is_large:
                yield from self._rewritten(field, b"".join(self._tensor(field.begin, field.end)))
            else:
                yield self._read(field.at, field.end)

    def _tensor(self, begin: int, end: int) -> Iterator[bytes]:
        for field in self._fields(begin, end):
            if field.number not in CONTENTS or field.end - field.begin <= LARGE_BYTES:
                yield self._read(field.at, field.end)

    def _rewritten(self, field: _Field, content: bytes) -> Iterator[bytes]:
        yield _varint(field.number << 3 | Kind.LENGTH)
        yield _varint(len(content))
        yield content

    # --- the wire -------------------------------------------------------------------------------------

    def _fields(self, at: int, end: int) -> Iterator[_Field]:
        while at < end:
            tag, begin = self._varint(at)
            number, kind = tag >> 3, tag & 7
            match kind:
                case Kind.VARINT:
                    after = self._varint(begin)[1]
                case Kind.FIXED_64:
                    after = begin + 8
                case Kind.LENGTH:
                    length, begin = self._varint(begin)
                    after = begin + length
                case Kind.FIXED_32:
                    after = begin + 4
                case _:
                    raise ValueError(NOT_PROTOBUF)
            if after > end or number == 0:
                raise ValueError(NOT_PROTOBUF)
            yield _Field(number, kind, at, begin, after)
            at = after

    def _varint(self, at: int) -> tuple[int, int]:
        """A number and where it ends."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte(at)
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, at
        raise ValueError(NOT_PROTOBUF)

    def _byte(self, at: int) -> int:
        index = at - self._from
        if not 0 <= index < len(self._window):
            self._window, self._from = os.pread(self._descriptor, WINDOW_BYTES, at), at
            index = 0
            if not self._window:
                raise ValueError(NOT_PROTOBUF)
        return self._window[index]

    def _read(self, begin: int, end: int) -> bytes:
        if self._from <= begin and end <= self._from + len(self._window):
            return self._window[begin - self._from : end - self._from]
        found = os.pread(self._descriptor, end - begin, begin)
        if len(found) != end - begin:
            raise ValueError(NOT_PROTOBUF)
        return found


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
