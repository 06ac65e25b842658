"""Puts the dispatches of a live server together into runs: who overlapped with whom, and no one else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from cotenant.domain import NS_PER_MS, NS_PER_S, Observation
from cotenant.experiment.datasets import CoRun
from cotenant.ports import LaneInfo

MAX_ROWS = 2000
"""A run of so many rows is cut."""
PATIENCE_NS = 60 * NS_PER_S
"""How long a run waits for co-runners that never come (ns): dispatches that fail are not observed."""


@dataclass(slots=True)
class _Open:
    """A run of which something is still in flight: `awaited` overlapped with it and has not ended."""

    seen: list[Observation] = field(default_factory=list)
    ids: set[int] = field(default_factory=set)
    awaited: set[int] = field(default_factory=set)
    ended_at: int = 0

    def take(self, other: _Open) -> None:
        self.seen += other.seen
        self.ids |= other.ids
        self.awaited = (self.awaited | other.awaited) - self.ids
        self.ended_at = max(self.ended_at, other.ended_at)


class RunGrouper:
    """Takes observations in the order of their ends; gives out runs as soon as they are complete: all that
    overlapped, directly or through others, which is a maximal busy period of the device.

    A run that grows past `max_rows` is cut. Rows after the cut miss those co-runners that ended before it."""

    def __init__(self, max_rows: int = MAX_ROWS, patience_ns: int = PATIENCE_NS) -> None:
        self._max_rows, self._patience_ns = max_rows, patience_ns
        self._open: list[_Open] = []
        self._gone: dict[int, None] = {}

    def add(self, observation: Observation) -> list[list[Observation]]:
        """Runs that are complete now, each in the order of ends."""
        number = observation.dispatch_id
        beside = {overlap.dispatch_id for overlap in observation.overlaps}
        awaited = {other for other in beside if other not in self._gone}
        run = _Open([observation], {number}, awaited, observation.ended_at)
        apart: list[_Open] = []
        for other in self._open:
            if number in other.awaited or beside & other.ids:
                other.take(run)
                run = other
            else:
                apart.append(other)
        self._open = [*apart, run]
        latest_at = observation.ended_at - self._patience_ns
        done = [
            run
            for run in self._open
            if not run.awaited or len(run.seen) >= self._max_rows or run.ended_at < latest_at
        ]
        return self._give_out(done)

    def flush(self) -> list[list[Observation]]:
        """All that is left, complete or not."""
        return self._give_out(list(self._open))

    def _give_out(self, runs: list[_Open]) -> list[list[Observation]]:
        for run in runs:
            self._open.remove(run)
            if run.awaited:
                self._gone.update(dict.fromkeys(run.ids))
        while len(self._gone) > 4 * self._max_rows:
            del self._gone[next(iter(self._gone))]
        return [run.seen for run in runs]


def is_whole(observation: Observation) -> bool:
    """Whether the dispatch ran all segments: one that was preempted, or goes on after it, took less than its
    workload does, so it is no row."""
    n_ended = len(observation.segment_ended_at)
    return observation.first_segment == 0 and n_ended in (0, observation.end_segment)


def rows_of_run(
    name: str, seen: Iterable[Observation], lanes: dict[int, LaneInfo], origin_at: int
) -> list[CoRun]:
    """A run as rows of a data set, in the order of their starts. `origin_at`: when the recording began
    (ns)."""
    ordered = sorted(seen, key=lambda o: (o.started_at, o.dispatch_id))
    began_at = min(o.decided_at for o in ordered)

    def ms(at: int) -> float:
        return (at - began_at) / NS_PER_MS

    return [
        CoRun(
            run=name,
            variant=o.variant,
            share=o.share,
            start_ms=ms(o.started_at),
            end_ms=ms(o.ended_at),
            began_s=(began_at - origin_at) / NS_PER_S,
            dispatched_ms=ms(o.decided_at),
            lane=o.lane,
            units=lanes[o.lane].units if o.lane in lanes else (),
            queue_n=o.predictions[0].corunners if o.predictions else None,
            segment_ends_ms=tuple(map(ms, o.segment_ended_at)),
        )
        for o in ordered
    ]
