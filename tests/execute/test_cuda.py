"""On a GPU: captured graphs answer as the module does, alone and beside others, and host costs stay small."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments" / "gpu"))

from driver import Driver  # noqa: E402

from cotenant.clock import MonotonicClock  # noqa: E402
from cotenant.execute.model import ModelSettings, example_inputs  # noqa: E402
from cotenant.execute.torch.executor import TorchExecutor, cuda_lanes  # noqa: E402
from cotenant.execute.torch.load import from_archive  # noqa: E402
from cotenant.execute.torch.model import Blueprint  # noqa: E402
from cotenant.execute.torch.zoo import ZOO, blueprint, default_buckets, tensor  # noqa: E402

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def executor():
    made = TorchExecutor(MonotonicClock(), cuda_lanes(4), device="cuda:0")
    for name in sorted(ZOO):
        buckets = {axis: (sizes[-1],) for axis, sizes in default_buckets(name).items()}
        made.load(blueprint(name, small=False), ModelSettings(name=name, max_batch=4, buckets=buckets))
    yield made
    made.close()


@pytest.mark.parametrize("name", sorted(ZOO))
def test_graphs_answer_as_the_module_in_fp32_on_the_cpu(executor, name: str) -> None:
    driver = Driver(executor, MonotonicClock())
    model = executor.models[name]
    variant = model.metadata.spec.variants()[-1]
    inputs = example_inputs(model.metadata, variant, np.random.default_rng(5))
    (found,) = driver.outputs(model, variant, inputs)
    reference = blueprint(name, small=False, dtype=torch.float32).module
    with torch.inference_mode():
        expected = reference(*[torch.from_numpy(inputs[spec.name]) for spec in model.metadata.inputs])
    for spec, wanted in zip(model.metadata.outputs, expected, strict=True):
        error = np.linalg.norm(found[spec.name] - wanted.numpy()) / np.linalg.norm(wanted.numpy())
        assert error < 0.05


def test_an_archive_from_a_cpu_is_cut_and_answers_as_there(executor, tmp_path: Path) -> None:
    found = blueprint("vit_b16", small=False, dtype=torch.float32)
    rows = torch.export.Dim("rows", min=1, max=64)
    program = torch.export.export(
        found.module, (torch.zeros(2, 3, 224, 224),), dynamic_shapes=(({0: rows},),)
    )
    torch.export.save(program, tmp_path / "own.pt2")
    executor.load(from_archive(tmp_path / "own.pt2"), ModelSettings(name="own", max_batch=64))
    model = executor.models["own"]
    assert 2 <= model.n_segments <= 8, model.uncut
    driver = Driver(executor, MonotonicClock())
    for variant in model.metadata.spec.variants()[:3]:
        inputs = example_inputs(model.metadata, variant, np.random.default_rng(5))
        (answer,) = driver.outputs(model, variant, inputs)
        with torch.inference_mode():
            (expected,) = found.module(*map(torch.from_numpy, inputs.values()))
        (array,) = answer.values()
        assert np.allclose(array, expected.numpy(), rtol=1e-2, atol=1e-2)
    executor.unload("own")


def test_dispatches_stay_the_same_beside_others(executor) -> None:
    driver = Driver(executor, MonotonicClock())
    rng = np.random.default_rng(9)
    work = []
    for name in sorted(ZOO):
        model = executor.models[name]
        for variant in model.metadata.spec.variants():
            inputs = example_inputs(model.metadata, variant, rng)
            work.append((model, variant, inputs, driver.outputs(model, variant, inputs)))
    under_way = {}
    for k in range(2000):
        model, variant, inputs, _ = work[int(rng.integers(len(work)))] if k else work[0]
        index = next(i for i, entry in enumerate(work) if entry[1] == variant)
        if len(under_way) == 4:
            ended = driver.wait()
            found = executor.take_results(ended.dispatch_id)
            for name, array in work[under_way.pop(ended.dispatch_id)][3][0].items():
                assert np.array_equal(found[0][name], array)
        under_way[driver.start(driver.free_lane(), model, variant, work[index][2])] = index
    while under_way:
        del under_way[driver.wait().dispatch_id]


def test_everything_can_be_unloaded_and_loaded_again_and_what_cannot_be_captured_harms_nothing() -> None:
    class Reads(torch.nn.Module):
        def forward(self, x):
            return x * x.sum().item()

    clock = MonotonicClock()
    own = TorchExecutor(clock, cuda_lanes(2), device="cuda:0")
    specs = [tensor(name, "FP32", "batch", 4) for name in ("x", "y")]
    try:
        driver, answers = Driver(own, clock), []
        for _ in range(2):
            own.load(blueprint("dlrm", small=False), ModelSettings(name="dlrm", max_batch=2))
            with pytest.raises(ValueError, match="cannot be captured as a CUDA graph"):
                own.load(
                    Blueprint(module=Reads(), inputs=(specs[0],), outputs=(specs[1],)),
                    ModelSettings(name="r"),
                )
            model = own.models["dlrm"]
            variant = model.metadata.spec.variants()[0]
            inputs = example_inputs(model.metadata, variant, np.random.default_rng(3))
            answers.append(driver.outputs(model, variant, inputs)[0]["click"])
            own.unload("dlrm")
        assert np.array_equal(*answers)
    finally:
        own.close()


def test_loading_a_model_does_not_disturb_those_that_run(executor) -> None:
    """Its warm runs and captures share nothing with graphs that replay meanwhile."""
    driver = Driver(executor, MonotonicClock())
    model = executor.models["bert_base"]
    variant = model.metadata.spec.variants()[-1]
    inputs = example_inputs(model.metadata, variant, np.random.default_rng(7))
    (expected,) = driver.outputs(model, variant, inputs)
    other = ModelSettings(name="other", max_batch=4)
    loading = threading.Thread(target=lambda: executor.load(blueprint("vit_b16", small=False), other))
    loading.start()
    n = 0
    while loading.is_alive() or n < 50:
        (found,) = driver.outputs(model, variant, inputs)
        assert all(np.array_equal(found[name], array) for name, array in expected.items())
        n += 1
    loading.join()
    executor.unload("other")


def test_a_dispatch_confined_to_some_sms_answers_the_same() -> None:
    clock = MonotonicClock()
    confined = TorchExecutor(clock, cuda_lanes(2), device="cuda:0", partitions=True)
    try:
        if len(confined.lanes[0].shares) == 1:
            pytest.skip("no green contexts here")
        confined.load(blueprint("vit_b16", small=False), ModelSettings(name="vit_b16", max_batch=1))
        driver, model = Driver(confined, clock), confined.models["vit_b16"]
        variant = model.metadata.spec.variants()[0]
        inputs = example_inputs(model.metadata, variant, np.random.default_rng(3))
        (whole,) = driver.outputs(model, variant, inputs)
        spans = {}
        for share in confined.lanes[0].shares:
            runs = [driver.start(0, model, variant, inputs, share) and driver.wait() for _ in range(20)]
            (found,) = confined.take_results(runs[-1].dispatch_id)
            error = np.linalg.norm(found["logits"] - whole["logits"]) / np.linalg.norm(whole["logits"])
            assert error < 1e-2  # other SMs, perhaps other split of the sums
            spans[share] = min(run.span_ns for run in runs)
        assert spans[0.25] > spans[1.0]
    finally:
        confined.close()


def test_launching_and_gaps_stay_short(executor) -> None:
    """The figures themselves are recorded by experiments/gpu/run.sh; here only that they are sane."""
    driver = Driver(executor, MonotonicClock())
    model = executor.models["dlrm"]
    variant = model.metadata.spec.variants()[0]
    inputs = example_inputs(model.metadata, variant, np.random.default_rng(3))
    gaps = driver.back_to_back((model, variant, inputs), 200)
    assert len(gaps) == 199
    assert min(gaps) >= 0
