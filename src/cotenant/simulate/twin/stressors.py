"""Stressors on a twin: runs that use one resource only, at a chosen level.

The same resources as those of a real GPU (`execute/torch/stressors.py`): arithmetic on a share of the SMs,
memory bandwidth, copies from the host, launches. Kernels are as short as those of models, so that others get
their turn; a run has many of them, so that what measures is cheap.
"""

from __future__ import annotations

import numpy as np

from cotenant.domain import ModelSpec, Variant
from cotenant.simulate.twin.device import Programs
from cotenant.simulate.twin.kernels import COMPUTE, COPY_IN, MEMORY, SATURATES, Kernels, kernels
from cotenant.simulate.twin.specs import DeviceSpec

PREFIX = "stress."
LEVELS = 2
"""The highest level: all of the resource."""
KERNEL_NS = 30_000.0
N_KERNELS = 60
LAUNCH_NS = 2_000.0
"""Span of the smallest kernel."""
N_LAUNCHES = 400
COPY_NS = 100_000.0
N_COPIES = 20
STRESSES: tuple[tuple[str, int], ...] = (
    ("compute", 1), ("compute", 2), ("dram", 1), ("dram", 2), ("launch", 2), ("copy_in", 2),
)  # fmt: skip
"""(resource, level) that models are measured beside."""


def stress_variant(resource: str, level: int) -> Variant:
    """Its level is its batch."""
    return Variant(PREFIX + resource, level)


def stress_spec(resource: str) -> ModelSpec:
    """A stressor as a model."""
    return ModelSpec(name=PREFIX + resource, slo_ns=None, max_batch=LEVELS, row_buckets=(1, 2))


def stress_kernels(resource: str, level: int, spec: DeviceSpec) -> Kernels:
    """What a run of a stressor does."""
    share = level / LEVELS
    bound, loads, span_ns, n = {
        "compute": (COMPUTE, spec.n_sms * share, KERNEL_NS, N_KERNELS),
        "dram": (MEMORY, spec.n_sms * SATURATES * share, KERNEL_NS, N_KERNELS),
        "launch": (COMPUTE, 1.0, LAUNCH_NS, round(N_LAUNCHES * share)),
        "copy_in": (COPY_IN, 0.0, COPY_NS, round(N_COPIES * share)),
    }[resource]
    return kernels(np.full(n, bound), np.full(n, loads), np.full(n, span_ns), spec)


def add_stressors(programs: Programs) -> None:
    """Make every stressor runnable."""
    for resource, level in STRESSES:
        programs.add(stress_variant(resource, level), stress_kernels(resource, level, programs.spec))
