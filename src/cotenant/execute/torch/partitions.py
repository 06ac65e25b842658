"""Streams of our own on a CUDA device, and SM partitions: green contexts on a ladder made once.

How this works. Torch hands out streams from pools of 32 and then begins again with the first: two lanes could
get the same one. So streams are made through the driver, where `cuda.bindings` is there, and wrapped.

A green context confines the kernels of its streams to some SMs. The device is cut in quarters and in halves;
lane i gets quarter i % 4 and half i % 2. Three quarters are what quarter 0 leaves, so they complement lane 0
on its quarter. Partitions share L2, memory bandwidth, copy engines and power: they are no guarantee of
anything but SMs. What does not go through these streams still runs on all SMs.

Where the driver or the bindings offer no green contexts there is no ladder: lanes have the share 1.0 only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

SMALLEST_STEP = 8
"""SMs by which partitions grow at least: splitting by count takes multiples of 8 from compute capability 9 on
and of 2 before, whatever finer alignment the driver reports for other ways of splitting."""


def bindings() -> Any:
    """The CUDA driver's bindings, or None."""
    try:
        from cuda.bindings import driver
    except ImportError:
        return None
    return driver


def checked(driver: Any, answer: Any) -> Any:
    """What a driver call gave besides its status. Raises RuntimeError naming the status."""
    status, *values = answer
    if status != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"CUDA driver: {status}")
    return values[0] if len(values) == 1 else tuple(values)


def new_stream(device: torch.device, priority: int = 0) -> Any:
    """A stream that nobody else has; from torch's pool where there are no bindings."""
    driver = bindings()
    if driver is None:
        return torch.cuda.Stream(device, priority=priority)
    with torch.cuda.device(device):
        make_current(device)
        flags = int(driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        made = checked(driver, driver.cuStreamCreateWithPriority(flags, priority))
    return torch.cuda.ExternalStream(int(made), device=device)


def make_current(device: torch.device) -> None:
    """Make the device's primary context, and make it the calling thread's. Choosing a device in torch does
    neither where that device is the current one already; launching a kernel does."""
    torch.zeros(1, device=device)


@dataclass(slots=True)
class Part:
    """A green context, kept for the life of the process: captured graphs refer to it."""

    context: Any
    n_sms: int


@dataclass(slots=True)
class Ladder:
    """Partitions by share. `n_sms`: of the whole device."""

    driver: Any
    n_sms: int
    rungs: dict[float, list[Part]] = field(default_factory=dict)

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares a dispatch can be confined to, 1.0 last."""
        return (*sorted(self.rungs), 1.0)

    def sms(self, share: float, lane: int) -> int:
        """SMs that a lane has on a rung."""
        return self.n_sms if share == 1.0 else self._part(share, lane).n_sms

    def stream(self, share: float, lane: int, priority: int = 0) -> int:
        """The handle of a new stream on a rung below 1.0."""
        flags = int(self.driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        part = self._part(share, lane)
        return int(checked(self.driver, self.driver.cuGreenCtxStreamCreate(part.context, flags, priority)))

    def _part(self, share: float, lane: int) -> Part:
        parts = self.rungs[share]
        return parts[lane % len(parts)]


def make_ladder(driver: Any, ordinal: int) -> Ladder:
    """Green contexts on quarters, halves and three quarters of a device. Raises RuntimeError or
    AttributeError where the driver has none."""
    device = checked(driver, driver.cuDeviceGet(ordinal))
    kind = driver.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM
    whole = checked(driver, driver.cuDeviceGetDevResource(device, kind))
    n_sms = int(whole.sm.smCount)
    step = max(SMALLEST_STEP, int(getattr(whole.sm, "smCoscheduledAlignment", 0) or 0))
    ladder = Ladder(driver, n_sms)

    def part(resource: Any) -> Part:
        description = checked(driver, driver.cuDevResourceGenerateDesc([resource], 1))
        flags = int(driver.CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM)
        context = checked(driver, driver.cuGreenCtxCreate(description, device, flags))
        return Part(context, int(resource.sm.smCount))

    def split(n_groups: int, each: int) -> tuple[list[Any], Any]:
        """The list has `n_groups` entries even where the driver made fewer groups."""
        groups, n_made, rest = checked(driver, driver.cuDevSmResourceSplitByCount(n_groups, whole, 0, each))
        if int(n_made) < n_groups:
            raise RuntimeError(f"{n_groups} groups of {each} of {n_sms} SMs: the driver made {int(n_made)}")
        return list(groups), rest

    for n_groups in (4, 2):
        each = n_sms // n_groups // step * step
        if each:
            ladder.rungs[1 / n_groups] = [part(group) for group in split(n_groups, each)[0]]
    if 0.25 in ladder.rungs:
        _, rest = split(1, n_sms // 4 // step * step)
        ladder.rungs[0.75] = [part(rest)]
    return ladder


def open_ladder(device: torch.device) -> tuple[Ladder | None, str]:
    """The ladder of a device, or None where it cannot have one, and why. A probe: whatever goes wrong is a
    reason, for what bindings and drivers raise here differs by version."""
    driver = bindings()
    if driver is None:
        return None, "cuda-bindings is not installed"
    try:
        make_current(device)  # green contexts need the primary context first
        return make_ladder(driver, device.index or 0), ""
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"
