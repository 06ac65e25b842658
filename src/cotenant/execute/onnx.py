"""The default executor: models on the CPU, one worker thread per lane. ONNX Runtime runs most of them; Python
callables run on the same lanes (see `python`).

How this works. Each lane is a thread pinned to its own cores. A dispatch is handed to its lane through a
queue, assembled, run (ONNX Runtime and most of numpy leave the GIL free meanwhile) and cut in the lane, and
whoever takes it out of `_jobs` first, the lane or an abort, posts its one Completion. A run that is aborted
is told to end, which ONNX Runtime obeys between nodes and Python between bytecodes, but nobody waits for
that: the thread is abandoned and a new one takes its place. Only Python models can have segments; a run that
is preempted at a boundary is kept until the dispatch that resumes it, or an abort.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from msgspec import structs

from cotenant.clock import Clock, thread_cpu_ns
from cotenant.cores import available_cores, core_numbers
from cotenant.domain import (
    Completion,
    Device,
    Dispatch,
    Event,
    Maintain,
    ModelMetadata,
    Progress,
    SoloProfile,
    Variant,
)
from cotenant.execute.lane_model import LaneModel, LaneRun, Loadable
from cotenant.execute.lanes import LaneThread, lane_layout
from cotenant.execute.maintenance import Loaded, Maintenance
from cotenant.execute.memory import HostMemory, MemoryBudget
from cotenant.execute.onnx_session import OnnxFile, describe
from cotenant.ports import LaneInfo, Sink, Tensors
from cotenant.redact import without_paths

CLOSE_WAIT_S = 2.0
"""How long `close` waits for each lane (s)."""


class Source(Protocol):
    """Finds models that are to be loaded while serving, and says how fast they are. May block."""

    def find(self, name: str) -> tuple[ModelMetadata, Path | Loadable]:
        """The model's file, or what else it is made of. Raises ValueError when there is none."""
        ...

    def profiled(
        self, metadata: ModelMetadata, made_of: Path | Loadable, run: Callable[[Variant], int]
    ) -> tuple[ModelMetadata, Sequence[SoloProfile]]:
        """The model with its SLO settled, and its solo profiles. `run` runs a variant once, beside whatever
        else runs, and returns the span (ns)."""
        ...


