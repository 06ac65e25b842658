"""Regions of system shared memory that clients have registered: tensors are read from and written to them.

How this works. A client names a file of `/dev/shm` that it owns with the server (the same user); the server
opens it once, following no link, and keeps the descriptor. Nothing is ever mapped: a client may cut the file
short at any moment, and a touch of a mapped page beyond its end kills the process. `pread` comes back short
instead, and is refused. Before a write the size is asked for, so that nothing is written beyond the end.
A descriptor is closed when the region is unregistered and nobody reads or writes it any more.
"""

from __future__ import annotations

import os
import re
import stat
import weakref
from typing import Any

from msgspec import Struct

from cotenant.serve.errors import BadRequest
from cotenant.serve.settings import ServeConfig

FOLDER = "/dev/shm"
KEY = re.compile(r"/?([A-Za-z0-9._-]{1,250})")
"""A key is a file's name, with the `/` that `shm_open` wants or without."""
NAME = re.compile(r"[A-Za-z0-9._-]{1,250}")
"""Names of regions: what a path segment can hold."""
RESERVED = "cotenant"
"""Names of files that begin like this may be this server's own; no client gets at them."""
MOST_REGIONS = 1024
MOST_BYTES = 2**62
"""Largest offset and size of a region."""
TURNED_OFF = "shared memory is turned off on this server (shared_memory under [server] in its config)"


