"""The event log: every event with the actions it led to, so that a live run can be replayed offline.

Format: msgpack objects, each behind a 4-byte little-endian length. The first is a header that begins with
the learned state; then `(at, event, actions)` entries. Written by a thread of its own, off the decision path.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from cotenant.domain import Action, Event, ModelSpec, SoloProfile
from cotenant.ports import LaneInfo
from cotenant.profile.features import WorkloadFeatures

FORMAT = 2
MAX_FRAME = 64 << 20


class Header(msgspec.Struct, kw_only=True):
    """What a replay needs before the first event."""

    format: int = FORMAT
    policy: str
    predictor: str
    learned: bytes
    specs: list[ModelSpec]
    lanes: list[LaneInfo]
    profiles: list[SoloProfile]
    resources: tuple[str, ...] = ()
    statics: tuple[str, ...] = ()
    features: list[WorkloadFeatures] = []


class Entry(msgspec.Struct, array_like=True):
    """One event, when it was handled (ns) and what the scheduler answered."""

    at: int
    event: Event
    actions: list[Action]


class EventLog:
    """Appends to a file from a thread of its own; `record` only remembers. Loses at most the last second
    on a crash. Stops writing, and says so in `failure`, when the disk is full."""

    def __init__(self, path: Path, header: Header, *, flush_s: float = 0.5) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = path.open("wb")
        self._encoder = msgspec.msgpack.Encoder()
        self._pending: list[Entry] = []
        self._closing = threading.Event()
        self._flush_s = flush_s
        self.failure: str | None = None
        self._write(header)
        self._thread = threading.Thread(target=self._run, name="cotenant-event-log", daemon=True)
        self._thread.start()

    def record(self, event: Event, at: int, actions: Sequence[Action]) -> None:
        """Remember an entry; values are frozen, so nothing is copied."""
        if self.failure is None:
            self._pending.append(Entry(at, event, list(actions)))

    def close(self) -> None:
        """Write what is left. Idempotent."""
        if not self._closing.is_set():
            self._closing.set()
            self._thread.join()
            self._file.close()

    def _run(self) -> None:
        while not self._closing.wait(self._flush_s):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        entries, self._pending = self._pending, []
        try:
            for entry in entries:
                self._write(entry)
            self._file.flush()
        except OSError as error:
            self.failure = f"the event log stopped: {error}"

    def _write(self, value: object) -> None:
        body = self._encoder.encode(value)
        self._file.write(len(body).to_bytes(4, "little") + body)


def read(path: Path) -> tuple[Header, Iterator[Entry]]:
    """The header and the entries of a log. A torn last entry (crash) ends the log silently.

    Raises ValueError, naming the file, when it is no event log of this format."""
    file = path.open("rb")
    try:
        header = msgspec.msgpack.decode(_frame(file) or b"", type=Header)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        file.close()
        raise ValueError(f"{path} is not an event log: {error}") from error
    if header.format != FORMAT:
        file.close()
        raise ValueError(f"{path} has event log format {header.format}, this version reads {FORMAT}")

    def entries() -> Iterator[Entry]:
        decoder = msgspec.msgpack.Decoder(Entry)
        with file:
            while (body := _frame(file)) is not None:
                yield decoder.decode(body)

    return header, entries()


def _frame(file: BinaryIO) -> bytes | None:
    head = file.read(4)
    if len(head) < 4:
        return None
    size = int.from_bytes(head, "little")
    if size > MAX_FRAME:
        raise ValueError(
            f"a frame of {size} bytes is longer than the limit of {MAX_FRAME}: the log is damaged"
        )
    body = file.read(size)
    return body if len(body) == size else None
