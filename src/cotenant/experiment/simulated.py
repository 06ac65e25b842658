"""One simulated run of a scenario, with the same report as a live one.

A `SimulatedDevice` is a CPU made of a measured profile, or a twin whose profile was measured through its own
executor. Which predictor goes with the policy `cotenant.predictors` says, unless the caller has
one: `predictor_factory`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Any

import numpy as np

from cotenant.assemble import describe_device, make_scheduler, simulation_profile
from cotenant.catalogue import Places, solo_ns, with_slo
from cotenant.clock import MonotonicClock, VirtualClock
from cotenant.config import Scenario
from cotenant.domain import NS_PER_MS, NS_PER_S, Axes, ModelSpec, Request
from cotenant.execute.lanes import lane_layout
from cotenant.experiment.arrival_files import NO_DEADLINE, Offered
from cotenant.experiment.load import load_config, offer
from cotenant.experiment.recorder import Recorder
from cotenant.experiment.report import RunFacts, build_report
from cotenant.experiment.twin_coruns import twin_coruns
from cotenant.experiment.twin_models import DEFAULT_LANES, twin_models
from cotenant.experiment.twin_profile import feature_table, profile_of, twin_fingerprint
from cotenant.ports import Executor, LaneInfo, Timers
from cotenant.predict.solo import SoloPredictor
from cotenant.predictors import Kind, Measured, Predicting, make_predictor, make_solo, parts_of
from cotenant.profile.export import ScenarioProfile
from cotenant.profile.features import FeatureTable
from cotenant.profile.pairs import CoRuns, coruns_of_pairs
from cotenant.profile.records import DeviceFingerprint, StoredProfiles
from cotenant.schedule.policies import make_policy
from cotenant.schedule.policy import Policy
from cotenant.simulate.cpu import CpuTruth, SimulatedCpu
from cotenant.simulate.driver import Simulation, VirtualTimers
from cotenant.simulate.twin.device import Noise, Programs
from cotenant.simulate.twin.executor import TwinDevice, twin_lanes
from cotenant.simulate.twin.oracle import TwinOracle
from cotenant.workload.arrivals import generator


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinTruth:
    """What a twin runs, and how noisily."""

    programs: Programs
    noise: Noise = field(default_factory=Noise)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedDevice:
    """A device to simulate, what was measured of it, and the specs that a scenario gives its models."""

    fingerprint: DeviceFingerprint
    truth: CpuTruth | TwinTruth
    profiles: StoredProfiles
    specs: tuple[ModelSpec, ...]
    coruns: Callable[[], CoRuns]
    """What was measured of models beside each other; measures now what was not."""
    features: FeatureTable = field(default_factory=FeatureTable)

    def with_specs(self, specs: Sequence[ModelSpec]) -> SimulatedDevice:
        """The same with other specs of (some of) its models."""
        profiles = StoredProfiles(specs, self.profiles.records)
        return replace(self, specs=tuple(specs), profiles=profiles)

    def n_lanes(self, scenario: Scenario) -> int:
        """Lanes that the scenario lets policies use."""
        return scenario.device.lanes or len(self.fingerprint.lane_units)

    def lanes(self, scenario: Scenario) -> Sequence[LaneInfo]:
        """These lanes."""
        n_lanes = self.n_lanes(scenario)
        if isinstance(self.truth, TwinTruth):
            return twin_lanes(n_lanes)
        return lane_layout(n_lanes, self.fingerprint.n_units)

    def executor(self, n_lanes: int, timers: Timers, seed: int) -> Executor:
        """The device in virtual time, nothing running yet."""
        if isinstance(self.truth, TwinTruth):
            return TwinDevice(self.truth.programs, timers, n_lanes=n_lanes, seed=seed, noise=self.truth.noise)
        return SimulatedCpu(self.truth, lane_layout(n_lanes, self.fingerprint.n_units), timers, seed)


PredictorFactory = Callable[[SimulatedDevice, Executor], Predicting]
"""Makes the predictor of a run, nothing learned yet, for the executor that the run is about to use."""


def oracle_predictor(device: SimulatedDevice, executor: Executor) -> Predicting:
    """The twin's own rates, and else the same information as any other predictor has. Raises ValueError for
    other devices, whose truth nobody can ask."""
    if not isinstance(executor, TwinDevice):
        raise ValueError('the oracle needs [device] kind = "twin"')
    return TwinOracle(executor, device.specs, screen=SoloPredictor(device.profiles))


def predictor_for(policy: Policy) -> PredictorFactory:
    """The predictor that goes with the policy. Where a device has no features, solo times, learned, stand in
    for what the server runs."""

    def make(device: SimulatedDevice, executor: Executor) -> Predicting:
        kind = parts_of(policy).kind
        if kind is Kind.ORACLE:
            return oracle_predictor(device, executor)
        if kind is Kind.FLUID and not len(device.features):
            return make_solo(policy, device.profiles)
        return make_predictor(
            policy,
            Measured(
                profiles=device.profiles,
                features=device.features,
                lanes=executor.lanes,
                coruns=device.coruns,
            ),
        )

    return make


def device_of(scenario: Scenario, where: Places, noise: Noise | None = None) -> SimulatedDevice:
    """The device that a scenario asks for: a twin, measured now unless it was before (a second or so), or one
    with a stored or committed profile. Raises ConfigError."""
    if scenario.device.kind == "twin":
        return twin_device(scenario, where, noise)
    return simulated_device(scenario, simulation_profile(scenario, where))


def simulated_device(scenario: Scenario, profile: ScenarioProfile) -> SimulatedDevice:
    """A CPU from its profile, with the scenario's SLOs resolved against it."""
    reader = profile.profiles()
    specs = tuple(with_slo(reader.spec(model.name), model, reader) for model in scenario.models)
    truth = CpuTruth(samples=reader.samples(), slowdown=profile.slowdown(), overhead_ns=profile.overhead_ns)
    return SimulatedDevice(
        fingerprint=profile.device,
        truth=truth,
        profiles=profile.profiles(specs),
        specs=specs,
        coruns=lambda: _committed_coruns(profile, reader),
    )


