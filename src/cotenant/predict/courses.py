"""Lays out for the compiled integration what is in flight, what might be dispatched, and who may join.

Progress of what is in flight is derived here, from the last boundary seen and who has run beside it since;
it is never stored. Arrays are reused from call to call.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cotenant.domain import NS_PER_S, Candidate, InFlight, LoadEstimate, Overlap, Snapshot, Variant
from cotenant.predict.estimator import Estimator, Known
from cotenant.predict.kernel import (
    AFTER,
    FIRST,
    IDLE,
    LANE,
    LEFT,
    LIKELY,
    MAX_SEGMENTS,
    N_COLUMNS,
    N_SEGMENTS,
    PACE,
    REFILL,
    START,
    TAU,
    Array,
)

LEAST_LEFT = 0.02
"""Share of its solo span that a run which should have ended is taken to have left."""
MOST_IN_MIX = 8
"""Variants of the mix that joiners are made of."""
NOBODY = np.array([0.0, 1e12, 0.0, 0.0])


class Courses:
    """Arrays for `kernel.integrate_all`. In flight first, candidates after."""

    def __init__(self, estimator: Estimator, *, joiners: bool = True) -> None:
        self._estimator = estimator
        self._joiners = joiners
        self._size = 0
        self._grow(8)

    def _grow(self, n: int) -> None:
        n_resources = len(self._estimator.table.resources)
        self._size = n
        self.runs = np.zeros((n, N_COLUMNS))
        self.segments = np.zeros((n, MAX_SEGMENTS))
        self.demands = np.zeros((n, MAX_SEGMENTS, n_resources))
        self.means = np.zeros((n, n_resources))

    def lay_out(self, snapshot: Snapshot, candidates: Sequence[Candidate], handover_ns: float) -> list[Known]:
        """Fill the arrays; returns the workload of each run."""
        estimator, at = self._estimator, snapshot.at
        n = len(snapshot.in_flight) + len(candidates)
        if n > self._size:
            self._grow(2 * n)
        self.n = n
        last_on: dict[int, int] = {}
        knowns = []
        for i, flight in enumerate(snapshot.in_flight):
            known = estimator.workload(flight.variant, flight.share)
            self._place(i, known, at)
            self._advance(i, known, flight, at)
            row = self.runs[i]
            row[AFTER], row[LANE] = last_on.get(flight.lane, -1), flight.lane
            last_on[flight.lane] = i
            knowns.append(known)
        for i, candidate in enumerate(candidates, len(snapshot.in_flight)):
            known = estimator.workload(candidate.variant, candidate.share)
            self._place(i, known, at)
            row = self.runs[i]
            after = last_on.get(candidate.lane, -1)
            row[AFTER], row[LANE] = after, candidate.lane
            row[START] = handover_ns if after >= 0 else candidate.start_at - at + handover_ns
            self._skip(i, known, candidate.first_segment)
            knowns.append(known)
        self._pairs(knowns, snapshot.load, at)
        return knowns

    def _place(self, i: int, known: Known, at: int) -> None:
        n = known.n_segments
        self.segments[i, :n] = known.segment_ns
        self.demands[i, :n] = known.demand
        self.means[i] = known.mean_demand
        row = self.runs[i]
        row[START], row[AFTER], row[FIRST], row[LEFT] = 0.0, -1, 0, 1.0
        row[PACE], row[N_SEGMENTS] = self._estimator.pace(known, at), n

    def _skip(self, i: int, known: Known, n_done: int) -> None:
        """Begin behind the first `n_done` segments."""
        if n_done:
            self.runs[i, FIRST] = min(n_done, known.n_segments - 1)

    def _advance(self, i: int, known: Known, flight: InFlight, at: int) -> None:
        """Where a run is: what it has done since its last boundary is taken off its solo work."""
        if flight.started_at is None:
            self._skip(i, known, flight.segment)
            return
        begin = flight.started_at
        if flight.boundary_at is not None and flight.end_segment == known.n_segments:
            begin = flight.boundary_at
            self._skip(i, known, flight.segment)
        done = self._done(known, flight.lane, flight.overlaps, begin, at)
        first, n = int(self.runs[i, FIRST]), known.n_segments
        left = known.segment_ns[first:].sum() - done
        left = max(left, LEAST_LEFT * known.features.solo_ns)
        k, behind = n - 1, known.segment_ns[n - 1]
        while k > first and behind < left:
            k -= 1
            behind += known.segment_ns[k]
        self.runs[i, FIRST] = k
        self.runs[i, LEFT] = min(1.0, (left - (behind - known.segment_ns[k])) / max(1.0, known.segment_ns[k]))

    def _done(self, known: Known, lane: int, overlaps: Sequence[Overlap], begin: int, at: int) -> float:
        rows, begins, ends = self.beside(known, lane, overlaps, begin, at)
        return self._estimator.work_done(known, rows, begins, ends, float(at - begin), at)

    def beside(
        self, known: Known, lane: int, overlaps: Sequence[Overlap], begin: int, at: int
    ) -> tuple[Array, Array, Array]:
        """Rows of pairs, and from when to when (ns from `begin`) each was there; open ends are at `at`."""
        estimator = self._estimator
        n = len(overlaps)
        rows, begins, ends = np.empty(n, np.int64), np.empty(n), np.empty(n)
        for k, overlap in enumerate(overlaps):
            other = estimator.workload(overlap.variant, overlap.share)
            rows[k] = estimator.row(known, other, estimator.relation(lane, overlap.lane))
            begins[k] = overlap.began_at - begin
            ends[k] = (at if overlap.ended_at is None else overlap.ended_at) - begin
        return rows, begins, ends

    def _pairs(self, knowns: Sequence[Known], load: LoadEstimate | None, at: int) -> None:
        estimator, n = self._estimator, len(knowns)
        lanes = [int(lane) for lane in self.runs[:n, LANE]]
        rows = np.full((n, n), -1, np.int64)
        for i, known in enumerate(knowns):
            for j, other in enumerate(knowns):
                if i != j:
                    rows[i, j] = estimator.row(known, other, estimator.relation(lanes[i], lanes[j]))
        self.excess = estimator.excesses(rows, at)
        self.crowd = estimator.crowd(at)
        n_lanes = len(estimator.lanes)
        likely = load is not None and load.fill_per_s > 0 and load.span_ns > 0 and bool(load.variants)
        if not self._joiners or not likely or n_lanes == 0:
            self.joiners, self.joiner_excess = NOBODY, np.zeros((n, 0))
            return
        assert load is not None
        leave_per_s = NS_PER_S / load.span_ns
        both = load.fill_per_s + leave_per_s
        self.joiners = np.zeros(4)
        self.joiners[LIKELY], self.joiners[TAU] = load.fill_per_s / both, NS_PER_S / both
        self.joiners[REFILL], self.joiners[IDLE] = load.refill, 0.0
        self.joiner_excess = self._mean_excess(knowns, lanes, load.variants[:MOST_IN_MIX], at)

    def _mean_excess(
        self, knowns: Sequence[Known], lanes: Sequence[int], mix: Sequence[tuple[Variant, float]], at: int
    ) -> Array:
        """Excess (n x n_lanes) that each run would have beside what is usually dispatched, on each lane."""
        estimator = self._estimator
        others = [estimator.workload(variant, 1.0) for variant, _ in mix]
        weights = np.array([weight for _, weight in mix])
        weights /= weights.sum()
        relations = [[estimator.relation(lane, free.index) for free in estimator.lanes] for lane in lanes]
        found = np.zeros((len(knowns), len(estimator.lanes)))
        for i, known in enumerate(knowns):
            for relation in set(relations[i]):
                rows = np.array([[estimator.row(known, other, relation) for other in others]])
                mean = float(estimator.excesses(rows, at)[0] @ weights)
                for lane, mine in enumerate(relations[i]):
                    if mine == relation:
                        found[i, lane] = mean
        return found

    def arrays(self) -> tuple[Array, ...]:
        """What `integrate_all` takes between `n_in_flight` and `finish`."""
        n = self.n
        weights = np.zeros(self.means.shape[1])
        return (
            self.runs[:n], self.segments[:n], self.demands[:n], self.means[:n], self.excess, weights,
            self.crowd, self.joiners, self.joiner_excess,
        )  # fmt: skip
