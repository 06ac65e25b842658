"""Stressors: models that only use one resource, at a chosen intensity, to measure others beside them.

How to use. A stressor is loaded and dispatched like any model; its batch is its intensity, at most `LEVELS`.
On CUDA they are kernels of our own (compiled by NVRTC through torch) on that share of the SMs, or so many
copies or launches; where that compiler is missing, and on the CPU, they are operators of torch. What a model
suffers beside a stressor is its sensitivity; what the stressor suffers beside it, the model's pressure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cotenant.domain import TensorSpec
from cotenant.execute.torch.model import Blueprint

LEVELS = 8
"""Highest intensity: all SMs, or all of a run's work on a CPU."""
PREFIX = "stress."

KERNELS = """
extern "C" __global__ void spin(float* out, int n) {
  float a = threadIdx.x, b = a + 1.0f, c = a + 2.0f, d = a + 3.0f;
  for (int i = 0; i < n; ++i) {
    a = fmaf(a, 0.999f, 0.5f); b = fmaf(b, 0.999f, 0.5f);
    c = fmaf(c, 0.999f, 0.5f); d = fmaf(d, 0.999f, 0.5f);
  }
  if (a + b + c + d == 0.125f) out[0] = a;
}
extern "C" __global__ void sweep(float* out, const float* data, int n_vectors, int times) {
  const float* own = data + (size_t)blockIdx.x * n_vectors * 4;
  float sum = 0.0f;
  for (int t = 0; t < times; ++t)
    for (int i = threadIdx.x; i < n_vectors; i += blockDim.x) {
      float x, y, z, w;
      asm volatile("ld.global.cg.v4.f32 {%0,%1,%2,%3}, [%4];"
                   : "=f"(x), "=f"(y), "=f"(z), "=f"(w) : "l"(own + (size_t)i * 4));
      sum += x + y + z + w;
    }
  if (sum == 0.125f) out[0] = sum;
}
extern "C" __global__ void nothing(float* out) {}
"""
"""`sweep` reads past the first-level cache; each block its own part of `data`, `times` over."""

THREADS = 1024
SPIN_STEPS = 20_000
"""Steps of four dependent chains: about 0.4 ms on an SM of 128 lanes."""
DRAM_BYTES = 8 << 20
"""Of each block: with all SMs far more than any second-level cache holds."""
CACHE_BYTES = 128 << 10
CACHE_TIMES = 48
COPY_BYTES = 4 << 20
"""Copied per level."""
N_LAUNCHES = 24
"""Launched per level."""


