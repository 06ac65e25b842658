"""One live run in process, without HTTP: the engine and real lanes under a scenario's open-loop load."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from cotenant.assemble import Prepared, describe_device, make_engine, predictor_of
from cotenant.clock import MonotonicClock
from cotenant.config import Scenario
from cotenant.domain import NS_PER_MS, NS_PER_S, JobClass, ModelMetadata, Outcome, OutcomeKind
from cotenant.engine import Engine
from cotenant.execute.model import example_inputs
from cotenant.experiment.capacity import NO_DEADLINE_NS
from cotenant.experiment.load import arrivals
from cotenant.experiment.recorder import Recorder
from cotenant.experiment.report import RunFacts, build_report
from cotenant.experiment.simulated import policy_settings
from cotenant.learned import kept
from cotenant.ports import Observer, Tensors
from cotenant.predictors import Served
from cotenant.schedule.policies import make_policy
from cotenant.schedule.policies.deferred_edf import DeferredEdf
from cotenant.schedule.policy import Policy
from cotenant.workload.arrivals import generator

INPUTS_PER_MODEL = 8
TURNAROUND_BACKLOG = 16
"""Requests that wait while the turnaround of lanes is measured: about as many as deadlines let wait."""


async def live_capacity(
    prepared: Prepared, scenario: Scenario, *, seconds: float = 6.0, warm_s: float = 8.0, backlog: int = 128
) -> float:
    """Requests per second of the scenario's mix that the device completes, in process, under a standing
    backlog: `deferred_edf` without rejection, no deadlines. Best-effort models are left out.

    Counted after `warm_s` of saturation: shared machines are faster at first than they can keep up. Raises
    ValueError when a run fails."""
    done_at = await saturate(prepared, scenario, seconds=warm_s + seconds, backlog=backlog)
    from_at = done_at[-1] - int(seconds * NS_PER_S) if done_at else 0
    return sum(1 for at in done_at if at >= from_at) / seconds


async def lane_turnaround(prepared: Prepared, scenario: Scenario, *, seconds: float = 3.0) -> int:
    """Median span (ns) in which a lane stands still between two dispatches of a saturated device: reporting
    the end, deciding, answering, handing the next one over. Raises ValueError when a run fails."""
    recorder = Recorder(prepared.executor.lanes)
    await saturate(prepared, scenario, seconds=seconds, backlog=TURNAROUND_BACKLOG, observers=[recorder])
    gaps: list[int] = []
    for lane in prepared.executor.lanes:
        runs = sorted((o.started_at, o.ended_at) for o in recorder.observations if o.lane == lane.index)
        gaps += [later[0] - earlier[1] for earlier, later in pairwise(runs)]
    return max(0, int(np.median(gaps))) if gaps else 0


async def saturate(
    prepared: Prepared,
    scenario: Scenario,
    *,
    seconds: float,
    backlog: int = 128,
    observers: Sequence[Observer] = (),
) -> list[int]:
    """Keep `backlog` requests of the scenario's mix waiting; returns when each was answered (ns), in order.
    Raises ValueError when a run fails."""
    clock = MonotonicClock()
    engine = make_engine(prepared, DeferredEdf(rejects=False), clock=clock, observers=observers)
    engine.start()
    models = [model for model in scenario.models if model.name in prepared.metadata]
    shares = np.asarray([0.0 if m.job_class is JobClass.BEST_EFFORT else m.rate_per_s for m in models])
    if not shares.sum():
        shares = np.ones(len(shares))
    rng = generator(scenario.load.seed, "capacity")
    order = rng.choice(len(shares), size=100_000, p=shares / shares.sum()).tolist()
    pools = [_inputs(prepared.metadata[model.name], model.rows, scenario.load.seed) for model in models]
    done_at: list[int] = []
    over = asyncio.get_running_loop().create_future()
    n_sent = 0

    def send() -> None:
        nonlocal n_sent
        index = order[n_sent % len(order)]
        model, (inputs, axes) = models[index], pools[index][n_sent % INPUTS_PER_MODEL]
        n_sent += 1
        engine.submit(
            call_id=f"capacity-{n_sent}", model=model.name, inputs=inputs, rows=model.rows, axes=axes,
            arrived_at=clock.now(), slo_ns=NO_DEADLINE_NS, priority=0, reply=answered,
        )  # fmt: skip

    def answered(outcome: Outcome, outputs: Tensors | None) -> None:
        if over.done():
            return
        if outcome.kind is not OutcomeKind.OK:
            over.set_exception(
                ValueError(f"capacity of {scenario.path}: a request ended {outcome.kind}: {outcome.reason}")
            )
            return
        done_at.append(clock.now())
        asyncio.get_running_loop().call_soon(send)

    for _ in range(backlog):
        send()
    asyncio.get_running_loop().call_later(seconds, lambda: None if over.done() else over.set_result(None))
    try:
        await over
    finally:
        await engine.drain(5.0)
        engine.close_log()
    return done_at


async def run_live(
    prepared: Prepared,
    scenario: Scenario,
    policy: str | Policy = "default",
    *,
    scale: float | None = None,
    seed: int | None = None,
    capacity_per_s: float | None = None,
    drain_s: float = 5.0,
    log_path: Path | None = None,
    observers: Sequence[Observer] = (),
    progress: Callable[[int, int], None] | None = None,
    predictor: Served | None = None,
    learned: Path | None = None,
) -> dict[str, Any]:
    """Offer the scenario's load to an engine on this event loop; returns the run report.

    The engine is new, the prepared device is used as it is and stays usable afterwards. What the predictor
    learns is kept at `learned`, where there is one, after what was kept there before was restored; the
    report's `config` says so."""
    chosen = make_policy(policy, prepared.executor.lanes) if isinstance(policy, str) else policy
    predictor = predictor or predictor_of(prepared, chosen)
    if learned is not None:
        said: list[str] = []
        with kept(prepared, chosen, predictor, learned, said.append) as keepers:
            report = await run_live(
                prepared, scenario, policy, scale=scale, seed=seed, capacity_per_s=capacity_per_s,
                drain_s=drain_s, log_path=log_path, observers=[*observers, *keepers], progress=progress,
                predictor=predictor,
            )  # fmt: skip
        report["config"]["learned"] = said
        return report
    seed = scenario.load.seed if seed is None else seed
    clock = MonotonicClock()
    recorder = Recorder(prepared.executor.lanes)
    engine = make_engine(
        prepared,
        chosen,
        predictor=predictor,
        clock=clock,
        observers=[recorder, *observers],
        log_path=log_path,
    )
    engine.start()
    at, which = arrivals(scenario, scale=scale, seed=seed, capacity_per_s=capacity_per_s)
    pools = [_inputs(prepared.metadata[model.name], model.rows, seed) for model in scenario.models]
    began = clock.now()
    intended = await _offer(engine, clock, scenario, at.tolist(), which.tolist(), pools, progress)
    until = clock.now() + int(drain_s * NS_PER_S)
    while engine.n_unanswered and clock.now() < until:
        await asyncio.sleep(0.01)
    await engine.drain(drain_s)
    engine.close_log()
    facts = RunFacts(
        policy=policy if isinstance(policy, str) else chosen.name,
        seed=seed,
        duration_s=scenario.load.duration_s,
        config={
            "policy": chosen.name,
            "scale": scenario.load.scale if scale is None else scale,
            "capacity_per_s": capacity_per_s,
            "settings": policy_settings(chosen),
            "simulated": False,
        },
        device=describe_device(prepared.device),
        wall_s=(clock.now() - began) / NS_PER_S,
        solo_ms=prepared.solo_ms(),
        busy=recorder.busy(),
        observations=recorder.observations,
        decision_ns=recorder.decision_ns,
    )
    return build_report(recorder.records(intended), facts)


