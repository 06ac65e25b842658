"""Starts dispatches on an executor's lanes directly and collects their ends, with the host's own costs."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from cotenant.clock import Clock
from cotenant.domain import NS_PER_S, Completion, Dispatch, Event, Prediction, Snapshot, Variant
from cotenant.execute.torch.executor import TorchExecutor
from cotenant.execute.torch.model import TorchModel
from cotenant.ports import Tensors

LIMIT_S, SETTLE_S = 20.0, 5.0
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
    share: float
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
    _under_way: dict[int, tuple[int, Variant, int, int, int, float]] = field(default_factory=dict)
    _n: int = 0
    _start_ns: list[int] = field(default_factory=list)
    _report_ns: list[int] = field(default_factory=list)
    _begin_ns: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.executor.attach(self._events.put)

    def start(
        self, lane: int, model: TorchModel, variant: Variant, inputs: Tensors, share: float = 1.0
    ) -> int:
        """Start a dispatch; returns its id."""
        self._n += 1
        at = self.clock.now()
        self._under_way[self._n] = (lane, variant, at, len(self._under_way), self._n, share)
        self.executor.start(
            Dispatch(
                id=self._n, variant=variant, requests=(), rows=variant.rows, lane=lane, share=share,
                decided_at=at, latest_start_at=None, first_segment=0, end_segment=model.n_segments,
                prediction=UNKNOWN, snapshot=NOBODY,
            ),
            [inputs],
        )  # fmt: skip
        self._start_ns.append(self.clock.now() - at)
        return self._n

    def next(self) -> Ended:
        """The next end. Raises RuntimeError when a run failed or none ended in time."""
        ended = self.wait()
        if ended is None:
            names = ", ".join(f"{v.label} on lane {lane}" for lane, v, *_ in self._under_way.values())
            raise RuntimeError(f"nothing ended for {LIMIT_S:g} s; under way: {names}")
        return ended

    def settle(self) -> None:
        """After a failure: wait for what is under way, whatever becomes of it, and forget the rest."""
        until = self.clock.now() + int(SETTLE_S * NS_PER_S)
        while self._under_way and self.clock.now() < until:
            with suppress(RuntimeError):
                ended = self.wait(SETTLE_S)
                if ended is not None:
                    self.executor.take_results(ended.dispatch_id)
        self._under_way.clear()

    def wait(self, limit_s: float = LIMIT_S) -> Ended | None:
        """The next end, or None when there is none in time. Raises RuntimeError when a run failed."""
        until = self.clock.now() + int(limit_s * NS_PER_S)
        while True:
            left = (until - self.clock.now()) / NS_PER_S
            try:
                event = self._events.get(timeout=left) if left > 0 else self._events.get_nowait()
            except Empty:
                return None
            if isinstance(event, Completion) and event.dispatch_id in self._under_way:
                return self._ended(event)

    def _ended(self, event: Completion) -> Ended:
        lane, variant, at, in_flight, order, share = self._under_way.pop(event.dispatch_id)
        if event.error is not None:
            raise RuntimeError(f"{variant.label} on lane {lane} failed: {event.error}")
        seen_at = self.clock.now()
        self._report_ns.append(seen_at - event.ended_at)
        self._begin_ns.append(event.started_at - at)
        return Ended(
            dispatch_id=event.dispatch_id, order=order, variant=variant, lane=lane,
            share=share, in_flight=in_flight,
            dispatched_at=at, started_at=event.started_at, ended_at=event.ended_at,
            segment_ends_at=tuple(event.segment_ended_at), seen_at=seen_at,
        )  # fmt: skip

    def free_lane(self) -> int:
        """A lane with nothing on it."""
        taken = {lane for lane, *_ in self._under_way.values()}
        return next(lane.index for lane in self.executor.lanes if lane.index not in taken)

    def run(self, model: TorchModel, variant: Variant, inputs: Tensors, share: float = 1.0) -> Ended:
        """One dispatch alone."""
        self.start(0, model, variant, inputs, share)
        ended = self.next()
        self.executor.take_results(ended.dispatch_id)
        return ended

    def outputs(self, model: TorchModel, variant: Variant, inputs: Tensors) -> Any:
        """The outputs of one dispatch alone."""
        number = self.start(0, model, variant, inputs)
        self.next()
        return self.executor.take_results(number)

    def beside(
        self, first: Work, second: Work, span_ns: int, shares: tuple[float, float] = (1.0, 1.0)
    ) -> tuple[list[float], list[float]]:
        """Spans (ns) of both while the first runs back to back on lane 0 and the second on lane 1. The runs
        under way when the time is over had company for a part of them only, and do not count."""
        spans: tuple[list[float], list[float]] = ([], [])
        work = (first, second)
        until = self.clock.now() + span_ns
        for lane in (0, 1):
            self.start(lane, *work[lane], shares[lane])
        while self._under_way:
            ended = self.next()
            self.executor.take_results(ended.dispatch_id)
            if self.clock.now() < until or min(map(len, spans)) < 2:
                spans[ended.lane].append(ended.span_ns)
                self.start(ended.lane, *work[ended.lane], shares[ended.lane])
        return spans

    def back_to_back(self, work: Work, n: int) -> list[float]:
        """Gaps (ns) between the end of the last segment of a dispatch and the begin of the next one on the
        same lane, with one staged behind the running one."""
        ended: list[Ended] = []
        for _ in range(2):
            self.start(0, *work)
        while self._under_way:
            ended.append(self.next())
            self.executor.take_results(ended[-1].dispatch_id)
            if len(ended) < n:
                self.start(0, *work)
        ended.sort(key=lambda run: run.order)
        return [float(b.started_at - a.segment_ends_at[-1]) for a, b in pairwise(ended)]

    def host_facts(self) -> dict[str, float]:
        """Medians (us): the call that starts a dispatch; from it to the start on the device; from the end on
        the device to the host's knowing; launching a ready batch, all its segments and the copy back."""
        launch_ns = self.executor.launch_ns
        return {
            "launch_us": float(np.median(launch_ns)) / 1000,
            "launch_p90_us": float(np.percentile(launch_ns, 90)) / 1000,
            "start_call_us": float(np.median(self._start_ns)) / 1000,
            "to_begin_us": float(np.median(self._begin_ns)) / 1000,
            "to_report_us": float(np.median(self._report_ns)) / 1000,
        }
