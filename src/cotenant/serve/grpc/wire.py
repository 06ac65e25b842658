"""A look at a large message before it is parsed: that parsing it takes little time and memory.

Parsing holds up the event loop, and what it makes can be far larger than the message: two bytes can be an
input, which takes ninety in memory, and one byte an integer of eight. Within the limit of a message's size a
client could so take gigabytes and seconds. Real requests have a few dozen parts, and what is large in them is
raw or packed floating-point numbers, which are only copied. Small messages are not worth the look.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cotenant.serve.errors import BadRequest

SMALL_BYTES = 64 * 1024
"""Messages up to this size are parsed at once."""
MAX_PARTS = 10_000
"""Most fields of a request and of its parts; each string of typed contents is one."""
MAX_VARINT_BYTES = 4 * 1024 * 1024
"""Most bytes of integers and booleans in typed contents (and in shapes)."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class _Kind:
    """What to look at in one kind of message: fields that hold parts, and fields that hold packed varints."""

    nested: Mapping[int, _Kind] = field(default_factory=dict)
    varints: frozenset[int] = frozenset()


_CONTENTS = _Kind(varints=frozenset((1, 2, 3, 4, 5)))
_INPUT = _Kind(nested={4: _Kind(), 5: _CONTENTS}, varints=frozenset((3,)))
_OUTPUT = _Kind(nested={2: _Kind()})
_REQUEST = _Kind(nested={5: _INPUT, 6: _OUTPUT})
"""ModelInferRequest, by the numbers of its fields."""


def check_parts(message: bytes) -> None:
    """Raises BadRequest when a serialised ModelInferRequest would take long to parse (413) or is malformed
    (400)."""
    if len(message) > SMALL_BYTES:
        _Walk(message).fields(0, len(message), _REQUEST)


class _Walk:
    def __init__(self, message: bytes) -> None:
        self._message = message
        self._n_parts = 0
        self._n_varint_bytes = 0

    def fields(self, at: int, end: int, kind: _Kind) -> None:
        """Count the fields of message[at:end], and those of its parts."""
        while at < end:
            self._n_parts += 1
            if self._n_parts > MAX_PARTS:
                raise BadRequest(
                    413,
                    f"the request has more than {MAX_PARTS} parts; send large tensors in raw_input_contents",
                )
            tag, at = self._varint(at, end)
            wire_type = tag & 7
            if wire_type == _VARINT:
                _, at = self._varint(at, end)
            elif wire_type == _FIXED64:
                at += 8
            elif wire_type == _FIXED32:
                at += 4
            elif wire_type == _BYTES:
                length, at = self._varint(at, end)
                self._part(at, at + length, end, kind, tag >> 3)
                at += length
            else:
                raise malformed()
        if at != end:
            raise malformed()

    def _part(self, at: int, until: int, end: int, kind: _Kind, number: int) -> None:
        """Look at message[at:until], a field of a part that ends at `end`."""
        if until > end:
            raise malformed()
        inner = kind.nested.get(number)
        if inner is not None:
            self.fields(at, until, inner)
        elif number in kind.varints:
            self._n_varint_bytes += until - at
            if self._n_varint_bytes > MAX_VARINT_BYTES:
                raise BadRequest(
                    413,
                    f"the request has more than {MAX_VARINT_BYTES} bytes of typed integers; send them in "
                    "raw_input_contents",
                )

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """The number at `at`, and where it ends."""
        value = shift = 0
        while at < end and shift < 70:
            byte = self._message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
            shift += 7
        raise malformed()


def malformed() -> BadRequest:
    """The error for bytes that are no such message."""
    return BadRequest(400, "the request is not a valid protobuf message of its type")
