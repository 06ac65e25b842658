"""One simulated run of a scenario, with the same report as a live one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cotenant.assemble import describe_device, make_scheduler
from cotenant.catalogue import solo_ns, with_slo
from cotenant.clock import MonotonicClock, VirtualClock
from cotenant.config import Scenario
from cotenant.domain import NS_PER_MS, NS_PER_S, ModelSpec, Request
from cotenant.execute.lanes import lane_layout
from cotenant.experiment.load import arrivals
from cotenant.experiment.recorder import Recorder
from cotenant.experiment.report import RunFacts, build_report
from cotenant.predict.solo import SoloPredictor
from cotenant.profile.export import ScenarioProfile
from cotenant.profile.records import StoredProfiles
from cotenant.schedule.policies import make_policy
from cotenant.schedule.policy import Policy
from cotenant.simulate.cpu import CpuTruth, SimulatedCpu
from cotenant.simulate.driver import Simulation, VirtualTimers
from cotenant.workload.arrivals import Instants, generator


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedDevice:
    """A CPU made of a measured profile, and the specs that a scenario gives its models."""

    profile: ScenarioProfile
    profiles: StoredProfiles
    specs: tuple[ModelSpec, ...]


def simulated_device(scenario: Scenario, profile: ScenarioProfile) -> SimulatedDevice:
    """Resolve the scenario's SLOs against the profile."""
    reader = profile.profiles()
    specs = tuple(with_slo(reader.spec(model.name), model, reader) for model in scenario.models)
    return SimulatedDevice(profile=profile, profiles=profile.profiles(specs), specs=specs)


def requests(
    scenario: Scenario, specs: tuple[ModelSpec, ...], at: Instants, which: Instants, seed: int
) -> Iterator[Request]:
    """The scenario's requests as the scheduler sees them; dynamic axes are drawn among the buckets."""
    rng = generator(seed, "axes")
    sizes = [[(axis, values) for axis, values in spec.axis_buckets] for spec in specs]
    for n, (instant, index) in enumerate(zip(at.tolist(), which.tolist(), strict=True)):
        spec, model = specs[index], scenario.models[index]
        axes = tuple((axis, int(rng.choice(values))) for axis, values in sizes[index])
        yield Request(
            id=f"s{n}",
            model=spec.name,
            arrived_at=instant,
            deadline_at=None if spec.slo_ns is None else instant + spec.slo_ns,
            rows=model.rows,
            axes=axes,
            job_class=spec.job_class,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedRun:
    """What a simulated run left behind."""

    recorder: Recorder
    policy: Policy
    wall_s: float


def run(
    scenario: Scenario,
    device: SimulatedDevice,
    policy: Policy,
    offered: tuple[Instants, Instants],
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> SimulatedRun:
    """Offer these arrivals to the simulated device until everything has ended."""
    watch = MonotonicClock()
    began = watch.now()
    at, which = offered
    n_lanes = scenario.device.lanes or len(device.profile.device.lane_units)
    lanes = lane_layout(n_lanes, device.profile.device.n_units)
    clock = VirtualClock()
    timers = VirtualTimers(clock)
    truth = CpuTruth(
        samples=device.profiles.samples(),
        slowdown=device.profile.slowdown(),
        overhead_ns=device.profile.overhead_ns,
    )
    predictor = SoloPredictor(device.profiles)
    recorder = Recorder(lanes)
    simulation = Simulation(
        scheduler=make_scheduler(policy, predictor, lanes, device.specs),
        executor=SimulatedCpu(truth, lanes, timers, seed),
        learner=predictor,
        clock=clock,
        timers=timers,
        on_settled=lambda outcome: None,
        observers=[recorder],
        stopwatch=watch,
    )
    told = None if progress is None else lambda n: progress(n, len(at))
    simulation.run(requests(scenario, device.specs, at, which, seed), progress=told)
    return SimulatedRun(recorder=recorder, policy=policy, wall_s=(watch.now() - began) / NS_PER_S)


def simulate(
    scenario: Scenario,
    device: SimulatedDevice,
    policy: str | Policy = "default",
    *,
    seed: int | None = None,
    scale: float | None = None,
    capacity_per_s: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Offer the scenario's load to the simulated device; returns the run report."""
    seed = scenario.load.seed if seed is None else seed
    chosen = make_policy(policy) if isinstance(policy, str) else policy
    offered = arrivals(scenario, scale=scale, seed=seed, capacity_per_s=capacity_per_s)
    done = run(scenario, device, chosen, offered, seed, progress)
    facts = RunFacts(
        policy=policy if isinstance(policy, str) else chosen.name,
        seed=seed,
        duration_s=scenario.load.duration_s,
        config={
            "policy": chosen.name,
            "scale": scenario.load.scale if scale is None else scale,
            "capacity_per_s": capacity_per_s,
            "settings": policy_settings(chosen),
            "simulated": True,
        },
        device=describe_device(device.profile.device),
        wall_s=done.wall_s,
        solo_ms={spec.name: solo_ns(device.profiles, spec) / NS_PER_MS for spec in device.specs},
        busy=done.recorder.busy(),
        observations=done.recorder.observations,
        decision_ns=done.recorder.decision_ns,
    )
    return build_report(done.recorder.records(), facts)


def policy_settings(policy: Policy) -> dict[str, Any]:
    """The policy's own settings, for reports."""
    return {key: getattr(policy, key) for key in ("k", "margin", "rejects") if hasattr(policy, key)}
