"""A look at a large message before it is parsed: that it does not consist of a mass of tiny parts.

Two bytes of a message can make a part (an empty input, an entry of a map) that takes a hundred in memory, so
within the limit of a message's size a client could make the server allocate gigabytes. Real requests have a
few dozen parts, however large they are. Small messages are not worth the look.
"""

from __future__ import annotations

from collections.abc import Mapping

from cotenant.serve.errors import BadRequest

SMALL_BYTES = 64 * 1024
"""Messages up to this size are parsed at once."""
MAX_PARTS = 10_000
"""Most fields of a request and of its parts."""
_NESTED: Mapping[int, frozenset[int]] = {5: frozenset({4}), 6: frozenset({2})}
"""Fields of ModelInferRequest whose fields are counted too (inputs, outputs), and which of those again."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def check_parts(message: bytes) -> None:
    """Raises BadRequest (400) when a serialised ModelInferRequest has too many parts or is malformed."""
    if len(message) > SMALL_BYTES:
        _Walk(message).fields(0, len(message), _NESTED)


class _Walk:
    def __init__(self, message: bytes) -> None:
        self._message = message
        self._left = MAX_PARTS

    def fields(self, at: int, end: int, nested: Mapping[int, frozenset[int]]) -> None:
        """Count the fields of message[at:end]; those of `nested` fields too."""
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise BadRequest(400, f"the request has more than {MAX_PARTS} parts")
            tag, at = self._varint(at, end)
            kind = tag & 7
            if kind == _VARINT:
                _, at = self._varint(at, end)
            elif kind == _FIXED64:
                at += 8
            elif kind == _FIXED32:
                at += 4
            elif kind == _BYTES:
                length, at = self._varint(at, end)
                inner = nested.get(tag >> 3)
                if inner is not None and at + length <= end:
                    self.fields(at, at + length, dict.fromkeys(inner, frozenset()))
                at += length
            else:
                raise malformed()
        if at != end:
            raise malformed()

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
