"""Python functions and classes on lanes: batches, instances, segments, failures, company of ONNX models."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
from onnx_models import double

from cotenant.clock import MonotonicClock
from cotenant.domain import (
    Completion,
    Device,
    Dispatch,
    Event,
    ModelMetadata,
    Prediction,
    Progress,
    Snapshot,
    Variant,
)
from cotenant.execute.lanes import lane_layout
from cotenant.execute.model import ModelSettings
from cotenant.execute.onnx import OnnxExecutor
from cotenant.execute.onnx_model import inspect
from cotenant.execute.python import PythonSource
from cotenant.execute.python_metadata import metadata_of
from cotenant.execute.python_model import Declaration, PythonModel

WAIT_S = 30.0
ROW = {"x": np.zeros((1, 3), np.float32)}


class Rig:
    """An executor of two lanes and what it posts."""

    def __init__(self, memory_limit: int | None = None) -> None:
        self.executor = OnnxExecutor(MonotonicClock(), lane_layout(2, 2), memory_limit=memory_limit)
        self.events: SimpleQueue[Event] = SimpleQueue()
        self.n = 0
        self.executor.attach(self.events.put)

    def load(self, target: Any, *, name: str = "m", max_batch: int = 4, **said: Any) -> ModelMetadata:
        settings = ModelSettings(name=name, max_batch=max_batch, buckets=said.pop("buckets", {}))
        model = PythonModel(target, Declaration(settings=settings, **{"example": ROW, **said}))
        metadata = metadata_of(model, settings)
        self.executor.load(metadata, PythonSource(model))
        return metadata

    def start(self, inputs: Sequence[dict[str, Any]], rows: int = 1, **more: Any) -> int:
        self.n += 1
        values = {
            "variant": Variant(more.pop("model", "m"), rows, more.pop("axes", ())), "requests": (),
            "rows": rows, "lane": 0, "share": 1.0, "decided_at": 0, "latest_start_at": None,
            "first_segment": 0, "end_segment": 1, "snapshot": Snapshot(at=0, in_flight=()),
            "prediction": Prediction(issued_at=0, finish_at=(0,) * 5, slo_level=0.99, version=0, corunners=0),
        }  # fmt: skip
        self.executor.start(Dispatch(id=self.n, **{**values, **more}), inputs)
        return self.n

    def next(self) -> Event:
        return self.events.get(timeout=WAIT_S)

    def completion(self) -> Completion:
        """The next completion; what comes before it is dropped."""
        while not isinstance(event := self.next(), Completion):
            pass
        return event

    def run(self, inputs: Sequence[dict[str, Any]], rows: int = 1, **more: Any) -> Sequence[Any]:
        number = self.start(inputs, rows, **more)
        assert self.completion().error is None
        results = self.executor.take_results(number)
        assert results is not None
        return results


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.executor.close()


def rows(*values: float) -> dict[str, np.ndarray]:
    return {"x": np.repeat(np.asarray(values, np.float32)[:, None], 3, 1)}


# --- what it takes and gives ---------------------------------------------------------------------------


def test_types_are_read_off_an_example_and_its_outputs(rig: Rig) -> None:
    found = rig.load(lambda x: {"sum": x.sum(1), "n": np.arange(len(x))})
    assert [(i.name, i.datatype, i.shape) for i in found.inputs] == [("x", "FP32", (-1, 3))]
    assert [(o.name, o.datatype, o.shape) for o in found.outputs] == [
        ("sum", "FP32", (-1,)),
        ("n", "INT64", (-1,)),
    ]
    assert (found.batched, found.platform, found.spec.row_buckets) == (True, "python", (1, 2, 4))


def test_axes_of_outputs_follow_those_of_the_inputs(rig: Rig) -> None:
    found = rig.load(
        lambda ids, mask: {"same": ids * mask, "twice": np.repeat(ids, 2, 1), "sum": ids.sum(1)},
        inputs={"ids": ("int64", ["seq"]), "mask": ("int64", ["seq"])},
        example={},
        outputs=None,
    )
    axes = {o.name: o.axes for o in found.outputs}
    assert axes == {"same": ("batch", "seq"), "twice": ("batch", "twice:1"), "sum": ("batch",)}
    assert {o.name: o.shape for o in found.outputs}["same"] == (-1, -1)


def test_padded_axes_are_cut_back(rig: Rig) -> None:
    rig.load(
        lambda ids: {"next": ids + 1, "n": np.full(len(ids), ids.shape[1])},
        inputs={"ids": ("int64", ["seq"])}, example={}, buckets={"seq": [4, 8]},
    )  # fmt: skip
    asked = [{"ids": np.array([[1, 2, 3]])}, {"ids": np.array([[5, 6, 7, 8, 9]])}]
    first, second = rig.run(asked, 2, axes=(("seq", 8),))
    assert first["next"].tolist() == [[2, 3, 4]]
    assert second["next"].tolist() == [[6, 7, 8, 9, 10]]
    assert first["n"].tolist() == [8]


def test_a_model_of_one_request_at_a_time_gets_no_axis_of_rows(rig: Rig) -> None:
    found = rig.load(lambda x: x.sum(), example={"x": np.zeros(3, np.float32)}, batched=False)
    assert (found.batched, found.spec.max_batch) == (False, 1)
    (answer,) = rig.run([{"x": np.ones(3, np.float32)}])
    assert answer["output"] == 3


def test_text_goes_in_and_comes_out(rig: Rig) -> None:
    rig.load(lambda x: np.array([f"<{t}>" for t in x]), example={"x": np.array(["a"])})
    (answer,) = rig.run([{"x": np.array([b"b", b"c"], object)}], 2)
    assert answer["output"].tolist() == ["<b>", "<c>"]


@pytest.mark.parametrize(
    ("target", "said", "message"),
    [
        (lambda x: x, {"example": {}}, r"nothing is known of its input 'x'.*example="),
        (lambda x: x, {"example": {"z": 1}}, r"example names \['z'\]; its parameters are \['x'\]"),
        (lambda: 1, {}, "takes no arrays"),
        (type("C", (), {}), {}, "needs __call__ or predict"),
        (lambda x: x.sum(), {}, r"output 'output' has shape \[\] for 2 rows.*batched=False"),
        (lambda x: x.astype(complex), {}, "'output' has element type complex"),
        (lambda x: {}, {}, "gives no outputs"),
    ],
)
def test_a_declaration_that_does_not_fit_is_refused(
    rig: Rig, target: Any, said: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        rig.load(target, **said)


# --- batches -------------------------------------------------------------------------------------------


def test_requests_share_a_batch_and_answers_outlive_the_next(rig: Rig) -> None:
    seen = []

    def same(x: np.ndarray) -> np.ndarray:
        seen.append(len(x))
        return x

    rig.load(same)
    first, second = rig.run([rows(1, 2), rows(3)], 4)
    rig.run([rows(7, 8, 9)], 4)
    assert seen[-1] == 4
    assert first["output"][:, 0].tolist() == [1, 2]
    assert second["output"][:, 0].tolist() == [3]


def test_inputs_may_be_written_to_and_no_caller_sees_it(rig: Rig) -> None:
    def worn(x: np.ndarray) -> np.ndarray:
        x += 1
        return x

    rig.load(worn)
    given = rows(1)
    given["x"].flags.writeable = False
    (answer,) = rig.run([given])
    assert answer["output"][0, 0] == 2
    assert given["x"][0, 0] == 1


# --- classes -------------------------------------------------------------------------------------------


def test_every_lane_has_an_instance_of_its_own_that_is_set_up_once(rig: Rig) -> None:
    made: list[Any] = []

    class Model:
        def setup(self) -> None:
            made.append(self)

        def predict(self, x: np.ndarray) -> dict[str, np.ndarray]:
            return {"which": np.full(len(x), made.index(self))}

    rig.load(Model)
    assert len(made) == 2
    found = [rig.run([rows(0)], lane=lane)[0]["which"][0] for lane in (0, 1, 0, 1)]
    assert found[0] != found[1]
    assert found[:2] == found[2:]


# --- failures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda x: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda x: exit(3), "SystemExit: 3"),
        (lambda x: x[:1], "output 'output' has shape [1, 3] for 2 rows; expected [-1, 3]"),
        (lambda x: x[:, :2], "output 'output' has shape [2, 2] for 2 rows"),
        (lambda x: {"y": x}, "output 'output' is missing; there are ['y']"),
        (lambda x: np.array(["a"] * 2)[:, None].repeat(3, 1), "output 'output' is object; expected float32"),
        (lambda x: None, "gives NoneType; expected a dict of arrays, or one array"),
    ],
)
def test_a_run_that_fails_fails_alone_and_says_why(
    rig: Rig, answer: Callable[[Any], Any], error: str
) -> None:
    good = True
    rig.load(lambda x: x if good else answer(x))
    good = False
    number = rig.start([rows(1, 2)], 2)
    end = rig.completion()
    assert error in (end.error or "")
    assert not end.lane_lost
    assert rig.executor.take_results(number) is None
    good = True
    assert rig.run([rows(5)])[0]["output"][0, 0] == 5


def test_an_endless_run_is_interrupted_when_it_is_given_up_and_the_lane_gets_a_new_instance(rig: Rig) -> None:
    hang, entered, left, n_made = threading.Event(), threading.Event(), threading.Event(), []

    class Model:
        def __init__(self) -> None:
            n_made.append(1)

        def __call__(self, x: np.ndarray) -> np.ndarray:
            try:
                while hang.is_set():
                    entered.set()
            finally:
                left.set()
            return x

    rig.load(Model)
    before = len(n_made)
    hang.set()
    left.clear()
    number = rig.start([rows(1)])
    assert entered.wait(WAIT_S)
    rig.executor.abort(number, "hang limit passed")
    lost = rig.completion()
    assert (lost.error, lost.lane_lost) == ("hang limit passed", True)
    assert rig.next() == Device("restarted", 0)
    assert left.wait(WAIT_S)
    hang.clear()
    assert len(n_made) == before + 1
    rig.run([rows(2)])
    assert rig.events.empty()


def test_loading_fails_with_the_name_and_the_reason_and_the_old_one_stays(rig: Rig) -> None:
    rig.load(lambda x: x)
    with pytest.raises(ValueError, match="model 'm': ZeroDivisionError"):
        rig.load(lambda x: x + 1 // (4 - len(x)))  # fails at 4 rows only
    assert rig.run([rows(1)])[0]["output"][0, 0] == 1


# --- segments ------------------------------------------------------------------------------------------


class Staged:
    """Three segments; each waits at its gate while that is closed."""

    def __init__(self) -> None:
        self.open = [threading.Event() for _ in range(3)]
        self.began = [threading.Event() for _ in range(3)]
        for gate in self.open:
            gate.set()

    def __call__(self, x: np.ndarray) -> Iterator[None]:
        for k in range(3):
            self.began[k].set()
            self.open[k].wait(WAIT_S)
            x = x + 1
            if k < 2:
                yield
        return {"y": x}


def test_a_generator_runs_in_segments_that_are_told(rig: Rig) -> None:
    stages = Staged()

    def staged(x: np.ndarray) -> Any:
        return (yield from stages(x))

    assert rig.load(staged).spec.n_segments == 3
    number = rig.start([rows(1), rows(5)], 2, end_segment=3)
    told = [rig.next() for _ in range(3)]
    assert [(t.dispatch_id, t.segment) for t in told[:2] if isinstance(t, Progress)] == [(1, 1), (1, 2)]
    end = told[2]
    assert isinstance(end, Completion)
    assert (end.next_segment, len(end.segment_ended_at)) == (None, 3)
    assert list(end.segment_ended_at) == sorted(end.segment_ended_at)
    results = rig.executor.take_results(number)
    assert [r["y"][0, 0] for r in results or ()] == [4, 8]


def test_a_preempted_run_goes_on_where_it_stopped_on_any_lane_after_others_ran(rig: Rig) -> None:
    stages = Staged()

    def staged(x: np.ndarray) -> Any:
        return (yield from stages(x))

    rig.load(staged)
    stages.open[0].clear()
    stages.began[0].clear()
    first = rig.start([rows(1)], end_segment=3)
    assert stages.began[0].wait(WAIT_S)
    rig.executor.preempt(first)
    stages.open[0].set()
    end = rig.completion()
    assert (end.error, end.next_segment, len(end.segment_ended_at)) == (None, 1, 1)
    assert end.ended_at == end.segment_ended_at[-1]
    assert rig.executor.take_results(first) is None
    assert rig.run([rows(10)], end_segment=3)[0]["y"][0, 0] == 13
    (resumed,) = rig.run([rows(1)], lane=1, first_segment=1, end_segment=3, resumes=first)
    assert resumed["y"][0, 0] == 4


def test_a_stopped_run_that_is_aborted_or_whose_model_was_replaced_cannot_go_on(rig: Rig) -> None:
    stages = Staged()

    def staged(x: np.ndarray) -> Any:
        return (yield from stages(x))

    rig.load(staged)
    for forget in (lambda: rig.executor.abort(rig.n, "dropped"), lambda: rig.load(staged)):
        stages.open[0].clear()
        stages.began[0].clear()
        stopped = rig.start([rows(1)], end_segment=3)
        assert stages.began[0].wait(WAIT_S)
        rig.executor.preempt(stopped)
        stages.open[0].set()
        assert rig.completion().next_segment == 1
        forget()
        rig.start([rows(1)], first_segment=1, end_segment=3, resumes=stopped)
        assert rig.completion().error == "what it should go on with is gone"


def test_another_number_of_segments_than_on_the_example_is_an_error(rig: Rig) -> None:
    more = 0

    def staged(x: np.ndarray) -> Any:
        for _ in range(1 + more):
            yield
        return x

    rig.load(staged)
    for more in (1, -1):  # noqa: B007 - read by the model
        rig.start([rows(1)], end_segment=2)
        assert "has 2 segments on its example, but not here" in (rig.completion().error or "")


def test_a_model_in_segments_needs_buckets_for_its_axes(rig: Rig) -> None:
    def staged(ids: np.ndarray) -> Any:
        yield
        return ids

    with pytest.raises(ValueError, match="variable axis 'seq' of 'ids' needs buckets"):
        rig.load(staged, inputs={"ids": ("int64", ["seq"])}, example={})
    rig.load(staged, inputs={"ids": ("int64", ["seq"])}, example={}, buckets={"seq": [4]})


# --- company -------------------------------------------------------------------------------------------


def test_onnx_and_python_models_share_the_lanes(rig: Rig, tmp_path: Any) -> None:
    path = double(tmp_path / "twice.onnx", ["batch", 3])
    rig.executor.load(inspect(path, ModelSettings(name="twice")), path)
    rig.load(lambda x: x + 1, name="more")
    for lane in (0, 1):
        assert rig.run([rows(4)], model="twice", lane=lane)[0]["y"][0, 0] == 8
        assert rig.run([rows(4)], model="more", lane=lane)[0]["output"][0, 0] == 5


class Large:
    """Takes 48 MiB for each lane."""

    def __init__(self) -> None:
        self.weights = np.ones(48 << 18, np.float32)

    def __call__(self, x: Any) -> Any:
        return x * self.weights[0]


def test_the_instances_of_a_class_count_against_the_memory_budget() -> None:
    rig = Rig(memory_limit=64 << 20)
    try:
        with pytest.raises(ValueError, match=r"model 'large': it needs about 9\d\.\d MiB .* 64\.0 of the 64"):
            rig.load(Large, name="large")
        rig.load(lambda x: 2 * x, name="small")
        assert rig.run([ROW], model="small")
    finally:
        rig.executor.close()
