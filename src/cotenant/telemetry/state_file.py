"""The file that keeps a learned state, and the one before it.

Format: a magic line, the SHA-256 of the rest, and the rest: a `Stored` in msgpack. A new state is written
beside the old one, brought to the disk and only then renamed, so that a crash at any instant leaves a whole
file: NAME, or else NAME.before.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

import msgspec

FORMAT = 1
MAGIC = b"cotenant learned state\n"
MAX_BYTES = 64 << 20
"""Larger files are no learned state; the usual one has 0.2 MB."""
HEAD_BYTES = len(MAGIC) + hashlib.sha256().digest_size


class Stored(msgspec.Struct, kw_only=True):
    """What is kept. `device`: digest of its fingerprint; `learned_at`: when the state was copied, by the
    clock of the instants in it (ns); `wall_s`: the same by the wall clock, which goes on while no server runs
    and the machine is off."""

    format: int = FORMAT
    device: str
    learned_at: int
    wall_s: float
    state: bytes


class StateFile:
    """Reads and replaces the file at `path` for the device with the digest `device`. One at a time per
    path."""

    def __init__(self, path: Path, device: str) -> None:
        self.path = path
        self.before = path.with_name(f"{path.name}.before")
        self._new = path.with_name(f"{path.name}.new")
        self._device = device
        self.newest_is_good = True
        """Off when the newest was found unusable: the next one then replaces it, and the one before stays."""

    def read(self, path: Path) -> Stored:
        """What is kept at `path` (`path` or `before` of this). Raises FileNotFoundError, OSError, or
        ValueError that names the file and says why it cannot be used."""
        with path.open("rb") as file:
            body = file.read(MAX_BYTES + 1)
        if not body.startswith(MAGIC) or len(body) > MAX_BYTES:
            raise ValueError(f"{path} is no learned state")
        rest = body[HEAD_BYTES:]
        if hashlib.sha256(rest).digest() != body[len(MAGIC) : HEAD_BYTES]:
            raise ValueError(f"{path} is damaged: its checksum does not fit")
        try:
            stored = msgspec.msgpack.decode(rest, type=Stored)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        if stored.format != FORMAT:
            raise ValueError(f"{path} has format {stored.format}, this version reads {FORMAT}")
        if stored.device != self._device:
            raise ValueError(f"{path} was learned on device {stored.device}, this is {self._device}")
        return stored

    def write(self, *, learned_at: int, wall_s: float, state: bytes) -> None:
        """Keep a state; the newest so far becomes the one before. Blocks for the disk. Raises OSError; then
        what was kept before still is."""
        stored = Stored(device=self._device, learned_at=learned_at, wall_s=wall_s, state=state)
        rest = msgspec.msgpack.encode(stored)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._new.open("wb") as file:
                file.write(MAGIC + hashlib.sha256(rest).digest() + rest)
                file.flush()
                os.fsync(file.fileno())
            if self.newest_is_good and self.path.exists():
                self.path.replace(self.before)
            self._new.replace(self.path)
        except OSError:
            with suppress(OSError):
                self._new.unlink()
            raise
        self.newest_is_good = True
        _to_disk(self.path.parent)


def _to_disk(folder: Path) -> None:
    """Make renames in a folder survive a power cut, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
