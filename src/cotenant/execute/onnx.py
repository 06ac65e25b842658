"""The default executor: ONNX Runtime on the CPU, one worker thread per lane.

How this works. Each lane is a thread pinned to its own cores. When every lane has one core a model has one
session that all lanes share (`run` is thread-safe and one-thread sessions work in the caller's thread);
otherwise it has one session per lane, whose pool threads are born on the lane's cores. A dispatch is handed
to its lane through a queue, assembled, run (the GIL is free meanwhile) and cut in the lane, and whoever
takes it out of `_jobs` first, the lane or an abort, posts its one Completion. A run that is aborted is told
to terminate, which ONNX Runtime obeys between nodes, but nobody waits for that: the thread is abandoned and
a new one takes its place. CPU runs have no segment boundaries: `preempt` does nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime as ort
from msgspec import structs

from cotenant.clock import Clock, thread_cpu_ns
from cotenant.cores import available_cores, core_numbers, pinned
from cotenant.domain import (
    Completion,
    Device,
    Dispatch,
    Event,
    Maintain,
    ModelMetadata,
    SoloProfile,
    Variant,
)
from cotenant.execute.batch import Array, Batcher
from cotenant.execute.lanes import LaneThread, lane_layout
from cotenant.execute.maintenance import Loaded, Maintenance
from cotenant.execute.memory import HostMemory, MemoryBudget
from cotenant.execute.model import example_inputs
from cotenant.execute.onnx_session import LoadedModel, describe, open_session, warm, without_paths
from cotenant.ports import LaneInfo, Sink, Tensors

CLOSE_WAIT_S = 2.0
"""How long `close` waits for each lane (s)."""


class Source(Protocol):
    """Finds models that are to be loaded while serving, and says how fast they are. May block."""

    def find(self, name: str) -> tuple[ModelMetadata, Path]:
        """The model's file. Raises ValueError when there is none."""
        ...

    def profiled(
        self, metadata: ModelMetadata, path: Path, run: Callable[[Variant], int]
    ) -> tuple[ModelMetadata, Sequence[SoloProfile]]:
        """The model with its SLO settled, and its solo profiles. `run` runs a variant once, beside whatever
        else runs, and returns the span (ns)."""
        ...


