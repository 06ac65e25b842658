"""Every live run becomes a data set of co-runs, off the thread that decides.

How this works. `observed` only remembers. A thread of low priority takes what is remembered once a second,
puts it together into runs and appends those that are complete to the newest part on disk. Everything has a
bound: what is remembered, what a run may hold, what the disk may hold. Nothing that goes wrong here reaches
whoever serves; it is counted, and told once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cotenant.cores import yield_to_others
from cotenant.domain import Observation, Outcome
from cotenant.experiment.parts import Parts
from cotenant.experiment.runs import RunGrouper, is_whole, rows_of_run
from cotenant.ports import LaneInfo
from cotenant.profile.features import FeatureTable

MAX_REMEMBERED = 10_000
"""Observations that wait to be written; more are dropped."""


@dataclass(slots=True, kw_only=True)
class Counts:
    """Dispatches by what became of them. `n_dropped`: the buffer was full; `n_failed`: the disk refused;
    `n_partial`: they did not run from begin to end; `n_unknown`: nothing was measured of their workload."""

    n_written: int = 0
    n_dropped: int = 0
    n_failed: int = 0
    n_partial: int = 0
    n_unknown: int = 0


class CoRunRecorder:
    """An `Observer`. `features()` is what is known of the models now; it is called on the writing thread.
    `complain` is called at most once, there."""

    def __init__(
        self,
        base: Path,
        lanes: Sequence[LaneInfo],
        features: Callable[[], FeatureTable],
        *,
        max_mb: float = 32.0,
        complain: Callable[[str], None] = lambda message: None,
        flush_s: float = 1.0,
    ) -> None:
        self.base = base
        self.counts = Counts()
        self._lanes = {lane.index: lane for lane in lanes}
        self._features = features
        self._complain = complain
        self._complained = False
        self._flush_s = flush_s
        self._parts = Parts(base, int(max_mb * 1e6))
        self._runs = RunGrouper()
        self._n_runs = 0
        self._origin_at: int | None = None
        self._remembered: deque[Observation] = deque()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="cotenant-corun-recorder", daemon=True)
        self._thread.start()

    # --- Observer, on the deciding thread --------------------------------------------------------------

    def settled(self, outcome: Outcome) -> None:
        """Dispatches are recorded, not requests."""

    def decided(self, spent_ns: int, at: int) -> None:
        """Nothing to record."""

    def observed(self, observation: Observation) -> None:
        """Remember a dispatch; values are frozen, so nothing is copied."""
        if len(self._remembered) >= MAX_REMEMBERED:
            self.counts.n_dropped += 1
        else:
            self._remembered.append(observation)

    def close(self) -> None:
        """Write what is left, and stop. Blocks for the writing. Idempotent."""
        if not self._closing.is_set():
            self._closing.set()
            self._thread.join()

    # --- on the writing thread -------------------------------------------------------------------------

    def _loop(self) -> None:
        yield_to_others()
        while not self._closing.wait(self._flush_s):
            self._write(self._complete())
        self._write([*self._complete(), *self._runs.flush()])
        self._parts.close()

    def _complete(self) -> list[list[Observation]]:
        done: list[list[Observation]] = []
        while self._remembered:
            done += self._runs.add(self._remembered.popleft())
        return done

    def _write(self, runs: Sequence[Sequence[Observation]]) -> None:
        rows = []
        for seen in runs:
            if self._origin_at is None:
                self._origin_at = min(o.decided_at for o in seen)
            whole = [o for o in seen if is_whole(o)]
            self.counts.n_partial += len(seen) - len(whole)
            if whole:
                self._n_runs += 1
                rows += rows_of_run(f"live-{self._n_runs}", whole, self._lanes, self._origin_at)
        if not rows:
            return
        try:
            n_written = self._parts.append(rows, self._features())
        except OSError as error:
            self.counts.n_failed += len(rows)
            if not self._complained:
                self._complained = True
                self._complain(f"co-runs are not recorded to {self.base}: {error}")
            return
        self.counts.n_written += n_written
        self.counts.n_unknown += len(rows) - n_written
