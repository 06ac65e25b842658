"""Devices that a twin can stand for.

Peak rates, memory and board power are those of NVIDIA's data sheets (V100 SXM2 16 GB, A100 SXM 40 GB, H100
SXM 80 GB, H200 SXM 141 GB, L4). The V100's idle power (53.5 W) and how its clocks fall above the power cap
(1.025 MHz per W at 1530 MHz) are the constants that iGniter measured (TPDS 2023, released configuration). The
other idle powers, the split of the rest between SMs and memory, and the launch gaps (as of CUDA graphs) are
assumptions.
"""

from __future__ import annotations

from dataclasses import dataclass

CLOCK_SLOPE = 0.2
"""Share of the clocks lost per share of power above the cap: 1.025 MHz/W x 300 W / 1530 MHz."""
LEAST_CLOCK = 0.5
"""Clocks never fall below this share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """A device as the twin sees it."""

    name: str
    n_sms: int
    """Streaming multiprocessors."""
    fp32_flop_per_s: float
    """Peak without tensor cores (operations/s)."""
    tensor_flop_per_s: float
    """Peak of the tensor cores at 16 bit, dense (operations/s)."""
    bytes_per_s: float
    """Peak memory bandwidth."""
    memory_bytes: float
    """Size of the memory."""
    cache_bytes: float
    """Size of the second-level cache."""
    pcie_bytes_per_s: float
    """Copies from and to the host, each direction, as achieved from pinned memory."""
    launch_gap_ns: float
    """From the end of a kernel to the start of the next one of its stream."""
    idle_w: float
    """Power without work (W)."""
    sms_w: float
    """More with every SM busy on arithmetic (W)."""
    memory_w: float
    """More at full memory bandwidth (W)."""
    cap_w: float
    """Board power above which clocks fall (W)."""


V100 = DeviceSpec(
    name="v100", n_sms=80, fp32_flop_per_s=15.7e12, tensor_flop_per_s=125e12, bytes_per_s=900e9,
    memory_bytes=16e9, cache_bytes=6e6, pcie_bytes_per_s=12e9, launch_gap_ns=1500.0,
    idle_w=53.5, sms_w=190.0, memory_w=75.0, cap_w=300.0,
)  # fmt: skip
A100 = DeviceSpec(
    name="a100", n_sms=108, fp32_flop_per_s=19.5e12, tensor_flop_per_s=312e12, bytes_per_s=1555e9,
    memory_bytes=40e9, cache_bytes=40e6, pcie_bytes_per_s=24e9, launch_gap_ns=1300.0,
    idle_w=55.0, sms_w=265.0, memory_w=100.0, cap_w=400.0,
)  # fmt: skip
H100 = DeviceSpec(
    name="h100", n_sms=132, fp32_flop_per_s=66.9e12, tensor_flop_per_s=989e12, bytes_per_s=3350e9,
    memory_bytes=80e9, cache_bytes=50e6, pcie_bytes_per_s=48e9, launch_gap_ns=1100.0,
    idle_w=70.0, sms_w=500.0, memory_w=160.0, cap_w=700.0,
)  # fmt: skip
H200 = DeviceSpec(
    name="h200", n_sms=132, fp32_flop_per_s=66.9e12, tensor_flop_per_s=989e12, bytes_per_s=4800e9,
    memory_bytes=141e9, cache_bytes=50e6, pcie_bytes_per_s=48e9, launch_gap_ns=1100.0,
    idle_w=75.0, sms_w=500.0, memory_w=180.0, cap_w=700.0,
)  # fmt: skip
L4 = DeviceSpec(
    name="l4", n_sms=58, fp32_flop_per_s=30.3e12, tensor_flop_per_s=121e12, bytes_per_s=300e9,
    memory_bytes=24e9, cache_bytes=48e6, pcie_bytes_per_s=24e9, launch_gap_ns=1300.0,
    idle_w=16.0, sms_w=48.0, memory_w=14.0, cap_w=72.0,
)  # fmt: skip

SPECS = {spec.name: spec for spec in (V100, A100, H100, H200, L4)}


def spec_of(name: str) -> DeviceSpec:
    """The device called `name`. Raises ValueError that lists the known ones."""
    found = SPECS.get(name.lower())
    if found is None:
        known = ", ".join(SPECS)
        raise ValueError(f"{name!r} is no device that can be simulated; known: {known}")
    return found


def clock(watts: float, spec: DeviceSpec) -> float:
    """Share (0..1] of the clocks that is left when the work would take so many watts at full clocks."""
    return max(LEAST_CLOCK, 1.0 - CLOCK_SLOPE * max(0.0, watts / spec.cap_w - 1.0))