def _committed_coruns(profile: ScenarioProfile, reader: StoredProfiles) -> CoRuns:
    """What the pairs of a profile say."""
    solo = FeatureTable()
    for record in reader.records:
        solo.add(solo.bare(record.profile.variant, float(record.profile.median_ns), record.profile.share))
    return coruns_of_pairs(profile.ratios(), solo, profile.overhead_ns)


def twin_device(scenario: Scenario, where: Places, noise: Noise | None = None) -> SimulatedDevice:
    """A twin with its models, profiled through its own executor; SLOs resolved against that profile."""
    models, noise = twin_models(scenario), noise or Noise()
    folder = where.store / "twins"
    found = [one for spec in models.specs for one in profile_of(spec, models.programs, noise, folder)]
    features = feature_table(found)
    reader = StoredProfiles(models.specs, [one.solo for one in found])
    specs = tuple(
        with_slo(spec, model, reader) for spec, model in zip(models.specs, scenario.models, strict=True)
    )
    return SimulatedDevice(
        fingerprint=twin_fingerprint(models.programs, scenario.device.lanes or DEFAULT_LANES),
        truth=TwinTruth(programs=models.programs, noise=noise),
        profiles=StoredProfiles(specs, reader.records),
        specs=specs,
        features=features,
        coruns=lambda: twin_coruns(models.specs, models.programs, noise, features, folder),
    )


def requests(specs: tuple[ModelSpec, ...], offered: Offered, seed: int) -> Iterator[Request]:
    """The requests as the scheduler sees them; dynamic axes are drawn among the buckets."""
    counts = np.bincount(offered.which, minlength=len(specs)).tolist()
    axes = [
        _axes(spec, n, generator(seed, f"axes/{spec.name}")) for spec, n in zip(specs, counts, strict=True)
    ]
    budgets = offered.budgets([spec.slo_ns for spec in specs])
    columns = (column.tolist() for column in (offered.at, offered.which, offered.rows, budgets))
    for n, (instant, index, rows, budget) in enumerate(zip(*columns, strict=True)):
        spec = specs[index]
        yield Request(
            id=f"s{n}",
            model=spec.name,
            arrived_at=instant,
            deadline_at=None if budget == NO_DEADLINE else instant + budget,
            rows=rows,
            axes=next(axes[index]),
            job_class=spec.job_class,
        )


