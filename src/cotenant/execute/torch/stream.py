"""What a lane is made of, whatever the device: a stream that runs segments in the order they were launched.

`pump.Pump` decides when what is launched; a stream only does it and says what has passed. `CpuStream` is a
thread on its own cores; `cuda.CudaStream` a CUDA stream with captured graphs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Protocol

import torch

from cotenant.clock import Clock
from cotenant.cores import pinned, yield_to_others
from cotenant.domain import Dispatch
from cotenant.execute.batch import Array, Batcher
from cotenant.execute.torch.model import TorchModel
from cotenant.ports import Tensors

LONGEST_ERROR = 300


@dataclass(eq=False, slots=True)
class Job:
    """A dispatch on its way through a lane. Instants in ns; what has not passed yet is None or missing."""

    dispatch: Dispatch
    inputs: Sequence[Tensors]
    model: TorchModel
    behind: bool = False
    """Whether something was on the lane before it."""
    resumed: Any = None
    """Where it goes on, if it was stopped at a boundary before: what `Stream.keep` gave."""
    staged: bool = False
    """Whether its inputs are on the device."""
    began_at: int | None = None
    ends_at: list[int] = field(default_factory=list)
    """End of each segment that has passed."""
    done_at: int | None = None
    """When its outputs were back."""
    results: Sequence[dict[str, Array]] = ()
    error: str | None = None
    launched: int = 0
    """Segments launched."""
    launch_ns: int = 0
    """What launching them took of the host (ns)."""
    finishing: bool = False
    """Whether copying the outputs back was launched."""
    stopping: bool = False
    """Whether it should end at the next boundary."""
    given_up: bool = False
    """Whether its end was already told."""
    told_started: bool = False
    n_told: int = 0
    """Boundaries told."""
    state: Any = None
    """The stream's own."""

    @property
    def n_segments(self) -> int:
        """Segments of this dispatch."""
        return self.dispatch.end_segment - self.dispatch.first_segment


class Stream(Protocol):
    """Runs what is launched, in order. Called by the pump's thread only; nothing blocks."""

    polled: bool
    """Whether what has passed is found out by polling; else the stream wakes the pump."""

    def stage(self, job: Job) -> None:
        """Begin to bring the inputs to the device; `job.staged` follows."""
        ...

    def launch(self, job: Job) -> None:
        """Queue the job's next segment; its end is added to `job.ends_at` when it has passed."""
        ...

    def finish(self, job: Job) -> None:
        """Queue copying the outputs back; `job.results` and `job.done_at` follow."""
        ...

    def poll(self, job: Job) -> None:
        """Take notice of what has passed."""
        ...

    def keep(self, job: Job) -> Any:
        """The intermediate tensors of a job that stopped at a boundary, safe from later runs."""
        ...

    def withdraw(self, job: Job) -> None:
        """Take back what was staged of a job that will not go on."""
        ...

    def forget(self, model: TorchModel) -> None:
        """Drop what is held for a model, after the jobs that were staged before."""
        ...

    def close(self) -> None:
        """Run nothing more; what is running is abandoned. Returns at once."""
        ...


def describe(error: BaseException) -> str:
    """Type and first line of an error, short."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}"[:LONGEST_ERROR]


class CpuStream:
    """A thread on its own cores. `wake` is called, from the thread, after each thing it has done."""

    polled = False

    def __init__(self, name: str, cores: frozenset[int], clock: Clock, wake: Callable[[], None]) -> None:
        self._cores = cores
        self._clock = clock
        self._wake = wake
        self._work: SimpleQueue[tuple[Callable[[Any], None], Job | TorchModel] | None] = SimpleQueue()
        self._batchers: dict[str, tuple[TorchModel, Batcher]] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    def stage(self, job: Job) -> None:
        self._work.put((self._stage, job))
        job.staged = True  # whatever is launched comes behind it

    def launch(self, job: Job) -> None:
        self._work.put((self._segment, job))

    def finish(self, job: Job) -> None:
        self._work.put((self._finish, job))

    def poll(self, job: Job) -> None:
        """Nothing: the thread writes to the job itself, then wakes the pump."""

    def keep(self, job: Job) -> Any:
        return job.state

    def withdraw(self, job: Job) -> None:
        """Nothing: the job holds its tensors itself."""

    def forget(self, model: TorchModel) -> None:
        self._work.put((self._drop, model))

    def close(self) -> None:
        self._closed = True
        self._work.put(None)

    def join(self, timeout_s: float) -> None:
        """Wait for the thread's end."""
        self._thread.join(timeout_s)

    # --- in the thread --------------------------------------------------------------------------------

    def _loop(self) -> None:
        yield_to_others()
        with pinned(self._cores), torch.inference_mode():
            torch.set_num_threads(len(self._cores))
            while True:
                entry = self._work.get()
                if entry is None or self._closed:
                    return
                do, subject = entry
                if not isinstance(subject, Job):
                    do(subject)
                elif subject.error is None:
                    try:
                        do(subject)
                    except Exception as error:
                        subject.error = describe(error)
                self._wake()
                del entry, do, subject

    def _drop(self, model: TorchModel) -> None:
        """A replaced model's batcher may already be that of its successor."""
        known = self._batchers.get(model.metadata.name)
        if known is not None and known[0] is model:
            del self._batchers[model.metadata.name]

    def _batcher(self, model: TorchModel) -> Batcher:
        name = model.metadata.name
        known = self._batchers.get(name)
        if known is None or known[0] is not model:
            known = self._batchers[name] = (model, Batcher(model.metadata))
        return known[1]

    def _stage(self, job: Job) -> None:
        if job.resumed is not None:
            job.state = job.resumed
        else:
            feed = self._batcher(job.model).feed(job.dispatch.variant, job.inputs)
            job.state = tuple(_tensor(feed[spec.name]) for spec in job.model.metadata.inputs)

    def _segment(self, job: Job) -> None:
        if job.began_at is None:
            job.began_at = self._clock.now()
        k = job.dispatch.first_segment + len(job.ends_at)
        job.state = job.model.segments[k](*job.state)
        job.ends_at.append(self._clock.now())

    def _finish(self, job: Job) -> None:
        outputs = [tensor.numpy() for tensor in job.state]
        job.results = self._batcher(job.model).answers(job.dispatch.variant, job.inputs, outputs)
        job.state = None
        job.done_at = self._clock.now()


def _tensor(array: Array) -> torch.Tensor:
    """The array as a tensor; one that must not be written to is copied, because torch would not notice."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())
