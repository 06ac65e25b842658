"""The twin as an executor: events, staged runs, preemption, what-if questions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from cotenant.clock import VirtualClock
from cotenant.domain import (
    Candidate,
    Completion,
    Device,
    Dispatch,
    Event,
    InFlight,
    ModelSpec,
    Prediction,
    Progress,
    Snapshot,
    Started,
    Variant,
)
from cotenant.schedule.queue import NEVER
from cotenant.simulate.driver import VirtualTimers
from cotenant.simulate.twin.device import SILENT, Noise, Programs
from cotenant.simulate.twin.executor import TwinDevice
from cotenant.simulate.twin.kernels import COMPUTE, MEMORY, kernels
from cotenant.simulate.twin.oracle import TwinOracle
from cotenant.simulate.twin.specs import V100
from cotenant.simulate.twin.what_if import HANDOVER_NS

US = 1000
SPECS = [ModelSpec(name=name, slo_ns=None, n_segments=4) for name in ("wide", "narrow", "copying")]


class Bench:
    """A twin with three models of 20 kernels, and what it posted."""

    def __init__(self, **settings) -> None:
        self.programs = Programs(V100)
        for name, bound, sms in (
            ("wide", COMPUTE, 400.0),
            ("narrow", COMPUTE, 8.0),
            ("copying", MEMORY, 40.0),
        ):
            of = kernels(np.full(20, bound), np.full(20, sms), np.full(20, 100.0 * US), V100)
            self.programs.add(Variant(name, 1), of, 4)
        self.clock = VirtualClock()
        self.timers = VirtualTimers(self.clock)
        self.device = TwinDevice(self.programs, self.timers, **{"noise": SILENT, "n_lanes": 4, **settings})
        self.events: list[tuple[int, Event]] = []
        self.then: Callable[[Event], None] = lambda event: None
        self.device.attach(self._take)
        self.n = 0

    def _take(self, event: Event) -> None:
        self.events.append((self.clock.now(), event))
        self.then(event)

    def start(self, model: str, lane: int = 0, first: int = 0, end: int = 4) -> int:
        self.n += 1
        dispatch = Dispatch(
            id=self.n, variant=Variant(model, 1), requests=(), rows=1, lane=lane, share=1.0,
            decided_at=self.clock.now(), latest_start_at=None, first_segment=first, end_segment=end,
            prediction=Prediction(issued_at=0, finish_at=(0,) * 5, slo_level=0.99, version=0, corunners=0),
            snapshot=Snapshot(at=0, in_flight=()),
        )  # fmt: skip
        self.device.start(dispatch, ())
        return self.n

    def go(self, until: int = NEVER) -> None:
        while self.timers.next_at() <= min(until, NEVER - 1):
            self.clock.advance_to(self.timers.next_at())
            self.timers.run_next()
        if until < NEVER:
            self.clock.advance_to(until)

    def ends(self) -> dict[int, Completion]:
        return {event.dispatch_id: event for _, event in self.events if isinstance(event, Completion)}

    def solo(self, model: str) -> float:
        return self.programs.of[Variant(model, 1)].solo_ns

    def flight(self, number: int, model: str, lane: int) -> InFlight:
        return InFlight(
            dispatch_id=number, variant=Variant(model, 1), lane=lane, share=1.0, decided_at=self.clock.now(),
            started_at=self.clock.now(), segment=0, end_segment=4, boundary_at=None,
        )  # fmt: skip


def test_a_run_alone_takes_its_solo_span_after_the_handover() -> None:
    bench = Bench()
    bench.start("wide")
    bench.go()
    end = bench.ends()[1]
    assert end.started_at == HANDOVER_NS
    assert end.ended_at - end.started_at == pytest.approx(bench.solo("wide"), abs=2)
    assert bench.events[-1][0] == end.ended_at
    assert len(end.segment_ended_at) == 4
    assert end.segment_ended_at[-1] == end.ended_at
    assert bench.device.sm_busy_ns == pytest.approx(80 * 20 * 100 * US, rel=1e-6)


def test_starts_in_between_do_not_change_what_would_have_happened_alone() -> None:
    """Runs on a lane of narrow kernels hardly notice others; the same twice is the same."""
    first, second = Bench(noise=Noise(), seed=3), Bench(noise=Noise(), seed=3)
    for bench in (first, second):
        bench.start("narrow", 0)
        if bench is second:  # the state is caught up many times on the way
            for at in range(50_000, 1_000_000, 50_000):
                bench.timers.call_at(at, lambda: second.device.truth([]))
        bench.go()
    assert first.ends()[1].ended_at == pytest.approx(second.ends()[1].ended_at, abs=2)


def test_a_staged_run_begins_when_the_one_before_it_ends() -> None:
    bench = Bench()
    bench.start("narrow", 0)
    bench.start("copying", 0)
    with pytest.raises(AssertionError, match="already holds 2"):
        bench.start("wide", 0)
    bench.go()
    kinds = [type(event) for _, event in bench.events]
    assert kinds == [Completion, Started, Completion]
    started = bench.events[1][1]
    assert started.dispatch_id == 2
    assert started.started_at == bench.ends()[2].started_at
    assert 0 <= started.started_at - bench.ends()[1].ended_at <= 2 * V100.launch_gap_ns
    assert bench.ends()[2].ended_at - started.started_at == pytest.approx(bench.solo("copying"), abs=2)


def test_preemption_stops_at_the_next_boundary_and_the_rest_takes_the_rest() -> None:
    bench = Bench()
    bench.start("narrow", 0)
    bench.go(600 * US)
    bench.device.preempt(1)
    bench.device.preempt(77)
    bench.go()
    first = bench.ends()[1]
    assert first.next_segment == 2
    assert len(first.segment_ended_at) == 2
    bench.start("narrow", 1, first=2)
    bench.go()
    rest = bench.ends()[2]
    assert rest.next_segment is None
    assert len(rest.segment_ended_at) == 2
    whole = first.ended_at - first.started_at + rest.ended_at - rest.started_at
    assert whole == pytest.approx(bench.solo("narrow"), abs=V100.launch_gap_ns + 3)


def test_a_staged_run_asked_to_stop_runs_one_segment() -> None:
    bench = Bench()
    bench.start("narrow", 0)
    staged = bench.start("narrow", 0)
    bench.device.preempt(staged)
    bench.go()
    assert bench.ends()[1].next_segment is None
    assert bench.ends()[staged].next_segment == 1


def test_boundaries_are_told_when_that_is_wanted() -> None:
    bench = Bench(progress=True)
    bench.start("narrow", 0)
    bench.start("copying", 1)
    bench.go()
    told = [(event.dispatch_id, event.segment) for _, event in bench.events if isinstance(event, Progress)]
    assert sorted(told) == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]
    assert all(at == event.passed_at for at, event in bench.events if isinstance(event, Progress))
    passed = [
        event.passed_at for _, event in bench.events if isinstance(event, Progress) and event.dispatch_id == 1
    ]
    assert tuple(passed) == bench.ends()[1].segment_ended_at[:3]
    quiet = Bench()
    quiet.start("narrow", 0)
    quiet.start("copying", 1)
    quiet.go()
    assert quiet.ends()[1].ended_at == pytest.approx(bench.ends()[1].ended_at, abs=2)


def test_aborting_a_running_run_frees_its_sms_and_loses_the_lane_for_a_while() -> None:
    bench = Bench()
    bench.start("wide", 0)
    bench.start("wide", 1)
    bench.start("narrow", 0)
    bench.go(300 * US)
    bench.device.abort(1, "hangs")
    bench.go(400 * US)
    ends = bench.ends()
    assert (ends[1].error, ends[1].lane_lost) == ("hangs", True)
    assert ends[3].lane_lost
    assert "lane was lost" in ends[3].error
    refused = bench.start("narrow", 0)
    bench.go()
    assert bench.ends()[refused].error == "the lane is lost"
    assert bench.ends()[2].ended_at < 2 * bench.solo("wide")
    assert Device("restarted", 0) in [event for _, event in bench.events]
    again = bench.start("narrow", 0)
    bench.go()
    assert bench.ends()[again].error is None


def test_a_staged_run_is_withdrawn_without_harm() -> None:
    bench = Bench()
    bench.start("narrow", 0)
    bench.start("wide", 0)
    bench.device.abort(2, "not needed")
    bench.go()
    assert bench.ends()[2].error == "withdrawn before it started: not needed"
    assert bench.ends()[1].error is None


def test_segments_out_of_range_are_a_failed_completion() -> None:
    bench = Bench()
    bench.start("narrow", 0, first=2, end=9)
    bench.go()
    assert "has 4 segments, not [2, 9)" in bench.ends()[1].error


def test_what_starts_when_something_ends_is_looked_at_too() -> None:
    bench = Bench()
    bench.then = lambda event: (
        bench.n < 30 and isinstance(event, Completion) and bench.start("copying", event.lane)
    )
    for lane in range(4):
        bench.start("narrow", lane)
    bench.go()
    assert len(bench.ends()) == 30
    assert all(at == event.ended_at for at, event in bench.events)


def test_the_truth_is_what_then_happens_and_asking_changes_nothing() -> None:
    bench, same = Bench(), Bench()
    for one in (bench, same):
        one.start("wide", 0)
        one.start("copying", 1)
        one.start("narrow", 1)
        one.go(700 * US)
    candidate = Candidate(variant=Variant("wide", 1), lane=2, start_at=700 * US)
    found = bench.device.truth([candidate, candidate])
    assert found.beside[0] == found.beside[1]
    bench.start("wide", 2)
    bench.go()
    same.go()
    for number in (1, 2, 3):
        assert found.baseline[number] == pytest.approx(same.ends()[number].ended_at, abs=2)
        assert found.beside[0][number] == pytest.approx(bench.ends()[number].ended_at, abs=2)
    assert found.candidate_end_at[0] == pytest.approx(bench.ends()[4].ended_at, abs=2)


def test_what_was_foreseen_of_a_candidate_is_foreseen_once_it_is_in_flight() -> None:
    bench = Bench(noise=Noise(run_sigma=0.1, kernel_sigma=0.1, stall_chance=1.0))
    bench.start("copying", 0)
    bench.go(300 * US)
    candidate = Candidate(variant=Variant("wide", 1), lane=1, start_at=300 * US)
    before = bench.device.truth([candidate])
    assert bench.device.truth([candidate]) == before
    bench.start("wide", 1)
    assert bench.device.truth([]).baseline == before.beside[0] | {2: before.candidate_end_at[0]}
    bench.go(800 * US)  # the noise of kernels that have begun is known
    assert bench.device.truth([]).baseline != before.beside[0] | {2: before.candidate_end_at[0]}


def test_a_candidate_behind_others_begins_when_they_have_ended() -> None:
    bench = Bench()
    bench.start("narrow", 0)
    bench.go(100 * US)
    candidate = Candidate(variant=Variant("copying", 1), lane=0, start_at=3_000 * US)
    found = bench.device.truth([candidate])
    bench.start("copying", 0)
    bench.go()
    assert found.candidate_end_at[0] == pytest.approx(bench.ends()[2].ended_at, abs=5)


def test_the_oracle_counts_what_was_decided_but_not_handed_over() -> None:
    bench = Bench()
    bench.start("wide", 0)
    bench.go(500 * US)
    oracle = TwinOracle(bench.device, SPECS, margins=False)
    flights = (bench.flight(1, "wide", 0), bench.flight(2, "wide", 1))
    candidate = Candidate(variant=Variant("wide", 1), lane=2, start_at=500 * US)
    forecast = oracle.predict(Snapshot(at=500 * US, in_flight=flights), [candidate])
    bench.start("wide", 1)
    bench.start("wide", 2)
    bench.go()
    ends = bench.ends()
    assert forecast.finish_at[0][0] == pytest.approx(ends[3].ended_at, abs=5)
    assert [row[0] for row in forecast.in_flight_finish_at[0]] == pytest.approx(
        [ends[1].ended_at, ends[2].ended_at], abs=5
    )
    assert forecast.baseline_finish_at[1][0] < forecast.in_flight_finish_at[0][1][0]


def test_a_dispatch_left_out_of_what_is_in_flight_is_foreseen_to_stop_at_its_next_boundary() -> None:
    bench = Bench()
    bench.start("wide", 0)
    bench.start("narrow", 1)
    bench.go(100 * US)
    oracle = TwinOracle(bench.device, SPECS, margins=False)
    flights = (bench.flight(1, "wide", 0), bench.flight(2, "narrow", 1))
    candidate = Candidate(variant=Variant("copying", 1), lane=0, start_at=100 * US)
    behind = oracle.predict(Snapshot(at=100 * US, in_flight=flights), [candidate])
    instead = oracle.predict(Snapshot(at=100 * US, in_flight=flights[1:]), [candidate])
    bench.device.preempt(1)
    bench.start("copying", 0)
    bench.go()
    assert instead.finish_at[0][0] < behind.finish_at[0][0]
    assert instead.finish_at[0][0] == pytest.approx(bench.ends()[3].ended_at, abs=5)


def test_the_oracles_quantiles_ascend_with_the_noise() -> None:
    bench = Bench(noise=Noise(run_sigma=0.05))
    oracle = TwinOracle(bench.device, SPECS)
    spans = oracle.solo(Variant("narrow", 1), 0)
    assert list(spans) == sorted(spans)
    assert spans[3] / spans[0] > 1.1
    assert oracle.prior(Variant("narrow", 1)) == int(bench.solo("narrow"))
    oracle.restore(oracle.state())
    with pytest.raises(ValueError, match="not a state of the oracle"):
        oracle.restore(b"x")
