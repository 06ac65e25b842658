"""Clocks, power and counters of an NVIDIA device by NVML, as far as they may be read; else nothing.

Clocks and power are sampled ten times a second all along. Counters (GPM, from Hopper on) are read around a
span of work and are means over it. Whatever is refused is left out, and `missing` says what and why.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from typing import Any

from cotenant.clock import Clock

EACH_S = 0.1
GPM = {
    "sm_util": 2,
    "sm_occupancy": 3,
    "any_tensor": 5,
    "dram_bw": 10,
    "pcie_tx_mib_s": 20,
    "pcie_rx_mib_s": 21,
}
"""Counter -> its number in NVML; percentages but where a unit is named."""


class Counters:
    """Open at most one. Works, saying nothing, where there is no NVML."""

    def __init__(self, clock: Clock, ordinal: int | None) -> None:
        self.missing: dict[str, str] = {}
        self._clock = clock
        self._nvml: Any = None
        self._handle: Any = None
        self._samples: list[tuple[int, dict[str, float]]] = []
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        if ordinal is not None:
            self._open(ordinal)

    def _open(self, ordinal: int) -> None:
        try:
            import pynvml

            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByIndex(ordinal)
            self._nvml = pynvml
        except Exception as error:
            self.missing["nvml"] = f"{type(error).__name__}: {error}"
            return
        self._thread = threading.Thread(target=self._sample, name="nvml", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop sampling."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(2.0)

    def facts(self) -> dict[str, Any]:
        """Driver, limits, and the range of what was sampled."""
        found: dict[str, Any] = {"missing": self.missing}
        if self._nvml is None:
            return found
        nvml, handle = self._nvml, self._handle
        driver = self._read("driver", nvml.nvmlSystemGetDriverVersion)
        found["driver"] = driver.decode() if isinstance(driver, bytes) else driver
        limit = self._read("power_limit", lambda: nvml.nvmlDeviceGetPowerManagementLimit(handle))
        found["power_limit_w"] = None if limit is None else limit / 1000
        for key in ("sm_mhz", "memory_mhz", "power_w", "temperature_c"):
            values = [sample[key] for _, sample in self._samples if key in sample]
            if values:
                found[key] = {"min": min(values), "mean": sum(values) / len(values), "max": max(values)}
        return found

    def at(self, instant: int, key: str) -> float | None:
        """The last sample before an instant."""
        n = bisect_right(self._samples, instant, key=lambda sample: sample[0])
        return self._samples[n - 1][1].get(key) if n else None

    def begin(self) -> Any:
        """A mark before a span of at least 100 ms, for `end`; None where there are no counters."""
        if self._nvml is None or "gpm" in self.missing:
            return None
        try:
            if not self._nvml.nvmlGpmQueryDeviceSupport(self._handle).isSupportedDevice:
                raise RuntimeError("not supported by this device")
            return self._gpm_sample()
        except Exception as error:
            self.missing["gpm"] = f"{type(error).__name__}: {error}"
            return None

    def end(self, mark: Any) -> dict[str, float]:
        """Means of the counters since `begin`."""
        if mark is None:
            return {}
        nvml = self._nvml
        try:
            last = self._gpm_sample()
            wanted = nvml.c_nvmlGpmMetricsGet_t()
            wanted.version = nvml.NVML_GPM_METRICS_GET_VERSION
            wanted.numMetrics = len(GPM)
            wanted.sample1, wanted.sample2 = mark, last
            for i, number in enumerate(GPM.values()):
                wanted.metrics[i].metricId = number
            nvml.nvmlGpmMetricsGet(wanted)
            found = {
                name: float(wanted.metrics[i].value)
                for i, name in enumerate(GPM)
                if wanted.metrics[i].nvmlReturn == 0
            }
            for sample in (mark, last):
                nvml.nvmlGpmSampleFree(sample)
        except Exception as error:
            self.missing["gpm"] = f"{type(error).__name__}: {error}"
            return {}
        return found

    def _gpm_sample(self) -> Any:
        sample = self._nvml.nvmlGpmSampleAlloc()
        self._nvml.nvmlGpmSampleGet(self._handle, sample)
        return sample

    def _sample(self) -> None:
        nvml, handle = self._nvml, self._handle
        ask = {
            "sm_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "throttle_reasons": lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
        }
        while not self._over.wait(EACH_S):
            sample = {key: float(value) for key in ask if (value := self._read(key, ask[key])) is not None}
            self._samples.append((self._clock.now(), sample))

    def _read(self, key: str, ask: Any) -> Any:
        if key in self.missing:
            return None
        try:
            return ask()
        except Exception as error:
            self.missing[key] = f"{type(error).__name__}: {error}"
            return None
