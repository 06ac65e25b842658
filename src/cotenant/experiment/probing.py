"""Features of a prepared device's models, measured beside stressors on its own cores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import structs

from cotenant.assemble import Prepared, Progress, no_progress, subjects_of
from cotenant.catalogue import Places
from cotenant.clock import MonotonicClock, process_cpu_s, thread_cpu_ns
from cotenant.cores import available_cores, core_numbers
from cotenant.domain import NS_PER_S
from cotenant.profile.demand import feature_table
from cotenant.profile.drive_lanes import LaneDriver, MeasureError
from cotenant.profile.features import FeatureTable
from cotenant.profile.measure import Step
from cotenant.profile.probe import Bench, ProbeBudget, measure_features
from cotenant.profile.quiet import QuietWatch, disturbance
from cotenant.profile.records import FeatureRecord, Quiet
from cotenant.profile.store import ProfileStore
from cotenant.profile.stressors import CpuStressors

N_SPINS = 30
"""Spins of about half a millisecond, 15 of them in a row, that tell how quiet the machine is beforehand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """What was measured; `disturbances` says when the machine was not quiet, in few lines."""

    table: FeatureTable
    records: tuple[FeatureRecord, ...]
    disturbances: tuple[str, ...]


def probe_models(
    prepared: Prepared, where: Places, progress: Progress = no_progress, budget: ProbeBudget | None = None
) -> Probed | None:
    """Measure the features of every model, unless stored. Blocks for about 15 s per model; None where the
    device cannot be probed from here (torch). A model whose runs fail is left out, as in `prepare`."""
    insides = {name: inside for name, inside in prepared.insides.items() if inside is not None}
    if not insides:
        return None
    noise: list[str] = []
    with ProfileStore(where.profiles) as store:
        bench = _bench(prepared, store, noise)
        records: list[FeatureRecord] = []
        for subject in subjects_of(prepared):
            name = subject.spec.name

            def told(step: Step) -> None:
                progress(f"probing {step.label}", step.n_done, step.n)

            progress(f"probing {name}", 0, len(subject.spec.variants()))
            try:
                records += measure_features(
                    bench,
                    subject,
                    insides[name],
                    solo_ns=prepared.solo_median_ns,
                    store=store,
                    budget=budget,
                    progress=told,
                )
            except MeasureError as error:
                prepared.failed[name] = str(error)
    noise += _noise([record.quiet for record in records if record.quiet is not None])
    return Probed(
        table=feature_table(records, bench.rates), records=tuple(records), disturbances=tuple(noise)
    )


def _noise(reports: Sequence[Quiet]) -> list[str]:
    """One line about all measurements; none when all were quiet."""
    noisy = [quiet for quiet in reports if disturbance(quiet) is not None]
    if not noisy:
        return []
    worst = Quiet(
        spread=max(quiet.spread for quiet in noisy),
        others=max(quiet.others for quiet in noisy),
        stolen=max(quiet.stolen for quiet in noisy),
    )
    return [f"during {len(noisy)} of {len(reports)} measurements; at worst {disturbance(worst)}"]


def _bench(prepared: Prepared, store: ProfileStore, noise: list[str]) -> Bench:
    """Stressors, and what the device can do: stored, or measured now."""
    lanes, cores = prepared.executor.lanes, available_cores()
    lane_cores = sorted(core_numbers(lanes[0].units, cores))
    others = sorted(core for lane in lanes[1:] for core in core_numbers(lane.units, cores))
    clock, stressors = MonotonicClock(), CpuStressors()
    watch = QuietWatch(clock.now)
    for _ in range(N_SPINS):
        watch.spun(stressors.alone_ns("core", 1.0, lane_cores[0], 15))
    problem = disturbance(watch.report())
    if problem is not None:
        noise.append(f"before the measurement: {problem}")
    rates = store.get_rates(prepared.device)
    if rates is None:
        rates = structs.replace(stressors.rates(cores), lane_cores=len(lane_cores))
        store.put_rates(rates, prepared.device)
    return Bench(
        driver=LaneDriver(prepared.executor, clock),
        stressors=stressors,
        rates=rates,
        device=prepared.device,
        lane_cores=lane_cores,
        cpu_ns=lambda: round(process_cpu_s() * NS_PER_S) - thread_cpu_ns(),
        other_core=next((core for core in others if core not in lane_cores), None),
    )
