"""The composition root: from a scenario to loaded models, profiles, a scheduler and an engine.

The only place that reads the environment and names concrete classes across packages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cotenant.catalogue import (
    Places,
    file_if_there,
    settings_of,
    settled,
    solo_ns,
)
from cotenant.clock import Clock, MonotonicClock
from cotenant.config import ConfigError, Scenario
from cotenant.cores import available_cores
from cotenant.domain import NS_PER_MS, ModelMetadata, ModelSpec, Variant
from cotenant.drive import Log
from cotenant.engine import Engine
from cotenant.execute.model import example_inputs
from cotenant.execute.onnx_model import inspect
from cotenant.execute.python_metadata import example_of
from cotenant.labels import labelled
from cotenant.ports import Executor, LaneInfo, Learner, Observer, Predictor, Screened, Tensors
from cotenant.predictors import Measured, Served, make_load_meter, make_predictor, unfitted
from cotenant.profile.demand import feature_table
from cotenant.profile.drive_lanes import LaneDriver, MeasureError
from cotenant.profile.export import ScenarioProfile, load_profile, scenario_profile
from cotenant.profile.features import FeatureTable
from cotenant.profile.measure import Budget, Step, Subject, measure_solo
from cotenant.profile.pairs import CoRuns, Pair, coruns_of_pairs
from cotenant.profile.probe import Inside, known_features
from cotenant.profile.records import (
    DeviceFingerprint,
    PairRecord,
    SoloRecord,
    StoredProfiles,
    cpu_fingerprint,
    source_hash,
)
from cotenant.profile.store import ProfileStore
from cotenant.redact import without_paths
from cotenant.repository import Stamp, stocked
from cotenant.runtimes import Runtime, cpu_lanes, is_torch, open_runtime
from cotenant.schedule.policies import make_policy
from cotenant.schedule.policy import Policy
from cotenant.schedule.scheduler import Scheduler
from cotenant.telemetry.event_log import EventLog, Header
from cotenant.telemetry.journal import Sink
from cotenant.user_models import UserModels

Progress = Callable[[str, int, int], None]
"""Told (what is being done, steps done, steps in all)."""


def no_progress(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


@dataclass(slots=True, kw_only=True)
class Prepared:
    """A device with its models loaded and profiled. `pairs`, `overhead_ns` (turnaround of a lane): what
    `cotenant profile --corun` measured, none and 0 before. `stamps`: of the models of a repository that were
    to be loaded."""

    scenario: Scenario
    runtime: Runtime
    executor: Executor
    device: DeviceFingerprint
    metadata: dict[str, ModelMetadata]
    sources: dict[str, str]
    profiles: StoredProfiles
    features: FeatureTable = field(default_factory=FeatureTable)
    insides: dict[str, Inside | None] = field(default_factory=dict)
    pairs: Sequence[PairRecord] = ()
    overhead_ns: int = 0
    user: UserModels
    failed: dict[str, str] = field(default_factory=dict)
    stamps: Mapping[str, Stamp] = field(default_factory=dict)

    def configured(self) -> set[str]:
        """Names of the models that the configuration itself has tables of, as it was last read."""
        return {model.name for model in self.scenario.models if "@" not in model.name}

    @property
    def specs(self) -> list[ModelSpec]:
        """Specs of the loaded models."""
        return [metadata.spec for metadata in self.metadata.values()]

    def solo_median_ns(self, variant: Variant) -> int:
        """Solo median of a variant (ns)."""
        return self.profiles.solo(variant).median_ns

    def solo_ms(self) -> dict[str, float]:
        """Solo median of each model at batch 1 (ms)."""
        return {spec.name: solo_ns(self.profiles, spec) / NS_PER_MS for spec in self.specs}


def prepare(
    scenario: Scenario,
    where: Places,
    *,
    progress: Progress = no_progress,
    budget: Budget | None = None,
    user: UserModels | None = None,
) -> Prepared:
    """Load every model of the scenario, and of its repository, and profile what was not profiled on this
    device before.

    Blocks for seconds. A model that cannot be loaded is left out, with the reason in `failed`; when none can
    be loaded the first reason is raised, unless a repository may bring others. `user`: Python models that
    the scenario's sources stand for."""
    user = user or UserModels(scenario.folder)
    stock = stocked(user.completed(scenario))
    scenario = stock.scenario
    runtime = open_runtime(scenario, where, user)
    executor = runtime.executor
    prepared = Prepared(
        scenario=scenario,
        runtime=runtime,
        executor=executor,
        device=runtime.device,
        metadata={},
        sources={},
        profiles=StoredProfiles([], []),
        user=user,
        failed=dict(stock.failed),
        stamps=stock.stamps,
    )
    for i, model in enumerate(scenario.models):
        progress(f"loading {model.name}", i, len(scenario.models))
        try:
            metadata, source = runtime.load(model)
            metadata = labelled(metadata, model.labels)
        except ValueError as error:
            prepared.failed[model.name] = str(error)
            continue
        prepared.metadata[model.name] = metadata
        prepared.sources[model.name] = source
        prepared.insides[model.name] = runtime.inside(metadata)
    try:
        _require_models(prepared)
        _profile(prepared, where, progress, budget or Budget())
    except BaseException:
        executor.close()
        raise
    for model in scenario.models:
        if model.name in prepared.metadata:
            metadata = settled(prepared.metadata[model.name], model, prepared.profiles)
            prepared.metadata[model.name] = metadata
            prepared.profiles.add(metadata.spec, [])
    know_features(prepared, where)
    return prepared


