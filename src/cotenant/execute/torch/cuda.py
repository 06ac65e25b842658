"""Lanes on CUDA: a stream each, every segment of every variant captured as a graph of its own.

How this works. What a run of a variant touches is static: inputs, the state at each boundary, outputs. One
graph per segment is captured on a stream of the lane's own, so that no two lanes share a cuBLAS workspace
or an executable graph (which never overlaps itself). Inputs go through pinned memory and a staging copy on
the device, by a copy stream; outputs the same way back. So while one dispatch runs, the next one's inputs
arrive. A helper thread per lane assembles batches and cuts results; the pump only launches and asks events.
A dispatch confined to a share of the SMs replays graphs captured in that partition, on a stream of it.

Times are the device's own, by events, brought to the host's clock by an anchor that is renewed every second
or so (an event's distance is a float32 of ms: good to a microsecond only over a few seconds).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cotenant.clock import Clock
from cotenant.domain import NS_PER_MS, NS_PER_S, Variant
from cotenant.execute.batch import Array, Batcher
from cotenant.execute.torch.model import DTYPES, TorchModel, example_state
from cotenant.execute.torch.partitions import Ladder, new_stream
from cotenant.execute.torch.stream import Job, describe

ANCHOR_NS = NS_PER_S
"""Age at which the anchor of device times is renewed (ns)."""
WARM_RUNS = 2
MEMORY_SHARE = 0.9
"""Share of the free device memory that captures may take."""


class DeviceClock:
    """Brings instants of CUDA events to the host's clock."""

    def __init__(self, clock: Clock, device: torch.device) -> None:
        self._clock = clock
        self._stream = new_stream(device)
        self._anchored = self._anchor()

    def _anchor(self) -> tuple[Any, int]:
        event = torch.cuda.Event(enable_timing=True)
        before = self._clock.now()
        event.record(self._stream)
        event.synchronize()
        return event, (before + self._clock.now()) // 2

    def instant(self, event: Any) -> int:
        """When the event, which must have passed, was reached (ns, host clock)."""
        anchor, at = self._anchored
        if self._clock.now() - at > ANCHOR_NS:
            anchor, at = self._anchored = self._anchor()
        return at + int(anchor.elapsed_time(event) * NS_PER_MS)


@dataclass(eq=False, slots=True)
class Slot:
    """Memory of one batch on its way: pinned and staging, in and out; the batcher writes to the pinned."""

    batcher: Batcher
    staged: list[Tensor]
    leaving: list[Tensor]
    pinned_out: list[Tensor]


@dataclass(eq=False, slots=True)
class Captured:
    """The graphs of one variant on one lane and share, and the stream they run on. `states[k]`: what segment
    k begins with; the last: outputs."""

    model: TorchModel
    variant: Variant
    main: Any
    graphs: list[Any]
    states: list[tuple[Tensor, ...]]
    slots: deque[Slot] = field(default_factory=deque)

    def slot(self) -> Slot:
        """Memory that nothing uses; give it back by appending it to `slots`."""
        return self.slots.popleft() if self.slots else self._new_slot()

    def _new_slot(self) -> Slot:
        return Slot(
            batcher=Batcher(self.model.metadata, _pinned),
            staged=[torch.empty_like(tensor) for tensor in self.states[0]],
            leaving=[torch.empty_like(tensor) for tensor in self.states[-1]],
            pinned_out=[
                torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in self.states[-1]
            ],
        )


def _pinned(shape: tuple[int, ...], dtype: Any) -> Array:
    kind = torch.from_numpy(np.empty(0, dtype)).dtype
    array: Array = torch.empty(shape, dtype=kind, pin_memory=True).numpy()
    return array


@dataclass(eq=False, slots=True)
class Passage:
    """A job's own on a CUDA stream: its graphs, memory, and the events that have not been seen to pass."""

    captured: Captured
    slot: Slot
    copied: Any = None
    began: Any = None
    marks: deque[Any] = field(default_factory=deque)
    done: Any = None
    cutting: bool = False


@dataclass(frozen=True, slots=True)
class Rung:
    """The streams of a lane on one share: what runs is launched on `main`, graphs are captured on the other,
    for nothing may run on a stream that captures."""

    main: Any
    capturing: Any