def _inputs(
    metadata: ModelMetadata, rows: int, seed: int
) -> list[tuple[Tensors, tuple[tuple[str, int], ...]]]:
    """Ready-made inputs of a model with the axes they have, in turn over its declared shapes."""
    rng = generator(seed, f"inputs/{metadata.name}")
    shapes = [variant for variant in metadata.spec.variants() if variant.rows >= rows]
    smallest = min(variant.rows for variant in shapes)
    fitting = [variant for variant in shapes if variant.rows == smallest]
    pool: list[tuple[Tensors, tuple[tuple[str, int], ...]]] = []
    for _ in range(INPUTS_PER_MODEL):
        variant = fitting[int(rng.integers(len(fitting)))]
        tensors = {name: array[:rows] for name, array in example_inputs(metadata, variant, rng).items()}
        pool.append((tensors, variant.axes))
    return pool


async def _offer(
    engine: Engine,
    clock: MonotonicClock,
    scenario: Scenario,
    at: Sequence[int],
    which: Sequence[int],
    pools: Sequence[Sequence[tuple[Tensors, tuple[tuple[str, int], ...]]]],
    progress: Callable[[int, int], None] | None,
) -> dict[str, int]:
    """Submit every request at its instant; returns the intended arrival of each by id."""
    intended: dict[str, int] = {}
    origin = clock.now() + 20 * NS_PER_MS

    def ignore(outcome: Outcome, outputs: Tensors | None) -> None:
        """The recorder has it already."""

    for n, (instant, index) in enumerate(zip(at, which, strict=True)):
        wait_ns = origin + instant - clock.now()
        if wait_ns > 0:
            await asyncio.sleep(wait_ns / NS_PER_S)
        elif n % 8 == 0:
            await asyncio.sleep(0)
        model = scenario.models[index]
        inputs, axes = pools[index][n % INPUTS_PER_MODEL]
        spec = engine.scheduler.view.specs[model.name]
        now = clock.now()
        call_id = f"live-{n}"
        intended[call_id] = origin + instant
        late_ns = now - intended[call_id]
        engine.submit(
            call_id=call_id,
            model=model.name,
            inputs=inputs,
            rows=model.rows,
            axes=axes,
            arrived_at=now,
            slo_ns=None if spec.slo_ns is None else max(1, spec.slo_ns - late_ns),
            priority=0,
            reply=ignore,
        )
        if progress is not None and n % 50 == 0:
            progress(n, len(at))
    return intended