class LoadedBefore:
    """A `Source` of the models that the executor has loaded once; nothing is known of their speed."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[ModelMetadata, Path]] = {}

    def find(self, name: str) -> tuple[ModelMetadata, Path]:
        if name not in self.known:
            raise ValueError(f"unknown model {name!r}")
        return self.known[name]

    def profiled(
        self, metadata: ModelMetadata, path: Path, run: Callable[[Variant], int]
    ) -> tuple[ModelMetadata, Sequence[SoloProfile]]:
        return metadata, ()


class Job:
    """A dispatch on its way through a lane."""

    __slots__ = ("dispatch", "inputs", "model", "options", "started_at")

    def __init__(self, dispatch: Dispatch, inputs: Sequence[Tensors], model: LoadedModel, now: int) -> None:
        self.dispatch = dispatch
        self.inputs = inputs
        self.model = model
        self.options = ort.RunOptions()
        self.started_at = now


class OnnxExecutor:
    """Implements the `Executor` port. `load` and `unload` may be called from any thread.

    `source` finds and profiles a model that a `Maintain(load)` names; without it, models loaded before can
    be loaded again. With no `lanes` there is one per core, at most 4. `memory_limit`: bytes that all models
    may take.
    """

    def __init__(
        self,
        clock: Clock,
        lanes: Sequence[LaneInfo] | None = None,
        source: Source | None = None,
        memory_limit: int | None = None,
    ) -> None:
        self._cores = available_cores()
        self.lanes = tuple(lanes or lane_layout(min(4, len(self._cores)), len(self._cores)))
        self.models: dict[str, LoadedModel] = {}
        self._clock = clock
        self._before = LoadedBefore()
        self._source: Source = source or self._before
        self._sink: Sink | None = None
        self._jobs: dict[int, Job] = {}
        self._results: dict[int, Sequence[Tensors]] = {}
        self._closed = False
        self._host = HostMemory(frozenset(self._cores))
        self._memory = MemoryBudget(memory_limit, self._host.in_use)
        self._loading = threading.Lock()
        self._threads = [self._new_thread(lane) for lane in self.lanes]
        self._maintenance = Maintenance(
            frozenset(self._cores),
            self._load_and_profile,
            self.unload,
            describe,
            self._post,
            self._host.give_back,
        )

    @property
    def threads_per_lane(self) -> tuple[int, ...]:
        """Thread budget of each lane."""
        return tuple(len(lane.units) for lane in self.lanes)

    # --- models ---------------------------------------------------------------------------------------

    def load(self, metadata: ModelMetadata, path: Path) -> ModelMetadata:
        """Make a model servable, every variant run once on each session; returns what it then takes of the
        memory, too. Blocks: not for the deciding thread. Raises ValueError naming the file and the reason; a
        model of the same name stays then."""
        with self._loading:
            self._before.known[metadata.name] = (metadata, path)
            try:
                with self._memory.loading(metadata.name, self._least_memory(metadata)):
                    model = LoadedModel(metadata, self._sessions(path))
                    warm(model)
                    self.models[metadata.name] = model
            except Exception as error:
                why = str(error) if isinstance(error, ValueError) else describe(error)
                raise ValueError(f"model file {path.name}: {without_paths(why)}") from error
            return structs.replace(metadata, memory_bytes=self._memory.held(metadata.name))

    def unload(self, name: str) -> None:
        """Forget the model; runs under way end undisturbed. Raises ValueError when it is not loaded."""
        with self._loading:
            if self.models.pop(name, None) is None:
                raise ValueError(f"model {name!r} is not loaded")
            self._memory.unloaded(name)

    def _least_memory(self, metadata: ModelMetadata) -> int:
        """Bytes of a model's weights in each of its sessions."""
        one = all(len(lane.units) == 1 for lane in self.lanes)
        return (metadata.memory_bytes or 0) * (1 if one else len(self.lanes))

    def _sessions(self, path: Path) -> list[ort.InferenceSession]:
        if all(len(lane.units) == 1 for lane in self.lanes):
            return [open_session(path, 1)]
        sessions = []
        for lane in self.lanes:
            with pinned(core_numbers(lane.units, self._cores)):  # pool threads inherit the cores
                sessions.append(open_session(path, len(lane.units)))
        return sessions

    # --- Executor -------------------------------------------------------------------------------------

    def attach(self, sink: Sink) -> None:
        self._sink = sink

    def start(self, dispatch: Dispatch, inputs: Sequence[Tensors]) -> None:
        now = self._clock.now()
        model = self.models.get(dispatch.variant.model)
        if model is None or self._closed:
            problem = "the executor is closed" if self._closed else f"{dispatch.variant.model} is not loaded"
            self._fail(dispatch, now, problem)
            return
        job = Job(dispatch, inputs, model, now)
        self._jobs[dispatch.id] = job
        self._threads[dispatch.lane].put(job)

    def preempt(self, dispatch_id: int) -> None:
        """Nothing: a CPU run has no boundaries."""

    def abort(self, dispatch_id: int, reason: str) -> None:
        """Give up a dispatch: its Completion, with `lane_lost`, is posted at once; `Device(restarted)`
        follows when the lane has a new thread. Nothing happens if the dispatch has ended."""
        job = self._jobs.pop(dispatch_id, None)
        if job is None:
            return
        job.options.terminate = True
        lane = job.dispatch.lane
        thread = self._threads[lane]
        thread.abandoned = True
        thread.stop()
        job.model.batchers.pop(id(thread), None)
        self._fail(job.dispatch, job.started_at, reason, lane_lost=True)
        if not self._closed:
            self._threads[lane] = self._new_thread(
                self.lanes[lane], lambda: self._post(Device("restarted", lane))
            )

    def take_results(self, dispatch_id: int) -> Sequence[Tensors] | None:
        return self._results.pop(dispatch_id, None)

    def maintain(self, action: Maintain) -> None:
        """Load or unload in a thread of its own. Profiling is done through `profile.measure`, not here."""
        self._maintenance.put(action)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for job in list(self._jobs.values()):
            job.options.terminate = True
        for lane in self._threads:
            lane.stop()
        self._maintenance.stop()
        for lane in self._threads:
            lane.join(CLOSE_WAIT_S)
        self._maintenance.join(CLOSE_WAIT_S)
        self._host.stop()

    # --- in the lane ----------------------------------------------------------------------------------

    def _run(self, thread: LaneThread[Job], job: Job) -> None:
        dispatch, model = job.dispatch, job.model
        session = model.session(dispatch.lane)
        names, options = model.output_names, job.options
        started_at = job.started_at = self._clock.now()
        results: Sequence[Tensors] = ()
        error: str | None = None

        def run(feed: Mapping[str, Array]) -> Sequence[Array]:
            outputs: Sequence[Array] = session.run(names, feed, options)
            return outputs

        try:
            results = model.batcher(id(thread)).run(dispatch.variant, job.inputs, run)
        except Exception as problem:
            error = describe(problem)
        ended_at = self._clock.now()
        if self._jobs.pop(dispatch.id, None) is None:
            return  # aborted meanwhile: somebody else has answered
        if error is None:
            self._results[dispatch.id] = results
        self._post(
            Completion(
                dispatch_id=dispatch.id,
                lane=dispatch.lane,
                started_at=started_at,
                ended_at=ended_at,
                error=error,
            )
        )

    # --- inside ---------------------------------------------------------------------------------------

    def _new_thread(self, lane: LaneInfo, ready: Callable[[], None] | None = None) -> LaneThread[Job]:
        cores = core_numbers(lane.units, self._cores)
        thread = LaneThread(f"cotenant-lane-{lane.index}", cores, self._run, ready)
        thread.start()
        return thread

    def _post(self, event: Event) -> None:
        assert self._sink is not None, "attach() first"
        self._sink(event)

    def _fail(self, dispatch: Dispatch, started_at: int, error: str, *, lane_lost: bool = False) -> None:
        self._post(
            Completion(
                dispatch_id=dispatch.id,
                lane=dispatch.lane,
                started_at=started_at,
                ended_at=max(started_at, self._clock.now()),
                error=error,
                lane_lost=lane_lost,
            )
        )

    def _load_and_profile(self, name: str) -> Loaded:
        found, path = self._source.find(name)
        found = self.load(found, path)
        model, random = self.models[name], np.random.default_rng(0)
        session, batcher = model.session(0), Batcher(found)

        # what one thread took of its core is what the run takes alone; this thread waits for all others
        alone = len(self.lanes[0].units) == 1
        now = thread_cpu_ns if alone else self._clock.now

        def run(variant: Variant) -> int:
            inputs = [example_inputs(found, variant, random)]
            began = now()
            batcher.run(variant, inputs, lambda feed: session.run(model.output_names, feed))
            return now() - began

        return self._source.profiled(found, path, run)
