"""Experiments that make profiles: solo latencies, pairwise slowdowns, the overhead around a run.

How this works. A variant runs alone on lane 0 until both a span and a number of runs are reached. A pair is
measured in rounds: the victim alone, then the victim while the aggressor runs back to back on lane 1; both
medians come from the same rounds, so a drift of the machine cancels. What is stored already for the same
model file and device is not measured again, and each result is stored at once: an interrupted run resumes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cotenant.domain import NS_PER_MS, NS_PER_S, ModelSpec, SoloProfile, Variant
from cotenant.ports import Tensors
from cotenant.profile.drive_lanes import LaneDriver
from cotenant.profile.records import (
    MAX_SAMPLES,
    DeviceFingerprint,
    PairRecord,
    SoloRecord,
    StoredProfiles,
)
from cotenant.profile.store import ProfileStore

QUANTILES = ((0.9, 10), (0.95, 20), (0.99, 100))
"""Levels and the fewest samples that support each."""
MAD_TO_SIGMA = 1.4826
QUICK_RUNS = (4, 20)
"""Fewest and most runs of a variant in a quick profile ..."""
QUICK_NS = 50 * NS_PER_MS
"""... which ends after so much time (ns) once it has the fewest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How long to measure."""

    per_variant_s: float = 0.25
    """Span of solo runs of each variant (s)."""
    min_runs: int = 5
    """Fewest runs of a variant."""
    min_slow_runs: int = 3
    """Fewest runs of a variant slower than `slow_ms`."""
    slow_ms: float = 300.0
    """From which span (ms) a run is slow."""
    max_runs: int = 400
    """Most runs of a variant."""
    per_pair_s: float = 0.3
    """Span of runs of each pair, solo ones included (s)."""
    rounds: int = 3
    """Rounds of solo and co-run blocks per pair."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model to measure, already loaded by the executor. `inputs(variant)` makes valid tensors of it;
    `source` is the hash of its file."""

    spec: ModelSpec
    source: str
    inputs: Callable[[Variant], Tensors]

    @property
    def single(self) -> Variant:
        """The variant that stands for the model in pairs: one row, smallest axes."""
        return self.spec.variants()[0]


@dataclass(frozen=True, slots=True)
class Step:
    """Progress of a measurement: `label` is done, `n_done` of `n` in all. `reused`: it was stored already."""

    label: str
    n_done: int
    n: int
    reused: bool


Progress = Callable[[Step], None]


def measure_solo(
    driver: LaneDriver,
    subjects: Sequence[Subject],
    *,
    device: DeviceFingerprint,
    store: ProfileStore | None = None,
    budget: Budget | None = None,
    progress: Progress | None = None,
) -> StoredProfiles:
    """Solo profiles of every variant of every subject, measured unless stored. Blocks.

    Raises MeasureError when a run fails (what was measured before is stored), ProfileStoreError.
    """
    budget = budget or Budget()
    work = [(subject, variant) for subject in subjects for variant in subject.spec.variants()]
    records: list[SoloRecord] = []
    for n_done, (subject, variant) in enumerate(work, 1):
        record = store.get_solo(subject.source, variant, device) if store is not None else None
        reused = record is not None
        if record is None:
            record = _solo(driver, subject, variant, budget)
            if store is not None:
                store.put_solo(record, device)
        records.append(record)
        if progress is not None:
            progress(Step(variant.label, n_done, len(work), reused))
    return StoredProfiles([subject.spec for subject in subjects], records)


def _solo(driver: LaneDriver, subject: Subject, variant: Variant, budget: Budget) -> SoloRecord:
    inputs = subject.inputs(variant)
    driver.run(subject.spec, variant, inputs)
    spans: list[int] = []
    until = driver.clock.now() + int(budget.per_variant_s * NS_PER_S)
    while len(spans) < budget.max_runs:
        slow = bool(spans) and spans[-1] > budget.slow_ms * NS_PER_MS
        enough = budget.min_slow_runs if slow else budget.min_runs
        if len(spans) >= enough and driver.clock.now() >= until:
            break
        done = driver.run(subject.spec, variant, inputs)
        spans.append(done.ended_at - done.started_at)
    return SoloRecord(source=subject.source, profile=summarise(variant, spans), samples_ns=_thin(spans))


def quick_profile(variant: Variant, run: Callable[[Variant], int]) -> SoloProfile:
    """A solo profile from few runs that others may have disturbed: the faster half of them counts. `run`
    runs the variant once and returns the span (ns)."""
    run(variant)
    spans: list[int] = []
    while len(spans) < QUICK_RUNS[1] and (len(spans) < QUICK_RUNS[0] or sum(spans) < QUICK_NS):
        spans.append(run(variant))
    return summarise(variant, sorted(spans)[: (len(spans) + 1) // 2])


def summarise(variant: Variant, spans: Sequence[int], share: float = 1.0) -> SoloProfile:
    """Median, spread (1.4826 x median absolute deviation: the sigma of a normal) and the quantiles that so
    many spans (ns) support."""
    values = np.asarray(spans, np.float64)
    median = float(np.median(values))
    levels = [level for level, fewest in QUANTILES if len(spans) >= fewest]
    return SoloProfile(
        variant=variant,
        share=share,
        median_ns=max(1, round(median)),
        spread_ns=round(MAD_TO_SIGMA * float(np.median(np.abs(values - median)))),
        n_samples=len(spans),
        quantiles_ns=tuple((level, round(float(np.quantile(values, level)))) for level in levels),
    )


def _thin(spans: Sequence[int]) -> tuple[int, ...]:
    """At most `MAX_SAMPLES` of the spans, evenly spread over their order, both ends included."""
    ordered = sorted(spans)
    if len(ordered) <= MAX_SAMPLES:
        return tuple(ordered)
    last = len(ordered) - 1
    return tuple(ordered[round(i * last / (MAX_SAMPLES - 1))] for i in range(MAX_SAMPLES))


# --- pairs ----------------------------------------------------------------------------------------


def measure_pairs(
    driver: LaneDriver,
    subjects: Sequence[Subject],
    *,
    device: DeviceFingerprint,
    store: ProfileStore | None = None,
    budget: Budget | None = None,
    progress: Progress | None = None,
) -> list[PairRecord]:
    """Slowdown of every subject beside every subject (itself too), measured unless stored. Blocks for about
    `per_pair_s` per pair, more where three runs take longer. Needs two lanes; with one there are no pairs."""
    if len(driver.executor.lanes) < 2:
        return []
    budget = budget or Budget()
    names = {subject.spec.name: subject.source for subject in subjects}
    stored = {
        (pair.victim, pair.aggressor): pair
        for pair in (store.pairs(names, device) if store is not None else ())
    }
    work = [(victim, aggressor) for victim in subjects for aggressor in subjects]
    records: list[PairRecord] = []
    for n_done, (victim, aggressor) in enumerate(work, 1):
        record = stored.get((victim.single, aggressor.single))
        reused = record is not None
        if record is None:
            record = _pair(driver, victim, aggressor, budget)
            if store is not None:
                store.put_pair(record, device)
        records.append(record)
        if progress is not None:
            label = f"{victim.spec.name} beside {aggressor.spec.name}"
            progress(Step(label, n_done, len(work), reused))
    return records


def _pair(driver: LaneDriver, victim: Subject, aggressor: Subject, budget: Budget) -> PairRecord:
    block_ns = int(budget.per_pair_s * NS_PER_S / budget.rounds / 2)
    beside: list[int] = []
    alone: list[int] = []
    for _ in range(budget.rounds):
        alone += _block(driver, victim, None, block_ns)
        beside += _block(driver, victim, aggressor, block_ns)
    return PairRecord(
        victim_source=victim.source,
        victim=victim.single,
        aggressor_source=aggressor.source,
        aggressor=aggressor.single,
        ratio=float(np.median(beside)) / max(1.0, float(np.median(alone))),
        n_samples=len(beside),
    )


def _block(driver: LaneDriver, victim: Subject, aggressor: Subject | None, block_ns: int) -> list[int]:
    """Spans (ns) of the victim's runs on lane 0 during `block_ns`, at least one; lane 1 is kept busy by the
    aggressor. Both lanes are idle afterwards."""
    variant, inputs = victim.single, victim.inputs(victim.single)
    noise_inputs = {} if aggressor is None else aggressor.inputs(aggressor.single)
    spans: list[int] = []

    def disturb() -> None:
        if aggressor is not None:
            driver.start(1, aggressor.spec, aggressor.single, noise_inputs)

    disturb()
    n_running = 1 if aggressor is None else 2
    running = True
    until = driver.clock.now() + block_ns
    driver.start(0, victim.spec, variant, inputs)
    while n_running:
        done = driver.wait(variant)
        if done.lane == 0:
            spans.append(done.ended_at - done.started_at)
            running = driver.clock.now() < until
            if running:
                driver.start(0, victim.spec, variant, inputs)
        elif running:
            disturb()
        n_running -= not running
    return spans


# --- overhead -------------------------------------------------------------------------------------
