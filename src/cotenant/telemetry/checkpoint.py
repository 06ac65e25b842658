"""Keeps what is learned on disk, off the thread that decides.

How this works. The deciding thread copies the learned state, which costs tens of microseconds, when enough
was learned since the last copy or some time after the first of it. A thread of low priority makes bytes of
the copy and writes them (`state_file.py`). When the disk is slower than that, only the newest copy waits.
Nothing that goes wrong here reaches whoever serves; it is counted, and told once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from cotenant.clock import wall_time_s
from cotenant.cores import yield_to_others
from cotenant.domain import NS_PER_S, Observation, Outcome
from cotenant.ports import Timers
from cotenant.telemetry.state_file import StateFile


class Learned(Protocol):
    """Whose state is kept."""

    def copied(self) -> Callable[[], bytes]:
        """A copy of the state, at once; what is returned encodes it, and is called on another thread."""
        ...

    def restore(self, state: bytes, moved_ns: int = 0) -> None:
        """Take over a state, its instants moved by so many ns. Raises ValueError, having changed nothing,
        when it cannot be used."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig:
    """When a copy is taken. Half of what is promised (1 s, 200 observations): the disk needs time too."""

    age_s: float = 0.5
    """Seconds after the first observation that the last copy lacks."""
    n_observations: int = 100
    """Observations that the last copy lacks."""


@dataclass(slots=True)
class Counts:
    """Copies by what became of them. `n_skipped`: a newer one came before the disk was ready."""

    n_written: int = 0
    n_failed: int = 0
    n_skipped: int = 0


@dataclass(frozen=True, slots=True)
class _Copy:
    """A copy on its way to the disk, and when it was made: by the deciding clock, by the wall clock."""

    encode: Callable[[], bytes]
    learned_at: int
    wall_s: float


class Checkpointer:
    """An `Observer`, told after the learner. `complain` is called at most once, on the writing thread."""

    def __init__(
        self,
        learned: Learned,
        file: StateFile,
        timers: Timers,
        *,
        config: CheckpointConfig | None = None,
        complain: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.counts = Counts()
        self._learned, self._file, self._timers = learned, file, timers
        self._config = config or CheckpointConfig()
        self._complain, self._complained = complain, False
        self._n_new = 0
        self._call_off: Callable[[], None] | None = None
        self._waiting: deque[_Copy] = deque()
        self._awake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._loop, name="cotenant-checkpoint", daemon=True)
        self._thread.start()

    # --- Observer, on the deciding thread --------------------------------------------------------------

    def settled(self, outcome: Outcome) -> None:
        """Nothing is learned from it."""

    def decided(self, spent_ns: int, at: int) -> None:
        """Nothing is learned from it."""

    def observed(self, observation: Observation) -> None:
        """Something was learned: see that it is kept in time."""
        self._n_new += 1
        if self._n_new >= self._config.n_observations:
            self.copy_now()
        elif self._call_off is None:
            due_at = self._timers.now() + int(self._config.age_s * NS_PER_S)
            self._call_off = self._timers.call_at(due_at, self.copy_now)

    def copy_now(self) -> None:
        """Copy what is learned and have it written."""
        if self._call_off is not None:
            self._call_off()
            self._call_off = None
        self._n_new = 0
        copy = _Copy(self._learned.copied(), self._timers.now(), wall_time_s())
        with suppress(IndexError):
            self._waiting.popleft()
            self.counts.n_skipped += 1
        self._waiting.append(copy)
        self._awake.set()

    def close(self) -> None:
        """Write what is left, and stop. Blocks for the writing. Called where nothing is learned any more.
        Idempotent."""
        if not self._closing:
            if self._n_new:
                self.copy_now()
            self._closing = True
            self._awake.set()
            self._thread.join()

    # --- on the writing thread -------------------------------------------------------------------------

    def _loop(self) -> None:
        yield_to_others()
        while True:
            self._awake.wait()
            self._awake.clear()
            closing = self._closing  # read before the copy is taken: what comes first is written
            with suppress(IndexError):
                self._write(self._waiting.popleft())
            if closing:
                return

    def _write(self, copy: _Copy) -> None:
        try:
            self._file.write(learned_at=copy.learned_at, wall_s=copy.wall_s, state=copy.encode())
        except OSError as error:
            self.counts.n_failed += 1
            if not self._complained:
                self._complained = True
                self._complain(f"what is learned is not kept in {self._file.path}: {error}")
            return
        self.counts.n_written += 1
