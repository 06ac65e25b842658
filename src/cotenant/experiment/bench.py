"""Coordinated open-loop load on all models of a live server over HTTP.

Latency counts from the instant at which the scenario says a request arrives, whatever the generator or the
connections made of it (no coordinated omission). Each request carries the budget that is left when it is
sent. The generator reports its own lateness and CPU time, so that a slow generator shows.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from cotenant.clock import MonotonicClock, process_cpu_s
from cotenant.config import Scenario
from cotenant.domain import NS_PER_MS, NS_PER_S, JobClass, OutcomeKind
from cotenant.experiment.arrival_files import NO_DEADLINE
from cotenant.experiment.http_load import Pool
from cotenant.experiment.load import load_config, offer
from cotenant.experiment.report import RequestRecord, RunFacts, build_report
from cotenant.experiment.server_facts import ServerFacts, server_facts
from cotenant.experiment.targets import Target, find_targets
from cotenant.workload.arrivals import generator

NO_DEADLINE_MS = 1e7
OUTCOMES = {
    429: OutcomeKind.REJECTED,
    503: OutcomeKind.REJECTED,
    504: OutcomeKind.EXPIRED,
    499: OutcomeKind.CANCELLED,
    0: OutcomeKind.FAILED,
}


class Planned(NamedTuple):
    """One request to come: arrival (ns from the start of the load), index of the model, rows, and span to
    the deadline (ns, `NO_DEADLINE` for none)."""

    at: int
    model: int
    rows: int
    budget_ns: int


async def run_bench(
    url: str,
    scenario: Scenario,
    *,
    scale: float | None = None,
    capacity_per_s: float | None = None,
    policy: str = "live",
    drain_s: float = 5.0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Offer the scenario's load to the server; returns the run report. Takes its duration and at most
    `drain_s` more. Raises ValueError when the server cannot be reached or lacks a model."""
    session = await open_session(
        url, scenario, scale=scale, capacity_per_s=capacity_per_s, policy=policy, progress=progress
    )
    await session.offer(0.0, scenario.load.duration_s, drain_s)
    return await session.report()


async def open_session(
    url: str,
    scenario: Scenario,
    *,
    scale: float | None = None,
    capacity_per_s: float | None = None,
    policy: str = "live",
    progress: Callable[[int, int], None] | None = None,
) -> Session:
    """Ask the server what it serves and draw the load. Raises ValueError as `run_bench` does."""
    offered = offer(scenario, scale=scale, capacity_per_s=capacity_per_s)
    targets = await find_targets(url, scenario, offered)
    budgets = offered.budgets([target.slo_ns for target in targets])
    columns = (offered.at, offered.which, offered.rows, budgets)
    return Session(
        url=url,
        scenario=scenario,
        targets=targets,
        load=[Planned(*entry) for entry in zip(*(column.tolist() for column in columns), strict=True)],
        before=await server_facts(url),
        config={
            "url": url,
            "policy": policy,
            **load_config(scenario, scale),
            "capacity_per_s": capacity_per_s,
            "simulated": False,
        },
        progress=progress,
    )


@dataclass(kw_only=True)
class Session:
    """One run of the scenario's load, in one piece or in several, between which the server rests."""

    url: str
    scenario: Scenario
    targets: Sequence[Target]
    load: Sequence[Planned]
    before: ServerFacts
    config: dict[str, Any]
    progress: Callable[[int, int], None] | None = None
    records: list[RequestRecord] = field(default_factory=list)
    late_ns: list[int] = field(default_factory=list)
    cpu_s: float = 0.0
    wall_s: float = 0.0

    async def offer(self, from_s: float, to_s: float, drain_s: float) -> None:
        """Send what arrives in [from_s, to_s) of the load; wait at most `drain_s` for the last answers."""
        origin = int(from_s * NS_PER_S)
        first, last = (
            bisect_left(self.load, at, key=attrgetter("at")) for at in (origin, int(to_s * NS_PER_S))
        )
        load = OpenLoop(self.url, self.targets, self.load[first:last], origin, self.progress)
        clock = MonotonicClock()
        began, cpu_before = clock.now(), process_cpu_s()
        self.records += await load.run(drain_s)
        self.wall_s += (clock.now() - began) / NS_PER_S
        self.cpu_s += process_cpu_s() - cpu_before
        self.late_ns += load.late_ns

    async def report(self) -> dict[str, Any]:
        """The run report over everything offered so far."""
        after = await server_facts(self.url)
        lateness = np.asarray(self.late_ns, float) / NS_PER_MS
        facts = RunFacts(
            policy=self.config["policy"],
            seed=self.scenario.load.seed,
            duration_s=self.scenario.load.duration_s,
            config=self.config,
            device={"kind": self.scenario.device.kind},
            wall_s=self.wall_s,
            solo_ms={t.name: t.solo_ms for t in self.targets if t.solo_ms is not None},
            extra={
                "generator": {
                    "lateness_ms": {
                        "p50": _percentile(lateness, 50),
                        "p99": _percentile(lateness, 99),
                        "max": _percentile(lateness, 100),
                    },
                    "cpu_us_per_request": 1e6 * self.cpu_s / max(1, len(self.records)),
                }
            },
        )
        return {
            **build_report(self.records, facts),
            **_from_server(self.before, after, facts.duration_s),
        }


