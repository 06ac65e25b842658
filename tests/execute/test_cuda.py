"""On a GPU: captured graphs answer as the module does, alone and beside others, and host costs stay small."""

from __future__ import annotations

import sys
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
from cotenant.execute.torch.zoo import ZOO, blueprint, default_buckets  # noqa: E402

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
