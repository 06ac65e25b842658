"""The scenarios of the policy study can be read, offer what they say, and lie beside what they name."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from cotenant.config import load_scenario
from cotenant.experiment.load import arrivals
from cotenant.workload.traffic import PROCESSES

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
POLICY = sorted(EXAMPLES.glob("policy_*.toml"))
KERNELS = EXAMPLES / "kernels" / "v100_forward.csv"


@pytest.mark.parametrize("path", POLICY, ids=lambda path: path.stem)
def test_each_offers_the_rate_that_it_says(path: Path) -> None:
    scenario = load_scenario(path)
    at, _ = arrivals(scenario)
    duration_s = scenario.load.duration_s
    stretches = [
        (from_s, settings.rate_per_s)
        for model in scenario.models
        for from_s, settings in scenario.stretches(model)
    ]
    total = sum(rate for from_s, rate in stretches if from_s == 0)
    assert total >= 100
    assert len(at) / duration_s == pytest.approx(total, rel=0.15)
    assert at[-1] < duration_s * 1e9
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("path", POLICY, ids=lambda path: path.stem)
def test_what_each_names_lies_beside_it(path: Path) -> None:
    for model in load_scenario(path).models:
        files = [
            model.source.removeprefix("kernels:").partition("#")[0],
            *([model.file] if model.file else []),
        ]
        for file in files:
            assert (path.parent / file).resolve().is_relative_to(EXAMPLES)
        assert all((path.parent / file).is_file() for file in files[1:])


@pytest.mark.skipif(not KERNELS.is_file(), reason="the kernel traces are not beside the examples")
@pytest.mark.parametrize("path", POLICY, ids=lambda path: path.stem)
def test_each_model_is_in_the_kernel_traces(path: Path) -> None:
    with KERNELS.open(newline="") as file:
        known = {row["model"] for row in csv.DictReader(file)}
    for model in load_scenario(path).models:
        assert model.source == f"kernels:kernels/v100_forward.csv#{model.source.partition('#')[2]}"
        assert model.source.partition("#")[2] in known


def test_together_they_are_varied() -> None:
    scenarios = [load_scenario(path) for path in POLICY]
    models = [model for scenario in scenarios for model in scenario.models]
    assert {model.arrivals for model in models} == set(PROCESSES)
    assert {scenario.device.spec for scenario in scenarios} == {"v100", "h100"}
    assert {min(len(s.models) for s in scenarios), max(len(s.models) for s in scenarios)} == {2, 16}
    assert {2, 16, 32} <= {model.max_batch for model in models}
    scales = [model.slo_scale for model in models if model.slo_scale is not None]
    assert min(scales) <= 4
    assert max(scales) >= 30