class Region:
    """A stretch of a file of shared memory: `byte_size` bytes from `offset` on."""

    def __init__(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Open it. Raises BadRequest when the key is none, or the file is not there, not the server's own
        user's, no plain file, or too small."""
        self.name, self.key, self.offset, self.byte_size = name, key, offset, byte_size
        match = KEY.fullmatch(key)
        if match is None or not match[1].strip("."):
            raise BadRequest(
                400, "key: expected the name of a shared memory object: letters, digits, '.', '_', '-'"
            )
        if match[1].lower().startswith(RESERVED):
            raise BadRequest(400, f"key: names that begin with '{RESERVED}' are this server's own")
        self._fd = _open(match[1])
        weakref.finalize(self, os.close, self._fd)
        found = os.fstat(self._fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise BadRequest(
                400, "key: there is no shared memory object of this name that the server may use"
            )
        if offset + byte_size > found.st_size:
            raise BadRequest(
                400,
                f"byte_size: {byte_size} bytes from offset {offset} on, but the shared memory object has "
                f"{found.st_size} bytes",
            )

    def read(self, at: int, n_bytes: int) -> bytearray:
        """So many bytes from `at` on, counted from the region's start. Raises BadRequest when the file ends
        before."""
        data = bytearray(n_bytes)
        view, n_read = memoryview(data), 0
        while n_read < n_bytes:
            n = os.preadv(self._fd, [view[n_read:]], self.offset + at + n_read)
            if n == 0:
                raise self._cut_short(at + n_bytes)
            n_read += n
        return data

    def write(self, at: int, data: bytes) -> None:
        """Write from `at` on, counted from the region's start. Raises BadRequest where the file ends."""
        if os.fstat(self._fd).st_size < self.offset + at + len(data):
            raise self._cut_short(at + len(data))
        view, n_written = memoryview(data), 0
        while n_written < len(data):
            n_written += os.pwrite(self._fd, view[n_written:], self.offset + at + n_written)

    def _cut_short(self, until: int) -> BadRequest:
        return BadRequest(
            400,
            f"shared memory region '{self.name}' has become smaller than its {self.byte_size} bytes: byte "
            f"{until} is not there; register it anew",
        )


class Place(Struct, frozen=True):
    """Where a tensor lies: `byte_size` bytes of a region."""

    region: Region
    offset: int
    byte_size: int

    def read(self) -> memoryview:
        """The data. Raises BadRequest."""
        return memoryview(self.region.read(self.offset, self.byte_size))

    def write(self, data: bytes, field: str) -> None:
        """Put the data there. Raises BadRequest when they do not fit."""
        if len(data) > self.byte_size:
            raise BadRequest(
                400,
                f"{field}: has {len(data)} bytes, but parameters.shared_memory_byte_size is {self.byte_size}",
            )
        self.region.write(self.offset, data)


class Regions:
    """The registered regions. One thread changes it; any may read."""

    def __init__(self, most_bytes: int) -> None:
        """`most_bytes`: how much the inputs of one request may read."""
        self.most_bytes = most_bytes
        self._regions: dict[str, Region] = {}

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Open a region under a name. Raises BadRequest."""
        if NAME.fullmatch(name) is None:
            raise BadRequest(400, "a region's name may hold letters, digits, '.', '_' and '-' only")
        if name in self._regions:
            raise BadRequest(400, f"shared memory region '{name}' is registered already; unregister it first")
        if len(self._regions) >= MOST_REGIONS:
            raise BadRequest(400, f"{MOST_REGIONS} shared memory regions are registered, which is the most")
        self._regions[name] = Region(name, key, offset, byte_size)

    def check_size(self, n_bytes: int) -> None:
        """Raises BadRequest (413) when the inputs of one request have more than they may in all."""
        if n_bytes > self.most_bytes:
            raise BadRequest(
                413, f"the inputs in shared memory are larger than the limit of {self.most_bytes} bytes"
            )

    def unregister(self, name: str | None) -> None:
        """Forget a region, or all; one that is not there is none."""
        if name is None:
            self._regions.clear()
        else:
            self._regions.pop(name, None)

    def status(self, name: str | None) -> list[dict[str, object]]:
        """What is registered, in the form of V2. Raises BadRequest when `name` is not."""
        found = list(self._regions.values()) if name is None else [self._find(name, "")]
        return [{"name": r.name, "key": r.key, "offset": r.offset, "byte_size": r.byte_size} for r in found]

    def place(self, parameters: dict[str, Any], field: str) -> Place:
        """Where a tensor with these parameters lies. Raises BadRequest."""
        name = parameters["shared_memory_region"]
        if not isinstance(name, str):
            raise BadRequest(
                400, f"{field}: parameters.shared_memory_region: expected a name, got {name!r:.40}"
            )
        region = self._find(name, f"{field}: ")
        offset = _count(parameters.get("shared_memory_offset", 0), "shared_memory_offset", field)
        byte_size = _count(parameters.get("shared_memory_byte_size"), "shared_memory_byte_size", field)
        if offset + byte_size > region.byte_size:
            raise BadRequest(
                400,
                f"{field}: {byte_size} bytes from offset {offset} on, but shared memory region '{name}' has "
                f"{region.byte_size} bytes",
            )
        return Place(region, offset, byte_size)

    def _find(self, name: str, where: str) -> Region:
        region = self._regions.get(name)
        if region is None:
            raise BadRequest(400, f"{where}there is no shared memory region '{name:.100}'; register it first")
        return region


def regions_of(config: ServeConfig) -> Regions | None:
    """Where clients of a front end register regions; None where shared memory is turned off."""
    return Regions(config.max_body_bytes) if config.shared_memory else None


def place_of(parameters: dict[str, Any] | None, regions: Regions | None, field: str) -> Place | None:
    """Where the tensor lies that has these parameters; None when they name no region. Raises BadRequest."""
    if not parameters or not parameters.get("shared_memory_region"):
        for name in ("shared_memory_byte_size", "shared_memory_offset"):
            if parameters and parameters.get(name):
                raise BadRequest(
                    400,
                    f"{field}: parameters.{name} goes with parameters.shared_memory_region, which is missing",
                )
        return None
    if regions is None:
        raise BadRequest(400, f"{field}: parameters.shared_memory_region: {TURNED_OFF}")
    return regions.place(parameters, field)


def _count(value: object, name: str, field: str) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise BadRequest(400, f"{field}: parameters.{name}: expected a count of bytes, got {value!r:.40}")
    return value


def _open(file: str) -> int:
    try:
        return os.open(f"{FOLDER}/{file}", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        raise BadRequest(
            400, "key: there is no shared memory object of this name that the server may use"
        ) from None
