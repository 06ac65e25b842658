"""The fake executor does what its script says, in virtual time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cotenant.clock import VirtualClock
from cotenant.domain import (
    NS_PER_MS,
    Completion,
    Device,
    Dispatch,
    Event,
    Maintain,
    MaintenanceDone,
    ModelSpec,
    Prediction,
    Progress,
    Snapshot,
    Started,
    Variant,
)
from cotenant.execute.fake import FakeExecutor, FakeScript
from cotenant.ports import LaneInfo
from cotenant.simulate.driver import VirtualTimers

MS = NS_PER_MS


def dispatch(number: int, *, lane: int = 0, first: int = 0, end: int = 1) -> Dispatch:
    return Dispatch(
        id=number,
        variant=Variant("m", 1),
        requests=(),
        rows=1,
        lane=lane,
        share=1.0,
        decided_at=0,
        latest_start_at=None,
        first_segment=first,
        end_segment=end,
        prediction=Prediction(issued_at=0, finish_at=(0,) * 5, slo_level=0.99, version=0, corunners=0),
        snapshot=Snapshot(at=0, in_flight=()),
    )


class Rig:
    """A fake executor with one lane of the given depth, and everything it posted, with its instant."""

    def __init__(self, script: FakeScript, depth: int = 0) -> None:
        self.clock = VirtualClock()
        self.timers = VirtualTimers(self.clock)
        self.executor = FakeExecutor([LaneInfo(index=0, units=(0,), depth=depth)], self.timers, script)
        self.events: list[Event] = []
        self.executor.attach(self.events.append)

    def run_until(self, at: int) -> None:
        while self.timers.next_at() <= at:
            self.clock.advance_to(self.timers.next_at())
            self.timers.run_next()
        self.clock.advance_to(at)

    @property
    def completions(self) -> list[Completion]:
        return [event for event in self.events if isinstance(event, Completion)]


@pytest.fixture
def rig() -> Callable[..., Rig]:
    def make(depth: int = 0, **script: object) -> Rig:
        return Rig(FakeScript(**{"durations": lambda _: 10 * MS, **script}), depth)  # type: ignore[arg-type]

    return make


def test_a_run_takes_its_scripted_duration(rig):
    fake = rig(durations={Variant("m", 1): 7 * MS})
    fake.executor.start(dispatch(1), ())
    assert fake.events == []
    fake.run_until(20 * MS)
    assert fake.completions == [
        Completion(dispatch_id=1, lane=0, started_at=0, ended_at=7 * MS, segment_ended_at=(7 * MS,))
    ]


def test_a_scripted_error_fails_only_its_dispatch(rig):
    fake = rig(raises=lambda d: "ValueError: no" if d.id == 1 else None)
    fake.executor.start(dispatch(1), ())
    fake.run_until(10 * MS)
    fake.executor.start(dispatch(2), ())
    fake.run_until(20 * MS)
    assert [c.error for c in fake.completions] == ["ValueError: no", None]


def test_a_hung_run_ends_when_aborted_and_its_lane_restarts(rig):
    fake = rig(hangs=lambda d: d.id == 1, restart_ns=30 * MS)
    fake.executor.start(dispatch(1), ())
    fake.run_until(500 * MS)
    assert fake.events == []
    fake.executor.abort(1, "too long")
    (end,) = fake.completions
    assert end.lane_lost
    assert end.error == "too long"
    fake.executor.start(dispatch(2), ())
    fake.run_until(600 * MS)
    assert fake.completions[1].error == "the lane is lost"
    assert Device("restarted", 0) in fake.events
    fake.executor.start(dispatch(3), ())
    fake.run_until(700 * MS)
    assert fake.completions[2].error is None


def test_everything_is_slower_from_an_instant_on_until_it_is_normal_again(rig):
    fake = rig()
    fake.executor.slow_down(5.0, at=10 * MS)
    fake.executor.slow_down(1.0, at=60 * MS)
    for number in (1, 2, 3):
        fake.executor.start(dispatch(number), ())
        fake.run_until(fake.timers.next_at())
    assert [c.ended_at - c.started_at for c in fake.completions] == [10 * MS, 50 * MS, 10 * MS]


def test_segments_report_progress(rig):
    fake = rig(n_segments={"m": 2})
    fake.executor.start(dispatch(1, end=2), ())
    fake.run_until(20 * MS)
    assert fake.events[0] == Progress(1, 1, 5 * MS)
    assert fake.completions[0].segment_ended_at == (5 * MS, 10 * MS)
    assert fake.completions[0].next_segment is None


def test_a_preempted_run_stops_at_the_next_boundary_and_can_go_on(rig):
    fake = rig(n_segments={"m": 4})
    fake.executor.start(dispatch(1, end=4), ())
    fake.run_until(3 * MS)
    fake.executor.preempt(1)
    fake.run_until(9 * MS)
    (end,) = fake.completions
    assert (end.ended_at, end.next_segment, end.error) == (5 * MS, 2, None)
    fake.executor.start(dispatch(2, first=2, end=4), ())
    fake.run_until(30 * MS)
    assert fake.completions[1].ended_at == 14 * MS
    assert fake.completions[1].next_segment is None


def test_a_staged_dispatch_starts_when_the_running_one_ends(rig):
    fake = rig(depth=1)
    fake.executor.start(dispatch(1), ())
    fake.executor.start(dispatch(2), ())
    fake.run_until(50 * MS)
    assert [type(event) for event in fake.events] == [Completion, Started, Completion]
    assert fake.events[1] == Started(2, 10 * MS)
    assert fake.completions[1].started_at == 10 * MS


def test_a_staged_dispatch_can_be_withdrawn_and_the_lane_stays(rig):
    fake = rig(depth=1)
    fake.executor.start(dispatch(1), ())
    fake.executor.start(dispatch(2), ())
    fake.executor.abort(2, "not needed")
    (withdrawn,) = fake.completions
    assert withdrawn.dispatch_id == 2
    assert not withdrawn.lane_lost
    assert withdrawn.error == "withdrawn before it started: not needed"
    fake.run_until(50 * MS)
    assert [c.dispatch_id for c in fake.completions] == [2, 1]


def test_loading_knows_only_the_scripted_models(rig):
    spec = ModelSpec(name="m", slo_ns=None)
    fake = rig(specs={"m": spec})
    fake.executor.maintain(Maintain(id=1, kind="load", model="m"))
    fake.executor.maintain(Maintain(id=2, kind="load", model="n"))
    fake.run_until(20 * MS)
    first, second = fake.events
    assert isinstance(first, MaintenanceDone)
    assert isinstance(second, MaintenanceDone)
    assert first.spec == spec
    assert second.error == "unknown model 'n'"


def test_outputs_are_handed_over_once(rig):
    fake = rig(outputs=lambda d, inputs: [{"y": i["x"]} for i in inputs])
    fake.executor.start(dispatch(1), [{"x": 3}])
    fake.run_until(10 * MS)
    assert fake.executor.take_results(1) == [{"y": 3}]
    assert fake.executor.take_results(1) is None


def test_nothing_is_posted_after_close(rig):
    fake = rig()
    fake.executor.start(dispatch(1), ())
    fake.executor.close()
    fake.executor.close()
    fake.run_until(50 * MS)
    assert fake.events == []