def _profile(prepared: Prepared, where: Places, progress: Progress, budget: Budget) -> None:
    """Take stored profiles where they fit this device, measure the rest. A model whose runs fail is left
    out, as one that cannot be loaded."""
    driver = LaneDriver(prepared.executor, MonotonicClock())
    subjects = subjects_of(prepared)

    def told(step: Step) -> None:
        progress(f"profiling {step.label}", step.n_done, step.n)

    with ProfileStore(where.profiles) as store:
        for subject in subjects:
            try:
                found = measure_solo(
                    driver, [subject], device=prepared.device, store=store, budget=budget, progress=told
                )
            except MeasureError as error:
                prepared.failed[subject.spec.name] = str(error)
                del prepared.metadata[subject.spec.name]
                continue
            prepared.profiles.add(subject.spec, found.records)
        _require_models(prepared)


def _require_models(prepared: Prepared) -> None:
    if not prepared.metadata and prepared.scenario.repository is None:
        raise ConfigError(next(iter(prepared.failed.values())))


def subjects_of(prepared: Prepared) -> list[Subject]:
    """What can be measured of the loaded models."""
    random = np.random.default_rng(0)

    def subject(metadata: ModelMetadata) -> Subject:
        python = prepared.user.find(prepared.scenario.model(metadata.name).source)

        def inputs(variant: Variant) -> Tensors:
            if python is not None:
                return example_of(python, variant.rows, dict(variant.axes))
            return example_inputs(metadata, variant, random)

        return Subject(spec=metadata.spec, source=prepared.sources[metadata.name], inputs=inputs)

    return [subject(metadata) for metadata in prepared.metadata.values()]


def know_features(prepared: Prepared, where: Places) -> None:
    """Take the features of the loaded models: what `cotenant profile` measured and stored, else what the
    graphs tell, else solo times alone; and what it measured of them in pairs. Runs nothing."""
    with ProfileStore(where.profiles) as store:
        records = [
            record
            for subject in subjects_of(prepared)
            for record in known_features(
                subject, prepared.insides[subject.spec.name], prepared.solo_median_ns, store, prepared.device
            )
        ]
        table = feature_table(records, store.get_rates(prepared.device))
        prepared.pairs = store.pairs(prepared.sources, prepared.device)
        prepared.overhead_ns = store.overhead(prepared.device) or 0
    for record in prepared.profiles.records:
        profile = record.profile
        if profile.variant.model in prepared.metadata and not table.has(profile.variant, profile.share):
            table.add(table.bare(profile.variant, float(profile.median_ns), profile.share))
    prepared.features = table


def committed_profile(scenario: Scenario) -> Path:
    """Where a profile committed beside a scenario lies: `demo.profile.json` beside `demo.toml`."""
    return scenario.path.with_suffix(".profile.json")


def simulation_profile(scenario: Scenario, where: Places) -> ScenarioProfile:
    """What a simulation of this scenario's CPU is made of: the profile stored on this machine when it is
    complete, else the one committed beside the scenario. Raises ConfigError that names `cotenant profile`."""
    found = _stored_profile(scenario, where)
    beside = committed_profile(scenario)
    if found is None and beside.is_file():
        found = load_profile(beside)
    if found is None:
        raise ConfigError(
            f"{scenario.path}: nothing is measured to simulate this scenario with; run "
            f"`cotenant profile {scenario.path.name} --corun` on the machine to be simulated first"
        )
    known = {model.spec.name for model in found.models}
    for model in scenario.models:
        if model.name not in known:
            raise ConfigError(
                f"{beside}: has no profile of model {model.name!r}; run `cotenant profile` again"
            )
    return found


def _stored_profile(scenario: Scenario, where: Places) -> ScenarioProfile | None:
    """The profile in this machine's store, or None unless every model file is there and fully measured."""
    if not where.profiles.is_file():
        return None
    lanes = cpu_lanes(scenario)
    device = cpu_fingerprint(lanes, len(available_cores()))
    specs: list[ModelSpec] = []
    records: list[SoloRecord] = []
    sources: dict[str, str] = {}
    with ProfileStore(where.profiles) as store:
        for model in scenario.models:
            path = file_if_there(model, scenario, where)
            if path is None or is_torch(model.source):
                return None
            spec = inspect(path, settings_of(model)).spec
            sources[model.name] = source_hash(path)
            found = [store.get_solo(sources[model.name], variant, device) for variant in spec.variants()]
            if None in found:
                return None
            specs.append(spec)
            records += [record for record in found if record is not None]
        pairs: list[PairRecord] = store.pairs(sources, device)
        overhead_ns = store.overhead(device)
    if overhead_ns is None or (len(lanes) > 1 and len(pairs) < len(specs) ** 2):
        return None
    return scenario_profile(device, specs, records, pairs, overhead_ns)