def _from_server(before: ServerFacts, after: ServerFacts, duration_s: float) -> dict[str, Any]:
    """What only the server knows, from its metrics before and after."""
    return after.since(before, duration_s)


def _percentile(values: Any, level: float) -> float | None:
    return float(np.percentile(values, level)) if values.size else None


class OpenLoop:
    """Sends each request at its instant and remembers how it ended."""

    def __init__(
        self,
        url: str,
        targets: Sequence[Target],
        load: Sequence[Planned],
        from_at: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._pool = Pool(url)
        self._targets = targets
        self._load, self._from_at = load, from_at
        self._progress = progress
        self._clock = MonotonicClock()
        self._n_open = 0
        self._records: list[RequestRecord] = []
        self.late_ns: list[int] = []

    async def run(self, drain_s: float) -> list[RequestRecord]:
        """Offer everything, wait for the answers at most `drain_s` after the last."""
        origin = self._clock.now() + 20 * NS_PER_MS - self._from_at
        for n, planned in enumerate(self._load):
            wait_ns = origin + planned.at - self._clock.now()
            if wait_ns > 0:
                await asyncio.sleep(wait_ns / NS_PER_S)
            elif n % 16 == 0:
                await asyncio.sleep(0)
            self._send(n, origin + planned.at, planned)
            if self._progress is not None and n % 50 == 0:
                self._progress(n, len(self._load))
        until = self._clock.now() + int(drain_s * NS_PER_S)
        while self._n_open and self._clock.now() < until:
            await asyncio.sleep(0.02)
        self._pool.close()
        return self._records

    def _send(self, n: int, intended_at: int, planned: Planned) -> None:
        target = self._targets[planned.model]
        deadline_at = None if planned.budget_ns == NO_DEADLINE else intended_at + planned.budget_ns
        self._n_open += 1

        def make() -> bytes:
            now = self._clock.now()
            self.late_ns.append(max(0, now - intended_at))
            if deadline_at is None:  # to the server a request that says nothing has the model's SLO
                budget_ms = None if target.slo_ns is None else NO_DEADLINE_MS
            else:
                budget_ms = (deadline_at - now) / NS_PER_MS
            return target.request(n, budget_ms, planned.rows)

        def answer(status: int, headers: Mapping[str, str]) -> None:
            now = self._clock.now()
            self._n_open -= 1
            if status == 200:
                late = deadline_at is not None and now > deadline_at
                kind = OutcomeKind.LATE if late else OutcomeKind.OK
            else:
                kind = OUTCOMES.get(status, OutcomeKind.FAILED)
            self._records.append(
                RequestRecord(
                    model=target.name,
                    job_class=target.job_class,
                    kind=kind,
                    intended_at=intended_at,
                    ended_at=now,
                    deadline_at=deadline_at,
                    reason="" if status == 200 else f"status {status}",
                )
            )

        self._pool.post(make, answer)


async def measure_capacity(
    url: str, scenario: Scenario, *, seconds: float = 8.0, warm_s: float = 2.0, backlog: int = 128
) -> float:
    """Requests per second that the server completes in the scenario's mix under a standing backlog, without
    deadlines. Best-effort models are left out."""
    targets = await find_targets(url, scenario)
    shares = [0.0 if t.job_class is JobClass.BEST_EFFORT else m.rate_per_s
              for t, m in zip(targets, scenario.models, strict=True)]  # fmt: skip
    rng = generator(scenario.load.seed, "capacity")
    order = rng.choice(len(targets), size=100_000, p=np.asarray(shares) / sum(shares)).tolist()
    pool = Pool(url, limit=backlog)
    clock = MonotonicClock()
    done_at: list[int] = []
    stop = asyncio.Event()
    n_sent = 0

    def send() -> None:
        nonlocal n_sent
        n, target = n_sent, targets[order[n_sent % len(order)]]
        n_sent += 1
        pool.post(lambda: target.request(n, NO_DEADLINE_MS), answer)

    def answer(status: int, headers: Mapping[str, str]) -> None:
        if stop.is_set():
            return
        if status != 200:
            stop.set()
            return
        done_at.append(clock.now())
        send()

    began = clock.now()
    for _ in range(backlog):
        send()
    try:
        await asyncio.wait_for(stop.wait(), warm_s + seconds)
    except TimeoutError:
        pass
    else:
        raise ValueError(f"the server at {url} failed while its capacity was measured")
    finally:
        stop.set()
        pool.close()
    from_at = began + int(warm_s * NS_PER_S)
    return sum(1 for at in done_at if at >= from_at) / seconds
