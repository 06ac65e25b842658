"""The device's law in plain Python, slow and clear: what `engine_kernels.py` must agree with.

Every wave of blocks is an event here, and every group of SMs an object. The law is told there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cotenant.simulate.twin.device import Law
from cotenant.simulate.twin.kernels import COPY_IN, Kernels, clocks_alone
from cotenant.simulate.twin.specs import DeviceSpec, clock

TINY = 1e-7


@dataclass(slots=True, kw_only=True)
class Job:
    """A run on a stream: begins at `at` (ns), its kernel k takes `noise(k)` times its span."""

    kernels: Kernels
    at: float = 0.0
    noise: Callable[[int], float] = lambda k: 1.0
    boundaries: Sequence[int] = ()
    """Kernels before which a boundary lies."""


@dataclass(slots=True)
class _Group:
    """SMs that a kernel holds, and what is left of their wave (ns at full speed)."""

    sms: float
    left: float


@dataclass(slots=True)
class _Stream:
    job: Job
    at_kernel: int = 0
    gap: float | None = None
    """What is left of the gap before the next kernel; None: the kernel has arrived."""
    order: int = 0
    wave: float = 0.0
    waiting: float = 0.0
    groups: list[_Group] = field(default_factory=list)
    copying: float | None = None
    """What is left of a copy; None: it does not copy."""
    stretch: float = 1.0
    passed: list[float] = field(default_factory=list)

    @property
    def kind(self) -> int:
        return int(self.job.kernels.kind[self.at_kernel])

    @property
    def arrived(self) -> bool:
        return self.gap is None

    @property
    def held(self) -> float:
        return sum(group.sms for group in self.groups)


class ReferenceDevice:
    """Runs one job per stream; `run` gives the instants at which each ended and passed its boundaries."""

    def __init__(self, spec: DeviceSpec, jobs: Sequence[Job], law: Law | None = None) -> None:
        self._spec, self._law = spec, law or Law()
        self._streams: list[_Stream | None] = [None] * len(jobs)
        self._jobs = list(jobs)
        self._n_arrived = 0
        self.now = 0.0
        self.sm_ns = self.moved_ns = 0.0
        self._alone = {id(job): clocks_alone(job.kernels, spec) for job in jobs}

    def run(self) -> list[tuple[float, tuple[float, ...]]]:
        """(end, boundaries passed) of each job."""
        ends: dict[int, tuple[float, tuple[float, ...]]] = {}
        while len(ends) < len(self._jobs):
            self._begin_due(ends)
            self._set_stretches()
            first, step = None, math.inf
            for s, stream in enumerate(self._streams):
                wait = math.inf if stream is None else self._wait(stream)
                if wait < step:
                    first, step = s, wait
            begins = [
                job.at for s, job in enumerate(self._jobs) if s not in ends and self._streams[s] is None
            ]
            if begins and min(begins) < self.now + step:
                first, step = None, min(begins) - self.now
            self._pass(step)
            if first is not None:
                self._happen(first, ends)
                self._give_out()
        return [ends[s] for s in range(len(self._jobs))]

    def _begin_due(self, ended: dict[int, tuple[float, tuple[float, ...]]]) -> None:
        for s, job in enumerate(self._jobs):
            if self._streams[s] is None and s not in ended and job.at <= self.now:
                self._streams[s] = _Stream(job, gap=0.0)

    def _wait(self, stream: _Stream) -> float:
        """Until the next thing happens to a stream by itself."""
        if stream.gap is not None:
            return stream.gap
        if stream.copying is not None:
            return stream.copying
        return min((group.left for group in stream.groups), default=math.inf) * stream.stretch

    def _pass(self, step: float) -> None:
        self.now += step
        for stream in self._streams:
            if stream is None:
                continue
            self.sm_ns += stream.held * step
            self.moved_ns += _bandwidth(stream, self._spec) * step / stream.stretch
            if stream.gap is not None:
                stream.gap -= step
            elif stream.copying is not None:
                stream.copying -= step
            for group in stream.groups:
                group.left -= step / stream.stretch

    def _happen(self, s: int, ends: dict[int, tuple[float, tuple[float, ...]]]) -> None:
        stream = self._streams[s]
        assert stream is not None
        if stream.gap is not None:
            self._arrive(stream)
        elif stream.copying is not None:
            self._leave(s, stream, ends)
        else:
            stream.groups.remove(min(stream.groups, key=lambda group: group.left))
            if not stream.groups and stream.waiting <= TINY:
                self._leave(s, stream, ends)

    def _arrive(self, stream: _Stream) -> None:
        kernels, k = stream.job.kernels, stream.at_kernel
        stream.gap = None
        self._n_arrived += 1
        stream.order = self._n_arrived
        stream.wave = float(kernels.wave_ns[k]) * stream.job.noise(k)
        stream.waiting = 0.0 if stream.kind >= COPY_IN else float(kernels.loads[k])

    def _leave(self, s: int, stream: _Stream, ends: dict[int, tuple[float, tuple[float, ...]]]) -> None:
        n_active = sum(1 for other in self._streams if other is not None)
        stream.at_kernel += 1
        stream.copying = None
        if stream.at_kernel in stream.job.boundaries:
            stream.passed.append(self.now)
        if stream.at_kernel == len(stream.job.kernels):
            ends[s] = self.now, tuple(stream.passed)
            self._streams[s] = None
        else:
            stream.gap = self._spec.launch_gap_ns + self._law.neighbour_gap_ns * (n_active - 1)

    # --- SMs and copy engines ---------------------------------------------------------------------------

    def _active(self) -> list[_Stream]:
        """Streams whose kernel has arrived, in order of arrival."""
        found = [stream for stream in self._streams if stream is not None and stream.arrived]
        return sorted(found, key=lambda stream: stream.order)

    def _give_out(self) -> None:
        active = self._active()
        for stream in active:
            free = self._spec.n_sms - sum(other.held for other in active)
            if stream.waiting > TINY and free > TINY:
                _place(stream, min(stream.waiting, free))
        for kind in (COPY_IN, COPY_IN + 1):
            line = [stream for stream in active if stream.kind == kind]
            if line and all(stream.copying is None for stream in line):
                line[0].copying = line[0].wave

    def _set_stretches(self) -> None:
        """How many times longer everything on SMs takes beside the rest."""
        used: dict[int, float] = {}
        watts = self._spec.idle_w
        running = [stream for stream in self._active() if stream.groups]
        for stream in running:
            kernels, k = stream.job.kernels, stream.at_kernel
            used[id(stream)] = _bandwidth(stream, self._spec)
            watts += stream.held * float(kernels.watts[k])
        total = sum(used.values())
        clocks = clock(watts + self._spec.memory_w * min(1.0, total), self._spec)
        for stream in running:
            k = stream.at_kernel
            t = float(stream.job.kernels.memory_time[k])
            slower = max(1.0, float(self._alone[id(stream.job)][k]) / clocks)
            crowded = max(1.0, total) + self._law.cache * (total - used[id(stream)])
            stream.stretch = (1.0 - t) * slower + t * crowded


def _bandwidth(stream: _Stream, spec: DeviceSpec) -> float:
    """What a kernel would take at full speed with the SMs that it holds."""
    if not stream.groups:
        return 0.0
    kernels, k = stream.job.kernels, stream.at_kernel
    return float(kernels.bandwidth[k]) * stream.held / min(float(kernels.loads[k]), spec.n_sms)


def _place(stream: _Stream, sms: float) -> None:
    """Give a kernel so many SMs more."""
    stream.waiting -= sms
    held = stream.held + sms
    if stream.groups and stream.waiting >= held - TINY:  # its blocks are spread evenly by now
        work = sum(group.sms * group.left for group in stream.groups) + sms * stream.wave
        stream.groups = [_Group(held, work / held)]
    elif len(stream.groups) < 2:
        stream.groups.append(_Group(sms, stream.wave))
    else:
        newer = stream.groups[1]
        newer.left = (newer.sms * newer.left + sms * stream.wave) / (newer.sms + sms)
        newer.sms += sms
