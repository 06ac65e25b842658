"""What observing costs per request on the thread that decides and answers: metrics, journal, logs, traces.

Synthetic outcomes and observations of 64 models, every request a dispatch of its own with two co-runners: the
least favourable case. CPU time of the thread, the best of the repeats. Beside ours stand the metric objects
of `prometheus_client`, doing the same. What it does not measure: the lanes, which the same interpreter runs.

    python benchmarks/observing_cost.py [--requests 20000] [--repeats 5] [--models 64] [--json FILE]
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram

from common import Row, arguments, finish, table
from cotenant.clock import MonotonicClock, thread_cpu_ns, wall_time_s
from cotenant.domain import (
    NS_PER_MS,
    Alternative,
    Dispatch,
    InFlight,
    Observation,
    Outcome,
    OutcomeKind,
    Overlap,
    Prediction,
    Request,
    Snapshot,
    Variant,
)
from cotenant.serve.access_log import AccessLog
from cotenant.telemetry.exposition import ProcessMetrics, page
from cotenant.telemetry.gauges import EngineGauges, GaugePage, ModelGauges
from cotenant.telemetry.journal import Journal
from cotenant.telemetry.logs import Logger, logging_to
from cotenant.telemetry.metrics import SPAN_BUCKETS_S, Metrics
from cotenant.telemetry.triton_metrics import TritonMetrics

SOLO_NS = 10 * NS_PER_MS
TARGET_US = 20.0
"""Metrics and journal together, per request: a tenth of the target of a decision."""


class Story:
    """What happens to each request, ready-made."""

    def __init__(self, n: int, n_models: int) -> None:
        self.dispatches: list[Dispatch] = []
        self.outcomes: list[Outcome] = []
        self.observations: list[Observation] = []
        for i in range(n):
            self._add(i, f"m{i % n_models}")

    def _add(self, i: int, model: str) -> None:
        at = i * NS_PER_MS
        ended_at = at + SOLO_NS + i % 7 * NS_PER_MS
        variant, beside = Variant(model, 1), Variant("other", 4)
        request = Request(id=f"{at:x}-{i:x}", model=model, arrived_at=at, deadline_at=at + 50 * NS_PER_MS)
        finish = tuple(at + SOLO_NS + k * NS_PER_MS for k in range(5))
        prediction = Prediction(issued_at=at, finish_at=finish, slo_level=0.99, version=i, corunners=2)
        flights = tuple(
            InFlight(
                dispatch_id=i - k, variant=beside, lane=k, share=1.0, decided_at=at, started_at=at,
                segment=0, end_segment=1, boundary_at=None,
            )
            for k in (1, 2)
        )  # fmt: skip
        self.dispatches.append(
            Dispatch(
                id=i, variant=variant, requests=(request,), rows=1, lane=0, share=1.0, decided_at=at,
                latest_start_at=None, first_segment=0, end_segment=1, prediction=prediction,
                snapshot=Snapshot(at=at, in_flight=flights), why="earliest deadline",
                alternatives=(Alternative(beside, None, "its deadline is later"),),
            )
        )  # fmt: skip
        overlaps = tuple(Overlap(i - k, beside, at, ended_at, k, 1.0, at) for k in (1, 2))
        self.observations.append(
            Observation(
                dispatch_id=i, variant=variant, rows=1, lane=0, share=1.0, decided_at=at,
                started_at=at + 1000, ended_at=ended_at, first_segment=0, end_segment=1, segment_ended_at=(),
                predictions=(prediction, prediction), overlaps=overlaps,
            )
        )  # fmt: skip
        self.outcomes.append(
            Outcome(
                request=request, kind=OutcomeKind.OK, reason="served", ended_at=ended_at,
                predicted_at=finish[0], dispatch_id=i, dispatched_at=at, started_at=at + 1000, batch_rows=1,
            )
        )  # fmt: skip


class TheirMetrics:
    """The same counts and histograms as `Metrics` keeps, of `prometheus_client`, children looked up once."""

    def __init__(self, models: Sequence[str]) -> None:
        registry = CollectorRegistry()
        names = (
            "latency",
            "queue",
            "service",
            "rows",
            "ratio",
            "predicted",
            "measured",
            "slowdown",
            "beside",
        )
        made = [Histogram(name, name, ["model"], registry=registry, buckets=SPAN_BUCKETS_S) for name in names]
        self._spreads = {model: [one.labels(model) for one in made] for model in models}
        ended = Counter("ended", "ended", ["model", "outcome"], registry=registry)
        promised = Counter("promised", "promised", ["model", "outcome"], registry=registry)
        covered = Counter("covered", "covered", ["model", "level"], registry=registry)
        self._counts = {model: (ended.labels(model, "ok"), promised.labels(model, "ok")) for model in models}
        self._covered = {model: [covered.labels(model, str(k)) for k in range(6)] for model in models}

    def request(self, model: str) -> None:
        """One request and its run."""
        for count in self._counts[model]:
            count.inc()
        for spread in self._spreads[model]:
            spread.observe(0.01)
        for count in self._covered[model]:
            count.inc()


class NoTimers:
    """Nothing is ever due."""

    def now(self) -> int:
        return 0

    def call_at(self, at: int, callback: Callable[[], None]) -> Callable[[], None]:
        return lambda: None


def spent_us(work: Callable[[], None], n: int, repeats: int) -> float:
    """CPU time (us) per request of the fastest repeat."""
    best = float("inf")
    for _ in range(repeats):
        began = thread_cpu_ns()
        work()
        best = min(best, (thread_cpu_ns() - began) / 1000 / n)
    return best


def new_journal() -> Journal:
    return Journal(
        n_lanes=4, solo=lambda variant: SOLO_NS, now=MonotonicClock.now, wall_s=wall_time_s, timers=NoTimers()
    )


def costs(story: Story, n_models: int, repeats: int) -> dict[str, float]:
    """us per request of each part."""
    n = len(story.outcomes)

    def metrics() -> None:
        kept = Metrics(lambda variant: SOLO_NS)
        for outcome, observation in zip(story.outcomes, story.observations, strict=True):
            kept.decided(50_000, 0)
            kept.settled(outcome)
            kept.observed(observation)

    def triton() -> None:
        kept = TritonMetrics()
        for outcome, observation in zip(story.outcomes, story.observations, strict=True):
            kept.settled(outcome)
            kept.observed(observation)

    def decided() -> None:
        journal = new_journal()
        for dispatch, outcome in zip(story.dispatches, story.outcomes, strict=True):
            journal.dispatched(dispatch)
            journal.ended(outcome, outcome.request.arrived_at)
            journal.answered(outcome.request.id, 1000)

    def whole() -> None:
        journal = new_journal()
        rows = zip(story.dispatches, story.outcomes, story.observations, strict=True)
        for dispatch, outcome, observation in rows:
            journal.dispatched(dispatch)
            journal.ended(outcome, outcome.request.arrived_at)
            journal.answered(outcome.request.id, 1000)
            journal.observed(observation)

    theirs = TheirMetrics([f"m{i}" for i in range(n_models)])

    def peer() -> None:
        for outcome in story.outcomes:
            theirs.request(outcome.request.model)

    found = {
        "metrics": spent_us(metrics, n, repeats),
        "metrics of prometheus_client": spent_us(peer, n, repeats),
        "Triton's names besides": spent_us(triton, n, repeats),
        "journal, before the answer": spent_us(decided, n, repeats),
    }
    found["journal, afterwards"] = spent_us(whole, n, repeats) - found["journal, before the answer"]
    return found | occasional(story, n_models, repeats) | logged(n, repeats)


def occasional(story: Story, n_models: int, repeats: int) -> dict[str, float]:
    """us of what happens when somebody asks."""
    journal = new_journal()
    kept = Metrics(lambda variant: SOLO_NS)
    for dispatch, outcome, observation in zip(
        story.dispatches, story.outcomes, story.observations, strict=True
    ):
        journal.dispatched(dispatch)
        journal.ended(outcome, outcome.request.arrived_at)
        journal.observed(observation)
        kept.settled(outcome)
        kept.observed(observation)
    last = [outcome.request.id for outcome in story.outcomes[-200:]]
    models = {f"m{i}": ModelGauges(ready=True) for i in range(n_models)}
    gauges = EngineGauges(
        models=models, lanes=4, lanes_usable=4, lanes_busy=2, suspended=0, unanswered=9, accepting=True,
        predictor_version=1,
    )  # fmt: skip
    sources: list[Any] = [kept.tally, GaugePage(gauges, {}), ProcessMetrics()]
    return {
        "one explanation": spent_us(
            lambda: [journal.explain(one) for one in last] and None, len(last), repeats
        ),
        "one page of metrics, on a thread of its own": spent_us(lambda: page(sources) and None, 1, repeats),
    }


def logged(n: int, repeats: int) -> dict[str, float]:
    """us of log lines: the thread that logs; and of an access log around an application."""
    log = Logger("benchmark")

    def lines() -> None:
        for i in range(n):
            log.info("some.event", "something happened", request_id="5f5e100-1", model="m", ms=1.5, n=i)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-request-id", b"1-1")]})
        await send({"type": "http.response.body", "body": b"{}"})

    async def send(message: Any) -> None: ...

    scope = {"type": "http", "method": "POST", "path": "/v2/models/m/infer", "headers": []}

    def served(application: Any) -> Callable[[], None]:
        async def many() -> None:
            for _ in range(n):
                await application(scope, None, send)

        return lambda: asyncio.run(many())

    with logging_to(io.StringIO(), "json", "info"):
        one_line = spent_us(lines, n, 1)
    with logging_to(io.StringIO(), "json", "info"):
        access = spent_us(served(AccessLog(app, MonotonicClock.now)), n, 1)
    with logging_to(io.StringIO(), "json", "error"):
        off = spent_us(lines, n, repeats)
    return {
        "one log line": one_line,
        "one log line below the level": off,
        "access log": access - spent_us(served(app), n, repeats),
    }


def main() -> int:
    options = arguments(__doc__, requests=20000, repeats=5, models=64)
    story = Story(options.requests, options.models)
    found = costs(story, options.models, options.repeats)
    always = found["metrics"] + found["journal, before the answer"] + found["journal, afterwards"]
    rows = [
        Row(
            "metrics and journal, per request",
            f"{always:.1f} us",
            f"<= {TARGET_US:g} us",
            always <= TARGET_US,
        )
    ]
    rows += [Row(f"  {name}", f"{value:.1f} us") for name, value in found.items()]
    ratio = found["metrics of prometheus_client"] / found["metrics"]
    rows.append(Row("prometheus_client / ours", f"{ratio:.1f}", "> 1", ratio > 1))
    table(f"observing, CPU per request, {options.models} models", rows)
    return finish(options, {"us": found, "requests": options.requests}, rows)


if __name__ == "__main__":
    raise SystemExit(main())
