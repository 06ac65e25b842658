"""The torch executor on the CPU: segments, preemption at boundaries, staging, failures."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from itertools import pairwise
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from cotenant.clock import MonotonicClock  # noqa: E402
from cotenant.domain import (  # noqa: E402
    Completion,
    Device,
    Dispatch,
    Event,
    Prediction,
    Progress,
    Snapshot,
    Started,
    Variant,
)
from cotenant.execute.model import ModelSettings, example_inputs  # noqa: E402
from cotenant.execute.torch.architectures import Staged  # noqa: E402
from cotenant.execute.torch.executor import TorchExecutor  # noqa: E402
from cotenant.execute.torch.model import Blueprint, cut, example_state, prepare  # noqa: E402
from cotenant.execute.torch.zoo import ZOO, blueprint, default_buckets, tensor  # noqa: E402
from cotenant.ports import LaneInfo  # noqa: E402

pytestmark = pytest.mark.torch
WAIT_S = 30.0
CPU = torch.device("cpu")


class Gate(nn.Module):
    """A stage that adds 1 and, while `gates` has one for it, waits for that."""

    def __init__(self, gates: dict[int, threading.Event], number: int) -> None:
        super().__init__()
        self.gates, self.number = gates, number
        self.heavy = nn.Parameter(torch.zeros(5_000_000))  # big enough to be a segment of its own
        self.began = threading.Event()

    def forward(self, x: Any) -> tuple[Any]:
        self.began.set()
        gate = self.gates.get(self.number)
        if gate is not None:
            gate.wait(WAIT_S)
        if (x < -100).any():
            raise RuntimeError("negative\nsecret")
        return (x + 1 + self.heavy[0],)


class Rig:
    """An executor with the model `m` of 3 segments, each adding 1, and its events."""

    def __init__(self, n_lanes: int = 2, depth: int = 1) -> None:
        self.gates: dict[int, threading.Event] = {}
        lanes = [LaneInfo(index=i, units=(0,), depth=depth) for i in range(n_lanes)]
        self.executor = TorchExecutor(MonotonicClock(), lanes)
        self.stages = [Gate(self.gates, k) for k in range(3)]
        spec = [tensor(name, "FP32", "batch", 4) for name in ("x", "y")]
        found = self.executor.load(
            Blueprint(module=Staged(self.stages), inputs=(spec[0],), outputs=(spec[1],)),
            ModelSettings(name="m", max_batch=4),
        )
        self.n_segments = found.spec.n_segments
        self.events: SimpleQueue[Event] = SimpleQueue()
        self.executor.attach(self.events.put)
        for stage in self.stages:
            stage.began.clear()

    def hold(self, segment: int) -> threading.Event:
        self.gates[segment] = threading.Event()
        return self.gates[segment]

    def start(self, number: int, value: float = 0.0, **more: Any) -> None:
        values = {
            "variant": Variant("m", 1), "requests": (), "rows": 1, "lane": 0, "share": 1.0, "decided_at": 0,
            "latest_start_at": None, "first_segment": 0, "end_segment": self.n_segments,
            "prediction": Prediction(issued_at=0, finish_at=(0,) * 5, slo_level=0.99, version=0, corunners=0),
            "snapshot": Snapshot(at=0, in_flight=()),
        }  # fmt: skip
        dispatch = Dispatch(id=number, **{**values, **more})
        self.executor.start(dispatch, [{"x": np.full((1, 4), value, np.float32)}])

    def next(self) -> Event:
        return self.events.get(timeout=WAIT_S)

    def completion(self) -> Completion:
        """The next completion; what comes before it is dropped."""
        while True:
            event = self.next()
            if isinstance(event, Completion):
                return event

    def result(self, number: int) -> list[float]:
        results = self.executor.take_results(number)
        assert results is not None
        found: list[float] = results[0]["y"][0].tolist()
        return found


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    for gate in made.gates.values():
        gate.set()
    made.executor.close()


# --- models -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ZOO))
def test_a_model_of_the_zoo_is_its_segments_and_pads_rows_without_effect(name: str) -> None:
    made = blueprint(name, small=True)
    model = prepare(made, ModelSettings(name=name, buckets=default_buckets(name)), CPU)
    one, four = Variant(name, 1, model.metadata.spec.variants()[0].axes), None
    four = Variant(name, 4, one.axes)
    state = example_state(model.metadata, four, CPU)
    with torch.inference_mode():
        whole = made.module(*state)
        parts: tuple[Any, ...] = state
        for segment in model.segments:
            parts = segment(*parts)
        alone = made.module(*[x[:1] for x in state])
    for spec, expected, found, single in zip(model.metadata.outputs, whole, parts, alone, strict=True):
        assert torch.equal(expected, found)
        assert torch.isfinite(found).all()
        assert list(found.shape[1:]) == list(spec.shape[1:])
        assert torch.allclose(single, expected[:1], rtol=1e-4, atol=1e-5)
    assert len(model.costs) == model.n_segments == model.metadata.spec.n_segments
    assert all(cost.bytes > 0 for cost in model.costs)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_answers_of_the_zoo_depend_on_what_is_asked(name: str) -> None:
    """Else comparing outputs would say nothing."""
    made = blueprint(name, small=True)
    model = prepare(made, ModelSettings(name=name, buckets=default_buckets(name)), CPU)
    variant, rng = model.metadata.spec.variants()[0], np.random.default_rng(1)
    answers = []
    for _ in range(2):
        inputs = example_inputs(model.metadata, variant, rng)
        with torch.inference_mode():
            answers.append(made.module(*[torch.from_numpy(inputs[s.name]) for s in model.metadata.inputs])[0])
    assert (answers[0] - answers[1]).norm() > 0.02 * answers[0].norm()


def test_weights_come_from_the_seed() -> None:
    first, again, other = (blueprint("dlrm", small=True, seed=seed) for seed in (1, 1, 2))
    pairs = [zip(a.module.parameters(), first.module.parameters(), strict=True) for a in (again, other)]
    assert all(torch.equal(a, b) for a, b in pairs[0])
    assert not all(torch.equal(a, b) for a, b in pairs[1])


def test_an_unknown_model_and_a_loose_axis_are_clear_errors() -> None:
    with pytest.raises(ValueError, match=r"'resnet9'.*there are: bert_base"):
        blueprint("resnet9", small=True)
    with pytest.raises(ValueError, match=r"axes .'seq'. need sizes"):
        prepare(blueprint("embedder", small=True), ModelSettings(name="e"), CPU)


@given(st.lists(st.floats(0.01, 100.0), min_size=1, max_size=12), st.integers(1, 8))
def test_cuts_are_contiguous_and_no_other_choice_has_a_shorter_longest_part(
    spans: Sequence[float], n: int
) -> None:
    n = min(n, len(spans))
    bounds = cut(spans, n)
    assert bounds[0] == 0
    assert bounds[-1] == len(spans)
    assert len(bounds) == n + 1
    assert all(a < b for a, b in pairwise(bounds))
    longest = max(sum(spans[a:b]) for a, b in pairwise(bounds))

    def fits(limit: float) -> bool:
        parts, room = 1, limit
        for span in spans:
            if span > room:
                parts, room = parts + 1, limit
            room -= span
        return parts <= n

    assert not fits(longest * (1 - 1e-9) - 1e-9) or max(spans) >= longest * (1 - 1e-9)


# --- running ----------------------------------------------------------------------------------------------


def test_boundaries_are_told_and_timed(rig: Rig) -> None:
    assert rig.n_segments == 3
    rig.start(1, 5.0)
    events = [rig.next(), rig.next(), rig.next()]
    assert [event.segment for event in events[:2] if isinstance(event, Progress)] == [1, 2]
    end = events[2]
    assert isinstance(end, Completion)
    assert end.error is None
    assert list(end.segment_ended_at) == sorted(end.segment_ended_at)
    assert len(end.segment_ended_at) == 3
    assert end.started_at <= end.segment_ended_at[0] <= end.segment_ended_at[2] <= end.ended_at
    assert rig.result(1) == [8.0] * 4


def test_a_preempted_run_goes_on_elsewhere_with_the_same_answer(rig: Rig) -> None:
    gate = rig.hold(0)
    rig.start(1, 5.0)
    assert rig.stages[0].began.wait(WAIT_S)
    rig.executor.preempt(1)
    rig.executor.preempt(99)
    gate.set()
    end = rig.completion()
    assert end.error is None
    assert end.next_segment in (1, 2)
    assert len(end.segment_ended_at) == end.next_segment
    assert rig.executor.take_results(1) is None
    rig.start(2, 0.0)  # something else runs meanwhile
    rig.completion()
    rig.start(3, 5.0, lane=1, first_segment=end.next_segment, resumes=1)
    assert rig.completion().error is None
    assert rig.result(3) == [8.0] * 4


def test_kept_state_is_dropped_by_an_abort_and_can_then_not_be_resumed(rig: Rig) -> None:
    gate = rig.hold(0)
    rig.start(1)
    assert rig.stages[0].began.wait(WAIT_S)
    rig.executor.preempt(1)
    gate.set()
    stopped = rig.completion().next_segment
    rig.executor.abort(1, "nobody waits any more")
    rig.start(2, first_segment=stopped, resumes=1)
    assert rig.completion().error == "what it should go on with is gone"
    rig.start(3)
    assert rig.completion().error is None


def test_a_staged_dispatch_starts_when_the_one_before_it_ends(rig: Rig) -> None:
    gate = rig.hold(1)
    rig.start(1, 1.0)
    rig.start(2, 2.0)
    assert rig.stages[1].began.wait(WAIT_S)
    gate.set()
    events = []
    while sum(isinstance(event, Completion) for event in events) < 2:
        events.append(rig.next())
    ends = [event for event in events if isinstance(event, Completion)]
    assert [end.dispatch_id for end in ends] == [1, 2]
    (started,) = [event for event in events if isinstance(event, Started)]
    assert started.dispatch_id == 2
    assert ends[0].segment_ended_at[-1] <= started.started_at == ends[1].started_at
    assert rig.result(1) == [4.0] * 4
    assert rig.result(2) == [5.0] * 4


def test_a_staged_dispatch_can_be_withdrawn(rig: Rig) -> None:
    gate = rig.hold(0)
    rig.start(1)
    rig.start(2)
    assert rig.stages[0].began.wait(WAIT_S)
    rig.executor.abort(2, "cancelled")
    withdrawn = rig.completion()
    assert (withdrawn.dispatch_id, withdrawn.lane_lost) == (2, False)
    assert withdrawn.error == "withdrawn before it started: cancelled"
    gate.set()
    assert rig.completion().error is None
    rig.start(3)
    assert rig.completion().error is None


def test_a_run_that_hangs_loses_its_lane_which_comes_back(rig: Rig) -> None:
    gate = rig.hold(0)
    rig.start(1)
    rig.start(2)
    assert rig.stages[0].began.wait(WAIT_S)
    rig.executor.abort(1, "too long")
    ends = [rig.completion(), rig.completion()]
    assert [(end.dispatch_id, end.lane_lost) for end in ends] == [(1, True), (2, True)]
    assert rig.next() == Device("restarted", 0)
    del rig.gates[0]
    rig.start(3, 1.0)
    assert rig.completion().error is None
    gate.set()
    assert rig.result(3) == [4.0] * 4
    assert rig.executor.take_results(1) is None


def test_a_run_that_raises_fails_alone_and_says_why_in_a_line(rig: Rig) -> None:
    rig.start(1, -500.0)
    rig.start(2, 5.0, lane=1)
    ends = {end.dispatch_id: end for end in (rig.completion(), rig.completion())}
    assert ends[1].error == "RuntimeError: negative"
    assert not ends[1].lane_lost
    assert ends[2].error is None
    rig.start(3, 5.0)
    assert rig.completion().error is None


def test_outputs_under_colocation_are_those_of_a_lone_run() -> None:
    executor = TorchExecutor(MonotonicClock(), [LaneInfo(index=i, units=(0,), depth=1) for i in range(3)])
    events: SimpleQueue[Event] = SimpleQueue()
    executor.attach(events.put)
    names = ("resnet50", "embedder", "gpt2")
    models = {
        name: executor.load(
            blueprint(name, small=True), ModelSettings(name=name, buckets=default_buckets(name))
        )
        for name in names
    }
    rng = np.random.default_rng(7)
    alone: dict[int, Any] = {}
    together: dict[int, Any] = {}
    work = []
    for number in range(1, 61):
        metadata = models[names[number % 3]]
        variants = metadata.spec.variants()
        variant = variants[int(rng.integers(len(variants)))]
        work.append((number, metadata, variant, example_inputs(metadata, variant, rng)))

    def start(number: int, metadata: Any, variant: Variant, inputs: Any, lane: int) -> None:
        executor.start(
            Dispatch(
                id=number, variant=variant, requests=(), rows=variant.rows, lane=lane, share=1.0,
                decided_at=0, latest_start_at=None, first_segment=0, end_segment=metadata.spec.n_segments,
                prediction=Prediction(
                    issued_at=0, finish_at=(0,) * 5, slo_level=0.99, version=0, corunners=0
                ),
                snapshot=Snapshot(at=0, in_flight=()),
            ),
            [inputs],
        )  # fmt: skip

    def wait() -> Completion:
        while True:
            event = events.get(timeout=WAIT_S)
            if isinstance(event, Completion):
                assert event.error is None
                return event

    for number, metadata, variant, inputs in work:
        start(number, metadata, variant, inputs, 0)
        wait()
        alone[number] = executor.take_results(number)
    waiting, free = list(work), [0, 1, 2, 0, 1, 2]
    while waiting or len(free) < 6:
        while waiting and free:
            start(*waiting.pop(0), free.pop(0))
        end = wait()
        free.append(end.lane)
        together[end.dispatch_id] = executor.take_results(end.dispatch_id)
    executor.close()
    for number, results in alone.items():
        for name, array in results[0].items():
            assert np.array_equal(array, together[number][0][name]), f"dispatch {number} differs"
