"""Compressed bodies, in and out: gzip and deflate. What comes in never grows beyond the limit of a body."""

from __future__ import annotations

import zlib

from cotenant.serve.errors import BadRequest

CODINGS: dict[bytes, int] = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}
"""Content codings of RFC 9110 and the window bits by which zlib knows their envelope."""
LEVEL = 1
"""Of compression (1 to 9): tensors hardly shrink further, and the answer is waited for."""
OFFERED = (b"gzip", b"deflate")
"""What answers are compressed with, the preferred first."""


def content_coding(header: bytes | None) -> bytes | None:
    """How a body is compressed, from its Content-Encoding; None when it is not. Raises BadRequest (415)."""
    if header is None:
        return None
    coding = header.strip().lower()
    if coding in (b"", b"identity"):
        return None
    if coding not in CODINGS:
        shown = header.decode("latin-1")
        raise BadRequest(
            415,
            f"header Content-Encoding: '{shown:.40}' is not supported; expected gzip, deflate or none",
        )
    return coding


class Inflater:
    """Takes one compressed body apart: `begin` as much as is quickly done, then `finish`, in any thread.

    Raises BadRequest: 413 as soon as more than `limit` bytes come out, 400 when the data are broken, cut off,
    or followed by anything (a second gzip member too: they could be empty and many)."""

    def __init__(self, coding: bytes, body: bytes | bytearray, limit: int) -> None:
        self._coding = coding.decode()
        self._stream = zlib.decompressobj(CODINGS[coding])
        self._rest: bytes | bytearray = body
        self._limit = limit
        self.body = bytearray()

    def begin(self, n_bytes: int) -> bool:
        """Decompress at most so many bytes (at least 1); whether that was all."""
        self._inflate(min(n_bytes, self._limit + 1))
        return self._stream.eof

    def finish(self) -> None:
        """Decompress the rest."""
        if not self._stream.eof:
            self._inflate(self._limit + 1 - len(self.body))
        if not self._stream.eof:
            raise BadRequest(400, f"the body ends in the middle of its {self._coding} data")

    def _inflate(self, at_most: int) -> None:
        try:
            self.body += self._stream.decompress(self._rest, at_most)
        except zlib.error:
            raise BadRequest(400, f"the body is not {self._coding}, as its Content-Encoding says") from None
        self._rest = self._stream.unconsumed_tail
        if len(self.body) > self._limit:
            raise BadRequest(413, f"the decompressed body is larger than the limit of {self._limit} bytes")
        if self._stream.eof and self._stream.unused_data:
            raise BadRequest(400, f"the body goes on after the end of its {self._coding} data")


def accepted_coding(header: bytes | None) -> bytes | None:
    """The coding to answer with by an Accept-Encoding header; None: as it is. Of equals gzip is taken; a
    weight that is no number counts as 0."""
    if header is None:
        return None
    weights: dict[bytes, float] = {}
    for entry in header.lower().split(b","):
        name, _, parameters = entry.partition(b";")
        weights[name.strip()] = _weight(parameters)
    best = max(OFFERED, key=lambda coding: weights.get(coding, weights.get(b"*", 0.0)))
    return best if weights.get(best, weights.get(b"*", 0.0)) > 0 else None


def _weight(parameters: bytes) -> float:
    name, equals, value = parameters.partition(b"=")
    if not equals or name.strip() != b"q":
        return 1.0
    try:
        weight = float(value)
    except ValueError:
        return 0.0
    return weight if 0 <= weight <= 1 else 0.0


def deflate(body: bytes, coding: bytes) -> bytes:
    """The body in this coding. Frees the interpreter while it works."""
    stream = zlib.compressobj(LEVEL, zlib.DEFLATED, CODINGS[coding])
    return stream.compress(body) + stream.flush()
