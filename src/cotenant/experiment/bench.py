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
from typing import Any

import numpy as np
import orjson

from cotenant.clock import MonotonicClock, process_cpu_s
from cotenant.config import ModelConfig, Scenario
from cotenant.domain import NS_PER_MS, NS_PER_S, JobClass, OutcomeKind
from cotenant.experiment.http_load import Pool, get_json
from cotenant.experiment.load import arrivals
from cotenant.experiment.report import RequestRecord, RunFacts, build_report
from cotenant.experiment.server_facts import ServerFacts, server_facts
from cotenant.workload.arrivals import generator

MIN_BUDGET_MS = 1.0
BODIES_PER_MODEL = 16
NO_DEADLINE_MS = 1e7
DTYPES = {
    "BOOL": np.bool_, "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64,
    "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
    "FP16": np.float16, "FP32": np.float32, "FP64": np.float64,
}  # fmt: skip
OUTCOMES = {
    429: OutcomeKind.REJECTED,
    503: OutcomeKind.REJECTED,
    504: OutcomeKind.EXPIRED,
    499: OutcomeKind.CANCELLED,
    0: OutcomeKind.FAILED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One model of the server under load: ready-made requests but for the budget."""

    name: str
    job_class: JobClass
    slo_ns: int | None
    solo_ms: float | None
    requests: Sequence[tuple[bytes, bytes]]

    def request(self, n: int, budget_ms: float | None) -> bytes:
        """The n-th request with this much budget left."""
        head, rest = self.requests[n % len(self.requests)]
        if budget_ms is None:
            return head + rest
        return head + b"x-slo-ms: %.3f\r\n" % max(MIN_BUDGET_MS, budget_ms) + rest


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
    targets = await find_targets(url, scenario)
    at, which = arrivals(scenario, scale=scale, capacity_per_s=capacity_per_s)
    return Session(
        url=url,
        scenario=scenario,
        targets=targets,
        at=at.tolist(),
        which=which.tolist(),
        before=await server_facts(url),
        config={
            "url": url,
            "policy": policy,
            "scale": scenario.load.scale if scale is None else scale,
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
    at: list[int]
    which: list[int]
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
        first, last = bisect_left(self.at, origin), bisect_left(self.at, int(to_s * NS_PER_S))
        at = [instant - origin for instant in self.at[first:last]]
        load = OpenLoop(self.url, self.targets, at, self.which[first:last], self.progress)
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
        at: Sequence[int],
        which: Sequence[int],
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._pool = Pool(url)
        self._targets = targets
        self._at, self._which = at, which
        self._progress = progress
        self._clock = MonotonicClock()
        self._n_open = 0
        self._records: list[RequestRecord] = []
        self.late_ns: list[int] = []

    async def run(self, drain_s: float) -> list[RequestRecord]:
        """Offer everything, wait for the answers at most `drain_s` after the last."""
        origin = self._clock.now() + 20 * NS_PER_MS
        for n, (at, index) in enumerate(zip(self._at, self._which, strict=True)):
            wait_ns = origin + at - self._clock.now()
            if wait_ns > 0:
                await asyncio.sleep(wait_ns / NS_PER_S)
            elif n % 16 == 0:
                await asyncio.sleep(0)
            self._send(n, origin + at, self._targets[index])
            if self._progress is not None and n % 50 == 0:
                self._progress(n, len(self._at))
        until = self._clock.now() + int(drain_s * NS_PER_S)
        while self._n_open and self._clock.now() < until:
            await asyncio.sleep(0.02)
        self._pool.close()
        return self._records

    def _send(self, n: int, intended_at: int, target: Target) -> None:
        deadline_at = None if target.slo_ns is None else intended_at + target.slo_ns
        self._n_open += 1

        def make() -> bytes:
            now = self._clock.now()
            self.late_ns.append(max(0, now - intended_at))
            budget_ms = None if deadline_at is None else (deadline_at - now) / NS_PER_MS
            return target.request(n, budget_ms)

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


async def find_targets(url: str, scenario: Scenario) -> list[Target]:
    """Ask the server for every model of the scenario and prepare requests for it."""
    pool = Pool(url)
    targets = []
    for model in scenario.models:
        try:
            metadata = await get_json(url, f"/v2/models/{model.name}")
        except ValueError as error:
            if "404" in str(error):
                raise ValueError(f"the server at {url} has no model {model.name!r}") from None
            raise
        targets.append(_target(metadata, model, scenario, pool.authority))
    return targets


def _target(metadata: Mapping[str, Any], model: ModelConfig, scenario: Scenario, authority: bytes) -> Target:
    told = metadata.get("parameters", {})
    slo_ms = told.get("slo_ms") if model.slo_scale is not None else model.slo_ms
    solo_ms = told.get("solo_ms")
    if slo_ms is None and model.slo_scale is not None and solo_ms is not None:
        slo_ms = max(model.slo_scale * solo_ms, model.slo_ms or 0.0)
    rng = generator(scenario.load.seed, f"inputs/{model.name}")
    requests = [_request(metadata, model, authority, rng) for _ in range(BODIES_PER_MODEL)]
    return Target(
        name=model.name,
        job_class=model.job_class,
        slo_ns=None if slo_ms is None or model.job_class is JobClass.BEST_EFFORT else int(slo_ms * NS_PER_MS),
        solo_ms=solo_ms,
        requests=requests,
    )


def _request(
    metadata: Mapping[str, Any], model: ModelConfig, authority: bytes, rng: np.random.Generator
) -> tuple[bytes, bytes]:
    """A POST in two parts; the header with the budget goes between them."""
    drawn = {axis: int(rng.choice(sizes)) for axis, sizes in model.buckets.items()}
    heads, blobs = [], []
    for spec in metadata["inputs"]:
        told = metadata.get("parameters", {}).get("inputs", {}).get(spec["name"], {})
        array = _array(spec, told, model, drawn, rng)
        blob = array.tobytes()
        blobs.append(blob)
        heads.append({
            "name": spec["name"], "shape": list(array.shape), "datatype": spec["datatype"],
            "parameters": {"binary_data_size": len(blob)},
        })  # fmt: skip
    head = orjson.dumps({"inputs": heads, "parameters": {"binary_data_output": True}})
    body = head + b"".join(blobs)
    first = b"POST /v2/models/%s/infer HTTP/1.1\r\nHost: %s\r\n" % (model.name.encode(), authority)
    lengths = b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n" % (len(head), len(body))
    return first, lengths + body


def _array(
    spec: Mapping[str, Any],
    told: Mapping[str, Any],
    model: ModelConfig,
    drawn: Mapping[str, int],
    rng: np.random.Generator,
) -> np.ndarray[Any, Any]:
    """Random valid values; `told` names the axes and bounds integers where the server knows them."""
    axes = told.get("axes") or [None] * len(spec["shape"])
    shape = []
    for i, (size, axis) in enumerate(zip(spec["shape"], axes, strict=True)):
        if size >= 0:
            shape.append(size)
        else:
            shape.append(model.rows if i == 0 or axis == "batch" else drawn.get(axis or "", 16))
    datatype = spec["datatype"]
    if datatype not in DTYPES:
        raise ValueError(f"model {model.name!r}: cannot make random inputs of datatype {datatype}")
    dtype = DTYPES[datatype]
    if np.issubdtype(dtype, np.floating):
        return rng.standard_normal(shape).astype(dtype)
    low, high = told.get("range") or (0, 2)
    return rng.integers(low, high, shape).astype(dtype)
