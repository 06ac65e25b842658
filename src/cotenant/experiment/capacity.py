"""Saturated capacity of a simulated device: what it completes of the mix under a standing backlog."""

from __future__ import annotations

from dataclasses import replace

from msgspec import structs

from cotenant.config import Scenario
from cotenant.domain import NS_PER_S, JobClass, OutcomeKind
from cotenant.experiment.load import offer
from cotenant.experiment.simulated import SimulatedDevice, run
from cotenant.schedule.policies.deferred_edf import DeferredEdf

OVERLOAD = 5.0
"""Load offered, as a multiple of what the lanes could do one by one."""
LASTS_S = 12.0
WARM_S = 2.0
NO_DEADLINE_NS = 10_000 * NS_PER_S


def simulated_capacity(scenario: Scenario, device: SimulatedDevice) -> float:
    """Requests per second of `deferred_edf` without rejection and deadlines, offered far too much.

    Best-effort models are left out."""
    kept = [
        (model, structs.replace(spec, slo_ns=NO_DEADLINE_NS))
        for model, spec in zip(scenario.models, device.specs, strict=True)
        if model.job_class is not JobClass.BEST_EFFORT
    ]
    total = sum(model.rate_per_s for model, _ in kept)
    mean_ns = sum(m.rate_per_s * device.profiles.solo(s.variants()[0]).median_ns for m, s in kept) / total
    n_lanes = device.n_lanes(scenario)
    specs = tuple(spec for _, spec in kept)
    crowded = replace(
        scenario,
        models=tuple(replace(model, arrivals="poisson") for model, _ in kept),
        load=replace(scenario.load, duration_s=LASTS_S, scale_of="capacity"),
        phases=(),
        arrivals_file=None,
    )
    unbound = device.with_specs(specs)
    offered = offer(crowded, scale=OVERLOAD, capacity_per_s=n_lanes * NS_PER_S / mean_ns)
    done = run(crowded, unbound, DeferredEdf(rejects=False), offered, scenario.load.seed)
    begin, end = WARM_S * NS_PER_S, LASTS_S * NS_PER_S
    n_ok = sum(1 for o in done.recorder.outcomes if o.kind is OutcomeKind.OK and begin <= o.ended_at < end)
    return n_ok / (LASTS_S - WARM_S)
