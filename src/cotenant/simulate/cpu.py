"""A simulated CPU: processor sharing over the cores plus a measured lane-by-lane slowdown table.

Each dispatch draws its work (ns alone on its lane) from the samples measured for its variant. While lanes
run at once, a lane gets its share of the cores it shares with others, and is slowed further by the measured
factor of (victim model, aggressor model), multiplied over its neighbours. Nothing of a predictor is in here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cotenant.domain import Completion, Dispatch, Maintain, MaintenanceDone, Variant
from cotenant.ports import LaneInfo, Sink, Tensors, Timers


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuTruth:
    """What was measured on the device. Spans in ns."""

    samples: Mapping[Variant, Sequence[int]]
    slowdown: Mapping[tuple[str, str], float]
    overhead_ns: int = 0
    """From the decision to the start of the work in the lane: nothing runs there meanwhile."""


@dataclass(slots=True)
class _Run:
    dispatch: Dispatch
    started_at: int
    remaining: float
    rate: float = 1.0


class SimulatedCpu:
    """Implements the `Executor` port on virtual time."""

    def __init__(self, truth: CpuTruth, lanes: Sequence[LaneInfo], timers: Timers, seed: int) -> None:
        self.lanes = tuple(lanes)
        self._truth = truth
        self._timers = timers
        self._random = random.Random(seed)
        self._runs: dict[int, _Run] = {}
        self._handed_over: dict[int, tuple[_Run, Callable[[], None]]] = {}
        self._updated_at = timers.now()
        self._call_off: Callable[[], None] | None = None
        self._sink: Sink | None = None

    def attach(self, sink: Sink) -> None:
        self._sink = sink

    def start(self, dispatch: Dispatch, inputs: Sequence[Tensors]) -> None:
        samples = self._truth.samples.get(dispatch.variant)
        if not samples:
            raise KeyError(f"no measured durations of {dispatch.variant.label}: run `cotenant profile` first")
        run = _Run(dispatch, self._timers.now(), float(self._random.choice(samples)))
        if not self._truth.overhead_ns:
            self._begin(run)
            return
        begins_at = self._timers.now() + self._truth.overhead_ns
        self._handed_over[dispatch.id] = (run, self._timers.call_at(begins_at, lambda: self._begin(run)))

    def _begin(self, run: _Run) -> None:
        self._handed_over.pop(run.dispatch.id, None)
        self._advance()
        run.started_at = self._timers.now()
        self._runs[run.dispatch.lane] = run
        self._reschedule()

    def preempt(self, dispatch_id: int) -> None:
        """A CPU run has no boundaries: nothing happens."""

    def abort(self, dispatch_id: int, reason: str) -> None:
        if dispatch_id in self._handed_over:
            run, call_off = self._handed_over.pop(dispatch_id)
            call_off()
            self._post(run, error=reason)
            return
        self._advance()
        for lane, run in list(self._runs.items()):
            if run.dispatch.id == dispatch_id:
                del self._runs[lane]
                self._post(run, error=reason)
        self._reschedule()

    def take_results(self, dispatch_id: int) -> None:
        return None

    def maintain(self, action: Maintain) -> None:
        assert self._sink is not None
        self._sink(MaintenanceDone(maintenance_id=action.id, kind=action.kind, model=action.model))

    def close(self) -> None:
        self._runs.clear()
        for _, call_off in self._handed_over.values():
            call_off()
        self._handed_over.clear()

    def _advance(self) -> None:
        now = self._timers.now()
        for run in self._runs.values():
            run.remaining -= run.rate * (now - self._updated_at)
        self._updated_at = now

    def _reschedule(self) -> None:
        """Give every run its rate and wait for the one that ends first."""
        if self._call_off is not None:
            self._call_off()
            self._call_off = None
        if not self._runs:
            return
        for lane, run in self._runs.items():
            run.rate = self._rate(lane, run)
        wait = min(max(0.0, run.remaining) / run.rate for run in self._runs.values())
        self._call_off = self._timers.call_at(self._timers.now() + int(wait) + 1, self._ended)

    def _rate(self, lane: int, run: _Run) -> float:
        units = self.lanes[lane].units
        crowd = sum(
            sum(1 for other in self._runs if unit in self.lanes[other].units) for unit in units
        ) / len(units)
        rate = 1.0 / crowd
        for other, neighbour in self._runs.items():
            if other != lane:
                pair = (run.dispatch.variant.model, neighbour.dispatch.variant.model)
                rate /= self._truth.slowdown.get(pair, 1.0)
        return rate

    def _ended(self) -> None:
        self._call_off = None
        self._advance()
        done = [(lane, run) for lane, run in self._runs.items() if run.remaining <= 0.5]
        for lane, _ in done:
            del self._runs[lane]
        self._reschedule()
        for _, run in done:
            self._post(run)

    def _post(self, run: _Run, error: str | None = None) -> None:
        assert self._sink is not None
        self._sink(
            Completion(
                dispatch_id=run.dispatch.id,
                lane=run.dispatch.lane,
                started_at=run.started_at,
                ended_at=self._timers.now(),
                error=error,
            )
        )
