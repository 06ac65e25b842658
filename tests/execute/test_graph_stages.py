"""Modules that do not say their stages, cut into segments: archives and factories."""

from __future__ import annotations

import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from cotenant.clock import MonotonicClock  # noqa: E402
from cotenant.domain import Completion, Dispatch, Event, Prediction, Snapshot, Variant  # noqa: E402
from cotenant.execute.model import ModelSettings  # noqa: E402
from cotenant.execute.torch import model as torch_model  # noqa: E402
from cotenant.execute.torch.executor import TorchExecutor  # noqa: E402
from cotenant.execute.torch.exported import place  # noqa: E402
from cotenant.execute.torch.graph_stages import choose  # noqa: E402
from cotenant.execute.torch.load import from_archive, from_factory  # noqa: E402
from cotenant.execute.torch.model import Blueprint, TorchModel, Whole, example_state, prepare  # noqa: E402
from cotenant.execute.torch.zoo import blueprint, tensor  # noqa: E402
from cotenant.ports import LaneInfo  # noqa: E402

pytestmark = pytest.mark.torch
WAIT_S = 30.0
CPU = torch.device("cpu")
WIDTH = 32


class Skips(nn.Module):
    """A residual chain whose first values are needed at its end; writes to its own intermediate values."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(6))
        self.norm = nn.BatchNorm1d(WIDTH)
        self.loose = torch.randn(WIDTH)  # neither parameter nor buffer

    def forward(self, x: Any) -> Any:
        first = self.layers[0](x)
        x = self.norm(first).relu_()
        for layer in self.layers[1:]:
            x = x + layer(x).mul_(self.loose)
        return torch.cat([first, x], 1) + torch.arange(2 * WIDTH, device=x.device)


class TwoInputs(nn.Module):
    """The second input is needed only at the end; a mapping of two outputs, the second a plain input."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(6))

    def forward(self, x: Any, shift: Any) -> Any:
        for layer in self.layers:
            x = torch.relu(layer(x))
        parts = (x * torch.tensor(2.0)).chunk(2, 1)
        return {"z": parts[0] + parts[1] + shift.expand(-1, WIDTH // 2), "a": shift}


class Words(nn.Module):
    """Rows and a second axis of any size: positions, a mask that is expanded, sizes multiplied and used far
    from where they are read."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.place = nn.Embedding(50, WIDTH), nn.Parameter(torch.randn(1, 128, WIDTH))
        self.layers = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(4))

    @torch.no_grad()
    def forward(self, tokens: Any) -> Any:
        rows, length = tokens.shape
        mask = (tokens == 3)[:, None, :].expand(rows, length, length)
        x = self.word(tokens) + self.place[:, :length]
        for layer in self.layers:
            q, k, v = layer(x.reshape(rows * length, WIDTH)).view(rows, length, -1).chunk(3, -1)
            scores = (q @ k.transpose(1, 2)).masked_fill(mask, -1e4)
            x = x + scores.softmax(-1) @ v
        return x.mean(1), x.sum(2)


ROWS = torch.export.Dim("rows", min=1, max=64)
CASES: dict[str, tuple[Any, dict[str, Any], Any]] = {
    "skips": (Skips, {"x": torch.zeros(2, WIDTH)}, {"x": {0: ROWS}}),
    "two inputs": (
        TwoInputs,
        {"x": torch.zeros(2, WIDTH), "shift": torch.zeros(2, 1)},
        {"x": {0: ROWS}, "shift": {0: ROWS}},
    ),
    "dynamic axis": (
        Words,
        {"tokens": torch.zeros(2, 9, dtype=torch.int64)},
        {"tokens": {0: ROWS, 1: torch.export.Dim("length", min=2, max=128)}},
    ),
}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of a hundredth of the usual span, so that small models are worth cutting."""
    monkeypatch.setattr(torch_model, "SEGMENT_NS", {"cpu": 20_000, "cuda": 5_000})


def archived(case: str, folder: Path) -> Blueprint:
    torch.manual_seed(0)
    make, inputs, axes = CASES[case]
    program = torch.export.export(make().eval(), tuple(inputs.values()), dynamic_shapes=axes)
    torch.export.save(program, folder / "own.pt2")
    return from_archive(folder / "own.pt2")


def made(module: nn.Module, **inputs: Any) -> Blueprint:
    """What `from_factory` makes of a module."""
    with torch.inference_mode():
        found = Whole(module.eval())(*inputs.values())
    return Blueprint(
        module=Whole(module),
        inputs=tuple(
            tensor(name, torch_model.TYPES[x.dtype], "batch", *x.shape[1:]) for name, x in inputs.items()
        ),
        outputs=tuple(tensor(f"output_{n}", "FP32", "batch", *x.shape[1:]) for n, x in enumerate(found)),
    )


def states(model: TorchModel) -> list[tuple[Any, ...]]:
    """Inputs of every variant; every token occurs."""
    found = []
    for variant in model.metadata.spec.variants():
        state = example_state(model.metadata, variant, CPU)
        found.append(
            tuple(torch.arange(x.numel()).view(x.shape) % 50 if x.dtype == torch.int64 else x for x in state)
        )
    return found


def run(segments: Any, state: tuple[Any, ...]) -> tuple[Any, ...]:
    with torch.inference_mode():
        state = tuple(x.clone() for x in state)
        for segment in segments:
            state = segment(*state)
    return state


def assert_is_whole(model: TorchModel, module: nn.Module) -> None:
    """The segments answer as the module does, to the bit, at every size that is served."""
    for state in states(model):
        for expected, found in zip(run([module], state), run(model.segments, state), strict=True):
            assert torch.equal(expected, found)
            assert expected.dtype == found.dtype


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("case", CASES)
def test_an_archive_is_cut_and_its_segments_are_the_unsplit_module(case: str, tmp_path: Path) -> None:
    found = archived(case, tmp_path)
    again = Whole(torch.export.load(tmp_path / "own.pt2").module())
    buckets = {axis: (2, 5, 32) for spec in found.inputs for axis in spec.axes[1:] if axis}
    model = prepare(found, ModelSettings(name="m", max_batch=6, buckets=buckets), CPU)
    assert model.uncut == ""
    assert 2 <= model.n_segments <= 8
    assert len(model.costs) == model.n_segments == model.metadata.spec.n_segments
    assert len(states(model)) == 4 * (3 if buckets else 1)
    assert_is_whole(model, found.module)
    for state in states(model):  # weights of its own, differently aligned in memory: the last bits may differ
        assert all(map(torch.allclose, run([again], state), run(model.segments, state)))


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("case", CASES)
def test_a_factorys_module_is_cut_and_its_segments_are_the_unsplit_module(case: str) -> None:
    torch.manual_seed(0)
    make, inputs, _ = CASES[case]
    module = make()
    model = prepare(made(module, **inputs), ModelSettings(name="m", max_batch=8), CPU)
    assert model.uncut == ""
    assert 2 <= model.n_segments <= 8
    assert_is_whole(model, Whole(module))


@pytest.mark.usefixtures("short")
def test_a_model_of_the_zoo_without_its_stages_is_cut_through_its_graph() -> None:
    for name in ("gpt2", "unet"):
        found = blueprint(name, small=True)
        whole = Blueprint(module=Whole(found.module), inputs=found.inputs, outputs=found.outputs)
        model = prepare(whole, ModelSettings(name=name, max_batch=2), CPU)
        assert model.n_segments == 8
        spans = [cost.span_ns(torch_model.RATES["cpu"]) for cost in model.costs]
        assert max(spans) < sum(spans) / 3
        assert_is_whole(model, found.module)


def test_a_graph_that_names_the_device_of_its_export_runs_on_another(tmp_path: Path) -> None:
    module: Any = archived("skips", tmp_path).module
    assert "device(type='cpu')" in module.body.code
    elsewhere = torch.device("meta")
    place(module.to(elsewhere), elsewhere)
    (found,) = module(torch.zeros(3, WIDTH, device=elsewhere))
    assert found.device == elsewhere
    assert found.shape == (3, 2 * WIDTH)


def test_a_short_model_is_not_cut() -> None:
    model = prepare(made(Skips(), x=torch.zeros(2, WIDTH)), ModelSettings(name="m", max_batch=2), CPU)
    assert (model.n_segments, model.uncut) == (1, "")


class Fickle(nn.Module):
    """Looks at values: cannot be traced."""

    def forward(self, x: Any) -> Any:
        for _ in range(20):
            x = x + 1 if x.sum() > 0 else x - 1
        return x


class Counting(nn.Module):
    """Changes a buffer as it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.n = nn.Buffer(torch.zeros(1))

    def forward(self, x: Any) -> Any:
        for _ in range(20):
            x = torch.relu(x + 1)
        self.n.add_(1)
        return x


class Shifting(nn.Module):
    """Answers otherwise than its graph, which remembers what it was when it was traced."""

    n = 0

    def forward(self, x: Any) -> Any:
        self.n += 1
        for _ in range(20):
            x = x + self.n
        return x


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("module", "reason"), [(Fickle(), ""), (Counting(), "its own weights"), (Shifting(), "not close")]
)
def test_a_module_that_cannot_be_cut_is_one_segment_and_says_why(module: Any, reason: str) -> None:
    model = prepare(made(module, x=torch.ones(2, WIDTH)), ModelSettings(name="m", max_batch=4), CPU)
    assert model.n_segments == 1
    assert reason in model.uncut
    assert model.uncut.count("\n") == 0 < len(model.uncut)
    if not isinstance(module, Shifting):
        assert_is_whole(model, Whole(module))


def test_boundaries_with_few_bytes_go_first_and_keep_their_distance() -> None:
    until = [float(p) for p in range(129)]
    layers = {p: 10 if p % 8 == 0 else 90 for p in range(1, 128)}
    taken = choose(until, layers)
    assert taken == list(range(8, 128, 8))
    assert choose(until, dict.fromkeys(range(1, 128), 5)) == list(range(2, 127, 2))
    long = {p: n for p, n in layers.items() if p not in (56, 64, 72)}
    inside = [p for p in choose(until, long) if p % 8]
    assert inside
    assert all(48 + 8 <= p <= 80 - 8 for p in inside)


@pytest.mark.usefixtures("short")
def test_a_cut_archive_that_is_stopped_at_a_boundary_goes_on_to_the_same_answer(tmp_path: Path) -> None:
    executor = TorchExecutor(MonotonicClock(), [LaneInfo(index=i, units=(0,), depth=0) for i in range(2)])
    metadata = executor.load(archived("skips", tmp_path), ModelSettings(name="m", max_batch=4))
    n, (name,) = metadata.spec.n_segments, [spec.name for spec in metadata.inputs]
    events: SimpleQueue[Event] = SimpleQueue()
    executor.attach(events.put)
    began, gate = threading.Event(), threading.Event()
    array = np.random.default_rng(1).standard_normal((3, WIDTH)).astype(np.float32)

    def start(number: int, lane: int, first: int, **more: Any) -> None:
        dispatch = Dispatch(
            id=number, variant=Variant("m", 4), requests=(), rows=3, lane=lane, share=1.0, decided_at=0,
            latest_start_at=None, first_segment=first, end_segment=n,
            prediction=Prediction(issued_at=0, finish_at=(0,) * 5, slo_level=0.99, version=0, corunners=0),
            snapshot=Snapshot(at=0, in_flight=()), **more,
        )  # fmt: skip
        executor.start(dispatch, [{name: array}])

    def wait() -> Completion:
        while True:
            event = events.get(timeout=WAIT_S)
            if isinstance(event, Completion):
                assert event.error is None
                return event

    start(1, 0, 0)
    wait()
    (expected,) = executor.take_results(1)[0].values()  # type: ignore[index]

    def hold(*_: Any) -> None:
        began.set()
        gate.wait(WAIT_S)

    hook = executor.models["m"].segments[1].register_forward_pre_hook(hold)
    start(2, 0, 0)
    assert began.wait(WAIT_S)
    executor.preempt(2)
    gate.set()
    stopped = wait().next_segment
    assert stopped is not None
    assert 0 < stopped < n
    hook.remove()
    start(3, 1, stopped, resumes=2)
    wait()
    (found,) = executor.take_results(3)[0].values()  # type: ignore[index]
    executor.close()
    assert np.array_equal(found, expected)


def test_a_factory_is_loaded_as_before(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def build():\n    return nn.Linear(4, 3), {'x': torch.zeros(1, 4)}\n"
    )
    found = from_factory("own:build", tmp_path)
    assert [spec.name for spec in (*found.inputs, *found.outputs)] == ["x", "output_0"]