class LoadedBefore:
    """A `Source` of the models that the executor has loaded once; nothing is known of their speed."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[ModelMetadata, Path | Loadable]] = {}

    def find(self, name: str) -> tuple[ModelMetadata, Path | Loadable]:
        if name not in self.known:
            raise ValueError(f"unknown model {name!r}")
        return self.known[name]

    def profiled(
        self, metadata: ModelMetadata, made_of: Path | Loadable, run: Callable[[Variant], int]
    ) -> tuple[ModelMetadata, Sequence[SoloProfile]]:
        return metadata, ()


class Job:
    """A dispatch on its way through a lane. Instants in ns."""

    __slots__ = ("dispatch", "ends_at", "model", "run", "started_at")

    def __init__(self, dispatch: Dispatch, model: LaneModel, now: int) -> None:
        self.dispatch = dispatch
        self.model = model
        self.run: LaneRun
        self.started_at = now
        self.ends_at: list[int] = []
        """End of each segment that has passed; empty for a model without boundaries."""


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
        self.models: dict[str, LaneModel] = {}
        self._clock = clock
        self._before = LoadedBefore()
        self._source: Source = source or self._before
        self._sink: Sink | None = None
        self._jobs: dict[int, Job] = {}
        self._results: dict[int, Sequence[Tensors]] = {}
        self._kept: dict[int, tuple[LaneModel, LaneRun]] = {}
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

    def load(self, metadata: ModelMetadata, made_of: Path | Loadable) -> ModelMetadata:
        """Make a model servable, every variant run once; returns what it then takes of the memory, too.
        Blocks: not for the deciding thread. Raises ValueError naming the model and the reason; a model of the
        same name stays then."""
        with self._loading:
            self._before.known[metadata.name] = (metadata, made_of)
            with self._room(metadata, made_of) as loadable:
                self.models[metadata.name] = loadable.open(metadata, self.lanes, self._cores)
            return self._weighed(metadata)

    @contextmanager
    def _room(self, metadata: ModelMetadata, made_of: Path | Loadable) -> Iterator[Loadable]:
        """Around the opening of a model; what is raised then, or because the memory does not suffice, names
        it."""
        loadable = OnnxFile(made_of) if isinstance(made_of, Path) else made_of
        try:
            at_least = (metadata.memory_bytes or 0) * loadable.n_copies(self.lanes)
            with self._memory.loading(metadata.name, at_least):
                yield loadable
        except Exception as error:
            why = str(error) if isinstance(error, ValueError) else describe(error)
            raise ValueError(f"{loadable.label}: {without_paths(why)}") from error

    def _weighed(self, metadata: ModelMetadata) -> ModelMetadata:
        return structs.replace(metadata, memory_bytes=self._memory.held(metadata.name))

    def unload(self, name: str) -> None:
        """Forget the model; runs under way end undisturbed. Raises ValueError when it is not loaded."""
        with self._loading:
            if self.models.pop(name, None) is None:
                raise ValueError(f"model {name!r} is not loaded")
            self._memory.unloaded(name)

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
        job = Job(dispatch, model, now)
        resumed = None
        if dispatch.resumes is not None:
            kept_model, resumed = self._kept.pop(dispatch.resumes, (None, None))
            if kept_model is not model:  # also when another version was loaded meanwhile
                self._fail(dispatch, now, "what it should go on with is gone")
                return
        job.run = model.begin(dispatch, inputs, lambda segment: self._passed(job, segment), resumed)
        self._jobs[dispatch.id] = job
        self._threads[dispatch.lane].put(job)

    def preempt(self, dispatch_id: int) -> None:
        """Only models in segments have boundaries to stop at."""
        job = self._jobs.get(dispatch_id)
        if job is not None:
            job.run.preempt()

    def abort(self, dispatch_id: int, reason: str) -> None:
        """Give up a dispatch: its Completion, with `lane_lost`, is posted at once; `Device(restarted)`
        follows when the lane has a new thread. A dispatch that was stopped at a boundary is forgotten;
        nothing happens if it has ended."""
        self._kept.pop(dispatch_id, None)
        job = self._jobs.pop(dispatch_id, None)
        if job is None:
            return
        lane = job.dispatch.lane
        thread = self._threads[lane]
        thread.abandoned = True
        thread.stop()
        job.run.give_up()
        job.model.lane_lost(lane, id(thread))
        self._fail(job.dispatch, job.started_at, reason, lane_lost=True)

        def ready() -> None:
            job.model.lane_restarted(lane)
            self._post(Device("restarted", lane))

        if not self._closed:
            self._threads[lane] = self._new_thread(self.lanes[lane], ready)

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
            job.run.give_up()
        for lane in self._threads:
            lane.stop()
        self._maintenance.stop()
        for lane in self._threads:
            lane.join(CLOSE_WAIT_S)
        self._maintenance.join(CLOSE_WAIT_S)
        self._host.stop()

    # --- in the lane ----------------------------------------------------------------------------------

    def _run(self, thread: LaneThread[Job], job: Job) -> None:
        dispatch = job.dispatch
        started_at = job.started_at = self._clock.now()
        results: Sequence[Tensors] | None = None
        error: str | None = None
        try:
            results = job.run.run(id(thread))
        except (Exception, SystemExit) as problem:
            error = describe(problem)
        stopped = error is None and results is None
        ended_at = job.ends_at[-1] if stopped else self._clock.now()
        if stopped:
            self._kept[dispatch.id] = (job.model, job.run)
        if self._jobs.pop(dispatch.id, None) is None:  # aborted meanwhile: somebody else has answered
            self._kept.pop(dispatch.id, None)
            return
        if results is not None:
            self._results[dispatch.id] = results
        self._post(
            Completion(
                dispatch_id=dispatch.id,
                lane=dispatch.lane,
                started_at=started_at,
                ended_at=ended_at,
                segment_ended_at=tuple(job.ends_at),
                next_segment=dispatch.first_segment + len(job.ends_at) if stopped else None,
                error=error,
            )
        )

    def _passed(self, job: Job, segment: int) -> None:
        at = self._clock.now()
        job.ends_at.append(at)
        if segment < job.dispatch.end_segment and job.dispatch.id in self._jobs:
            self._post(Progress(job.dispatch.id, segment, at))

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
        """The model serves only when it has been profiled: until then nothing else runs on it."""
        found, made_of = self._source.find(name)
        with self._loading:
            with self._room(found, made_of) as loadable:
                model = loadable.open(found, self.lanes, self._cores)
                run = self._timed(model, one_thread=isinstance(made_of, Path))
                found, profiles = self._source.profiled(found, made_of, run)
                self.models[name] = model
            return self._weighed(found), profiles

    def _timed(self, model: LaneModel, *, one_thread: bool) -> Callable[[Variant], int]:
        """Runs a variant once and returns the span (ns). `one_thread`: on a lane of one core it works in its
        thread and never waits. What that thread took of its core is then what the run takes alone, while by
        the clock it waits for all others."""
        now = thread_cpu_ns if one_thread and len(self.lanes[0].units) == 1 else self._clock.now

        def run(variant: Variant) -> int:
            trial = model.trial(variant)
            began = now()
            trial()
            return now() - began

        return run
