"""Tables of what is in flight, kept from call to call, for the compiled forecast and learning step.

How this works. A snapshot's values are frozen, so what was encoded once is known again by identity: of a
dispatch only what has changed since it was last seen is written. Only instants and indices stand here, so an
answer does not depend on what was asked before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cotenant.domain import InFlight, Overlap
from cotenant.predict.estimator import Estimator
from cotenant.predict.forecast_kernel import BEGIN, N_BESIDE, SEGMENT
from cotenant.predict.overlap_kernels import BEGAN, ENDED, ITS_LANE, OPEN, OTHER, STARTED
from cotenant.predict.row_kernels import Array
from cotenant.predict.workloads import Known

N_ROWS, ROOM = 32, 16
"""Dispatches and overlaps of each that there is room for at first; both double when need be."""
APART = 0
"""The row of a run that is not in flight."""


@dataclass(slots=True)
class _Kept:
    """A dispatch in the tables: its row, and what was written there last."""

    row: int
    known: Known
    lane: int
    seen: InFlight | None = None
    overlaps: tuple[Overlap, ...] = ()
    begin: float = OPEN
    segment: int = 0


class FlightTables:
    """`flights`, `instants`, `who` and `times` are as `forecast_kernel` and `estimator_kernels` say; the
    overlaps of row i begin at i x `room`."""

    def __init__(self, estimator: Estimator, know: Callable[[Known], None]) -> None:
        """`know` is told of a workload that was not declared before a run of it stands here."""
        self._estimator, self._know = estimator, know
        self.room = ROOM
        self.flights: Array = np.zeros((N_ROWS, 5), np.int64)
        self.instants: Array = np.zeros((N_ROWS, 2))
        self.who: Array = np.zeros((N_ROWS * ROOM, 2), np.int64)
        self.times: Array = np.zeros((N_ROWS * ROOM, 3))
        self.forget()

    def forget(self) -> None:
        """Workloads have changed: nothing that stands here holds any more."""
        self._kept: dict[int, _Kept] = {}
        self._free = list(range(APART + 1, len(self.flights)))
        self._last: tuple[InFlight, ...] | None = None
        self._last_rows: Array = np.zeros(0, np.int64)

    def rows(self, in_flight: tuple[InFlight, ...]) -> Array:
        """Rows of the dispatches, brought up to date."""
        if in_flight is self._last:
            return self._last_rows
        kept, found = self._kept, []
        if len(kept) > 2 * len(in_flight) + N_ROWS // 2:
            self._keep_only(in_flight)
        for flight in in_flight:
            known = kept.get(flight.dispatch_id)
            if known is None or known.seen is not flight:
                known = self._see(flight)
            found.append(known.row)
        self._last, self._last_rows = in_flight, np.array(found, np.int64)
        return self._last_rows

    def ended(self, dispatch_id: int, known: Known, lane: int, overlaps: tuple[Overlap, ...]) -> int:
        """Where the overlaps of a run that has ended begin, in the order given. They stand until the next
        call; the run is in flight no longer."""
        kept = self._kept.pop(dispatch_id, None)
        self._last = None
        if kept is not None:
            self._free.append(kept.row)
        if kept is None or kept.known is not known or kept.lane != lane:
            kept = _Kept(APART, known, self._estimator.lane(lane))
        self._write(kept, overlaps)
        return kept.row * self.room

    def _see(self, flight: InFlight) -> _Kept:
        known = self._estimator.workload(flight.variant, flight.share)
        if not known.declared:
            self._know(known)
        kept = self._kept.get(flight.dispatch_id)
        if kept is None or kept.known is not known or kept.lane != flight.lane:
            if kept is not None:
                self._free.append(kept.row)
            kept = self._kept[flight.dispatch_id] = self._new(known, flight)
        overlaps, last = flight.overlaps, known.n_segments - 1
        if flight.started_at is None:
            begin, segment, overlaps = OPEN, min(flight.segment, last), ()
        elif flight.end_segment == known.n_segments:
            # without a boundary yet it is where it began: not the start, for one that was resumed
            begin = flight.started_at if flight.boundary_at is None else flight.boundary_at
            segment = min(flight.segment, last)
        else:
            begin, segment = flight.started_at, 0
        if overlaps is not kept.overlaps:
            self._write(kept, overlaps)
            self.flights[kept.row, N_BESIDE] = len(overlaps)
        if begin != kept.begin or segment != kept.segment:
            kept.begin, kept.segment = begin, segment
            self.instants[kept.row, BEGIN], self.flights[kept.row, SEGMENT] = begin, segment
        kept.seen = flight
        return kept

    def _new(self, known: Known, flight: InFlight) -> _Kept:
        if not self._free:
            n = len(self.flights)
            self.flights, self.instants = _longer(self.flights, 2 * n), _longer(self.instants, 2 * n)
            self.who = _longer(self.who, 2 * n * self.room)
            self.times = _longer(self.times, 2 * n * self.room)
            self._free = list(range(n, 2 * n))
        row, lane = self._free.pop(), self._estimator.lane(flight.lane)
        self.flights[row] = (known.index, lane, 0, 0, row * self.room)
        self.instants[row] = (OPEN, flight.decided_at)
        return _Kept(row, known, lane)

    def _write(self, kept: _Kept, overlaps: tuple[Overlap, ...]) -> None:
        """Write those of the overlaps that are others than before."""
        while len(overlaps) > self.room:
            self._make_room()
        before, entry = kept.overlaps, kept.row * self.room
        for old, overlap in zip(before, overlaps, strict=False):
            if old is not overlap:
                if _is_same(old, overlap):
                    self.times[entry, ENDED] = OPEN if overlap.ended_at is None else overlap.ended_at
                else:
                    self._write_one(entry, overlap)
            entry += 1
        for overlap in overlaps[len(before) :]:
            self._write_one(entry, overlap)
            entry += 1
        kept.overlaps = overlaps

    def _write_one(self, entry: int, overlap: Overlap) -> None:
        who, times, estimator = self.who, self.times, self._estimator
        began_at, ended_at, started_at = overlap.began_at, overlap.ended_at, overlap.started_at
        who[entry, OTHER] = estimator.workload(overlap.variant, overlap.share).index
        who[entry, ITS_LANE] = estimator.lane(overlap.lane)
        times[entry, BEGAN] = began_at
        times[entry, ENDED] = OPEN if ended_at is None else ended_at
        times[entry, STARTED] = began_at if started_at is None else started_at

    def _make_room(self) -> None:
        n, room = len(self.flights), self.room
        who, times = np.zeros((n, 2 * room, 2), np.int64), np.zeros((n, 2 * room, 3))
        who[:, :room], times[:, :room] = self.who.reshape(n, room, 2), self.times.reshape(n, room, 3)
        self.who, self.times, self.room = who.reshape(-1, 2), times.reshape(-1, 3), 2 * room
        self.flights[:, -1] *= 2

    def _keep_only(self, in_flight: tuple[InFlight, ...]) -> None:
        wanted = {flight.dispatch_id for flight in in_flight}
        for dispatch_id in [number for number in self._kept if number not in wanted]:
            self._free.append(self._kept.pop(dispatch_id).row)


def _is_same(before: Overlap, now: Overlap) -> bool:
    """Whether an overlap is the one before but for its end."""
    return (
        before.began_at == now.began_at
        and before.dispatch_id == now.dispatch_id
        and before.variant is now.variant
        and before.lane == now.lane
        and before.share == now.share
        and before.started_at == now.started_at
    )


def _longer(array: Array, n: int) -> Array:
    grown = np.zeros((n, *array.shape[1:]), array.dtype)
    grown[: len(array)] = array
    return grown