def _axes(spec: ModelSpec, n: int, rng: np.random.Generator) -> Iterator[Axes]:
    """Sizes of the dynamic axes of `n` requests of a model."""
    if not spec.axis_buckets:
        return repeat(())
    drawn = [[(axis, size) for size in rng.choice(sizes, n).tolist()] for axis, sizes in spec.axis_buckets]
    return zip(*drawn, strict=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedRun:
    """What a simulated run left behind. `units_ns`: time with all compute units in use that the run amounts
    to, where the device tells; `predictor`: as it is after the run."""

    recorder: Recorder
    policy: Policy
    wall_s: float
    predictor: Predicting
    units_ns: float | None = None


def run(
    scenario: Scenario,
    device: SimulatedDevice,
    policy: Policy,
    offered: Offered,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    predictor_factory: PredictorFactory | None = None,
) -> SimulatedRun:
    """Offer these arrivals to the simulated device until everything has ended."""
    watch = MonotonicClock()
    clock = VirtualClock()
    timers = VirtualTimers(clock)
    executor = device.executor(device.n_lanes(scenario), timers, seed)
    predictor = (predictor_factory or predictor_for(policy))(device, executor)
    recorder = Recorder(executor.lanes)
    began = watch.now()
    simulation = Simulation(
        scheduler=make_scheduler(policy, predictor, executor.lanes, device.specs),
        executor=executor,
        learner=predictor,
        clock=clock,
        timers=timers,
        on_settled=lambda outcome: None,
        observers=[recorder],
        stopwatch=watch,
    )
    told = None if progress is None else lambda n: progress(n, len(offered.at))
    simulation.run(requests(device.specs, offered, seed), progress=told)
    wall_s = (watch.now() - began) / NS_PER_S
    units_ns = executor.counters()[0] / executor.n_sms if isinstance(executor, TwinDevice) else None
    return SimulatedRun(
        recorder=recorder, policy=policy, wall_s=wall_s, predictor=predictor, units_ns=units_ns
    )


def simulate(
    scenario: Scenario,
    device: SimulatedDevice,
    policy: str | Policy = "default",
    *,
    seed: int | None = None,
    scale: float | None = None,
    capacity_per_s: float | None = None,
    progress: Callable[[int, int], None] | None = None,
    predictor_factory: PredictorFactory | None = None,
) -> dict[str, Any]:
    """Offer the scenario's load to the simulated device; returns the run report."""
    seed = scenario.load.seed if seed is None else seed
    chosen = make_policy(policy, device.lanes(scenario)) if isinstance(policy, str) else policy
    offered = offer(scenario, scale=scale, seed=seed, capacity_per_s=capacity_per_s)
    done = run(scenario, device, chosen, offered, seed, progress, predictor_factory)
    facts = RunFacts(
        policy=policy if isinstance(policy, str) else chosen.name,
        seed=seed,
        duration_s=scenario.load.duration_s,
        config={
            "policy": chosen.name,
            **load_config(scenario, scale),
            "capacity_per_s": capacity_per_s,
            "settings": policy_settings(chosen),
            "predictor": getattr(done.predictor, "name", "solo"),
            "simulated": True,
        },
        device=describe_device(device.fingerprint),
        wall_s=done.wall_s,
        solo_ms={spec.name: solo_ns(device.profiles, spec) / NS_PER_MS for spec in device.specs},
        busy=done.recorder.busy(),
        units_ns=done.units_ns,
        observations=done.recorder.observations,
        decision_ns=done.recorder.decision_ns,
    )
    return build_report(done.recorder.records(), facts)


def policy_settings(policy: Policy) -> dict[str, Any]:
    """The policy's own settings, for reports."""
    return {key: getattr(policy, key) for key in ("k", "margin", "rejects") if hasattr(policy, key)}
