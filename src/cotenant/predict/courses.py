"""Lays out for the compiled integration what is in flight, what might be dispatched, and who may join.

Only indices and instants are gathered here; everything else is looked up and computed in `kernel.forecast`,
also the progress of what is in flight, from the last boundary seen and who has run beside it since: it is
never stored. What is remembered from call to call are indices only, so an answer does not depend on what
was asked before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from cotenant.domain import NS_PER_S, Candidate, InFlight, LoadEstimate, Overlap, Snapshot, Variant
from cotenant.predict.estimator import Estimator, Known
from cotenant.predict.kernel import MOST_IN_MIX, TAU, Array, forecast

NEVER_NS = 1e12
REMEMBERED = 256


@dataclass(slots=True)
class _Flight:
    """Indices of a dispatch in flight: its workload, and for each other that ran beside it (by its number)
    the row of the pair, the row the other way round, and the other's workload."""

    known: Known
    beside: dict[int, tuple[int, int, int]] = field(default_factory=dict)


class Courses:
    """Asks `kernel.forecast`. Runs are numbered: in flight first, candidates after."""

    def __init__(self, estimator: Estimator, *, joiners: bool = True) -> None:
        self._estimator = estimator
        self._joiners = joiners
        self._flights: dict[int, _Flight] = {}
        self._epoch = -1
        self._mix: tuple[tuple[Variant, float], ...] = ()
        self._mix_rows = np.zeros((0, 0, MOST_IN_MIX), np.int64)
        self._mix_weights = np.zeros(MOST_IN_MIX)
        self._mix_known: list[Known] = []
        self._mix_done: set[int] = set()

    def finish(self, snapshot: Snapshot, candidates: Sequence[Candidate], handover_ns: float) -> Array:
        """Finish (ns from the snapshot): row 0 of what is in flight without any candidate, row 1 + c with
        candidate c, whose own stands in its column."""
        estimator, at = self._estimator, snapshot.at
        if estimator.epoch != self._epoch:
            self._renew()
        knowns: list[Known] = []
        lanes: list[int] = []
        start: list[float] = []
        after: list[int] = []
        first: list[int] = []
        last_on: dict[int, int] = {}
        whose: list[int] = []
        who: list[tuple[int, int, int]] = []
        times: list[tuple[float, float, float]] = []
        for i, flight in enumerate(snapshot.in_flight):
            kept = self._flight(flight)
            knowns.append(kept.known)
            begin, segment = self._begin(flight, kept.known, at)
            if flight.started_at is not None:
                for overlap in flight.overlaps:
                    ended_at = at if overlap.ended_at is None else overlap.ended_at
                    if ended_at > begin:
                        whose.append(i)
                        who.append(kept.beside[overlap.dispatch_id])
                        times.append(_times(overlap, ended_at, begin))
            lanes.append(flight.lane)
            start.append(float(begin - at))
            after.append(last_on.get(flight.lane, -1))
            first.append(segment)
            if flight.lane >= 0:
                last_on[flight.lane] = i
        n_in_flight = len(knowns)
        for candidate in candidates:
            known = estimator.workload(candidate.variant, candidate.share)
            waits = last_on.get(candidate.lane, -1)
            knowns.append(known)
            lanes.append(candidate.lane)
            start.append(handover_ns + (0.0 if waits >= 0 else max(0, candidate.start_at - at)))
            after.append(waits)
            first.append(min(candidate.first_segment, known.n_segments - 1))
        return self._ask(n_in_flight, knowns, lanes, start, after, first, (whose, who, times), snapshot)

    def _ask(
        self,
        n_in_flight: int,
        knowns: list[Known],
        lanes: list[int],
        start: list[float],
        after: list[int],
        first: list[int],
        beside: tuple[list[int], list[tuple[int, int, int]], list[tuple[float, float, float]]],
        snapshot: Snapshot,
    ) -> Array:
        estimator, tables = self._estimator, self._estimator.tables
        n = len(knowns)
        joiners, lane_relations = self._joining(snapshot.load, knowns, lanes)
        whose, who, times = beside
        finish = np.zeros((1 + n - n_in_flight, n))
        forecast(
            n_in_flight,
            np.array([known.index for known in knowns], np.int64),
            np.array([lanes, after, first], np.int64),
            np.array(start),
            np.array(whose, np.int64),
            np.array(who, np.int64).reshape(-1, 3),
            np.array(times, np.float64).reshape(-1, 3),
            self._pair_rows(knowns, lanes, n_in_flight),
            self._mix_rows,
            lane_relations,
            self._mix_weights,
            joiners,
            tables.all,
            estimator.crowd_slots,
            estimator.weight_slots,
            *estimator.beliefs(),
            float(snapshot.at),
            finish,
        )
        return finish

    def _pair_rows(self, knowns: list[Known], lanes: list[int], n_in_flight: int) -> Array:
        """n x n; candidates are alternatives, so no pairs of two of them."""
        estimator, n = self._estimator, len(knowns)
        rows = []
        for i in range(n):
            victim, lane = knowns[i], lanes[i]
            rows.append(
                [
                    estimator.row(victim, knowns[j], estimator.relation(lane, lanes[j]))
                    if i != j and (i < n_in_flight or j < n_in_flight)
                    else -1
                    for j in range(n)
                ]
            )
        return np.array(rows, np.int64).reshape(n, n)

    @staticmethod
    def _begin(flight: InFlight, known: Known, at: int) -> tuple[int, int]:
        """Since when, and from which segment on, its progress is to be derived."""
        if flight.started_at is None:
            return at, min(flight.segment, known.n_segments - 1)
        if flight.boundary_at is not None and flight.end_segment == known.n_segments:
            return flight.boundary_at, min(flight.segment, known.n_segments - 1)
        return flight.started_at, 0

    def _flight(self, flight: InFlight) -> _Flight:
        kept = self._flights.get(flight.dispatch_id)
        estimator = self._estimator
        if kept is None or kept.known.features.variant != flight.variant:
            if len(self._flights) >= REMEMBERED:
                self._flights.clear()
            known = estimator.workload(flight.variant, flight.share)
            kept = self._flights[flight.dispatch_id] = _Flight(known)
        for overlap in flight.overlaps:
            if overlap.dispatch_id not in kept.beside:
                kept.beside[overlap.dispatch_id] = self._rows(kept.known, flight.lane, overlap)
        return kept

    def _rows(self, known: Known, lane: int, overlap: Overlap) -> tuple[int, int, int]:
        estimator = self._estimator
        other = estimator.workload(overlap.variant, overlap.share)
        relation = estimator.relation(lane, overlap.lane)
        return estimator.row(known, other, relation), estimator.row(other, known, relation), other.index

    def beside(
        self, known: Known, lane: int, overlaps: Sequence[Overlap], begin: int, at: int
    ) -> tuple[Array, Array]:
        """Who was beside a run that began at `begin`, and when, as `estimator_kernels.work_done` takes it;
        open ends are at `at`."""
        who = [self._rows(known, lane, overlap) for overlap in overlaps]
        times = [_times(o, at if o.ended_at is None else o.ended_at, begin) for o in overlaps]
        return np.array(who, np.int64).reshape(-1, 3), np.array(times, np.float64).reshape(-1, 3)

    # --- joiners ----------------------------------------------------------------------------------------

    def _renew(self) -> None:
        self._epoch = self._estimator.epoch
        self._flights.clear()
        self._mix = ()

    def _joining(
        self, load: LoadEstimate | None, knowns: Sequence[Known], lanes: Sequence[int]
    ) -> tuple[Array, Array]:
        """How likely lanes are taken, and for each run and lane the relation (column of the mix's rows)."""
        estimator = self._estimator
        n_lanes = len(estimator.lanes)
        likely = load is not None and load.span_ns > 0 and bool(load.lanes) and bool(load.variants)
        if load is None or not likely or not self._joiners or not n_lanes:
            return np.zeros((0, 4)), np.zeros((len(knowns), 0), np.int64)
        if load.variants is not self._mix:
            self._take_mix(load.variants)
        for known in knowns:
            if known.index not in self._mix_done:
                self._fill_mix(known)
        leave_per_s = NS_PER_S / load.span_ns
        joiners = np.zeros((n_lanes, 4))
        joiners[:, TAU] = NEVER_NS
        for use in load.lanes:
            if use.lane < n_lanes:
                both = use.fill_per_s + leave_per_s
                joiners[use.lane] = (use.fill_per_s / both, NS_PER_S / both, use.refill, 0.0)
        return joiners, estimator.lane_relations[np.array(lanes, np.int64)]

    def _take_mix(self, mix: tuple[tuple[Variant, float], ...]) -> None:
        estimator = self._estimator
        self._mix = mix
        self._mix_known = [estimator.workload(variant, 1.0) for variant, _ in mix[:MOST_IN_MIX]]
        weights = np.array([weight for _, weight in mix[:MOST_IN_MIX]])
        self._mix_weights = np.zeros(MOST_IN_MIX)
        self._mix_weights[: len(weights)] = weights / weights.sum()
        self._mix_done.clear()

    def _fill_mix(self, known: Known) -> None:
        estimator = self._estimator
        n_relations = len(estimator.relations)
        if known.index >= self._mix_rows.shape[0] or n_relations > self._mix_rows.shape[1]:
            self._mix_rows = np.full((2 * known.index + 8, n_relations, MOST_IN_MIX), -1, np.int64)
            self._mix_done.clear()
        for column, relation in enumerate(estimator.relations):
            for k in range(MOST_IN_MIX):
                there = k < len(self._mix_known)
                row = estimator.row(known, self._mix_known[k], relation) if there else -1
                self._mix_rows[known.index, column, k] = row
        self._mix_done.add(known.index)


def _times(overlap: Overlap, ended_at: int, begin: int) -> tuple[float, float, float]:
    """From when to when it was there, and when it had started (ns from `begin`)."""
    started_at = overlap.began_at if overlap.started_at is None else overlap.started_at
    return float(overlap.began_at - begin), float(ended_at - begin), float(started_at - begin)