class CudaStream:
    """Implements `stream.Stream`. `wake` is called when inputs are staged or results cut. With a `ladder`,
    every variant is captured once per share of it."""

    polled = True

    def __init__(
        self,
        lane: int,
        device: torch.device,
        clock: DeviceClock,
        wake: Callable[[], None],
        *,
        priority: int = 0,
        ladder: Ladder | None = None,
    ) -> None:
        self._device, self._clock, self._wake = device, clock, wake
        self._rungs = {1.0: Rung(new_stream(device, priority), new_stream(device, priority))}
        if ladder is not None:
            for share in ladder.shares[:-1]:
                handles = [ladder.stream(share, lane, priority) for _ in range(2)]
                self._rungs[share] = Rung(*(torch.cuda.ExternalStream(h, device=device) for h in handles))
        self._last = self._rungs[1.0].main
        self._inward, self._outward = new_stream(device), new_stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._captured: dict[str, dict[tuple[Variant, float], Captured]] = {}
        self._events: deque[Any] = deque()
        self._work: SimpleQueue[tuple[Callable[[Job], None], Job] | None] = SimpleQueue()
        self._closed = False
        self._helper = threading.Thread(target=self._loop, name=f"cotenant-lane-{lane}", daemon=True)
        self._helper.start()

    # --- models ---------------------------------------------------------------------------------------

    def capture(self, model: TorchModel) -> None:
        """Capture every variant. Blocks; not for the pump's thread. Raises RuntimeError (out of memory)."""
        made: dict[tuple[Variant, float], Captured] = {}
        for variant in model.metadata.spec.variants():
            for share, rung in self._rungs.items():
                captured = made[variant, share] = self._capture(model, variant, rung)
                captured.slots.append(captured.slot())
        self._captured[model.metadata.name] = made

    def forget(self, name: str) -> None:
        """Drop a model's graphs and memory."""
        self._captured.pop(name, None)

    @torch.inference_mode()
    def _capture(self, model: TorchModel, variant: Variant, rung: Rung) -> Captured:
        state = example_state(model.metadata, variant, self._device)
        rung.capturing.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(rung.capturing):
            for _ in range(WARM_RUNS):
                warm = state
                for segment in model.segments:
                    warm = segment(*warm)
            rung.capturing.synchronize()
            states, graphs = [state], []
            for segment in model.segments:
                graph = torch.cuda.CUDAGraph()
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    state = segment(*state)
                finally:
                    graph.capture_end()
                graphs.append(graph)
                states.append(state)
        rung.capturing.synchronize()
        return Captured(model, variant, rung.main, graphs, states)

    # --- Stream ---------------------------------------------------------------------------------------

    def stage(self, job: Job) -> None:
        self._work.put((self._bring, job))

    def launch(self, job: Job) -> None:
        passage: Passage = job.state
        captured = passage.captured
        k = job.dispatch.first_segment + job.launched
        with torch.cuda.stream(captured.main):
            if job.launched == 0:
                self._follow(captured.main)
                captured.main.wait_event(passage.copied)
                source = passage.slot.staged if job.resumed is None else job.resumed[0]
                for target, tensor in zip(captured.states[k], source, strict=True):
                    target.copy_(tensor, non_blocking=True)
                passage.began = self._mark(captured.main)
            captured.graphs[k].replay()
            passage.marks.append(self._mark(captured.main))

    def _follow(self, stream: Any) -> None:
        """What is launched on `stream` comes behind all that this lane launched before, on any share."""
        if stream is not self._last:
            stream.wait_stream(self._last)
            self._last = stream

    def finish(self, job: Job) -> None:
        passage: Passage = job.state
        slot, main = passage.slot, passage.captured.main
        with torch.cuda.stream(main):
            for target, tensor in zip(slot.leaving, passage.captured.states[-1], strict=True):
                target.copy_(tensor, non_blocking=True)
        self._outward.wait_stream(main)
        with torch.cuda.stream(self._outward):
            for target, tensor in zip(slot.pinned_out, slot.leaving, strict=True):
                target.copy_(tensor, non_blocking=True)
        passage.done = self._mark(self._outward)

    def poll(self, job: Job) -> None:
        passage: Passage | None = job.state
        if passage is None or passage.began is None:
            return
        if job.began_at is None and passage.began.query():
            job.began_at = self._clock.instant(passage.began)
            self._events.append(passage.began)
        while job.began_at is not None and passage.marks and passage.marks[0].query():
            event = passage.marks.popleft()
            job.ends_at.append(self._clock.instant(event))
            self._events.append(event)
        if passage.done is not None and not passage.cutting and passage.done.query():
            passage.cutting = True
            self._work.put((self._cut, job))

    def keep(self, job: Job) -> Any:
        k = job.dispatch.first_segment + job.launched
        captured: Captured = job.state.captured
        with torch.inference_mode(), torch.cuda.stream(captured.main):
            kept = tuple(tensor.clone() for tensor in captured.states[k])
        kept_at = torch.cuda.Event()
        kept_at.record(captured.main)
        return kept, kept_at

    def close(self) -> None:
        self._closed = True
        self._work.put(None)

    def join(self, timeout_s: float) -> None:
        """Wait for the helper's end."""
        self._helper.join(timeout_s)

    def _mark(self, stream: Any) -> Any:
        event = self._events.popleft() if self._events else torch.cuda.Event(enable_timing=True)
        event.record(stream)
        return event

    # --- in the helper's thread -----------------------------------------------------------------------

    def _loop(self) -> None:
        torch.cuda.set_device(self._device)
        with torch.inference_mode():
            while True:
                entry = self._work.get()
                if entry is None or self._closed:
                    return
                do, job = entry
                try:
                    do(job)
                except Exception as error:
                    job.error = describe(error)
                self._wake()
                del entry, do, job

    def _bring(self, job: Job) -> None:
        """Assemble the batch in pinned memory and begin its copy."""
        share = job.dispatch.share if job.dispatch.share in self._rungs else 1.0
        captured = self._captured[job.dispatch.variant.model][job.dispatch.variant, share]
        passage = Passage(captured, captured.slot())
        passage.copied = torch.cuda.Event()
        if job.resumed is None:
            feed = passage.slot.batcher.feed(captured.variant, job.inputs)
            with torch.cuda.stream(self._inward):
                for spec, target in zip(captured.model.metadata.inputs, passage.slot.staged, strict=True):
                    target.copy_(torch.from_numpy(feed[spec.name]), non_blocking=True)
        else:
            self._inward.wait_event(job.resumed[1])
            for tensor in job.resumed[0]:
                tensor.record_stream(captured.main)
        passage.copied.record(self._inward)
        job.state = passage
        job.staged = True

    def _cut(self, job: Job) -> None:
        """Copy the results out of pinned memory and give that back."""
        passage: Passage = job.state
        outputs = [tensor.numpy().copy() for tensor in passage.slot.pinned_out]
        job.results = passage.slot.batcher.answers(passage.captured.variant, job.inputs, outputs)
        passage.captured.slots.append(passage.slot)
        ended_at = self._clock.instant(passage.done)
        job.done_at = max(ended_at, job.ends_at[-1])


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
