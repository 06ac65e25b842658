"""The ONNX executor on real sessions of tiny models."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from onnx import helper
from onnx_models import FLOAT, STRING, double, lookup, save, slow

from cotenant.clock import MonotonicClock
from cotenant.domain import (
    Axes,
    Completion,
    Device,
    Dispatch,
    Event,
    Maintain,
    MaintenanceDone,
    ModelMetadata,
    Prediction,
    Snapshot,
    Variant,
)
from cotenant.execute.lanes import lane_layout
from cotenant.execute.model import ModelSettings
from cotenant.execute.onnx import OnnxExecutor
from cotenant.execute.onnx_model import inspect

WAIT_S = 30.0
Array = np.ndarray[Any, Any]


class Rig:
    """An executor and a queue of what it posts."""

    def __init__(self, executor: OnnxExecutor) -> None:
        self.executor = executor
        self.events: SimpleQueue[Event] = SimpleQueue()
        self.n = 0
        executor.attach(self.events.put)

    def load(self, path: Any, **settings: Any) -> ModelMetadata:
        metadata = inspect(path, ModelSettings(name=path.stem, **settings))
        self.executor.load(metadata, path)
        return metadata

    def start(
        self, model: str, inputs: Sequence[dict[str, Array]], rows: int, axes: Axes = (), lane: int = 0
    ) -> int:
        self.n += 1
        self.executor.start(
            Dispatch(
                id=self.n,
                variant=Variant(model, rows, axes),
                requests=(),
                rows=rows,
                lane=lane,
                share=1.0,
                decided_at=0,
                latest_start_at=None,
                first_segment=0,
                end_segment=1,
                prediction=Prediction(
                    issued_at=0, finish_at=(0,) * 5, slo_level=0.99, version=0, corunners=0
                ),
                snapshot=Snapshot(at=0, in_flight=()),
            ),
            inputs,
        )
        return self.n

    def next(self) -> Event:
        return self.events.get(timeout=WAIT_S)

    def completion(self) -> Completion:
        event = self.next()
        assert isinstance(event, Completion)
        return event

    def run(
        self, model: str, inputs: Sequence[dict[str, Array]], rows: int, axes: Axes = ()
    ) -> Sequence[Any]:
        number = self.start(model, inputs, rows, axes)
        completion = self.completion()
        assert completion.error is None
        assert completion.dispatch_id == number
        assert completion.started_at <= completion.ended_at
        results = self.executor.take_results(number)
        assert results is not None
        return results


@pytest.fixture(params=[(2, 2), (1, 2)], ids=["a shared session", "a session per lane"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    executor = OnnxExecutor(MonotonicClock(), lane_layout(*request.param))
    yield Rig(executor)
    executor.close()


@pytest.fixture
def floats() -> Callable[..., Array]:
    random = np.random.default_rng(7)
    return lambda *shape: random.standard_normal(shape).astype(np.float32)


# --- batches ------------------------------------------------------------------------------------------


def test_requests_of_several_rows_share_a_padded_batch(rig, floats, tmp_path):
    rig.load(double(tmp_path / "m.onnx", ["batch", 5]))
    inputs = [{"x": floats(2, 5)}, {"x": floats(1, 5)}, {"x": floats(3, 5)}]
    answers = rig.run("m", inputs, 8)
    for tensors, answer in zip(inputs, answers, strict=True):
        np.testing.assert_array_equal(answer["y"], tensors["x"] * 2)


def test_padded_axes_are_cut_back_and_equal_the_unpadded(rig, floats, tmp_path):
    rig.load(double(tmp_path / "m.onnx", ["batch", "seq", 3]), buckets={"seq": [8, 16]})
    inputs = [{"x": floats(1, 5, 3)}, {"x": floats(2, 8, 3)}, {"x": floats(1, 1, 3)}]
    answers = rig.run("m", inputs, 4, (("seq", 8),))
    for tensors, answer in zip(inputs, answers, strict=True):
        np.testing.assert_array_equal(answer["y"], tensors["x"] * 2)
    (alone,) = rig.run("m", inputs[:1], 1, (("seq", 16),))
    np.testing.assert_array_equal(alone["y"], inputs[0]["x"] * 2)


def test_answers_stay_valid_after_later_runs(rig, floats, tmp_path):
    rig.load(double(tmp_path / "m.onnx", ["batch", 5]))
    first = {"x": floats(3, 5)}
    (answer,) = rig.run("m", [first], 4)
    for _ in range(5):
        rig.run("m", [{"x": floats(3, 5)}], 4)
    np.testing.assert_array_equal(answer["y"], first["x"] * 2)


def test_an_undeclared_axis_is_never_padded_and_unlike_sizes_run_apart(rig, floats, tmp_path):
    mean = helper.make_node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=0)
    path = save(tmp_path / "m.onnx", [mean], [("x", FLOAT, ["batch", "seq"])], [("y", FLOAT, ["batch"])])
    metadata = rig.load(path)
    assert metadata.spec.axis_buckets == ()
    inputs = [{"x": floats(1, 5)}, {"x": floats(2, 9)}, {"x": floats(1, 5)}]
    answers = rig.run("m", inputs, 4)
    for tensors, answer in zip(inputs, answers, strict=True):
        np.testing.assert_allclose(answer["y"], tensors["x"].mean(axis=1), rtol=1e-6)


def test_a_model_without_batch_axis_takes_one_request_per_run(rig, floats, tmp_path):
    metadata = rig.load(double(tmp_path / "m.onnx", [3, "n"]), buckets={"n": [4]})
    assert not metadata.batched
    assert metadata.spec.max_batch == 1
    x = floats(3, 2)
    (answer,) = rig.run("m", [{"x": x}], 1, (("n", 4),))
    np.testing.assert_array_equal(answer["y"], x * 2)


def test_rows_are_padded_with_values_that_the_model_accepts(rig, tmp_path):
    # a shift that makes zero an index out of range, as in a table counted from 2
    minus = helper.make_node("Sub", ["x", "two"], ["i"])
    gather = helper.make_node("Gather", ["table", "i"], ["y"], axis=0)
    table = np.arange(3, dtype=np.float32)
    path = save(
        tmp_path / "m.onnx",
        [minus, gather],
        [("x", 7, ["batch"])],
        [("y", FLOAT, ["batch"])],
        {"table": table, "two": np.array(5, np.int64)},
        {"x": "5,8"},
    )
    rig.load(path)
    (answer,) = rig.run("m", [{"x": np.array([7, 6, 5])}], 4)
    np.testing.assert_array_equal(answer["y"], [2.0, 1.0, 0.0])


def test_strings_go_in_as_bytes(rig, tmp_path):
    node = helper.make_node("Identity", ["x"], ["y"])
    rig.load(save(tmp_path / "m.onnx", [node], [("x", STRING, ["batch", 1])], [("y", STRING, ["batch", 1])]))
    x = np.array([["é".encode()], [b"b"]], np.object_)
    (answer,) = rig.run("m", [{"x": x}], 2)
    assert answer["y"].tolist() == [["é"], ["b"]]


# --- failures -----------------------------------------------------------------------------------------


def test_a_raising_model_fails_only_its_dispatch(rig, tmp_path):
    rig.load(lookup(tmp_path / "m.onnx"))
    rig.start("m", [{"x": np.array([9])}], 1)
    failed = rig.completion()
    assert failed.error is not None
    assert "out of data bounds" in failed.error
    assert "/" not in failed.error.replace("N/A", "")
    assert not failed.lane_lost
    assert rig.executor.take_results(failed.dispatch_id) is None
    (answer,) = rig.run("m", [{"x": np.array([3])}], 1)
    np.testing.assert_array_equal(answer["y"], [[9, 10, 11]])


def test_a_model_that_is_not_loaded_fails_its_dispatch(rig):
    rig.start("absent", [{}], 1)
    assert rig.completion().error == "absent is not loaded"


def test_aborting_a_run_posts_one_completion_and_replaces_the_lane(rig, tmp_path, floats):
    rig.load(slow(tmp_path / "slow.onnx"))
    rig.load(double(tmp_path / "m.onnx", ["batch", 5]))
    x = np.eye(64, dtype=np.float32)
    number = rig.start("slow", [{"n": np.array(10**9), "x": x}], 1)
    rig.executor.abort(number, "hang limit passed")
    lost = rig.completion()
    assert (lost.dispatch_id, lost.error, lost.lane_lost) == (number, "hang limit passed", True)
    assert rig.next() == Device("restarted", 0)
    rig.run("m", [{"x": floats(1, 5)}], 1)
    rig.executor.abort(number, "again")
    assert rig.events.empty()
    assert rig.executor.take_results(number) is None


def test_an_abandoned_thread_ends_by_itself(tmp_path):
    executor = OnnxExecutor(MonotonicClock(), lane_layout(1, 1))
    rig = Rig(executor)
    rig.load(slow(tmp_path / "slow.onnx"))
    before = set(threading.enumerate())
    number = rig.start("slow", [{"n": np.array(10**9), "x": np.eye(64, dtype=np.float32)}], 1)
    executor.abort(number, "enough")
    rig.completion()
    assert rig.next() == Device("restarted", 0)
    (old,) = [thread for thread in before if thread.name == "cotenant-lane-0"]
    old.join(WAIT_S)
    assert not old.is_alive()
    assert rig.events.empty()
    executor.close()
    executor.close()


# --- loading ------------------------------------------------------------------------------------------


def test_an_unloaded_model_is_gone_and_can_come_back(rig, tmp_path, floats):
    metadata = rig.load(double(tmp_path / "m.onnx", ["batch", 5]))
    rig.executor.maintain(Maintain(id=1, kind="unload", model="m"))
    assert rig.next() == MaintenanceDone(maintenance_id=1, kind="unload", model="m")
    rig.start("m", [{"x": floats(1, 5)}], 1)
    assert rig.completion().error == "m is not loaded"
    rig.executor.maintain(Maintain(id=2, kind="load", model="m"))
    loaded = rig.next()
    assert loaded.metadata.memory_bytes >= metadata.memory_bytes > 0
    loaded = replace(loaded, metadata=replace(loaded.metadata, memory_bytes=metadata.memory_bytes))
    assert loaded == MaintenanceDone(
        maintenance_id=2, kind="load", model="m", spec=metadata.spec, metadata=metadata
    )
    rig.run("m", [{"x": floats(1, 5)}], 1)


def test_maintenance_that_fails_says_why(rig, tmp_path):
    path = tmp_path / "m.onnx"
    rig.load(double(path, ["batch", 5]))
    path.write_bytes(b"\x08\x08garbage")
    for number, (kind, model) in enumerate([("load", "m"), ("unload", "x"), ("load", "y"), ("probe", "m")]):
        rig.executor.maintain(Maintain(id=number, kind=kind, model=model))
    errors = [rig.next().error for _ in range(4)]  # type: ignore[union-attr]
    assert errors[0].startswith("model file m.onnx: ")
    assert str(tmp_path) not in errors[0]
    assert errors[1:] == [
        "model 'x' is not loaded",
        "unknown model 'y'",
        "this executor cannot probe; it can load and unload",
    ]
    assert "m" in rig.executor.models


def test_outputs_that_belie_the_batch_axis_are_refused_at_load(rig, tmp_path):
    node = helper.make_node("ReduceSum", ["x"], ["y"], keepdims=1)
    path = save(tmp_path / "m.onnx", [node], [("x", FLOAT, ["b", 2])], [("y", FLOAT, ["b", 1])])
    with pytest.raises(ValueError, match=r"m\.onnx: .*first dimension should be the rows"):
        rig.load(path)


def test_lanes_share_the_cores_out():
    assert [lane.units for lane in lane_layout(2, 4)] == [(0, 1), (2, 3)]
    assert [lane.units for lane in lane_layout(2, 3)] == [(0,), (1, 2)]
    assert [lane.units for lane in lane_layout(3, 2)] == [(0,), (1,), (0,)]
    with pytest.raises(ValueError, match="0 lanes on 2 cores"):
        lane_layout(0, 2)
