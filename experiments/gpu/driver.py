"""Starts dispatches on an executor's lanes directly and collects their ends, with the host's own costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from cotenant.clock import Clock
from cotenant.domain import NS_PER_S, Completion, Dispatch, Event, Prediction, Snapshot, Variant
from cotenant.execute.torch.executor import TorchExecutor
from cotenant.execute.torch.model import TorchModel
from cotenant.ports import Tensors

LIMIT_S = 60.0
NOBODY = Snapshot(at=0, in_flight=())
UNKNOWN = Prediction(issued_at=0, finish_at=(0,) * 5, slo_level=0.99, version=0, corunners=0)
Work = tuple[TorchModel, Variant, Tensors]


@dataclass(frozen=True)
class Ended:
    """A dispatch that ran. Instants in ns of the host's clock; `order`: as started; `in_flight`: how many
    were when it was dispatched; `seen_at`: when the host knew."""

    dispatch_id: int
    order: int
    variant: Variant
    lane: int
    in_flight: int
    dispatched_at: int
    started_at: int
    ended_at: int
    segment_ends_at: tuple[int, ...]
    seen_at: int

    @property
    def span_ns(self) -> float:
        """From start to end."""
        return float(self.ended_at - self.started_at)


@dataclass
class Driver:
    """One thread's use of an executor."""

    executor: TorchExecutor
    clock: Clock
    _events: SimpleQueue[Event] = field(default_factory=SimpleQueue)
    _under_way: dict[int, tuple[int, Variant, int, int, int]] = field(default_factory=dict)
    _n: int = 0
    _start_ns: list[int] = field(default_factory=list)
    _report_ns: list[int] = field(default_factory=list)
    _begin_ns: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.executor.attach(self._events.put)

    def start(self, lane: int, model: TorchModel, variant: Variant, inputs: Tensors) -> int:
        """Start a dispatch; returns its id."""
        self._n += 1
        at = self.clock.now()
        self._under_way[self._n] = (lane, variant, at, len(self._under_way), self._n)
        self.executor.start(
            Dispatch(
                id=self._n, variant=variant, requests=(), rows=variant.rows, lane=lane, share=1.0,
                decided_at=at, latest_start_at=None, first_segment=0, end_segment=model.n_segments,
                prediction=UNKNOWN, snapshot=NOBODY,
            ),
            [inputs],
        )  # fmt: skip
        self._start_ns.append(self.clock.now() - at)
        return self._n

    def wait(self, limit_s: float = LIMIT_S) -> Any:
        """The next end, or None when there is none in time. Raises RuntimeError when a run failed."""
        until = self.clock.now() + int(limit_s * NS_PER_S)
        while True:
            left = (until - self.clock.now()) / NS_PER_S
            try:
                event = self._events.get(timeout=left) if left > 0 else self._events.get_nowait()
            except Empty:
                return None
            if isinstance(event, Completion):
                return self._ended(event)

    def _ended(self, event: Completion) -> Ended:
        lane, variant, at, in_flight, order = self._under_way.pop(event.dispatch_id)
        if event.error is not None:
            raise RuntimeError(f"{variant.label} on lane {lane} failed: {event.error}")
        seen_at = self.clock.now()
        self._report_ns.append(seen_at - event.ended_at)
        self._begin_ns.append(event.started_at - at)
        return Ended(
            dispatch_id=event.dispatch_id, order=order, variant=variant, lane=lane, in_flight=in_flight,
            dispatched_at=at, started_at=event.started_at, ended_at=event.ended_at,
            segment_ends_at=tuple(event.segment_ended_at), seen_at=seen_at,
        )  # fmt: skip

    def free_lane(self) -> int:
        """A lane with nothing on it."""
        taken = {lane for lane, *_ in self._under_way.values()}
        return next(lane.index for lane in self.executor.lanes if lane.index not in taken)

    def run(self, model: TorchModel, variant: Variant, inputs: Tensors) -> Ended:
        """One dispatch alone."""
        self.start(0, model, variant, inputs)
        ended: Ended = self.wait()
        self.executor.take_results(ended.dispatch_id)
        return ended

    def outputs(self, model: TorchModel, variant: Variant, inputs: Tensors) -> Any:
        """The outputs of one dispatch alone."""
        number = self.start(0, model, variant, inputs)
        self.wait()
        return self.executor.take_results(number)

    def beside(self, victim: Work, aggressor: Work, span_ns: int) -> list[float]:
        """Spans (ns) of the victim on lane 0 while the aggressor runs back to back on lane 1."""
        spans: list[float] = []
        until = self.clock.now() + span_ns
        self.start(1, *aggressor)
        self.start(0, *victim)
        while self._under_way:
            ended = self.wait()
            self.executor.take_results(ended.dispatch_id)
            if ended.lane == 0:
                spans.append(ended.span_ns)
            if self.clock.now() < until or len(spans) < 3:
                self.start(ended.lane, *(victim if ended.lane == 0 else aggressor))
        return spans[:-1] or spans

    def host_facts(self) -> dict[str, float]:
        """Medians (us): the call that starts a dispatch; from it to the start on the device; from the end on
        the device to the host's knowing."""
        return {
            "start_call_us": float(np.median(self._start_ns)) / 1000,
            "to_begin_us": float(np.median(self._begin_ns)) / 1000,
            "to_report_us": float(np.median(self._report_ns)) / 1000,
        }
