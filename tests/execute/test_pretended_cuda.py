"""The logic of CUDA lanes, on a device that is pretended: what is not waited for comes out wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pretend_cuda import Device as Pretended  # noqa: E402
from pretend_cuda import pretended  # noqa: E402
from torch import nn  # noqa: E402

from cotenant.clock import MonotonicClock  # noqa: E402
from cotenant.domain import Completion, Device, Dispatch, Event, Prediction, Snapshot, Variant  # noqa: E402
from cotenant.execute.model import ModelSettings  # noqa: E402
from cotenant.execute.torch.architectures import Staged  # noqa: E402
from cotenant.execute.torch.cuda import CudaStream  # noqa: E402
from cotenant.execute.torch.device_clock import DeviceClock  # noqa: E402
from cotenant.execute.torch.model import Blueprint, TorchModel, prepare  # noqa: E402
from cotenant.execute.torch.pump import Pump  # noqa: E402
from cotenant.execute.torch.stream import Job  # noqa: E402
from cotenant.execute.torch.zoo import tensor  # noqa: E402

pytestmark = pytest.mark.torch
CPU = torch.device("cpu")
WAIT_S = 30.0
NOTHING = Prediction(issued_at=0, finish_at=(0,) * 5, slo_level=0.99, version=0, corunners=0)


class Add(nn.Module):
    """A stage that adds; big enough to be a segment."""

    def __init__(self, amount: float) -> None:
        super().__init__()
        self.amount = amount
        self.heavy = nn.Parameter(torch.zeros(5_000_000))

    def forward(self, x: Any) -> tuple[Any]:
        return (x * 2 + self.amount + self.heavy[0],)


def made(name: str, amount: float, n_stages: int = 3) -> TorchModel:
    """Each stage doubles and adds `amount`."""
    specs = [tensor(of, "FP32", "batch", 4) for of in ("x", "y")]
    stages = Staged([Add(amount) for _ in range(n_stages)])
    blueprint = Blueprint(module=stages, inputs=(specs[0],), outputs=(specs[1],))
    return prepare(blueprint, ModelSettings(name=name, max_batch=4), CPU)


def answer(value: float, amount: float, n_stages: int = 3) -> float:
    for _ in range(n_stages):
        value = value * 2 + amount
    return value


class Rig:
    """Lanes on the pretended device, on two shares."""

    def __init__(self, device: Pretended, n_lanes: int = 2) -> None:
        self.device = device
        clock = MonotonicClock()
        device_clock = DeviceClock(clock, CPU)
        ladder: Any = SimpleNamespace(
            shares=(0.5, 1.0), stream=lambda share, lane, priority=0: device.stream()
        )
        self.streams: list[CudaStream] = []
        self.models: list[TorchModel] = []
        self.may_restart = threading.Event()

        def new_stream(lane: int) -> CudaStream:
            if len(self.streams) >= n_lanes:
                self.may_restart.wait(WAIT_S)
            stream = CudaStream(lane, CPU, device_clock, lambda: self.pump.wake(), ladder=ladder)
            for model in self.models:
                stream.capture(model)
            self.streams.append(stream)
            return stream

        self.pump = Pump(n_lanes, new_stream, clock)
        self.events: SimpleQueue[Event] = SimpleQueue()
        self.pump.attach(self.events.put)

    def load(self, model: TorchModel) -> TorchModel:
        for stream in self.streams:
            stream.capture(model)
        self.models.append(model)
        return model

    def start(self, number: int, model: TorchModel, value: float = 0.0, **more: Any) -> None:
        values = {
            "variant": Variant(model.metadata.name, 1), "requests": (), "rows": 1, "lane": 0, "share": 1.0,
            "decided_at": 0, "latest_start_at": None, "first_segment": 0, "end_segment": model.n_segments,
            "prediction": NOTHING, "snapshot": Snapshot(at=0, in_flight=()),
        }  # fmt: skip
        inputs = [{"x": np.full((1, 4), value, np.float32)}]
        self.pump.start(Job(Dispatch(id=number, **{**values, **more}), inputs, model))

    def completion(self) -> Completion:
        while True:
            event = self.events.get(timeout=WAIT_S)
            if isinstance(event, Completion):
                return event

    def result(self, number: int) -> float:
        results = self.pump.take_results(number)
        assert results is not None
        assert (results[0]["y"] == results[0]["y"][0, 0]).all()
        return float(results[0]["y"][0, 0])

    def n_slots(self) -> int:
        """Slots that nothing uses, of all graphs."""
        return sum(
            len(slots)
            for stream in self.streams
            for _, graphs in stream._captured.values()
            for slots in {id(c.slots): c.slots for c in graphs.values()}.values()
        )


@pytest.fixture(params=range(3))
def rig(request: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    with pretended(monkeypatch, request.param) as device:
        rig = Rig(device)
        yield rig
        device.held.set()
        assert not device.faults
        rig.pump.close()
        for stream in rig.streams:
            stream.join(5.0)


def test_answers_are_right_whatever_the_device_does_first(rig: Rig) -> None:
    models = [rig.load(made("a", 1.0)), rig.load(made("b", 5.0))]
    rng = np.random.default_rng(3)
    expected: dict[int, float] = {}
    free = [0, 1, 0, 1]
    for number in range(1, 121):
        if not free:
            end = rig.completion()
            assert end.error is None
            assert rig.result(end.dispatch_id) == expected.pop(end.dispatch_id)
            bounds = [end.started_at, *end.segment_ended_at, end.ended_at]
            assert bounds == sorted(bounds)
            free.append(end.lane)
        which, value, rows = int(rng.integers(2)), float(rng.integers(9)), int(rng.choice([1, 2, 4]))
        name = models[which].metadata.name
        expected[number] = answer(value, (1.0, 5.0)[which])
        rig.start(
            number, models[which], value, variant=Variant(name, rows), share=float(rng.choice([0.5, 1.0])),
            lane=free.pop(),
        )  # fmt: skip
    while expected:
        end = rig.completion()
        assert rig.result(end.dispatch_id) == expected.pop(end.dispatch_id)


def test_what_was_stopped_goes_on_with_its_own_values_on_another_lane_and_share(rig: Rig) -> None:
    model = rig.load(made("a", 1.0))
    for number in range(1, 31, 3):
        rig.device.held.clear()
        rig.start(number, model, float(number))
        rig.pump.preempt(number)
        rig.start(number + 1, model, 50.0)  # takes the lane's memory over
        rig.device.held.set()
        ends = {end.dispatch_id: end for end in (rig.completion(), rig.completion())}
        assert rig.result(number + 1) == answer(50.0, 1.0)
        stopped_at = ends[number].next_segment
        if stopped_at is None:
            assert rig.result(number) == answer(float(number), 1.0)
            continue
        rig.start(number + 2, model, lane=1, share=0.5, first_segment=stopped_at, resumes=number)
        assert rig.completion().error is None
        assert rig.result(number + 2) == answer(float(number), 1.0)


def test_neither_memory_nor_events_grow_with_runs_that_end_or_do_not(rig: Rig) -> None:
    model = rig.load(made("a", 1.0))

    def some(base: int) -> None:
        for number in range(base, base + 40, 4):
            rig.device.held.clear()
            rig.start(number, model)
            rig.start(number + 1, model)
            rig.pump.abort(number + 1, "cancelled")
            if number % 8 == 0:
                rig.pump.preempt(number)
            rig.device.held.set()
            for _ in range(2):
                rig.completion()
            rig.pump.abort(number, "not to be resumed")
            rig.pump.take_results(number)

    def settled() -> tuple[int, int]:
        done = threading.Event()
        for stream in rig.streams:
            done.clear()
            stream._work.put((lambda _: done.set(), model))
            assert done.wait(WAIT_S)
        return rig.n_slots(), rig.device.n_events

    some(100)
    slots, events = settled()
    some(1000)
    slots_after, events_after = settled()
    assert slots_after == slots
    assert events_after - events <= 20  # `keep` makes one for each of the ten stopped, at most two more each


def test_a_lane_that_hangs_is_made_anew_while_the_others_go_on(rig: Rig) -> None:
    model = rig.load(made("a", 1.0))
    rig.device.held.clear()
    rig.start(1, model)
    rig.start(2, model)
    rig.pump.abort(1, "too long")
    ends = [rig.completion(), rig.completion()]
    assert [(end.dispatch_id, end.lane_lost) for end in ends] == [(1, True), (2, True)]
    rig.start(3, model)  # by a scheduler that does not know yet
    assert rig.completion().error == "its lane was lost and is not back yet"
    rig.device.held.set()
    rig.start(4, model, 3.0, lane=1)
    assert rig.completion().error is None
    assert rig.result(4) == answer(3.0, 1.0)
    rig.may_restart.set()
    assert rig.events.get(timeout=WAIT_S) == Device("restarted", 0)
    rig.start(5, model, 2.0)
    assert rig.completion().error is None
    assert rig.result(5) == answer(2.0, 1.0)


def test_a_replaced_model_ends_its_runs_as_it_was_and_its_kept_states_are_not_the_new_ones(rig: Rig) -> None:
    old = rig.load(made("a", 1.0))
    rig.device.held.clear()
    rig.start(1, old, 1.0)
    rig.start(2, old, 2.0, lane=1)
    rig.pump.preempt(2)
    rig.device.held.set()
    ends = {end.dispatch_id: end for end in (rig.completion(), rig.completion())}
    new = rig.load(made("a", 7.0))
    rig.start(3, old, 3.0)
    rig.pump.forget(old)
    rig.start(4, new, 3.0)
    assert {rig.completion().error, rig.completion().error} == {None}
    assert rig.result(1) == answer(1.0, 1.0)
    assert rig.result(3) == answer(3.0, 1.0)
    assert rig.result(4) == answer(3.0, 7.0)
    stopped_at = ends[2].next_segment
    if stopped_at is not None:
        rig.start(5, new, first_segment=stopped_at, resumes=2)
        assert rig.completion().error == "what it should go on with is gone"
    rig.start(6, old)
    assert "unloaded" in str(rig.completion().error)


def test_everything_can_be_unloaded_and_something_loaded_again(rig: Rig) -> None:
    for number in (1, 2, 3):
        model = rig.load(made("a", float(number)))
        rig.start(number, model, 1.0)
        assert rig.completion().error is None
        assert rig.result(number) == answer(1.0, float(number))
        rig.models.clear()
        rig.pump.forget(model)


class Reads(nn.Module):
    """Asks for a value on the host."""

    def forward(self, x: Any) -> tuple[Any]:
        if torch.cuda.current_stream() is not None and torch.cuda.current_stream().capturing:
            raise RuntimeError("operation not permitted when stream is capturing")
        return (x,)


def test_what_cannot_be_captured_says_why_and_harms_nothing(rig: Rig) -> None:
    fine = rig.load(made("a", 1.0))
    specs = [tensor(of, "FP32", "batch", 4) for of in ("x", "y")]
    blueprint = Blueprint(module=Staged([Reads()]), inputs=(specs[0],), outputs=(specs[1],))
    reads = prepare(blueprint, ModelSettings(name="reads"), CPU)
    with pytest.raises(ValueError, match=r"captured as a CUDA graph.*not permitted.*\.item\(\)"):
        rig.streams[0].capture(reads)
    rig.start(1, fine, 1.0)
    assert rig.completion().error is None
    assert rig.result(1) == answer(1.0, 1.0)
