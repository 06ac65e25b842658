"""Stressors are models like any other: their batch is their intensity, and more of it takes longer."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments" / "gpu"))

from driver import Driver  # noqa: E402
from subjects import load_stressors  # noqa: E402

from cotenant.clock import MonotonicClock  # noqa: E402
from cotenant.execute.torch.executor import TorchExecutor, cuda_lanes  # noqa: E402
from cotenant.execute.torch.stressors import LEVELS, RESOURCES  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def rig(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    lanes = cuda_lanes(2) if request.param == "cuda" else None
    executor = TorchExecutor(MonotonicClock(), lanes, device="cuda:0" if lanes else "cpu")
    yield Driver(executor, MonotonicClock()), load_stressors(executor)
    executor.close()


@pytest.mark.parametrize("resource", sorted(RESOURCES))
def test_a_stressor_runs_at_every_intensity_and_answers(rig, resource: str) -> None:
    driver, stressors = rig
    subject = stressors[resource]
    assert [v.rows for v in subject.variants] == [1, 2, 4, LEVELS]
    for variant in subject.variants:
        (found,) = driver.outputs(*subject.work(variant))
        assert np.array_equal(found["done"], subject.inputs[variant][0]["level"])


@pytest.mark.parametrize("resource", ["dram", "launch", "copy_in"])
def test_a_higher_intensity_is_more_work(rig, resource: str) -> None:
    driver, stressors = rig
    subject = stressors[resource]

    def span(variant) -> float:
        return statistics.median(driver.run(*subject.work(variant)).span_ns for _ in range(15))

    if torch.cuda.is_available() and resource == "dram":
        pytest.skip("on a GPU a higher intensity uses more SMs, not more time")
    assert span(subject.variants[-1]) > 2 * span(subject.variants[0])
