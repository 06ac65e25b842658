"""One thread that keeps every lane of a torch device fed and tells what has ended.

How this works. Each lane has a stream and a line of jobs, the running one first. Of the running job at most
`AHEAD` segments are launched and not yet past, so that the device never waits for the host, and a preemption
takes effect after at most as many. When the last segment of the running job has been launched, the staged job
behind it may launch too: back-to-back dispatches leave no gap. What has passed is polled from here, by one
thread for all lanes; streams that wake the pump themselves are not polled.

Whatever takes longer than a launch is done by other threads: batches are assembled by the streams' own, and a
lane that was lost is made anew by one that ends with it; until then the lane refuses what it is given.
"""

from __future__ import annotations

import threading
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import Empty, Queue
from typing import Any

import torch

from cotenant.clock import Clock
from cotenant.cores import wake_promptly
from cotenant.domain import Completion, Device, Event, Progress, Started
from cotenant.execute.torch.model import TorchModel
from cotenant.execute.torch.stream import Job, Stream, describe
from cotenant.ports import Sink

AHEAD = 2
TIMED = 10_000
"""Dispatches whose launching is remembered."""
POLL_S = 30e-6
"""Pause between polls (s)."""


@dataclass(eq=False, slots=True)
class Lane:
    """A stream and what is on it, in the order of the stream."""

    index: int
    stream: Stream
    jobs: deque[Job] = field(default_factory=deque)
    lost: bool = False
    """Whether its stream is gone and another not there yet."""


