"""Stressors of the host CPU do their work and stop."""

from __future__ import annotations

import threading

import pytest

from cotenant.cores import available_cores
from cotenant.profile.records import RESOURCES
from cotenant.profile.stressors import CpuStressors, last_level_cache_bytes

CORE = available_cores()[0]


@pytest.fixture(scope="module")
def stressors() -> CpuStressors:
    return CpuStressors(cache_bytes=1 << 20)


def names() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "stress" in thread.name]


@pytest.mark.parametrize("resource", RESOURCES)
@pytest.mark.parametrize("intensity", [0.5, 1.0])
def test_a_stressor_works_while_the_body_runs_and_not_longer(
    stressors: CpuStressors, resource: str, intensity: float
) -> None:
    with stressors.running(resource, intensity, CORE) as stress:
        assert names() == [f"cotenant-stress-{resource}"]
        while not stress.unit_ns() > 0:
            pass
        assert stress.cpu_ns() >= 0
    assert names() == []


def test_a_stressor_stops_when_the_body_raises(stressors: CpuStressors) -> None:
    with pytest.raises(RuntimeError), stressors.running("cache", 1.0, CORE):
        raise RuntimeError
    assert names() == []


@pytest.mark.parametrize(("resource", "intensity"), [("disk", 1.0), ("cache", 0.0), ("cache", 1.5)])
def test_what_does_not_exist_is_refused(stressors: CpuStressors, resource: str, intensity: float) -> None:
    with pytest.raises(ValueError), stressors.running(resource, intensity, CORE):
        pass


def test_the_device_has_rates(stressors: CpuStressors) -> None:
    rates = stressors.rates([CORE])
    assert rates.core_flop_per_s > 0
    assert rates.bytes_per_s >= rates.core_bytes_per_s > 0
    assert rates.cache_bytes == 1 << 20


def test_the_last_level_cache_is_the_largest(tmp_path) -> None:
    for index, size in enumerate(("48K", "1024K", "32M", "odd")):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        (folder / "size").write_text(size + "\n")
    assert last_level_cache_bytes(tmp_path) == 32 << 20
    assert last_level_cache_bytes(tmp_path / "none") > 0
