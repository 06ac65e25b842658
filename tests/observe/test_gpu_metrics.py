"""GPU metrics are what the driver's library says; what it does not say is left out."""

from __future__ import annotations

import ctypes
import re
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from cotenant.telemetry.exposition import page
from cotenant.telemetry.gpu_metrics import Gpu, GpuMetrics, Nvml
from cotenant.telemetry.triton_metrics import as_named

NOT_SUPPORTED = 3


class Driver:
    """Stands for `libnvidia-ml` with two GPUs, of which the second tells nothing but its memory."""

    def __init__(self, code: int = 0) -> None:
        self._code = code

    def nvmlInit_v2(self) -> int:  # noqa: N802
        return self._code

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:  # noqa: N802
        count._obj.value = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> int:  # noqa: N802
        handle._obj.value = index.value + 100
        return 0

    def nvmlDeviceGetUUID(self, handle: Any, text: Any, size: Any) -> int:  # noqa: N802
        text.value = f"GPU-{handle.value}".encode()
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: Any, found: Any) -> int:  # noqa: N802
        found._obj.used, found._obj.total = 5 << 30, 80 << 30
        return 0

    def nvmlDeviceGetUtilizationRates(self, handle: Any, found: Any) -> int:  # noqa: N802
        found._obj.gpu = 42
        return self._only_first(handle)

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: Any, found: Any) -> int:  # noqa: N802
        found._obj.value = 61
        return self._only_first(handle)

    def nvmlDeviceGetPowerUsage(self, handle: Any, found: Any) -> int:  # noqa: N802
        return self._number(handle, found, 250_000)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: Any, found: Any) -> int:  # noqa: N802
        return self._number(handle, found, 700_000)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, found: Any) -> int:  # noqa: N802
        assert isinstance(found._obj, ctypes.c_ulonglong)
        return self._number(handle, found, 1 << 40)

    def _number(self, handle: Any, found: Any, value: int) -> int:
        found._obj.value = value
        return self._only_first(handle)

    @staticmethod
    def _only_first(handle: Any) -> int:
        return 0 if handle.value == 100 else NOT_SUPPORTED


def test_gpus_are_read_in_units_of_their_names() -> None:
    first, second = Nvml(Driver()).gpus()
    assert first == Gpu(
        uuid="GPU-100",
        busy=0.42,
        memory_used=5 << 30,
        memory_total=80 << 30,
        power_w=250.0,
        power_limit_w=700.0,
        energy_j=pytest.approx((1 << 40) / 1000),
        temperature_c=61.0,
    )
    assert second == Gpu(uuid="GPU-101", memory_used=5 << 30, memory_total=80 << 30)


def test_a_library_that_cannot_be_initialised_says_so() -> None:
    with pytest.raises(OSError, match="error 9"):
        Nvml(Driver(code=9))


def test_pages_have_our_names_and_triton_s_where_they_are_wanted() -> None:
    for triton in (False, True):
        source = GpuMetrics(Nvml(Driver()), triton=triton)
        text = as_named(page([source])[0]).decode()
        samples = re.findall(r'^(\w+)\{gpu_uuid="GPU-100"\} (\S+)$', text, re.MULTILINE)
        found = {name: float(value) for name, value in samples}
        assert found["cotenant_gpu_memory_used_bytes"] == 5 << 30
        assert found["cotenant_gpu_energy_joules_total"] > 1e9
        assert ("nv_gpu_utilization" in found) is triton
        assert ("nv_energy_consumption" in found) is triton
        assert ("# TYPE nv_energy_consumption counter" in text) is triton


def test_openmetrics_takes_triton_s_counters_too() -> None:
    source = GpuMetrics(Nvml(Driver()), triton=True)
    text = page([source], "application/openmetrics-text; version=1.0.0")[0].decode()
    assert "nv_energy_consumption" in {family.name for family in parse_openmetrics(text)}
