"""Explanations of slow requests on disk, so that `cotenant explain` finds them when no server runs.

One SQLite file per store, which several servers may write to; the newest `KEPT` stay. A thread of low
priority writes, at most once in `EVERY_S`; what goes wrong there is told once and reaches nobody else.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import msgspec

from cotenant.clock import wall_time_s
from cotenant.cores import yield_to_others
from cotenant.telemetry.explanation import Explanation

KEPT = 5000
"""Explanations that stay in the file, about 2 KB each."""
WAITING = 256
"""Explanations that may wait for the disk; beyond it the oldest are dropped."""
EVERY_S = 1.0
"""Between two writes (s)."""
WAIT_S = 5.0
"""How long another process's write is waited for (s)."""
VERSION = 1
SCHEMA = """CREATE TABLE IF NOT EXISTS slow (
    id TEXT PRIMARY KEY, ended_s REAL NOT NULL, model TEXT NOT NULL, outcome TEXT NOT NULL,
    told BLOB NOT NULL) WITHOUT ROWID"""
INDEX = "CREATE INDEX IF NOT EXISTS slow_ended ON slow (ended_s)"
PRUNE = """DELETE FROM slow WHERE ended_s <
    (SELECT ended_s FROM slow ORDER BY ended_s DESC LIMIT 1 OFFSET ?)"""

_DECODER = msgspec.json.Decoder(Explanation)


class SlowStoreError(ValueError):
    """The file cannot be used; the message names it."""


class SlowWriter:
    """`put` is cheap and never blocks. `complain` is called at most once, on the writing thread."""

    def __init__(self, path: Path, complain: Callable[[str], None], *, kept: int = KEPT) -> None:
        self.path = path
        self._complain, self._complained = complain, False
        self._kept = kept
        self._waiting: deque[tuple[float, Explanation]] = deque(maxlen=WAITING)
        self._awake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="cotenant-slow-requests", daemon=True)
        self._thread.start()

    def put(self, told: Explanation) -> None:
        """Have an explanation written soon."""
        self._waiting.append((wall_time_s(), told))
        self._awake.set()

    def close(self) -> None:
        """Write what is left, and stop. Blocks for the writing. Idempotent."""
        self._closing.set()
        self._awake.set()
        self._thread.join()

    def _loop(self) -> None:
        yield_to_others()
        while not self._closing.is_set():
            self._awake.wait()
            self._closing.wait(EVERY_S)
            self._awake.clear()
            self._write()
        self._write()

    def _write(self) -> None:
        rows: list[tuple[str, float, str, str, bytes]] = []
        with suppress(IndexError):
            while True:
                ended_s, told = self._waiting.popleft()
                body = msgspec.json.encode(told)
                rows.append((told.id, ended_s, told.model, told.outcome or "", body))
        if not rows:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(_opened(str(self.path))) as db, db:
                db.execute(SCHEMA)
                db.execute(INDEX)
                db.execute(f"PRAGMA user_version = {VERSION}")
                db.executemany("INSERT OR REPLACE INTO slow VALUES (?, ?, ?, ?, ?)", rows)
                db.execute(PRUNE, (self._kept - 1,))
        except (sqlite3.Error, OSError, SlowStoreError) as error:
            if not self._complained:
                self._complained = True
                self._complain(f"explanations of slow requests are not kept in {self.path}: {error}")


def find_slow(path: Path, request_id: str) -> Explanation | None:
    """What was kept of a request; None when nothing was. Raises SlowStoreError when the file cannot be
    read; one that is not there holds nothing."""
    if not path.is_file():
        return None
    try:
        with closing(_opened(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as db:
            row = db.execute("SELECT told FROM slow WHERE id = ?", (request_id,)).fetchone()
        return None if row is None else _DECODER.decode(row[0])
    except (sqlite3.Error, msgspec.MsgspecError) as error:
        raise SlowStoreError(f"{path} cannot be read: {error}") from error


def _opened(address: str, *, uri: bool = False) -> sqlite3.Connection:
    db = sqlite3.connect(address, timeout=WAIT_S, uri=uri)
    try:
        version = db.execute("PRAGMA user_version").fetchone()[0]
    except sqlite3.Error:
        db.close()
        raise
    if version not in (0, VERSION):
        db.close()
        raise SlowStoreError(f"{address} has format {version}, this version reads {VERSION}")
    return db
