"""What every executor must do, checked on each in real time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from queue import SimpleQueue

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cotenant.clock import MonotonicClock, VirtualClock
from cotenant.domain import (
    NS_PER_MS,
    Completion,
    Dispatch,
    Event,
    Maintain,
    MaintenanceDone,
    ModelSpec,
    Prediction,
    Snapshot,
    Variant,
)
from cotenant.execute.fake import FakeExecutor, FakeScript
from cotenant.execute.lanes import lane_layout
from cotenant.execute.model import ModelSettings
from cotenant.execute.onnx import OnnxExecutor
from cotenant.execute.onnx_model import inspect
from cotenant.execute.python import PythonSource
from cotenant.execute.python_metadata import metadata_of
from cotenant.execute.python_model import Declaration, PythonModel
from cotenant.ports import Executor
from cotenant.simulate.driver import VirtualTimers
from cotenant.simulate.twin.device import Programs
from cotenant.simulate.twin.executor import TwinDevice
from cotenant.simulate.twin.kernels import kernels
from cotenant.simulate.twin.specs import V100

WAIT_S = 30.0


class Subject:
    """An executor with the model `m` (y = x, 4 floats a row) and a way to wait for its next event."""

    def __init__(self, executor: Executor, pump: Callable[[], None] | None = None) -> None:
        self.executor = executor
        self.events: SimpleQueue[Event] = SimpleQueue()
        self._pump = pump
        executor.attach(self.events.put)

    def next(self) -> Event:
        while self._pump is not None and self.events.empty():
            self._pump()
        return self.events.get(timeout=WAIT_S)


def make_onnx(tmp_path) -> Subject:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    executor = OnnxExecutor(MonotonicClock(), lane_layout(2, 2))
    executor.load(inspect(path, ModelSettings(name="m")), path)
    return Subject(executor)


def make_python(tmp_path) -> Subject:
    example = {"x": np.zeros((1, 4), np.float32)}
    settings = ModelSettings(name="m")
    model = PythonModel(lambda x: {"y": x}, Declaration(settings=settings, example=example))
    executor = OnnxExecutor(MonotonicClock(), lane_layout(2, 2))
    executor.load(metadata_of(model, settings), PythonSource(model))
    return Subject(executor)


def make_fake(tmp_path) -> Subject:
    clock = VirtualClock()
    timers = VirtualTimers(clock)

    def pump() -> None:
        clock.advance_to(timers.next_at())
        timers.run_next()

    script = FakeScript(
        durations=lambda d: 5 * NS_PER_MS,
        raises=lambda d: None if d.variant.model == "m" else "not loaded",
        outputs=lambda d, inputs: [{"y": tensors["x"]} for tensors in inputs],
        specs={"m": ModelSpec(name="m", slo_ns=None, max_batch=8, row_buckets=(1, 2, 4, 8))},
    )
    return Subject(FakeExecutor(lane_layout(2, 2), timers, script), pump)


def make_twin(tmp_path) -> Subject:
    clock = VirtualClock()
    timers = VirtualTimers(clock)

    def pump() -> None:
        clock.advance_to(timers.next_at())
        timers.run_next()

    programs = Programs(V100)
    for rows in (1, 2, 4, 8):
        loads = np.full(10, 20.0 * rows)
        programs.add(Variant("m", rows), kernels(np.zeros(10, np.int64), loads, np.full(10, 1e5), V100))
    spec = ModelSpec(name="m", slo_ns=None, max_batch=8, row_buckets=(1, 2, 4, 8))
    return Subject(TwinDevice(programs, timers, n_lanes=2, specs={"m": spec}), pump)


def make_torch(tmp_path, device: str = "cpu") -> Subject:
    torch = pytest.importorskip("torch")
    from cotenant.execute.torch.executor import TorchExecutor
    from cotenant.execute.torch.model import Blueprint
    from cotenant.execute.torch.zoo import tensor

    executor = TorchExecutor(MonotonicClock(), lane_layout(2, 2), device=device)
    inputs, outputs = (tensor("x", "FP32", "batch", 4),), (tensor("y", "FP32", "batch", 4),)
    executor.load(
        Blueprint(module=torch.nn.Identity(), inputs=inputs, outputs=outputs), ModelSettings(name="m")
    )
    return Subject(executor)


def make_cuda(tmp_path) -> Subject:
    if not pytest.importorskip("torch").cuda.is_available():
        pytest.skip("no CUDA device")
    return make_torch(tmp_path, "cuda:0")


@pytest.fixture(
    params=[
        make_fake,
        make_onnx,
        make_python,
        make_twin,
        pytest.param(make_torch, marks=pytest.mark.torch),
        pytest.param(make_cuda, marks=pytest.mark.gpu),
    ],
    ids=["fake", "onnx", "python", "twin", "torch", "cuda"],
)
def subject(request, tmp_path) -> Iterator[Subject]:
    made = request.param(tmp_path)
    yield made
    made.executor.close()


def dispatch(number: int, *, lane: int = 0, rows: int = 1, model: str = "m") -> Dispatch:
    return Dispatch(
        id=number,
        variant=Variant(model, rows),
        requests=(),
        rows=rows,
        lane=lane,
        share=1.0,
        decided_at=0,
        latest_start_at=None,
        first_segment=0,
        end_segment=1,
        prediction=Prediction(issued_at=0, finish_at=(0,) * 5, slo_level=0.99, version=0, corunners=0),
        snapshot=Snapshot(at=0, in_flight=()),
    )


def rows_of(value: float, n: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.full((n, 4), value, np.float32)}


def test_every_dispatch_gets_exactly_one_completion(subject):
    for number in range(1, 41):
        subject.executor.start(dispatch(number, lane=number % 2), [rows_of(number)])
        if number % 2 == 0:
            ends = [subject.next(), subject.next()]
            assert sorted(end.dispatch_id for end in ends) == [number - 1, number]
            assert all(isinstance(end, Completion) and end.error is None for end in ends)
            assert all(end.started_at <= end.ended_at for end in ends)
    assert subject.events.empty()


def test_results_come_per_request_and_once(subject):
    subject.executor.start(dispatch(1, rows=4), [rows_of(1.0, 2), rows_of(2.0)])
    subject.next()
    results = subject.executor.take_results(1)
    if isinstance(subject.executor, TwinDevice):
        assert results is None  # it simulates time, not values
        return
    assert results is not None
    assert [result["y"].tolist() for result in results] == [[[1.0] * 4] * 2, [[2.0] * 4]]
    assert subject.executor.take_results(1) is None


def test_lanes_are_numbered_in_order_and_have_units(subject):
    lanes = subject.executor.lanes
    assert [lane.index for lane in lanes] == [0, 1]
    assert all(lane.units for lane in lanes)


def test_an_unknown_model_is_a_failed_completion_without_results(subject):
    subject.executor.start(dispatch(1, model="absent"), [rows_of(0)])
    end = subject.next()
    assert isinstance(end, Completion)
    assert end.error
    assert not end.lane_lost
    assert subject.executor.take_results(1) is None


def test_aborting_or_preempting_what_has_ended_does_nothing(subject):
    subject.executor.start(dispatch(1), [rows_of(1)])
    subject.next()
    subject.executor.abort(1, "late")
    subject.executor.preempt(1)
    subject.executor.abort(99, "never was")
    subject.executor.start(dispatch(2), [rows_of(1)])
    assert subject.next().dispatch_id == 2
    assert subject.events.empty()


def test_loading_ends_with_the_spec_and_failing_with_an_error(subject):
    subject.executor.maintain(Maintain(id=5, kind="load", model="m"))
    done = subject.next()
    assert isinstance(done, MaintenanceDone)
    assert (done.maintenance_id, done.kind, done.model, done.error) == (5, "load", "m", None)
    assert done.spec is not None
    assert done.spec.max_batch == 8
    subject.executor.maintain(Maintain(id=6, kind="load", model="absent"))
    done = subject.next()
    assert isinstance(done, MaintenanceDone)
    assert done.error == "unknown model 'absent'"
    assert done.spec is None


def test_close_is_idempotent(subject):
    subject.executor.close()
    subject.executor.close()
