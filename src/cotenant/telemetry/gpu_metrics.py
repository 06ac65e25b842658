"""Utilisation, memory, power and energy of the machine's NVIDIA GPUs, read through the driver's own library.

How this works. `libnvidia-ml` comes with the driver, so nothing has to be installed; it is called through
`ctypes` (https://docs.nvidia.com/deploy/nvml-api). Calls may take milliseconds: they belong on the thread
that writes a page. What a device does not support is left out.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import Struct
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from cotenant.telemetry.tally import Exemplify

LIBRARY = "libnvidia-ml.so.1"
OK = 0
LONGEST_UUID = 96
GPU_TEMPERATURE = 0
MILLI = 1e-3


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Utilisation(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class Gpu(Struct, frozen=True, kw_only=True):
    """One GPU now; None: the device does not tell. `busy`: share of the last sampling period (0..1) with a
    kernel running; energy is counted since the driver was loaded."""

    uuid: str
    busy: float | None = None
    memory_used: int | None = None
    memory_total: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    energy_j: float | None = None
    temperature_c: float | None = None


class Nvml:
    """The library, initialised. Thread-safe, as the library is."""

    def __init__(self, library: Any) -> None:
        """`library`: as loaded by ctypes. Raises OSError when it cannot be initialised."""
        self._library = library
        code = library.nvmlInit_v2()
        if code != OK:
            raise OSError(f"the NVIDIA management library cannot be initialised: error {code}")

    def gpus(self) -> Sequence[Gpu]:
        """Every GPU that the driver shows."""
        count = ctypes.c_uint()
        if self._library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != OK:
            return ()
        return [gpu for index in range(count.value) if (gpu := self._gpu(index)) is not None]

    def _gpu(self, index: int) -> Gpu | None:
        handle = ctypes.c_void_p()
        uuid = ctypes.create_string_buffer(LONGEST_UUID)
        library = self._library
        if library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)) != OK:
            return None
        if library.nvmlDeviceGetUUID(handle, uuid, ctypes.c_uint(LONGEST_UUID)) != OK:
            return None
        memory = self._asked("nvmlDeviceGetMemoryInfo", handle, _Memory())
        rates = self._asked("nvmlDeviceGetUtilizationRates", handle, _Utilisation())
        return Gpu(
            uuid=uuid.value.decode(),
            busy=None if rates is None else rates.gpu / 100,
            memory_used=None if memory is None else memory.used,
            memory_total=None if memory is None else memory.total,
            power_w=self._number("nvmlDeviceGetPowerUsage", handle, ctypes.c_uint(), MILLI),
            power_limit_w=self._number("nvmlDeviceGetEnforcedPowerLimit", handle, ctypes.c_uint(), MILLI),
            energy_j=self._number("nvmlDeviceGetTotalEnergyConsumption", handle, ctypes.c_ulonglong(), MILLI),
            temperature_c=self._temperature(handle),
        )

    def _asked(self, name: str, handle: Any, found: Any) -> Any:
        code = getattr(self._library, name)(handle, ctypes.byref(found))
        return found if code == OK else None

    def _number(self, name: str, handle: Any, found: Any, unit: float) -> float | None:
        told = self._asked(name, handle, found)
        return None if told is None else float(told.value) * unit

    def _temperature(self, handle: Any) -> float | None:
        found = ctypes.c_uint()
        sensor = ctypes.c_uint(GPU_TEMPERATURE)
        code = self._library.nvmlDeviceGetTemperature(handle, sensor, ctypes.byref(found))
        return float(found.value) if code == OK else None


def open_nvml() -> Nvml | None:
    """The driver's library; None where there is none."""
    try:
        return Nvml(ctypes.CDLL(LIBRARY))
    except (OSError, AttributeError):
        return None


GAUGES = (
    ("cotenant_gpu_busy_ratio", "nv_gpu_utilization", "Share of time with a kernel running.", "busy"),
    ("cotenant_gpu_memory_used_bytes", "nv_gpu_memory_used_bytes", "Device memory in use.", "memory_used"),
    ("cotenant_gpu_memory_total_bytes", "nv_gpu_memory_total_bytes", "Device memory.", "memory_total"),
    ("cotenant_gpu_power_watts", "nv_gpu_power_usage", "Power drawn.", "power_w"),
    ("cotenant_gpu_power_limit_watts", "nv_gpu_power_limit", "Power that may be drawn.", "power_limit_w"),
    ("cotenant_gpu_temperature_celsius", "", "Temperature of the die.", "temperature_c"),
)
"""Our name, Triton's (empty: it has none), what it is, and the field."""
ENERGY = ("cotenant_gpu_energy_joules", "nv_energy_consumption", "Energy used since the driver was loaded.")


class GpuMetrics:
    """Shows the GPUs, under Triton's names too if `triton`."""

    def __init__(self, nvml: Nvml, *, triton: bool = False) -> None:
        self._nvml, self._triton = nvml, triton

    def collect(self, exemplar: Exemplify | None = None) -> Iterator[Metric]:
        """Ask the driver now."""
        gpus = self._nvml.gpus()
        for own, theirs, text, field in GAUGES:
            for name in (own, theirs) if self._triton and theirs else (own,):
                family = GaugeMetricFamily(name, text, labels=["gpu_uuid"])
                for gpu in gpus:
                    if (value := getattr(gpu, field)) is not None:
                        family.add_metric([gpu.uuid], value)
                yield family
        own, theirs, text = ENERGY
        energy = CounterMetricFamily(own, text, labels=["gpu_uuid"])
        alias = Metric(theirs, text, "counter" if exemplar is None else "unknown")
        for gpu in gpus:
            if gpu.energy_j is not None:
                energy.add_metric([gpu.uuid], gpu.energy_j)
                alias.add_sample(theirs, {"gpu_uuid": gpu.uuid}, gpu.energy_j)
        yield energy
        if self._triton:
            yield alias