def measured(prepared: Prepared) -> Measured:
    """What was measured of the prepared device, for the predictor of a policy."""
    return Measured(
        profiles=prepared.profiles,
        features=prepared.features,
        lanes=prepared.executor.lanes,
        coruns=lambda: _stored_coruns(prepared),
    )


def _stored_coruns(prepared: Prepared) -> CoRuns:
    """The pairs that `cotenant profile --corun` measured on this device. Raises ConfigError where there are
    none."""
    pairs = [Pair(pair.victim, pair.aggressor, pair.ratio) for pair in prepared.pairs]
    if not pairs and len(prepared.executor.lanes) > 1:
        path = prepared.scenario.path
        raise ConfigError(
            f"{path}: a predictor that is fitted before the run needs models measured beside each other on "
            f"this device; run `cotenant profile {path.name} --corun` first"
        )
    return coruns_of_pairs(pairs, prepared.features, prepared.overhead_ns)


def predictor_of(prepared: Prepared, policy: str | Policy = "default") -> Served:
    """The predictor that goes with the policy, for the prepared device, nothing learned yet. Raises
    ConfigError for one that this device cannot have."""
    chosen = make_policy(policy, prepared.executor.lanes) if isinstance(policy, str) else policy
    return make_predictor(chosen, measured(prepared))


def make_scheduler(
    policy: Policy, predictor: Predictor, lanes: Sequence[LaneInfo], specs: Sequence[ModelSpec]
) -> Scheduler:
    """A scheduler with a load meter of its own, if the policy goes with one."""
    if isinstance(predictor, Screened):
        predictor.screens = not policy.plans_alone
    load = make_load_meter(policy)
    return Scheduler(policy=policy, predictor=predictor, load=load, lanes=lanes, specs=specs)


def make_engine(
    prepared: Prepared,
    policy: str | Policy = "default",
    *,
    predictor: Served | None = None,
    clock: Clock | None = None,
    observers: Sequence[Observer] = (),
    log_path: Path | None = None,
    told_slow: Sequence[Sink] = (),
) -> Engine:
    """An engine on the prepared device, with a predictor that may have learned already. Nothing runs before
    its `start`."""
    chosen = make_policy(policy, prepared.executor.lanes) if isinstance(policy, str) else policy
    predictor = predictor or predictor_of(prepared, chosen)
    scheduler = make_scheduler(chosen, predictor, prepared.executor.lanes, prepared.specs)
    log: Log | None = None
    if log_path is not None:
        log = EventLog(log_path, log_header(prepared, chosen, predictor))
    engine = Engine(
        scheduler=scheduler,
        executor=prepared.executor,
        learner=predictor,
        clock=clock or MonotonicClock(),
        metadata=prepared.metadata,
        failed={name: without_paths(reason) for name, reason in prepared.failed.items()},
        observers=observers,
        log=log,
        told_slow=told_slow,
    )
    return engine


def log_header(prepared: Prepared, policy: Policy, predictor: Served) -> Header:
    """What a replay of the run needs."""
    variants = [variant for spec in prepared.specs for variant in spec.variants()]
    return Header(
        policy=policy.name,
        predictor=predictor.name,
        learned=predictor.state(),
        specs=prepared.specs,
        lanes=list(prepared.executor.lanes),
        profiles=[prepared.profiles.solo(variant) for variant in variants],
        resources=predictor.features.resources,
        statics=predictor.features.statics,
        features=list(predictor.features),
    )


def from_header(header: Header) -> tuple[Scheduler, Learner]:
    """A fresh scheduler and learner as a log's run began with."""
    records = [SoloRecord(source="", profile=profile, samples_ns=()) for profile in header.profiles]
    profiles = StoredProfiles(header.specs, records)
    features = FeatureTable(header.resources, header.statics)
    for entry in header.features:
        features.add(entry)
    policy = make_policy(header.policy)
    predictor = unfitted(policy, profiles, features, header.lanes)
    predictor.restore(header.learned)
    return make_scheduler(policy, predictor, header.lanes, header.specs), predictor


def describe_device(device: DeviceFingerprint) -> Mapping[str, object]:
    """The device for reports."""
    return {
        "kind": device.kind,
        "name": device.name,
        "cores": device.n_units,
        "lanes": len(device.lane_units),
        "runtime": device.runtime,
        "fingerprint": device.digest,
    }
