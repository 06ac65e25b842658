"""Models as CUDA graphs: one per segment of every variant, on every share of the device, for one lane.

How this works. What a run of a variant touches is static: inputs, the state at each boundary, outputs.
Nothing runs on a stream that captures, not even a warm run: its cuBLAS workspace is baked into graphs that
may be replaying for other models at that moment. All graphs of a lane share a memory pool, so they may never
run at the same time. All is done in inference mode: what was captured so may not be written to outside of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cotenant.domain import Variant
from cotenant.execute.batch import Array, Batcher
from cotenant.execute.model import example_inputs
from cotenant.execute.torch.model import DTYPES, TorchModel, example_state
from cotenant.execute.torch.stream import describe

N_SLOTS = 2
"""Slots made with a capture: one for the running dispatch, one for the staged. More are made when needed."""
MEMORY_SHARE = 0.9
"""Share of the free device memory that captures may take."""


@dataclass(eq=False, slots=True)
class Slot:
    """Memory of one batch on its way: pinned and staging, in and out; the batcher writes to the pinned.
    `copied`: its inputs have arrived; `left`: its outputs lie in `leaving`."""

    batcher: Batcher
    staged: list[Tensor]
    leaving: list[Tensor]
    pinned_out: list[Tensor]
    copied: Any
    left: Any


@dataclass(eq=False, slots=True)
class Captured:
    """The graphs of one variant on one lane and share, and the stream they run on. `states[k]`: what segment
    k begins with; the last: outputs. `slots`: memory that nothing uses, the same for all shares."""

    model: TorchModel
    variant: Variant
    main: Any
    graphs: list[Any]
    states: list[tuple[Tensor, ...]]
    slots: deque[Slot]


def pinned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Host memory that the device copies from and to by itself."""
    return torch.empty(shape, dtype=dtype, pin_memory=True)


def _pinned_array(shape: tuple[int, ...], dtype: Any) -> Array:
    array: Array = pinned(shape, torch.from_numpy(np.empty(0, dtype)).dtype).numpy()
    return array


Graphs = dict[tuple[Variant, float], Captured]
"""By variant and share."""


@dataclass(frozen=True, slots=True)
class Rung:
    """The streams of a lane on one share: what runs is launched on `main`, graphs are captured on the other,
    for nothing may run on a stream that captures."""

    main: Any
    capturing: Any


class Captures:
    """Makes the graphs of one lane. `outward`: the stream that copies results back."""

    def __init__(self, device: torch.device, rungs: Mapping[float, Rung], inward: Any, outward: Any) -> None:
        self._device, self._rungs = device, rungs
        self._inward, self._outward = inward, outward
        self._pool = torch.cuda.graph_pool_handle()
        self._failed: list[Any] = []
        self._holder = self._hold_pool()

    @torch.inference_mode()
    def _hold_pool(self) -> Any:
        """A graph of next to nothing that keeps the pool in use: once the last graph of a pool is gone, torch
        refuses its handle for ever (an internal assertion), so unloading all and loading again would fail."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._rungs[1.0].capturing):
            self._record(graph, lambda: (torch.zeros(1, device=self._device),), ())
        return graph

    def capture(self, model: TorchModel) -> Graphs:
        """Capture every variant; each must have run before, in this thread and on every share: what torch
        and its libraries make lazily cannot be made in a capture. Blocks; not for the pump's thread. Raises
        RuntimeError (out of memory) and ValueError (what cannot be captured)."""
        made: Graphs = {}
        for variant in model.metadata.spec.variants():
            slots: deque[Slot] = deque()
            for share, rung in self._rungs.items():
                made[variant, share] = self._capture(model, variant, rung, slots)
            inputs = example_inputs(model.metadata, variant, np.random.default_rng(0))
            for _ in range(N_SLOTS):
                slot = self.new_slot(made[variant, 1.0])
                slot.batcher.feed(variant, [inputs])  # makes its pinned memory
                slots.append(slot)
        return made

    @torch.inference_mode()
    def _capture(self, model: TorchModel, variant: Variant, rung: Rung, slots: deque[Slot]) -> Captured:
        state = example_state(model.metadata, variant, self._device)
        rung.capturing.wait_stream(torch.cuda.current_stream(self._device))
        states, graphs = [state], []
        with torch.cuda.stream(rung.capturing):
            for segment in model.segments:
                graph = torch.cuda.CUDAGraph()
                state = self._record(graph, segment, state)
                graphs.append(graph)
                states.append(state)
        rung.capturing.synchronize()
        return Captured(model, variant, rung.main, graphs, states, slots)

    def _record(
        self, graph: Any, do: Callable[..., tuple[Tensor, ...]], state: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Capture `do(*state)` on the current stream."""
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            found = do(*state)
        except Exception as error:
            self._give_up(graph)
            raise ValueError(
                f"it cannot be captured as a CUDA graph ({describe(error)}); what it does must not depend on "
                "values that the host reads, as by .item() or nonzero()"
            ) from error
        graph.capture_end()
        return found

    def _give_up(self, graph: Any) -> None:
        """End a capture that failed. What broke it says more than what this raises. When ending it fails,
        torch leaves its allocator in capture (CUDAGraph.cpp, capture_end), with a pointer to the graph."""
        try:
            graph.capture_end()
        except RuntimeError:
            self._failed.append(graph)
            with suppress(Exception):
                index = self._device.index or 0
                torch._C._cuda_endAllocateToPool(index, self._pool)

    def new_slot(self, captured: Captured) -> Slot:
        """Device memory belongs to the stream that brings inputs, and is marked as used by the others: if it
        is freed before its time (a run that failed), it is not given away before they are through."""
        with torch.inference_mode(), torch.cuda.stream(self._inward):
            staged, leaving = (
                [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in captured.states[k]]
                for k in (0, -1)
            )
            for tensor in (*staged, *leaving):
                for stream in (self._outward, *(rung.main for rung in self._rungs.values())):
                    tensor.record_stream(stream)
            return Slot(
                batcher=Batcher(captured.model.metadata, _pinned_array),
                staged=staged,
                leaving=leaving,
                pinned_out=[pinned(tuple(tensor.shape), tensor.dtype) for tensor in leaving],
                copied=torch.cuda.Event(),
                left=torch.cuda.Event(),
            )


def memory_needed(model: TorchModel, n_lanes: int) -> int:
    """Bytes that capturing a model on every lane takes besides its weights, roughly: the largest state of
    every variant, some four times (state, temporaries, two slots)."""
    total = 0
    for variant in model.metadata.spec.variants():
        inputs = model.metadata.inputs
        size = sum(DTYPES[spec.datatype].itemsize * _elements(spec.shape, variant) for spec in inputs)
        total += 4 * max(size, int(max(cost.bytes for cost in model.costs)) // 8)
    return total * n_lanes


def _elements(shape: tuple[int, ...], variant: Variant) -> int:
    sizes = iter([variant.rows, *(size for _, size in variant.axes)])
    return int(np.prod([next(sizes, 1) if size < 0 else size for size in shape]))


def check_memory(model: TorchModel, n_lanes: int, n_shares: int = 1) -> None:
    """Raises ValueError when the device has not the memory for the model's captures."""
    free, _ = torch.cuda.mem_get_info(model.device)
    needed = memory_needed(model, n_lanes) * n_shares
    if needed > MEMORY_SHARE * free:
        raise ValueError(
            f"capturing it on {n_lanes} lanes takes about {needed >> 20} MiB, but {free >> 20} MiB are free; "
            "lower max_batch, the number of lanes, or the shares"
        )