class Pump:
    """See the module's head. `new_stream(lane)` makes the stream of a lane, also after it was lost."""

    def __init__(self, n_lanes: int, new_stream: Callable[[int], Stream], clock: Clock) -> None:
        self.launch_ns: deque[int] = deque(maxlen=TIMED)
        self._clock = clock
        self._new_stream = new_stream
        self._lanes = [Lane(i, new_stream(i)) for i in range(n_lanes)]
        # not a SimpleQueue: in CPython 3.11 its `get` with a short timeout can wait for ever when a put from
        # another thread comes as the time runs out
        self._calls: Queue[Callable[[], None] | None] = Queue()
        self._results: dict[int, Sequence[dict[str, Any]]] = {}
        self._kept: dict[int, tuple[TorchModel, Any]] = {}
        self._sink: Sink | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="cotenant-pump", daemon=True)
        self._thread.start()

    # --- from any thread ------------------------------------------------------------------------------

    def attach(self, sink: Sink) -> None:
        """Where events go."""
        self._sink = sink

    def wake(self) -> None:
        """Something may have passed."""
        self._calls.put(None)

    def start(self, job: Job) -> None:
        """Put a job on its lane."""
        self._call(lambda: self._start(job))

    def preempt(self, dispatch_id: int) -> None:
        """Let a job end at its next boundary."""
        self._call(lambda: self._stop_at_boundary(dispatch_id))

    def abort(self, dispatch_id: int, reason: str) -> None:
        """Withdraw or give up a job, or forget the kept state of one that was stopped."""
        self._call(lambda: self._abort(dispatch_id, reason))

    def take_results(self, dispatch_id: int) -> Sequence[dict[str, Any]] | None:
        """Outputs of a job that has ended, once."""
        return self._results.pop(dispatch_id, None)

    def forget(self, model: TorchModel) -> None:
        """Drop what is kept of a model that was unloaded or replaced; jobs started before end undisturbed."""
        self._call(lambda: self._forget(model))

    def close(self) -> None:
        """Stop everything; returns when the pump has."""
        self._closed = True
        self.wake()
        if self._thread is not threading.current_thread():
            self._thread.join(5.0)

    def _call(self, function: Callable[[], None]) -> None:
        self._calls.put(function)

    # --- in the pump's thread -------------------------------------------------------------------------

    def _loop(self) -> None:
        wake_promptly()
        timeout_s: float | None = None
        with torch.inference_mode():
            while not self._closed:
                self._take_calls(timeout_s)
                must_poll = False
                for lane in self._lanes:
                    must_poll = self._advance(lane) or must_poll
                timeout_s = POLL_S if must_poll else None
        for lane in self._lanes:
            lane.stream.close()

    def _take_calls(self, timeout_s: float | None) -> None:
        """Do what was asked, waiting at most so long (None: until something is) for the first."""
        try:
            call = self._calls.get(timeout=timeout_s)
            while True:
                if call is not None:
                    call()
                call = self._calls.get_nowait()
        except Empty:
            return

    def _advance(self, lane: Lane) -> bool:
        """Tell what has passed, launch what can be; True while the lane must be polled."""
        before: Job | None = None
        for job in list(lane.jobs):
            self._guarded(job, lane.stream.poll)
            self._tell(job)
            if before is None or before.finishing:
                self._launch(lane, job)
            before = job
        while lane.jobs and self._ended(lane, lane.jobs[0]):
            lane.jobs.popleft()
            if lane.jobs:
                self._launch(lane, lane.jobs[0])
        return bool(lane.jobs) and lane.stream.polled

    def _tell(self, job: Job) -> None:
        """Started, for a job that had to wait for its turn, and every boundary but the last."""
        if job.behind and job.began_at is not None and not job.told_started:
            job.told_started = True
            self._post(job, Started(job.dispatch.id, job.began_at))
        for n in range(job.n_told, min(len(job.ends_at), job.n_segments - 1)):
            self._post(job, Progress(job.dispatch.id, job.dispatch.first_segment + n + 1, job.ends_at[n]))
            job.n_told = n + 1

    def _launch(self, lane: Lane, job: Job) -> None:
        """A job that should stop still gets its first segment: then it has a boundary to stop at."""
        if not job.staged or job.finishing:
            return
        began_at = self._clock.now()
        while job.error is None and job.launched < job.n_segments:
            if (job.stopping and job.launched) or job.launched - len(job.ends_at) >= AHEAD:
                break
            self._guarded(job, lane.stream.launch)
            job.launched += 1
        if job.launched == job.n_segments:
            job.finishing = True
            self._guarded(job, lane.stream.finish)
        job.launch_ns += self._clock.now() - began_at
        if job.finishing:
            self.launch_ns.append(job.launch_ns)

    def _ended(self, lane: Lane, job: Job) -> bool:
        """Whether the job leaves its lane now; if so its end is told."""
        if job.error is not None:
            self._complete(job, job.error)
        elif job.done_at is not None:
            if not job.given_up:
                self._results[job.dispatch.id] = job.results
            self._complete(job)
        elif job.stopping and 0 < job.launched == len(job.ends_at) < job.n_segments:
            self._guarded(job, lambda job: self._keep(lane, job))
            stopped_at = None if job.error else job.dispatch.first_segment + job.launched
            self._complete(job, job.error, next_segment=stopped_at)
        else:
            return False
        return True

    def _keep(self, lane: Lane, job: Job) -> None:
        self._kept[job.dispatch.id] = (job.model, lane.stream.keep(job))

    def _complete(
        self, job: Job, error: str | None = None, *, next_segment: int | None = None, lane_lost: bool = False
    ) -> None:
        now = self._clock.now()
        ended_at = job.done_at or (job.ends_at[-1] if next_segment is not None else now)
        started_at = ended_at if job.began_at is None else job.began_at
        self._post(
            job,
            Completion(
                dispatch_id=job.dispatch.id,
                lane=job.dispatch.lane,
                started_at=started_at,
                ended_at=max(started_at, ended_at),
                segment_ended_at=tuple(job.ends_at),
                next_segment=next_segment,
                error=error,
                lane_lost=lane_lost,
            ),
        )
        job.given_up = True

    def _post(self, job: Job, event: Event) -> None:
        if not job.given_up and self._sink is not None and not self._closed:
            self._sink(event)

    @staticmethod
    def _guarded(job: Job, do: Callable[[Job], None]) -> None:
        """What a stream raises is the job's failure, nobody else's."""
        if job.error is None:
            try:
                do(job)
            except Exception as error:
                job.error = describe(error)

    # --- what was asked -------------------------------------------------------------------------------

    def _start(self, job: Job) -> None:
        lane = self._lanes[job.dispatch.lane]
        if job.dispatch.resumes is not None:
            model, job.resumed = self._kept.pop(job.dispatch.resumes, (None, None))
            if model is not job.model:  # also when another version was loaded meanwhile
                job.error = "what it should go on with is gone"
        if lane.lost:
            job.error = "its lane was lost and is not back yet"
        job.behind = bool(lane.jobs)
        lane.jobs.append(job)
        self._guarded(job, lane.stream.stage)

    def _stop_at_boundary(self, dispatch_id: int) -> None:
        _, job = self._find(dispatch_id)
        if job is not None:
            job.stopping = True

    def _abort(self, dispatch_id: int, reason: str) -> None:
        lane, job = self._find(dispatch_id)
        self._kept.pop(dispatch_id, None)
        if lane is None or job is None:
            return
        if job is not lane.jobs[0]:
            if not job.launched:
                lane.jobs.remove(job)
                lane.stream.withdraw(job)
            self._complete(job, f"withdrawn before it started: {reason}")
            return
        if lane.lost:
            return
        others, lane.jobs, lane.lost = list(lane.jobs)[1:], deque(), True
        lane.stream.close()
        self._complete(job, reason, lane_lost=True)
        for other in others:
            self._complete(other, "withdrawn before it started: its lane was lost", lane_lost=True)
        threading.Thread(
            target=self._make_anew, args=(lane,), name=f"cotenant-restart-{lane.index}", daemon=True
        ).start()

    def _make_anew(self, lane: Lane) -> None:
        """In a thread of its own. A lane that cannot be made again (no memory) stays lost."""
        try:
            stream = self._new_stream(lane.index)
        except Exception as error:
            warnings.warn(f"lane {lane.index} cannot be restarted: {describe(error)}", stacklevel=1)
            return
        self._call(lambda: self._restarted(lane, stream))

    def _restarted(self, lane: Lane, stream: Stream) -> None:
        lane.stream, lane.lost = stream, False
        if self._sink is not None:
            self._sink(Device("restarted", lane.index))

    def _forget(self, model: TorchModel) -> None:
        self._kept = {number: kept for number, kept in self._kept.items() if kept[0] is not model}
        for lane in self._lanes:
            lane.stream.forget(model)

    def _find(self, dispatch_id: int) -> tuple[Lane | None, Job | None]:
        for lane in self._lanes:
            for job in lane.jobs:
                if job.dispatch.id == dispatch_id and not job.given_up:
                    return lane, job
        return None, None
