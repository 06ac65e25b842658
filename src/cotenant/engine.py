"""The live driver: one event loop decides, lanes run, nothing here chooses anything.

How this works. Calls arrive on the loop that owns the engine (here the front end's; with the process split
the engine process's own). Lanes post their events from their threads; they are handed to the loop. After
every event the scheduler's next wake-up is armed as a loop timer, and how late timers fire is measured and
told to the scheduler, which subtracts it from what it allows to wait.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from cotenant.clock import Clock, wall_time_s
from cotenant.cores import yield_to_others
from cotenant.domain import (
    NS_PER_MS,
    NS_PER_S,
    Arrival,
    Cancel,
    Command,
    Completion,
    Device,
    Event,
    JobClass,
    MaintenanceDone,
    ModelMetadata,
    Observation,
    Outcome,
    OutcomeKind,
    Request,
    Respecified,
    Wakeup,
)
from cotenant.drive import Drive, Log
from cotenant.ports import Executor, Learner, Observer, Tensors
from cotenant.schedule.scheduler import Scheduler
from cotenant.telemetry.joining import to_json
from cotenant.telemetry.journal import Journal, Sink
from cotenant.telemetry.reports import Reports

SWITCH_INTERVAL_S = 0.0005
"""How long a thread may keep the interpreter from another (s). The default of 5 ms is longer than many an
inference: a lane that is done would wait for it. `benchmarks/switch_interval.py` measures the effect."""
GC_THRESHOLDS = (5_000, 20, 50)
"""When the collector of cycles looks, by generation (see `gc.set_threshold`). The default looks every few
requests, through overlap histories that hold no cycle."""
MAX_LATENESS_NS = 5 * NS_PER_MS
"""Most lateness of timers that is believed to last (ns)."""
MOST_FOR_ANSWER = 0.25
"""Most of a budget (0..1) that is kept for sending the answer."""
LEARN_AFTER_S = 0.001
"""How long what a dispatch taught may wait for the thread to be idle (s); the next event does not wait for
it. Meanwhile answers are sent and lanes, which need the interpreter to begin, take it."""
UNLOADED = "unloaded"
"""Why a model is not there that was unloaded as somebody wanted it."""


@dataclass(slots=True)
class ModelCounts:
    """Cumulative counts and nanoseconds of one model."""

    last_inference_ms: int = 0
    n_rows: int = 0
    n_runs: int = 0
    success: tuple[int, int] = (0, 0)
    fail: tuple[int, int] = (0, 0)
    queue: tuple[int, int] = (0, 0)
    compute: tuple[int, int] = (0, 0)
    batches: dict[int, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelState:
    """`READY`, `LOADING`, or `UNAVAILABLE` with the reason."""

    state: str
    reason: str = ""


READY, LOADING = ModelState("READY"), ModelState("LOADING")


@dataclass(slots=True)
class _Call:
    """A call that has not been answered, when it was handed over (ns), and whom to tell."""

    request: Request
    taken_at: int
    reply: Callable[[Outcome, Tensors | None], None]


class LoopTimers:
    """The `Timers` port on an event loop, for executors that need to act later (the fake)."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def now(self) -> int:
        return self._clock.now()

    def call_at(self, at: int, callback: Callable[[], None]) -> Callable[[], None]:
        delay = max(0, at - self._clock.now()) / NS_PER_S
        return asyncio.get_running_loop().call_later(delay, callback).cancel


