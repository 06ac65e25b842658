"""A data set with intervals as what a predictor would have seen: snapshots at dispatch, observations at the
end.

Runs of the data set follow one another with a pause in between; within a run everything happens at its
instant, ends before begins. A row is dispatched at `dispatched_ms`, or, where there is none, when it
starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from msgspec import structs

from cotenant.domain import (
    NS_PER_MS,
    NS_PER_S,
    Candidate,
    InFlight,
    Observation,
    Overlap,
    Prediction,
    Request,
)
from cotenant.domain import Snapshot as Seen
from cotenant.experiment.datasets import CoRun, Dataset
from cotenant.ports import LaneInfo
from cotenant.workload.characterise import OnlineLoadMeter

PAUSE_NS = 50 * NS_PER_MS
DISPATCH, START, BOUNDARY, END = 3, 2, 1, 0
"""Kinds of events, in the order in which those of one instant come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatched:
    """A row is dispatched: what was to be seen, and what was to be predicted. `number` counts rows."""

    number: int
    row: CoRun
    snapshot: Seen
    candidate: Candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A row has ended; `n_most` others were in flight at most at once while it was."""

    number: int
    row: CoRun
    observation: Observation
    n_most: int


@dataclass(slots=True)
class _Flight:
    number: int
    row: CoRun
    decided_at: int
    lane: int
    n_segments: int
    started_at: int | None = None
    n_passed: int = 0
    boundary_at: int | None = None
    n_most: int = 0
    overlaps: list[Overlap] = field(default_factory=list)

    def seen(self) -> InFlight:
        return InFlight(
            dispatch_id=self.number,
            variant=self.row.variant,
            lane=self.lane,
            share=self.row.share,
            decided_at=self.decided_at,
            started_at=self.started_at,
            segment=self.n_passed,
            end_segment=self.n_segments,
            boundary_at=self.boundary_at,
            overlaps=tuple(self.overlaps),
        )


def lanes_of(dataset: Dataset) -> tuple[LaneInfo, ...]:
    """The lanes that rows name; units where they are known."""
    units: dict[int, tuple[int, ...]] = {}
    for rows in dataset.runs.values():
        for row in rows:
            if row.lane is not None:
                units.setdefault(row.lane, row.units)
    n_lanes = max(units, default=-1) + 1
    return tuple(LaneInfo(index=i, units=units.get(i, ())) for i in range(n_lanes))


def steady_observations(rows: Sequence[CoRun], number: int) -> list[Observation]:
    """The rows of a steady run: each with all the others throughout."""
    found = []
    for k, row in enumerate(rows):
        others = [other for n, other in enumerate(rows) if n != k]
        overlaps = tuple(Overlap(-1, o.variant, 0, None, -1, o.share) for o in others)
        found.append(observation(row, number + k, 0, 0, overlaps, ()))
    return found


def observation(
    row: CoRun,
    number: int,
    decided_at: int,
    origin: int,
    overlaps: tuple[Overlap, ...],
    predictions: tuple[Prediction, ...],
) -> Observation:
    """A row as what the engine would have observed; instants from `origin` (ns)."""
    ends = tuple(origin + round(ms * NS_PER_MS) for ms in row.segment_ends_ms)
    started_at = origin + round((row.start_ms or 0.0) * NS_PER_MS)
    return Observation(
        dispatch_id=number,
        variant=row.variant,
        rows=row.variant.rows,
        lane=-1 if row.lane is None else row.lane,
        share=row.share,
        decided_at=min(decided_at, started_at),
        started_at=started_at,
        ended_at=max(started_at + 1, origin + round(row.end_ms * NS_PER_MS)),
        first_segment=0,
        end_segment=max(1, len(ends)),
        segment_ended_at=ends,
        predictions=predictions,
        overlaps=overlaps,
    )


class Replay:
    """The events of a data set in order; see the module's head. `issue(number, prediction)` what was
    predicted, so that it stands in the observation. A load meter runs along."""

    def __init__(self, dataset: Dataset, runs: Sequence[str] | None = None) -> None:
        self.lanes = lanes_of(dataset)
        self._runs = list(dataset.runs) if runs is None else list(runs)
        self._dataset = dataset
        self._issued: dict[int, Prediction] = {}
        self._meter = OnlineLoadMeter()

    def issue(self, number: int, prediction: Prediction) -> None:
        """What was predicted at the dispatch of a row."""
        self._issued[number] = prediction

    def __iter__(self) -> Iterator[Dispatched | Ended]:
        origin, number = NS_PER_S, 0
        for name in self._runs:
            rows = self._dataset.runs[name]
            yield from self._run(rows, number, origin)
            number += len(rows)
            origin += round(max(row.end_ms for row in rows) * NS_PER_MS) + PAUSE_NS

    def _run(self, rows: Sequence[CoRun], first: int, origin: int) -> Iterator[Dispatched | Ended]:
        events: list[tuple[int, int, int]] = []
        for k, row in enumerate(rows):
            start = row.start_ms or 0.0
            dispatched = start if row.dispatched_ms is None else min(row.dispatched_ms, start)
            for kind, ms in ((DISPATCH, dispatched), (START, start), (END, row.end_ms)):
                events.append((origin + round(ms * NS_PER_MS), kind, k))
            events += [
                (origin + round(ms * NS_PER_MS), BOUNDARY, k) for ms in row.segment_ends_ms if ms < row.end_ms
            ]
        flights: dict[int, _Flight] = {}
        # a row is always dispatched before it starts, and starts before it ends, even within one instant
        for at, kind, k in sorted(events, key=lambda e: (e[0], e[1] if e[1] != START else DISPATCH + 1)):
            flight = flights.get(k)
            if kind == DISPATCH:
                yield self._dispatch(rows[k], k, first + k, at, flights)
            elif flight is None:
                continue
            elif kind == START:
                self._start(flight, flights, at)
            elif kind == BOUNDARY:
                flight.n_passed += 1
                flight.boundary_at = at
            else:
                del flights[k]
                yield self._end(flight, flights, at, origin)

    def _dispatch(self, row: CoRun, k: int, number: int, at: int, flights: dict[int, _Flight]) -> Dispatched:
        self._meter.arrived(Request(id=str(number), model=row.variant.model, arrived_at=at, deadline_at=None))
        snapshot = Seen(
            at=at,
            in_flight=tuple(flight.seen() for flight in flights.values()),
            load=self._meter.estimate(at),
        )
        lane = -1 if row.lane is None else row.lane
        flights[k] = _Flight(number, row, at, lane, max(1, len(row.segment_ends_ms)))
        for flight in flights.values():
            flight.n_most = max(flight.n_most, len(flights) - 1)
        idle = all(other.lane != lane for other in flights.values() if other.number != number)
        self._meter.dispatched(row.variant, lane if idle else -1, at)
        self._busy(flights, at)
        candidate = Candidate(variant=row.variant, lane=lane, start_at=at, share=row.share)
        return Dispatched(number=number, row=row, snapshot=snapshot, candidate=candidate)

    def _start(self, flight: _Flight, flights: dict[int, _Flight], at: int) -> None:
        flight.started_at = at
        for other in flights.values():
            if other is not flight and other.started_at is not None:
                mine, theirs = flight, other
                flight.overlaps.append(
                    Overlap(
                        theirs.number, theirs.row.variant, at, None, theirs.lane, theirs.row.share,
                        theirs.started_at,
                    )
                )  # fmt: skip
                other.overlaps.append(
                    Overlap(mine.number, mine.row.variant, at, None, mine.lane, mine.row.share, at)
                )

    def _end(self, flight: _Flight, flights: dict[int, _Flight], at: int, origin: int) -> Ended:
        closed = tuple(_closed(overlap, at) for overlap in flight.overlaps)
        for other in flights.values():
            other.overlaps = [
                _closed(overlap, at) if overlap.dispatch_id == flight.number else overlap
                for overlap in other.overlaps
            ]
        if all(other.lane != flight.lane for other in flights.values()):
            self._meter.freed(flight.lane, at)
        self._busy(flights, at)
        issued = self._issued.pop(flight.number, None)
        predictions = () if issued is None else (issued,)
        found = observation(flight.row, flight.number, flight.decided_at, origin, closed, predictions)
        return Ended(number=flight.number, row=flight.row, observation=found, n_most=flight.n_most)

    def _busy(self, flights: dict[int, _Flight], at: int) -> None:
        taken = len({flight.lane for flight in flights.values()})
        self._meter.lanes_busy(taken, max(1, len(self.lanes)), at)


def _closed(overlap: Overlap, at: int) -> Overlap:
    if overlap.ended_at is not None:
        return overlap
    return structs.replace(overlap, ended_at=max(at, overlap.began_at))
