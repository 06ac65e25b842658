"""What front end and engine tell each other, and how tensors travel: the small ones in the frame, the large
ones in shared memory (`shm.py`)."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
from msgspec import Struct

from cotenant.channel import Channel, FrameError
from cotenant.domain import ModelMetadata, Outcome
from cotenant.engine_client import Absence, Call, ModelStatistics, ModelStatus
from cotenant.ports import Tensors
from cotenant.shm import ALIGNMENT, Arena, Array, Slot, SlotError, Window, aligned

INLINE_BYTES = 16 << 10
"""Tensors up to so many bytes travel in the frame: copied by the kernel, but with no slot to keep account
of."""
MANY, LARGE_SHARE = 16, 64
"""So many slots, or one of that part (1 / `LARGE_SHARE`) of an arena, are handed back without delay: no more
than a quarter of an arena is free without its owner's knowing."""
MAX_DIMENSIONS = 32
LARGEST_DIMENSION = 2**40

TEXT = "object"
"""How a tensor of byte strings is marked: its data is a msgpack list of them."""
DTYPES: dict[str, np.dtype[Any]] = {
    dtype.name: dtype
    for dtype in map(
        np.dtype,
        ("bool", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", ml_dtypes.bfloat16, "f4", "f8", "O"),
    )
}
"""Every type of element that travels, by numpy's name."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_STRINGS: msgspec.msgpack.Decoder[list[bytes]] = msgspec.msgpack.Decoder(list[bytes])


class Part(Struct, frozen=True, array_like=True, gc=False):
    """One tensor. `place`: its bytes, or where they lie in the slot: (offset, length)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    place: bytes | tuple[int, int]


Parts = tuple[Part, ...]


# --- front end to engine ------------------------------------------------------------------------------


class Submit(Struct, frozen=True, tag=True, array_like=True, gc=False):
    """A call; its tensors stand apart from it."""

    call: Call
    parts: Parts
    slot: Slot | None


class Cancel(Struct, frozen=True, tag=True, array_like=True, gc=False):
    """Whoever made the call has gone."""

    id: str


class Release(Struct, frozen=True, tag=True, array_like=True, gc=False):
    """Either way: these slots of yours are not read any more."""

    slots: tuple[Slot, ...]


class Ask(Struct, frozen=True, tag=True, array_like=True, gc=False):
    """A question: `statistics`, `metrics` (for an Accept header), `explain` (a call), `load` or `unload` (a
    model)."""

    n: int
    what: str
    about: str = ""


class Sent(Struct, frozen=True, tag=True, array_like=True, gc=False):
    """Answers that were sent: calls, and how long (ns) after the end of their runs."""

    calls: tuple[tuple[str, int], ...]


FromFront = Submit | Cancel | Release | Ask | Sent


# --- engine to front end ------------------------------------------------------------------------------


class State(Struct, frozen=True, tag=True, array_like=True):
    """What there is, sent at the start and with every change."""

    models: tuple[ModelMetadata, ...]
    status: tuple[ModelStatus, ...]
    absence: Absence | None


class Answer(Struct, frozen=True, tag=True, array_like=True, gc=False):
    """What became of a call; its tensors, if it was answered."""

    outcome: Outcome
    parts: Parts | None
    slot: Slot | None


class Told(Struct, frozen=True, tag=True, array_like=True):
    """The answer to question `n`: the field that goes with it is filled. `error`: why a model was not loaded
    or unloaded."""

    n: int
    statistics: tuple[ModelStatistics, ...] = ()
    page: bytes = b""
    page_type: str = ""
    explained: dict[str, Any] | None = None
    error: str | None = None


FromEngine = State | Answer | Release | Told


# --- tensors ------------------------------------------------------------------------------------------


def pack(tensors: Tensors, arena: Arena) -> tuple[Parts, Slot | None]:
    """Tensors for a frame; those that are large are copied to the arena. Raises ArenaFullError, TypeError on
    elements that cannot travel."""
    parts: list[Part] = []
    large: list[tuple[int, Array]] = []
    n_bytes = 0
    for name, tensor in tensors.items():
        array = np.asarray(tensor)
        dtype = _NAMES.get(array.dtype)
        if dtype is None:
            raise TypeError(f"tensor {name!r} has elements of type {array.dtype}")
        shape = array.shape
        if dtype == TEXT:
            array = np.frombuffer(_joined(array), np.uint8)
        if array.nbytes <= INLINE_BYTES:
            parts.append(Part(name, dtype, shape, array.tobytes()))
            continue
        parts.append(Part(name, dtype, shape, (n_bytes, array.nbytes)))
        large.append((n_bytes, array))
        n_bytes += aligned(array.nbytes)
    if not large:
        return tuple(parts), None
    slot = arena.lease(n_bytes)
    for at, array in large:
        np.copyto(np.ndarray(array.shape, array.dtype, arena.bytes.data, slot.offset + at), array)
    return tuple(parts), slot


def _joined(strings: Array) -> bytes:
    return msgspec.msgpack.encode(
        [value.encode() if isinstance(value, str) else bytes(value) for value in strings.flat]
    )


def unpack(parts: Sequence[Part], slot: Slot | None, window: Window) -> Mapping[str, Array]:
    """The tensors of a frame: read-only arrays, C-contiguous and aligned, some of them straight on the other
    end's arena. Raises FrameError."""
    tensors: dict[str, Array] = {}
    try:
        root = None if slot is None else window.open(slot)
        for part in parts:
            tensors[part.name] = _array(part, root)
    except (SlotError, ValueError, msgspec.MsgspecError) as error:
        raise FrameError(f"a tensor that cannot be: {error}") from None
    if len(tensors) != len(parts):
        raise FrameError("a tensor that was sent twice")
    return tensors


def _array(part: Part, root: Array | None) -> Array:
    """Raises ValueError where it is not what it says."""
    dtype, shape, place = DTYPES.get(part.dtype), part.shape, part.place
    if dtype is None:
        raise ValueError(f"elements of type {part.dtype:.40}")
    if len(shape) > MAX_DIMENSIONS or not all(0 <= size <= LARGEST_DIMENSION for size in shape):
        raise ValueError("its shape")
    n = math.prod(shape)
    if isinstance(place, bytes):
        if part.dtype == TEXT:
            return _strings(place, n, shape)
        if len(place) != n * dtype.itemsize:
            raise ValueError(f"{len(place)} bytes for {n} elements of {part.dtype}")
        return (np.frombuffer(place, dtype) if n else np.empty(0, dtype)).reshape(shape)
    at, length = place
    if root is None or at < 0 or at % ALIGNMENT or length <= 0 or at + length > root.nbytes:
        raise ValueError(f"{length} bytes at {at} do not lie in its slot")
    if part.dtype == TEXT:
        return _strings(root[at : at + length].data, n, shape)
    if length != n * dtype.itemsize:
        raise ValueError(f"{length} bytes for {n} elements of {part.dtype}")
    return np.ndarray(shape, dtype, root, at)


def _strings(data: bytes | memoryview, n: int, shape: tuple[int, ...]) -> Array:
    values = _STRINGS.decode(data)
    if len(values) != n:
        raise ValueError(f"{len(values)} strings for {n} elements")
    array = np.empty(n, object)
    array[:] = values
    return array.reshape(shape)


class Returns:
    """Slots of the other end's arena that are not read any more. The other end is told with the next frame
    that goes there anyway, for a frame of their own would wake it up; at once only where they are many, or
    large."""

    def __init__(self, channel: Channel, arena_bytes: int) -> None:
        """On the loop that the channel is of. `arena_bytes`: size of the other end's arena."""
        self._channel, self._large = channel, arena_bytes // LARGE_SHARE
        self._loop = asyncio.get_running_loop()
        self._slots: deque[Slot] = deque()

    def add(self, slot: Slot) -> None:
        """The last array on this slot has gone. On any thread."""
        self._slots.append(slot)
        if len(self._slots) >= MANY or slot.length >= self._large:
            with suppress(RuntimeError):  # the loop has ended, and the connection with it
                self._loop.call_soon_threadsafe(self.send)

    def send(self) -> None:
        """Tell the other end now, if there is anything to tell."""
        if self._slots:
            slots: list[Slot] = []
            with suppress(IndexError):
                while True:
                    slots.append(self._slots.popleft())
            self._channel.send(Release(tuple(slots)))