class Engine:
    """One device, live. Every method is called from the loop that called `start`."""

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        executor: Executor,
        learner: Learner,
        clock: Clock,
        metadata: Mapping[str, ModelMetadata],
        failed: Mapping[str, str] | None = None,
        observers: Sequence[Observer] = (),
        log: Log | None = None,
        told_slow: Sequence[Sink] = (),
    ) -> None:
        """`failed`: configured models that could not be loaded, with the reason; `told_slow` are given
        explanations of sampled slow requests, on a thread of their own."""
        self.scheduler = scheduler
        self.models: dict[str, ModelMetadata] = dict(metadata)
        self.states = dict.fromkeys(metadata, READY) | {
            name: ModelState("UNAVAILABLE", reason) for name, reason in (failed or {}).items()
        }
        self.counts: dict[str, ModelCounts] = {name: ModelCounts() for name in metadata}
        self._executor = executor
        self._log = log
        self._clock = clock
        self._calls: dict[str, _Call] = {}
        self._incoming: list[Request] = []
        self._payloads: dict[str, Tensors] = {}
        self._results: dict[str, Tensors] = {}
        self._reports = Reports(clock.now)
        self._explaining = ThreadPoolExecutor(1, "cotenant-explain", yield_to_others)
        self._journal = Journal(
            n_lanes=len(executor.lanes),
            solo=scheduler.view.predictor.prior,
            now=clock.now,
            wall_s=wall_time_s,
            timers=LoopTimers(clock),
            sinks=[self._reports.slow, *told_slow],
            elsewhere=lambda work: self._explaining.submit(work).add_done_callback(self._reports.joined),
        )
        self._waiting: dict[tuple[str, str], list[Callable[[str | None], None]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0
        self._late_ns = 0
        self._learning: asyncio.TimerHandle | None = None
        self._offered: Set[str] = frozenset()
        self._draining = False
        self.on_models: Callable[[], None] = lambda: None
        """Called after every change of `models` or `states`."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drive = Drive(
            scheduler=scheduler,
            executor=executor,
            learner=learner,
            clock=clock,
            on_settled=self._settled,
            on_maintained=self._maintained,
            on_dispatched=self._journal.dispatched,
            observers=[*observers, self],
            log=log,
            payloads=self._payloads,
            stopwatch=clock,
            later=self._learn_later,
        )

    def start(self) -> None:
        """Begin to take events on the running loop. Sets the interpreter's switch interval, and keeps the
        collector of cycles from what is there already: to look through all of it takes tens of
        milliseconds."""
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        loop = self._loop = asyncio.get_running_loop()

        def sink(event: Event) -> None:
            loop.call_soon_threadsafe(self._posted, event)

        self._executor.attach(sink)

    async def drain(self, limit_s: float) -> None:
        """Refuse what arrives from now on, and wait until what was admitted has ended or the limit passed."""
        self._draining = True
        self._take_in()
        self._post(Command("drain"))
        until = self._clock.now() + int(limit_s * NS_PER_S)
        while self._calls and self._clock.now() < until:
            await asyncio.sleep(0.01)
        for call_id in list(self._calls):
            self._post(Cancel(call_id, "not available: the server stopped"))

    def close_log(self) -> None:
        """Stop the timer and write what is left of the event log; the lanes stay usable."""
        gc.unfreeze()
        self.catch_up()
        self._journal.close()
        self._explaining.shutdown()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._log is not None:
            self._log.close()

    def stop(self) -> None:
        """Close the log and stop the lanes. Idempotent."""
        self.close_log()
        self._executor.close()

    # --- calls --------------------------------------------------------------------------------------------

    @property
    def accepting(self) -> bool:
        """False while draining."""
        return not self._draining

    @property
    def n_unanswered(self) -> int:
        """Calls that wait or run."""
        return len(self._calls)

    def submit(
        self,
        *,
        call_id: str,
        model: str,
        inputs: Tensors,
        rows: int,
        axes: tuple[tuple[str, int], ...],
        arrived_at: int,
        slo_ns: int | None,
        priority: int,
        reply: Callable[[Outcome, Tensors | None], None],
        answer_ns: int = 0,
    ) -> None:
        """Offer one request; `reply(outcome, outputs)` is called exactly once, on this loop. Whoever answers
        then needs `answer_ns` of the budget, of which no more than a part is kept for it."""
        spec = self.scheduler.view.specs.get(model)
        job_class = spec.job_class if spec else JobClass.STANDARD
        if priority:
            job_class = max(job_class, JobClass(min(priority, JobClass.BEST_EFFORT)))
        budget = slo_ns if slo_ns is not None else (spec.slo_ns if spec else None)
        request = Request(
            id=call_id,
            model=model,
            arrived_at=arrived_at,
            deadline_at=None if budget is None else arrived_at + budget,
            rows=rows,
            axes=axes,
            job_class=job_class,
            answer_ns=0 if budget is None else min(answer_ns, int(MOST_FOR_ANSWER * budget)),
        )
        self._calls[call_id] = _Call(request, self._clock.now(), reply)
        self._payloads[call_id] = inputs
        if not self._incoming:
            self._running_loop().call_soon(self._take_in)
        self._incoming.append(request)

    def _take_in(self) -> None:
        """Offer what was submitted during one turn of the loop as one event: under load one plan then serves
        many requests, and they make larger batches."""
        if self._incoming:
            first, *others = self._incoming
            self._incoming.clear()
            self._post(Arrival(first, tuple(others)))

    def cancel(self, call_id: str) -> None:
        """Drop the call if it still waits; running work goes on."""
        self._take_in()
        if call_id in self._calls:
            self._post(Cancel(call_id))

    def maintain(self, kind: str, model: str, done: Callable[[str | None], None]) -> None:
        """Load or unload a model as scheduled work; `done(error)` on this loop. A model that is loaded anew
        serves until the new one is there."""
        self._take_in()
        if kind == "load" and model not in self.models:
            self.states[model] = LOADING
        elif kind == "unload" and self.models.pop(model, None) is not None:
            self.states[model] = ModelState("UNAVAILABLE", UNLOADED)
        self.on_models()
        self._waiting.setdefault((kind, model), []).append(done)
        self._post(Command(kind, model))

    def offer(self, there: Mapping[str, str]) -> None:
        """Models that a repository has, each with why it cannot be loaded, if so: they are listed as
        unavailable until they are loaded. What was offered before and is neither there nor loaded is
        forgotten."""
        before = dict(self.states)
        for name in self._offered - there.keys() - self.models.keys():
            self.states.pop(name, None)
        for name, reason in there.items():
            if name not in self.states or (reason and name not in self.models):
                self.states[name] = ModelState("UNAVAILABLE", reason)
        self._offered = there.keys() | (self._offered & self.models.keys())
        if self.states != before:
            self.on_models()

    def respecify(self, metadata: ModelMetadata) -> None:
        """Give a loaded model another SLO or class, from now on."""
        self._take_in()
        self.models[metadata.name] = metadata
        self.on_models()
        self._post(Respecified(metadata.spec))

    def retire(self, model: str, reason: str) -> None:
        """Answer no new requests of a model (they get "not available" and the reason); what was admitted goes
        on. `holds` says whether anything is left, `maintain` then unloads it."""
        self.models.pop(model, None)
        self.states[model] = ModelState("UNAVAILABLE", reason)
        self.on_models()

    def holds(self, model: str) -> bool:
        """Whether requests of a model wait or run."""
        view = self.scheduler.view
        queue = view.queues.get(model)
        return (
            (queue is not None and queue.rows > 0)
            or any(flight.dispatch.variant.model == model for flight in view.flights.values())
            or any(suspended.variant.model == model for suspended in view.suspended)
            or any(request.model == model for request in self._incoming)
        )

    def forget(self, model: str) -> None:
        """A model that is not configured any more is unknown."""
        self.states.pop(model, None)
        self.on_models()

    def explain(self, call_id: str) -> dict[str, Any]:
        """What is known of a request (see `telemetry.explanation`), in ms. Its `state` says whether it has
        ended, or that nothing is known of it."""
        self._take_in()
        self.catch_up()
        call = self._calls.get(call_id)
        if call is None:
            told = self._journal.explain(call_id)
        else:
            flights = self.scheduler.view.flights.values()
            runs_in = next((f.dispatch for f in flights if call.request in f.dispatch.requests), None)
            queue = self.scheduler.view.queues.get(call.request.model, ())
            told = self._journal.unfinished(call.request, call.taken_at, runs_in, _n_before(queue, call_id))
        return to_json(told)

    def answered(self, call_id: str, span_ns: int) -> None:
        """The front end has sent the answer, so long (ns) after the run had ended."""
        self._journal.answered(call_id, span_ns)

    # --- events -------------------------------------------------------------------------------------------

    def _posted(self, event: Event) -> None:
        """An event from a lane, now on the loop: first fetch the results that its settlements hand out."""
        if isinstance(event, Completion) and event.error is not None:
            flight = self.scheduler.view.flights.get(event.dispatch_id)
            if flight is not None:
                self._reports.run_failed(flight.dispatch, event)
        elif isinstance(event, Completion):
            flight = self.scheduler.view.flights.get(event.dispatch_id)
            results = self._executor.take_results(event.dispatch_id)
            if flight is not None and results is not None:
                for request, outputs in zip(flight.dispatch.requests, results, strict=True):
                    self._results[request.id] = outputs
        elif isinstance(event, Device):
            self._reports.device(event)
        self._post(event)

    def _post(self, event: Event) -> None:
        self._drive.post(event)
        self._arm()

    def _arm(self) -> None:
        """Keep one timer at the scheduler's next wake-up; a timer that fires early is only armed anew."""
        wake_at = self.scheduler.next_wakeup()
        if wake_at is None or (self._timer is not None and self._timer_at <= wake_at):
            return
        if self._timer is not None:
            self._timer.cancel()
        delay_s = max(0, wake_at - self._clock.now()) / NS_PER_S
        self._timer_at = wake_at
        self._timer = self._running_loop().call_later(delay_s, self._woken)

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        assert self._loop is not None, "start() first"
        return self._loop

    def _woken(self) -> None:
        self._timer = None
        drift = max(0, self._clock.now() - self._timer_at) - self._late_ns
        self._late_ns = min(MAX_LATENESS_NS, self._late_ns + drift // (4 if drift > 0 else 32))
        wake_at = self.scheduler.next_wakeup()
        if wake_at is not None and wake_at <= self._clock.now():
            self._drive.post(Wakeup(self._late_ns))
        self._arm()

    def _learn_later(self) -> None:
        if self._learning is None:
            self._learning = self._running_loop().call_later(LEARN_AFTER_S, self.catch_up)

    def catch_up(self) -> None:
        """Learn, and have observers told, what has been put off: before statistics are read."""
        if self._learning is not None:
            self._learning.cancel()
            self._learning = None
            self._drive.learn()
            self._arm()

    def _settled(self, outcome: Outcome) -> None:
        call_id = outcome.request.id
        outputs = self._results.pop(call_id, None)
        self._payloads.pop(call_id, None)
        self._count(outcome)
        call = self._calls.pop(call_id, None)
        if call is not None:
            call.reply(outcome, outputs)
            self._journal.ended(outcome, call.taken_at)

    def _maintained(self, event: MaintenanceDone) -> None:
        self._reports.model(event)
        if event.kind == "load" and event.metadata is not None:
            self.models[event.model] = event.metadata
        if event.kind == "load":
            loaded = event.model in self.models
            self.states[event.model] = READY if loaded else ModelState("UNAVAILABLE", event.error or "")
        self.on_models()
        for done in self._waiting.pop((event.kind, event.model), []):
            done(event.error)

    # --- statistics (also an Observer) ----------------------------------------------------------------------

    def settled(self, outcome: Outcome) -> None:
        """Counted in `_settled`, where the answer is sent."""

    def decided(self, spent_ns: int, at: int) -> None:
        """Nothing is kept here; metrics observe it."""

    def observed(self, observation: Observation) -> None:
        self._journal.observed(observation)
        counts = self.counts.setdefault(observation.variant.model, ModelCounts())
        span = observation.ended_at - observation.started_at
        counts.n_runs += 1
        n, total = counts.batches.get(observation.rows, (0, 0))
        counts.batches[observation.rows] = (n + 1, total + span)

    def _count(self, outcome: Outcome) -> None:
        counts = self.counts.setdefault(outcome.request.model, ModelCounts())
        span = outcome.ended_at - outcome.request.arrived_at
        if outcome.kind not in (OutcomeKind.OK, OutcomeKind.LATE):
            counts.fail = (counts.fail[0] + 1, counts.fail[1] + span)
            return
        counts.last_inference_ms = int(wall_time_s() * 1000)
        counts.n_rows += outcome.request.rows
        counts.success = (counts.success[0] + 1, counts.success[1] + span)
        if outcome.started_at is not None:
            queued = outcome.started_at - outcome.request.arrived_at
            counts.queue = (counts.queue[0] + 1, counts.queue[1] + queued)
            counts.compute = (
                counts.compute[0] + 1,
                counts.compute[1] + outcome.ended_at - outcome.started_at,
            )


def _n_before(queue: Iterable[Request], call_id: str) -> int | None:
    """How many requests wait before this one; None when it does not wait there."""
    for n, request in enumerate(queue):
        if request.id == call_id:
            return n
    return None
