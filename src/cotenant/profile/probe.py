"""Probing: each model alone and beside stressors of each resource, so N models cost N measurements, not N².

How this works. The smallest and the largest variant of a model are measured in rounds. In a round the model
runs alone on lane 0, each stressor runs alone, and the model runs beside each stressor at each intensity;
ratios are taken within a round, and their median over the rounds counts, so that a slow drift of the machine
cancels and a burst spoils one round only. How much longer the model takes is its sensitivity to the resource,
how much longer the stressor takes per unit of work its pressure. Longer means CPU time: stalls on memory
lengthen that, other processes on the same core do not. Two exceptions are spans: `core`, which is about just
that, and models so short that their CPU time is mostly that of being handed over (medians there). A stressor
that other processes kept from working has the intensity that it reached, not the one it was asked for.
Stressors work on a core of another lane, except `core`, which works on the victim's; where lane 0 has every
core there is only that one. Every variant also gets its segments, from the runtime's own times per operator.
What is stored is not measured again, and each record is stored at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from msgspec import structs

from cotenant.domain import NS_PER_MS, NS_PER_S, Variant
from cotenant.profile.drive_lanes import LaneDriver
from cotenant.profile.measure import Progress, Step, Subject
from cotenant.profile.quiet import QuietWatch
from cotenant.profile.records import (
    RESOURCES,
    Cost,
    DeviceFingerprint,
    DeviceRates,
    FeatureRecord,
    ProbeRecord,
)
from cotenant.profile.segments import Node, group
from cotenant.profile.store import ProfileStore

INTENSITIES = (0.5, 1.0)
"""Asked of each stressor."""
LEAST_INTENSITY = 0.05
SHORT_NS = NS_PER_MS // 2
"""Below this span the hand-over of a run takes as much CPU time as the run."""


class Stress(Protocol):
    """A stressor at work."""

    def unit_ns(self) -> float:
        """CPU time (of `core`: span) of a unit of its work so far (ns); NaN before the first."""
        ...

    def cpu_ns(self) -> int:
        """CPU time of its thread so far (ns)."""
        ...


class Stressors(Protocol):
    """What `stressors.CpuStressors` offers; tests have one in virtual time."""

    def running(self, resource: str, intensity: float, core: int) -> AbstractContextManager[Stress]:
        """A stressor that works while the body runs, `intensity` (0..1] of the time."""
        ...

    def alone_ns(self, resource: str, intensity: float, core: int) -> float:
        """The same of a unit (ns) with nobody beside it. Blocks for some 10 ms."""
        ...


class Inside(Protocol):
    """What a runtime knows of a model's inside. Both block."""

    def cost(self, variant: Variant) -> Cost:
        """From the graph alone."""
        ...

    def nodes(self, variants: Sequence[Variant]) -> Mapping[Variant, Sequence[Node]]:
        """Operators with their spans, measured; a variant may be missing."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeBudget:
    """How long to probe."""

    per_model_s: float = 9.0
    """Span of the runs of a model (s); slow models take longer, for `min_rounds`."""
    rounds: int = 5
    """Rounds of each probed variant."""
    min_rounds: int = 3
    """Fewest rounds, however long they take."""
    min_runs: int = 2
    """Fewest runs in a block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where and with what models are probed. `lane_cores`: cores of lane 0 as the stressors count them;
    `other_core`: one of another lane, or None. `cpu_ns`: CPU time so far of all threads of this process but
    the calling one."""

    driver: LaneDriver
    stressors: Stressors
    rates: DeviceRates
    device: DeviceFingerprint
    lane_cores: Sequence[int]
    other_core: int | None
    cpu_ns: Callable[[], int]

    def core(self, resource: str) -> int | None:
        """Where the stressor of a resource works; None: nowhere on this device."""
        return self.lane_cores[0] if resource == "core" else self.other_core


def probed_variants(variants: Sequence[Variant]) -> tuple[Variant, ...]:
    """The smallest and the largest, which are measured beside stressors; the rest lies between them."""
    return tuple(dict.fromkeys((variants[0], variants[-1])))


def measure_features(
    bench: Bench,
    subject: Subject,
    inside: Inside,
    *,
    solo_ns: Callable[[Variant], float],
    store: ProfileStore | None = None,
    budget: ProbeBudget | None = None,
    progress: Progress | None = None,
) -> list[FeatureRecord]:
    """Features of every variant of a model, measured unless stored. `solo_ns` gives the solo median of a
    variant. Blocks for about `per_model_s`. Raises MeasureError (what was measured before is stored)."""
    variants = subject.spec.variants()
    probed = probed_variants(variants)
    stored = {
        variant: store.get_features(subject.source, variant, bench.device) if store is not None else None
        for variant in variants
    }
    missing = [variant for variant in variants if not _complete(stored[variant], variant in probed)]
    nodes = inside.nodes(missing) if missing else {}
    records: list[FeatureRecord] = []
    for variant in variants:
        record = stored[variant]
        if record is None or variant in missing:
            record = FeatureRecord(
                source=subject.source,
                variant=variant,
                solo_ns=solo_ns(variant),
                cost=inside.cost(variant),
                segments=group(nodes.get(variant, ()), solo_ns(variant), bench.rates),
                measured=True,
            )
            if variant in probed:
                record = _probed(bench, subject, record, budget or ProbeBudget())
            if store is not None:
                store.put_features(record, bench.device)
        records.append(record)
        if progress is not None:
            progress(Step(variant.label, len(records), len(variants), variant not in missing))
    return records


def known_features(
    subject: Subject,
    inside: Inside | None,
    solo_ns: Callable[[Variant], float],
    store: ProfileStore,
    device: DeviceFingerprint,
) -> list[FeatureRecord]:
    """What is stored of every variant of a model, else what its graph tells, which is stored then. Runs
    nothing; a graph that is looked at for the first time is read anew."""
    records = []
    for variant in subject.spec.variants():
        record = store.get_features(subject.source, variant, device)
        if record is None and inside is not None:
            record = FeatureRecord(
                source=subject.source, variant=variant, solo_ns=solo_ns(variant), cost=inside.cost(variant)
            )
            store.put_features(record, device)
        if record is not None:
            records.append(record)
    return records


def _complete(record: FeatureRecord | None, probed: bool) -> bool:
    return record is not None and record.measured and (bool(record.probes) or not probed)


def _probed(bench: Bench, subject: Subject, record: FeatureRecord, budget: ProbeBudget) -> FeatureRecord:
    now = bench.driver.clock.now
    n_probed = len(probed_variants(subject.spec.variants()))
    until = now() + int(budget.per_model_s * NS_PER_S / n_probed)
    rounds = _Rounds(bench, subject, record.variant, budget)
    for done in range(budget.rounds):
        if done >= budget.min_rounds and now() >= until:
            break
        rounds.run()
    return structs.replace(
        record,
        busy_ns=rounds.busy_ns(),
        cores=rounds.cores(),
        probes=rounds.probes(),
        quiet=rounds.watch.report(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """`n` runs: mean and median span, one that a quarter of them undercut, CPU time per run. `intensity`: CPU
    time of the stressor beside them over the span of the block."""

    n: int
    mean_ns: float
    median_ns: float
    quick_ns: float
    cpu_ns: float
    intensity: float

    def longer_than(self, alone: _Block, resource: str) -> float:
        """How many times longer these runs took beside a stressor."""
        if resource == "core":
            return self.mean_ns / alone.mean_ns
        if alone.median_ns < SHORT_NS:
            return self.median_ns / alone.median_ns
        return self.cpu_ns / alone.cpu_ns


class _Rounds:
    """The rounds of one variant. Lists have an entry per round."""

    def __init__(self, bench: Bench, subject: Subject, variant: Variant, budget: ProbeBudget) -> None:
        self._bench, self._subject, self._variant, self._budget = bench, subject, variant, budget
        self._inputs = subject.inputs(variant)
        self.work = [(r, i) for r in RESOURCES if bench.core(r) is not None for i in INTENSITIES]
        n_probed = len(probed_variants(subject.spec.variants()))
        n_blocks = n_probed * budget.rounds * (1 + len(self.work))
        self._block_ns = int(budget.per_model_s * NS_PER_S / n_blocks)
        self.watch = QuietWatch(bench.driver.clock.now)
        self._busy_ns: list[float] = []
        self._quick_ns: list[float] = []
        self._slowdowns: dict[tuple[str, float], list[float]] = {key: [] for key in self.work}
        self._pressures: dict[tuple[str, float], list[float]] = {key: [] for key in self.work}
        self._reached: dict[tuple[str, float], list[float]] = {key: [] for key in self.work}
        self._n: dict[tuple[str, float], int] = dict.fromkeys(self.work, 0)
        bench.driver.run(subject.spec, variant, self._inputs)

    def run(self) -> None:
        """One round."""
        bench = self._bench
        alone = self._block()
        self._busy_ns.append(alone.cpu_ns / len(bench.lane_cores))
        self._quick_ns.append(alone.quick_ns)
        for resource, intensity in self.work:
            core = bench.core(resource)
            assert core is not None
            unit_alone_ns = bench.stressors.alone_ns(resource, intensity, core)
            with bench.stressors.running(resource, intensity, core) as stress:
                beside = self._block(stress)
                unit_ns = stress.unit_ns()
            key = resource, intensity
            self._n[key] += beside.n
            self._reached[key].append(intensity if resource == "core" else min(1.0, beside.intensity))
            self._slowdowns[key].append(beside.longer_than(alone, resource))
            if math.isfinite(unit_ns):
                self._pressures[key].append(unit_ns / unit_alone_ns)
            if key == ("core", 1.0):
                self.watch.spun(unit_alone_ns)

    def _block(self, stress: Stress | None = None) -> _Block:
        """The model's runs on lane 0 for the length of a block, at least `min_runs`."""
        driver, spans = self._bench.driver, list[int]()
        began, stress_began, cpu_began = driver.clock.now(), _cpu_ns(stress), self._bench.cpu_ns()
        while len(spans) < self._budget.min_runs or driver.clock.now() < began + self._block_ns:
            done = driver.run(self._subject.spec, self._variant, self._inputs)
            spans.append(max(1, done.ended_at - done.started_at))
        stress_ns = _cpu_ns(stress) - stress_began
        return _Block(
            n=len(spans),
            mean_ns=float(np.mean(spans)),
            median_ns=float(np.median(spans)),
            quick_ns=float(np.quantile(spans, 0.25)),
            cpu_ns=max(1.0, (self._bench.cpu_ns() - cpu_began - stress_ns) / len(spans)),
            intensity=stress_ns / max(1, driver.clock.now() - began),
        )

    def busy_ns(self) -> float:
        """CPU time of a run alone, per core of the lane."""
        return float(np.median(self._busy_ns))

    def cores(self) -> float:
        """Share of the lane's cores that a quick run keeps busy."""
        return min(1.0, self.busy_ns() / float(np.median(self._quick_ns)))

    def probes(self) -> tuple[ProbeRecord, ...]:
        """Medians over the rounds."""
        return tuple(
            ProbeRecord(
                resource=resource,
                intensity=max(LEAST_INTENSITY, float(np.median(self._reached[resource, intensity]))),
                slowdown=float(np.median(self._slowdowns[resource, intensity])),
                stressor_slowdown=float(np.median(self._pressures[resource, intensity]))
                if self._pressures[resource, intensity]
                else None,
                n_samples=self._n[resource, intensity],
            )
            for resource, intensity in self.work
        )


def _cpu_ns(stress: Stress | None) -> int:
    return 0 if stress is None else stress.cpu_ns()
