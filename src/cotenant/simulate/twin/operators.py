"""Kernels from counting: what operators of a model take on a device, by the roofline.

Everything is 16 bit, products run on the tensor cores. An operator becomes one kernel:

- a product of matrices (convolutions are one, with batch x pixels rows) is cut into tiles of 128 x 128, or
  64 x 64 where those would leave SMs idle; if SMs still are, its inner dimension is split (at most 16 ways,
  at least 128 each). A tile is the work of one SM (two of the small ones), at `TENSOR_SHARE` of its peak.
- what goes element by element moves its bytes at `MEMORY_SHARE` of the bandwidth, with as many SMs as its
  elements fill; `SATURATES` of the SMs suffice for that. Activations that fit into half of the second-level
  cache move `CACHE_SPEED` times as fast and take no memory bandwidth; weights come from memory, as other
  models have run since they were last read.
- a product that moves its bytes longer than it computes is bound by memory.

Each has `FLOOR_NS` besides: start, drain. The shares are what well-tuned libraries reach; a kernel of a real
framework may be twice as slow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from cotenant.simulate.twin.kernels import COMPUTE, COPY_IN, COPY_OUT, MEMORY, SATURATES, Kernels, kernels
from cotenant.simulate.twin.specs import DeviceSpec

BYTES = 2
"""Of a number."""
TENSOR_SHARE, FP32_SHARE, MEMORY_SHARE = 0.6, 0.5, 0.8
"""Of the peaks that kernels reach."""
CACHE_SPEED = 2.5
FLOOR_NS = 1500.0
COPY_FLOOR_NS = 6000.0
ELEMENTS_PER_SM = 8192
"""With which an SM is full: 2048 threads of 4 elements."""
LARGE, SMALL = 128, 64
"""Sides of tiles."""
MOST_SPLITS, LEAST_INNER = 16, 128


@dataclass(slots=True)
class Tape:
    """Takes down the kernels of a run on a device, in order."""

    spec: DeviceSpec
    _rows: list[tuple[int, float, float, float]] = field(default_factory=list)
    """(what it is bound by, SMs wanted, span in ns, share of the bandwidth)."""

    def kernels(self) -> Kernels:
        """All that was taken down."""
        bound, loads, span, bandwidth = zip(*self._rows, strict=True)
        return kernels(np.array(bound), np.array(loads), np.array(span), self.spec, np.array(bandwidth))

    def copy_in(self, n_bytes: float) -> None:
        """Inputs from the host."""
        self._copy(COPY_IN, n_bytes)

    def copy_out(self, n_bytes: float) -> None:
        """Outputs to the host."""
        self._copy(COPY_OUT, n_bytes)

    def product(self, rows: float, columns: float, inner: float, n: int = 1, *, shared: bool = True) -> None:
        """`n` products [rows x inner] . [inner x columns], in one kernel; `shared`: of the same right side,
        the weights."""
        spec = self.spec
        per_sm = spec.tensor_flop_per_s / spec.n_sms * TENSOR_SHARE / 1e9
        side = LARGE
        if n * math.ceil(rows / LARGE) * math.ceil(columns / LARGE) < spec.n_sms:
            side = SMALL
        tiles = n * math.ceil(rows / side) * math.ceil(columns / side)
        per_load = 1 if side == LARGE else 2
        splits = 1
        while tiles * splits * 2 <= per_load * spec.n_sms and splits < MOST_SPLITS:
            if inner / (splits * 2) < LEAST_INNER:
                break
            splits *= 2
        loads = max(1.0, tiles * splits / per_load)
        wave_ns = 2.0 * side * side * inner / splits * per_load / per_sm
        right = BYTES * inner * columns * (1 if shared else n)
        others = BYTES * n * rows * (inner + columns * splits)
        weights, activations = (right, others) if shared else (0.0, right + others)
        self._add(loads, wave_ns * math.ceil(loads / spec.n_sms), activations, weights)

    def convolution(
        self, n_images: int, side: int, n_in: int, n_out: int, kernel: int, stride: int = 1
    ) -> int:
        """With its bias and activation, on `side` x `side` images. Returns the side of what comes out."""
        out = math.ceil(side / stride)
        self.product(n_images * out * out, n_out, n_in * kernel * kernel)
        return out

    def depthwise(self, n_images: int, side: int, n_channels: int, kernel: int, stride: int = 1) -> int:
        """A convolution of each channel by itself. Returns the side of what comes out."""
        out = math.ceil(side / stride)
        made = n_images * n_channels * out * out
        self.elementwise(made, n_images * n_channels * side * side + made, 2.0 * kernel * kernel)
        return out

    def elementwise(self, n_elements: float, n_moved: float = 0.0, flops: float = 4.0) -> None:
        """`n_elements` come out; `n_moved` numbers are read and written (default: one each), `flops` done
        for each."""
        per_sm = self.spec.fp32_flop_per_s / self.spec.n_sms * FP32_SHARE / 1e9
        loads = max(1.0, n_elements / ELEMENTS_PER_SM)
        used = min(loads, float(self.spec.n_sms))
        self._add(loads, n_elements * flops / (per_sm * used), BYTES * (n_moved or 2.0 * n_elements))

    def _add(self, loads: float, compute_ns: float, activations: float, weights: float = 0.0) -> None:
        """A kernel that computes for so long and moves so many bytes."""
        spec = self.spec
        reach = min(1.0, loads / (SATURATES * spec.n_sms))
        per_ns = spec.bytes_per_s / 1e9 * MEMORY_SHARE * reach
        cached = activations <= spec.cache_bytes / 2
        fetched = weights + (0.0 if cached else activations)
        memory_ns = fetched / per_ns
        moving_ns = memory_ns + (activations / per_ns / CACHE_SPEED if cached else 0.0)
        span_ns = max(compute_ns, moving_ns) + FLOOR_NS
        bound = MEMORY if memory_ns > max(compute_ns, 0.5 * moving_ns) else COMPUTE
        self._rows.append((bound, loads, span_ns, fetched / (spec.bytes_per_s / 1e9) / span_ns))

    def _copy(self, kind: int, n_bytes: float) -> None:
        span_ns = COPY_FLOOR_NS + n_bytes / (self.spec.pcie_bytes_per_s / 1e9)
        self._rows.append((kind, 0.0, span_ns, 0.0))
