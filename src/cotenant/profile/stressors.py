"""Stressors of the host CPU: threads that use one resource, at a chosen intensity, on a chosen core.

How this works. Each does one unit of fixed work after another in a numba kernel that releases the GIL, and
stands still in between so that it works `intensity` of the time. Its own time per unit, beside a model
against alone, says how hard the model presses on that resource. `compute` multiplies and adds in registers;
`bandwidth` reads a buffer several times the last-level cache; `cache` reads half that cache over and over;
`core` is `compute` on the victim's own core, at the priority of a lane: what another lane there would do.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
import numpy as np

from cotenant.clock import MonotonicClock, sleep, thread_cpu_ns
from cotenant.cores import pinned, yield_to_others
from cotenant.domain import NS_PER_S
from cotenant.profile.probe import Stress
from cotenant.profile.records import RESOURCES, DeviceRates

N_FLOATS = 2048
"""Of the `compute` stressor: they fit the first-level cache."""
N_PASSES = 1500
DEPTH = 16
"""Multiply-adds per float and pass; a multiply-add counts as two operations."""
SWEEP_BYTES = 16 << 20
"""Read per unit of `bandwidth` and of `cache`: about half a millisecond, as a unit of `compute`."""
MEMORY_BYTES = (64 << 20, 1 << 30)
"""Smallest and largest buffer of `bandwidth`; four times the last-level cache between them."""
UNKNOWN_CACHE_BYTES = 32 << 20
N_ALONE, N_CALIBRATION = 25, 100
"""Units of work of a stressor alone, between measurements and when the device's rates are measured."""
MOST_THREADS = 8
"""Threads that read at once when the bandwidth of the device is measured."""


@numba.njit(nogil=True, cache=True, fastmath={"contract"})
def _multiply(values: Any, n_passes: int, factor: Any, summand: Any) -> None:
    for _ in range(n_passes):
        for i in range(values.size):
            x = values[i]
            for _ in range(DEPTH):
                x = x * factor + summand
            values[i] = x


@numba.njit(nogil=True, cache=True, fastmath=True)
def _sweep(values: Any) -> Any:
    total = np.float32(0.0)
    for i in range(values.size):
        total += values[i]
    return total