class Stressor(nn.Module):
    """Uses one resource in `forward(level)`, whose rows are the intensity; gives `level` back."""

    def __init__(self, on_cuda: Callable[[Stressor, int], None], plain: Callable[[Stressor, int], None]):
        super().__init__()
        self._on_cuda, self._plain = on_cuda, plain
        self._buffers_made: dict[str, Tensor] = {}
        self._kernels: dict[str, Any] = {}
        self._out = torch.zeros(1)

    def forward(self, level: Tensor) -> tuple[Tensor]:
        rows = level.shape[0]
        use = self._on_cuda if level.is_cuda and self._compiled(level.device) else self._plain
        use(self, rows)
        return (level + 0,)

    @property
    def n_sms(self) -> int:
        """SMs of the device."""
        return int(torch.cuda.get_device_properties(self._out.device).multi_processor_count)

    def blocks(self, rows: int) -> int:
        """Blocks that fill `rows` of `LEVELS` of the SMs."""
        return max(1, self.n_sms * rows // LEVELS)

    def kernel(self, name: str, blocks: int, *args: Any, threads: int = THREADS) -> None:
        """Launch on the current stream; arguments after the output."""
        self._kernels[name](grid=(blocks, 1, 1), block=(threads, 1, 1), args=[self._out, *args])

    def buffer(self, name: str, n_floats: int, *, pinned: bool = False) -> Tensor:
        """Memory of the stressor's own on the device, or pinned on the host; made once, outside captures."""
        found = self._buffers_made.get(name)
        if found is None:
            device = torch.device("cpu") if pinned else self._out.device
            found = torch.zeros(n_floats, device=device)
            if pinned and torch.cuda.is_available():
                found = found.pin_memory()
            self._buffers_made[name] = found
        return found

    @property
    def has_kernels(self) -> bool:
        """Whether it runs kernels of its own, as far as it ran."""
        return bool(self._kernels)

    def _compiled(self, device: torch.device) -> bool:
        """Whether the kernels are there; tried once."""
        if self._out.device != device:
            self._out = torch.zeros(1, device=device)
            try:
                compile_kernel = torch.cuda._compile_kernel
                self._kernels = {name: compile_kernel(KERNELS, name) for name in ("spin", "sweep", "nothing")}
            except (
                Exception
            ):  # a private function of torch's: what it raises without NVRTC differs by version
                self._kernels = {}
        return bool(self._kernels)


# --- one function per resource: the kernels, and the same with torch's operators --------------------------


def _compute(stressor: Stressor, rows: int) -> None:
    stressor.kernel("spin", stressor.blocks(rows), SPIN_STEPS)


def _plain_compute(stressor: Stressor, rows: int) -> None:
    matrix = stressor.buffer("matrix", 96 * 96).view(96, 96)
    for _ in range(4 * rows):
        torch.mm(matrix, matrix)


def _dram(stressor: Stressor, rows: int) -> None:
    data = stressor.buffer("dram", stressor.n_sms * DRAM_BYTES // 4)
    stressor.kernel("sweep", stressor.blocks(rows), data, DRAM_BYTES // 16, 1)


def _plain_dram(stressor: Stressor, rows: int) -> None:
    data = stressor.buffer("dram", LEVELS * (8 << 20) // 4)
    data[: rows * (data.numel() // LEVELS)].sum()


def _cache(stressor: Stressor, rows: int) -> None:
    data = stressor.buffer("cache", stressor.n_sms * CACHE_BYTES // 4)
    stressor.kernel("sweep", stressor.blocks(rows), data, CACHE_BYTES // 16, CACHE_TIMES)


def _plain_cache(stressor: Stressor, rows: int) -> None:
    data = stressor.buffer("cache", (512 << 10) // 4)
    for _ in range(4 * rows):
        data.sum()


def _copy_in(stressor: Stressor, rows: int) -> None:
    n = COPY_BYTES // 4
    source = stressor.buffer("host", LEVELS * n, pinned=True)
    stressor.buffer("device", LEVELS * n)[: rows * n].copy_(source[: rows * n], non_blocking=True)


def _copy_out(stressor: Stressor, rows: int) -> None:
    n = COPY_BYTES // 4
    target = stressor.buffer("host", LEVELS * n, pinned=True)
    target[: rows * n].copy_(stressor.buffer("device", LEVELS * n)[: rows * n], non_blocking=True)


def _launches(stressor: Stressor, rows: int) -> None:
    for _ in range(N_LAUNCHES * rows):
        stressor.kernel("nothing", 1, threads=32)


def _plain_launches(stressor: Stressor, rows: int) -> None:
    tiny = stressor.buffer("tiny", 1)
    for _ in range(N_LAUNCHES * rows):
        tiny.add_(1)


RESOURCES: dict[str, tuple[Callable[[Stressor, int], None], Callable[[Stressor, int], None]]] = {
    "compute": (_compute, _plain_compute),
    "dram": (_dram, _plain_dram),
    "cache": (_cache, _plain_cache),
    "copy_in": (_copy_in, _copy_in),
    "copy_out": (_copy_out, _copy_out),
    "launch": (_launches, _plain_launches),
}
"""Resource -> (on CUDA, with torch's operators). On a CPU both copies are copies in memory."""


def stressor(resource: str) -> Blueprint:
    """The stressor of a resource; load it with `max_batch = LEVELS`. Raises KeyError."""
    return Blueprint(
        module=Stressor(*RESOURCES[resource]),
        inputs=(TensorSpec(name="level", datatype="FP32", shape=(-1, 1), axes=("batch", None)),),
        outputs=(TensorSpec(name="done", datatype="FP32", shape=(-1, 1), axes=("batch", None)),),
        platform="cotenant_stressor",
    )
