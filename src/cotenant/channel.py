"""Typed frames over a stream socket: each is its length in 4 bytes and a msgspec msgpack value.

What comes in is decoded by the types of the frames and by nothing else. A frame that is too long, cut short
or of no known type ends the connection: the two ends are one version of one program, so it is no
misunderstanding that could be talked over. uvloop writes once per turn of the loop what was sent during the
turn.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any, cast

import msgspec

MAX_FRAME_BYTES = 16 << 20
"""Longest frame. Tensors that are larger than a few pages travel in shared memory."""
CLOGGED_BYTES = 4 << 20
"""The other end does not keep up when so much waits to be written."""
HEADER = struct.Struct("<I")


class FrameError(ValueError):
    """The other end sent what it must not send."""


class Channel(asyncio.Protocol):
    """One end of a connection; everything happens on the event loop.

    `frames` is the union of what may come in. `on_frame` takes each in order, and raises FrameError for one
    that makes no sense; `on_open` is called once when frames can be sent, `on_lost(reason)` once when the
    connection has ended."""

    def __init__(
        self,
        frames: Any,
        on_frame: Callable[[Any], None],
        on_lost: Callable[[str], None],
        on_open: Callable[[], None] = lambda: None,
    ) -> None:
        self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(frames)
        self._encoder = msgspec.msgpack.Encoder()
        self._on_frame, self._on_lost, self._on_open = on_frame, on_lost, on_open
        self._transport: asyncio.Transport | None = None
        self._pieces: list[bytes] = []
        self._n_bytes = 0
        self._wanted = 0
        self._why = ""
        self.open = False
        self.clogged = False
        """Whether the other end reads too slowly."""

    def send(self, frame: msgspec.Struct) -> None:
        """Send a frame; one to a connection that has ended goes nowhere. Raises FrameError on one that is
        too long."""
        payload = self._encoder.encode(frame)
        if len(payload) > MAX_FRAME_BYTES:
            raise FrameError(f"a frame of {len(payload)} bytes is longer than {MAX_FRAME_BYTES}")
        if self.open:
            assert self._transport is not None
            self._transport.write(HEADER.pack(len(payload)) + payload)

    def close(self) -> None:
        """Send what is left, then hang up."""
        if self._transport is not None:
            self._transport.close()

    def fail(self, why: str) -> None:
        """Hang up at once."""
        self._why = self._why or why
        self.open = False
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio.Protocol -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._transport.set_write_buffer_limits(CLOGGED_BYTES)
        self.open = True
        self._on_open()

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        self._pieces.clear()
        self._on_lost(self._why or (str(error) if error else "the other end hung up"))

    def pause_writing(self) -> None:
        self.clogged = True

    def resume_writing(self) -> None:
        self.clogged = False

    def data_received(self, data: bytes) -> None:
        if self._pieces:
            self._pieces.append(data)
            self._n_bytes += len(data)
            if self._n_bytes < self._wanted:
                return
            data = b"".join(self._pieces)
            self._pieces.clear()
        try:
            rest = self._split(data)
        except FrameError as error:
            self.fail(str(error))
            return
        if rest < len(data) and self.open:
            self._pieces.append(data[rest:])
            self._n_bytes = len(data) - rest

    def _split(self, data: bytes) -> int:
        """Take the whole frames; where the rest begins."""
        at, end, view = 0, len(data), memoryview(data)
        while end - at >= HEADER.size:
            (length,) = HEADER.unpack_from(data, at)
            if length > MAX_FRAME_BYTES:
                raise FrameError(f"a frame of {length} bytes is longer than {MAX_FRAME_BYTES}")
            begin = at + HEADER.size
            if end - begin < length:
                self._wanted = HEADER.size + length
                return at
            try:
                frame = self._decoder.decode(view[begin : begin + length])
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                raise FrameError(f"no frame of ours: {error}") from None
            self._on_frame(frame)
            if not self.open:
                return end
            at = begin + length
        self._wanted = HEADER.size
        return at
