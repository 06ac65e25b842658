"""Lanes on CUDA: a stream each, every segment of every variant captured as a graph of its own.

How this works. One graph per segment is captured on a stream of the lane's own (`captures`), so that no two
lanes share a cuBLAS workspace or an executable graph (which never overlaps itself). Inputs go through pinned
memory and a staging copy on the device, by a copy stream; outputs the same way back. So while one dispatch
runs, the next one's inputs arrive. A helper thread per lane assembles batches and cuts results; the pump only
launches and asks events. A dispatch confined to a share of the SMs replays graphs captured in that partition,
on a stream of it.

All graphs of a lane share a memory pool, so they may never run at the same time; `_follow` keeps them in
order across shares. The pump's thread is in inference mode, as its copies into captured tensors require.

Times are the device's own, by events. A run's begin is brought to the host's clock (`device_clock`); what
follows is measured from its begin, so that spans carry no noise of that.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import torch

from cotenant.execute.torch.captures import Captured, Captures, Graphs, Rung, Slot
from cotenant.execute.torch.device_clock import DeviceClock, ns_between
from cotenant.execute.torch.model import TorchModel
from cotenant.execute.torch.partitions import Ladder, new_stream
from cotenant.execute.torch.stream import Job, describe


@dataclass(eq=False, slots=True)
class Passage:
    """A job's own on a CUDA stream: its graphs, memory, and events. `marks`: ends of segments that have not
    been seen to pass."""

    captured: Captured
    slot: Slot
    began: Any = None
    marks: deque[Any] = field(default_factory=deque)
    done: Any = None
    cutting: bool = False


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
        self._captures = Captures(device, self._rungs, self._inward, self._outward)
        self._captured: dict[int, tuple[TorchModel, Graphs]] = {}
        self._events: deque[Any] = deque()
        self._work: SimpleQueue[tuple[Callable[[Any], None], Job | TorchModel] | None] = SimpleQueue()
        self._closed = False
        self._helper = threading.Thread(target=self._loop, name=f"cotenant-lane-{lane}", daemon=True)
        self._helper.start()

    # --- models ---------------------------------------------------------------------------------------

    def capture(self, model: TorchModel) -> None:
        """Capture every variant, see `Captures.capture`."""
        self._captured[id(model)] = (model, self._captures.capture(model))

    def forget(self, model: TorchModel) -> None:
        """Drop a model's graphs and memory, after the jobs that were handed over before."""
        self._work.put((self._drop, model))

    # --- Stream: in the pump's thread, whose current stream is nobody else's ---------------------------

    def stage(self, job: Job) -> None:
        self._work.put((self._bring, job))

    def launch(self, job: Job) -> None:
        passage: Passage = job.state
        captured = passage.captured
        main = captured.main
        torch.cuda.set_stream(main)  # a `with torch.cuda.stream` costs as much as a launch
        k = job.dispatch.first_segment + job.launched
        if job.launched == 0:
            self._follow(main)
            main.wait_event(passage.slot.copied)
            source = passage.slot.staged if job.resumed is None else job.resumed[0]
            for target, tensor in zip(captured.states[k], source, strict=True):
                target.copy_(tensor, non_blocking=True)
            passage.began = self._mark(main)
        captured.graphs[k].replay()
        passage.marks.append(self._mark(main))

    def _follow(self, stream: Any) -> None:
        """What is launched on `stream` comes behind all that this lane launched before, on any share."""
        if stream is not self._last:
            stream.wait_stream(self._last)
            self._last = stream

    def finish(self, job: Job) -> None:
        passage: Passage = job.state
        slot, main = passage.slot, passage.captured.main
        torch.cuda.set_stream(main)
        for target, tensor in zip(slot.leaving, passage.captured.states[-1], strict=True):
            target.copy_(tensor, non_blocking=True)
        slot.left.record(main)
        self._outward.wait_event(slot.left)
        torch.cuda.set_stream(self._outward)
        for target, tensor in zip(slot.pinned_out, slot.leaving, strict=True):
            target.copy_(tensor, non_blocking=True)
        passage.done = self._mark(self._outward)

    def poll(self, job: Job) -> None:
        passage: Passage | None = job.state
        if passage is None or passage.began is None:
            return
        if job.began_at is None:
            if not passage.began.query():
                return
            job.began_at = self._clock.instant(passage.began)
        while passage.marks:
            event = passage.marks[0]
            if not event.query():
                return
            passage.marks.popleft()
            job.ends_at.append(job.began_at + ns_between(passage.began, event))
            self._events.append(event)
        if passage.done is not None and not passage.cutting and passage.done.query():
            passage.cutting = True
            self._work.put((self._cut, job))

    def keep(self, job: Job) -> Any:
        k = job.dispatch.first_segment + job.launched
        captured: Captured = job.state.captured
        torch.cuda.set_stream(captured.main)
        kept = tuple(tensor.clone() for tensor in captured.states[k])
        kept_at = torch.cuda.Event()
        kept_at.record(captured.main)
        self.withdraw(job)
        return kept, kept_at

    def withdraw(self, job: Job) -> None:
        self._work.put((self._release, job))

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
        torch.cuda.set_stream(self._inward)
        with torch.inference_mode():
            while True:
                entry = self._work.get()
                if entry is None or self._closed:
                    return
                do, subject = entry
                try:
                    do(subject)
                except Exception as error:
                    if isinstance(subject, Job):
                        subject.error = describe(error)
                self._wake()
                del entry, do, subject

    def _drop(self, model: TorchModel) -> None:
        self._captured.pop(id(model), None)

    def _bring(self, job: Job) -> None:
        """Assemble the batch in pinned memory and begin its copy."""
        if id(job.model) not in self._captured:
            raise RuntimeError("its model was unloaded before it was staged")
        _, made = self._captured[id(job.model)]
        share = job.dispatch.share if (job.dispatch.variant, job.dispatch.share) in made else 1.0
        captured = made[job.dispatch.variant, share]
        slot = captured.slots.popleft() if captured.slots else self._captures.new_slot(captured)
        job.state = Passage(captured, slot)
        if job.resumed is None:
            feed = slot.batcher.feed(captured.variant, job.inputs)
            for spec, target in zip(captured.model.metadata.inputs, slot.staged, strict=True):
                target.copy_(torch.from_numpy(feed[spec.name]), non_blocking=True)
        else:
            kept, kept_at = job.resumed
            self._inward.wait_event(kept_at)
            for tensor in kept:
                tensor.record_stream(captured.main)
        slot.copied.record(self._inward)
        job.staged = True

    def _cut(self, job: Job) -> None:
        """Copy the results out of pinned memory and give that back."""
        passage: Passage = job.state
        assert job.began_at is not None, "polled in order"
        outputs = [tensor.numpy().copy() for tensor in passage.slot.pinned_out]
        results = passage.slot.batcher.answers(passage.captured.variant, job.inputs, outputs)
        ended_at = job.began_at + ns_between(passage.began, passage.done)
        passage.captured.slots.append(passage.slot)
        self._events.extend((passage.began, passage.done))
        job.results, job.state = results, None
        job.done_at = max(ended_at, job.ends_at[-1])

    def _release(self, job: Job) -> None:
        """Take back the memory of a job that will not end: withdrawn, or stopped at a boundary. Nothing need
        be waited for: what still arrives there comes by the stream that brings the next batch, before it."""
        passage: Passage | None = job.state
        if passage is not None:
            job.state = None
            passage.captured.slots.append(passage.slot)
