"""Tensors in memory that two processes share: an arena that one writes, and the other's window on it.

How this works. Each end of a connection makes an arena of its own (a sealed memfd, whose descriptor travels
over the Unix socket once) and leases stretches of it for the tensors it sends. The other end maps it for
reading only, makes arrays straight on it, and hands a stretch back when the last array on it has gone:
whoever still reads, be it a lane thread that was given up, keeps its memory. Nothing of an arena outlives
the connection: both ends drop it on a hang-up, and the system takes the memory back with the last mapping.

What the other end says is not trusted. Offsets and lengths are checked against the arena's size, which seals
keep from shrinking under a reader; a stretch is handed back under the epoch of its lease, so that word which
comes late, or twice, frees nothing that was leased anew.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import weakref
from bisect import bisect_left
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from msgspec import Struct

ALIGNMENT = 64
"""Slots begin and end on multiples of so many bytes: a cache line."""
F_SEAL_FUTURE_WRITE = 0x0010
"""Linux 5.1: nobody else can map the file for writing. Python 3.11 has no name for it."""
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW

Array = np.ndarray[Any, Any]


class SlotError(ValueError):
    """A slot that is not there: what the other end said is wrong."""


class ArenaFullError(Exception):
    """No stretch of the arena is long enough now."""


class Slot(Struct, frozen=True, array_like=True, gc=False):
    """A leased stretch of an arena, in bytes; `epoch` tells this lease from every other."""

    offset: int
    length: int
    epoch: int


def aligned(n_bytes: int) -> int:
    """The smallest multiple of `ALIGNMENT` that holds so many bytes."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


class Arena:
    """Memory that this process writes and another one reads. Not thread-safe.

    Sparse: pages cost memory once they were written to, and leases are made as low as there is room."""

    def __init__(self, n_bytes: int) -> None:
        """Raises OSError where the system cannot give so much."""
        self.n_bytes = aligned(n_bytes)
        self.fd = os.memfd_create("cotenant-tensors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, self.n_bytes)
            self._map = mmap.mmap(self.fd, self.n_bytes)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, SEALS)
            with suppress(OSError):
                fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, F_SEAL_FUTURE_WRITE)
        except BaseException:
            os.close(self.fd)
            raise
        self.bytes: Array = np.frombuffer(self._map, np.uint8)
        """The whole arena, writable."""
        self._leased: dict[int, Slot] = {}
        self._free_at = [0]
        self._free_length = [self.n_bytes]
        self._epoch = 0

    @property
    def n_leased(self) -> int:
        """Slots that were not handed back."""
        return len(self._leased)

    def lease(self, n_bytes: int) -> Slot:
        """A slot of `n_bytes` > 0. Raises ArenaFullError."""
        wanted = aligned(n_bytes)
        index = next((i for i, length in enumerate(self._free_length) if length >= wanted), None)
        if index is None:
            raise ArenaFullError(f"{n_bytes} bytes")
        offset, length = self._free_at[index], self._free_length[index]
        if length == wanted:
            del self._free_at[index], self._free_length[index]
        else:
            self._free_at[index] = offset + wanted
            self._free_length[index] = length - wanted
        self._epoch += 1
        slot = self._leased[offset] = Slot(offset, n_bytes, self._epoch)
        return slot

    def release(self, slot: Slot) -> None:
        """Take a slot back. Raises SlotError unless exactly this lease is out."""
        if self._leased.get(slot.offset) != slot:
            raise SlotError(
                f"no slot at {slot.offset} of {slot.length} bytes and epoch {slot.epoch} is leased"
            )
        del self._leased[slot.offset]
        at, length = slot.offset, aligned(slot.length)
        index = bisect_left(self._free_at, at)
        if index < len(self._free_at) and at + length == self._free_at[index]:
            length += self._free_length.pop(index)
            del self._free_at[index]
        if index and self._free_at[index - 1] + self._free_length[index - 1] == at:
            self._free_length[index - 1] += length
        else:
            self._free_at.insert(index, at)
            self._free_length.insert(index, length)

    def close(self) -> None:
        """Let go of the memory: nothing can be written any more. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self.bytes = np.empty(0, np.uint8)
            del self._map


class Window:
    """Another process's arena, for reading. `on_free(slot)` is called when the last array on a slot has gone,
    on whatever thread that happens."""

    def __init__(self, fd: int, n_bytes: int, on_free: Callable[[Slot], None]) -> None:
        """Maps the arena and closes `fd` in any case. Raises SlotError where it is not what it should be,
        OSError."""
        try:
            self._check(fd, n_bytes)
            self._map = mmap.mmap(fd, n_bytes, prot=mmap.PROT_READ)
        finally:
            os.close(fd)
        self.n_bytes = n_bytes
        self._on_free = on_free
        self._open: dict[int, weakref.ref[Array]] = {}

    @staticmethod
    def _check(fd: int, n_bytes: int) -> None:
        """A file that could be cut short under a reader would kill it."""
        try:
            seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        except OSError:
            raise SlotError("the arena is no file that can be sealed") from None
        if seals & SEALS != SEALS:
            raise SlotError("the arena is not sealed against changes of its size")
        if n_bytes <= 0 or os.fstat(fd).st_size != n_bytes:
            raise SlotError(f"the arena has {os.fstat(fd).st_size} bytes, not {n_bytes}")

    @property
    def n_open(self) -> int:
        """Slots on which arrays are left."""
        return len(self._open)

    def open(self, slot: Slot) -> Array:
        """The bytes of a slot, read-only. Every array made on them must be a view of what is returned. Raises
        SlotError."""
        if slot.offset < 0 or slot.length <= 0 or slot.offset + slot.length > self.n_bytes:
            raise SlotError(f"{slot.length} bytes at {slot.offset} do not lie in an arena of {self.n_bytes}")
        if slot.offset % ALIGNMENT or slot.epoch in self._open:
            raise SlotError(f"no slot begins at {slot.offset}, or epoch {slot.epoch} is open already")
        # straight on the map: views of an array on an array would belong to the latter and outlive `root`
        root: Array = np.frombuffer(self._map, np.uint8, slot.length, slot.offset)
        self._open[slot.epoch] = weakref.ref(root, lambda _: self._free(slot))
        return root

    def _free(self, slot: Slot) -> None:
        self._open.pop(slot.epoch, None)
        self._on_free(slot)