class CpuStressors:
    """The stressors and their memory, which is made at once. Not thread-safe."""

    def __init__(self, cache_bytes: int | None = None) -> None:
        self.cache_bytes = cache_bytes or last_level_cache_bytes()
        low, high = MEMORY_BYTES
        self._memory = np.ones(min(high, max(low, 4 * self.cache_bytes)) // 4, np.float32)
        self._cache = np.ones(self.cache_bytes // 2 // 4, np.float32)
        self._clock = MonotonicClock()
        _multiply(np.ones(8, np.float32), 1, np.float32(0.5), np.float32(0.25))
        _sweep(self._cache)

    @contextmanager
    def running(self, resource: str, intensity: float, core: int) -> Iterator[Stress]:
        """Keep `resource` busy from a thread on `core`, `intensity` (0..1] of the time, while the body runs.
        The first unit is done before the body begins."""
        if resource not in RESOURCES or not 0.0 < intensity <= 1.0:
            raise ValueError(f"no stressor {resource!r} of intensity {intensity:g}")
        thread = _StressThread(self, resource, intensity, core)
        thread.start()
        try:
            thread.warm.wait()
            yield thread
        finally:
            thread.stop.set()
            thread.join()

    def alone_ns(self, resource: str, intensity: float, core: int, n_units: int | None = None) -> float:
        """The same of a unit with nobody beside it. Blocks for about `n_units`; of `core` there are more by
        default, as time slices are longer than units."""
        n_units = n_units or (N_CALIBRATION if resource == "core" else N_ALONE)
        with self.running(resource, intensity, core) as stress:
            assert isinstance(stress, _StressThread)
            while len(stress.spans) < n_units:
                sleep(0.001)
            return stress.unit_ns()

    def unit(self, resource: str, index: int) -> None:
        """One unit of work in the calling thread; the GIL is free meanwhile."""
        if resource in ("compute", "core"):
            _multiply(np.ones(N_FLOATS, np.float32), N_PASSES, np.float32(0.5), np.float32(0.25))
            return
        buffer = self._memory if resource == "bandwidth" else self._cache
        n = SWEEP_BYTES // 4
        if buffer.size < n:
            for _ in range(n // buffer.size):
                _sweep(buffer)
            return
        at = index * n % (buffer.size - n + 1) if buffer.size > n else 0
        _sweep(buffer[at : at + n])

    def rates(self, cores: Sequence[int]) -> DeviceRates:
        """What the device can do, measured with nothing beside it. Blocks for about a second."""
        compute_ns = self.alone_ns("compute", 1.0, cores[0], N_CALIBRATION)
        alone_ns = self.alone_ns("bandwidth", 1.0, cores[0], N_CALIBRATION)
        together_ns = self._together_ns(cores[:MOST_THREADS])
        n = len(cores[:MOST_THREADS])
        core_bytes_per_s = SWEEP_BYTES * NS_PER_S / alone_ns
        return DeviceRates(
            core_flop_per_s=N_FLOATS * N_PASSES * DEPTH * 2 * NS_PER_S / compute_ns,
            core_bytes_per_s=core_bytes_per_s,
            bytes_per_s=max(core_bytes_per_s, n * SWEEP_BYTES * NS_PER_S / together_ns),
            cache_bytes=self.cache_bytes,
        )

    def _together_ns(self, cores: Sequence[int]) -> float:
        """Span of a unit of `bandwidth` while every core reads."""
        threads = [_StressThread(self, "bandwidth", 1.0, core) for core in cores]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.warm.wait()
        sleep(0.3)
        spans = [thread.unit_ns() for thread in threads]
        for thread in threads:
            thread.stop.set()
        for thread in threads:
            thread.join()
        return float(np.mean(spans))


class _StressThread(threading.Thread):
    def __init__(self, owner: CpuStressors, resource: str, intensity: float, core: int) -> None:
        super().__init__(name=f"cotenant-stress-{resource}", daemon=True)
        self.warm, self.stop = threading.Event(), threading.Event()
        self._owner, self._resource, self._intensity, self._core = owner, resource, intensity, core
        self.spans: list[int] = []
        self._cpu_ns = 0

    def unit_ns(self) -> float:
        """The median CPU time; of `core` the mean span, as a unit either runs undisturbed or waits."""
        spans = tuple(self.spans)
        if not spans:
            return float("nan")
        return float(np.mean(spans) if self._resource == "core" else np.median(spans))

    def cpu_ns(self) -> int:
        """As of the end of the last unit."""
        return self._cpu_ns

    def run(self) -> None:
        clock = MonotonicClock()
        if self._resource == "core":  # the others are to work whatever else runs on their core
            yield_to_others()
        with pinned(frozenset((self._core,))):
            self._owner.unit(self._resource, 0)
            self._cpu_ns = thread_cpu_ns()
            self.warm.set()
            index = 1
            while not self.stop.is_set():
                began, cpu_began = clock.now(), thread_cpu_ns()
                self._owner.unit(self._resource, index)
                span, self._cpu_ns = clock.now() - began, thread_cpu_ns()
                index += 1
                self.spans.append(span if self._resource == "core" else self._cpu_ns - cpu_began)
                if self._intensity < 1.0:
                    self.stop.wait(span * (1.0 / self._intensity - 1.0) / NS_PER_S)


def last_level_cache_bytes(root: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Size of the largest cache of a core; 32 MiB where the system does not say."""
    largest = 0
    for path in root.glob("index*/size"):
        text = path.read_text().strip()
        unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
        digits = text.rstrip("KMG")
        largest = max(largest, int(digits) * unit if digits.isdigit() else 0)
    return largest or UNKNOWN_CACHE_BYTES
