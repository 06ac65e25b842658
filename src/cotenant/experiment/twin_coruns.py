"""Co-runs of a twin's models, measured before the run through its own executor, in virtual time, and kept.

How this works. Sets of two to four variants are drawn: every model as likely as any other, and batches about
as large as in service (see `DECLINE`). Each set runs back to back, one lane per member, until every member
has ended often enough; whoever has stays at it until the last one has, so all were there throughout. The
slowdown of a member is its median span over that of its profile. This is the profile that a predictor fitted
beforehand needs (gpulet's are 2,500 pairs); others learn from what they serve. It lies in the store, keyed by
a hash of everything it depends on but names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from cotenant.clock import VirtualClock
from cotenant.domain import ModelSpec, Variant
from cotenant.experiment.twin_profile import digest, keep, kept
from cotenant.predict.row_kernels import Array
from cotenant.profile.drive_lanes import LaneDriver
from cotenant.profile.features import FeatureTable, variant_size
from cotenant.profile.pairs import CoRuns, steady
from cotenant.simulate.driver import VirtualTimers
from cotenant.simulate.twin.device import Noise, Programs
from cotenant.simulate.twin.executor import TwinDevice

N_SETS = 300
SIZES, CHANCES = (2, 3, 4), (0.6, 0.2, 0.2)
DECLINE = 3.0
"""A variant is drawn with a chance of 1 / size to this power. Of 0 to 3, the larger the better to schedule
by: a line that must fit batches of 16, which slow others down twentyfold, fits nothing."""
RUNS = 2
"""Fewest runs of each member beside all the others, after a first one that does not count."""
SEED = 20261124
METHOD_VERSION = 1
"""Of this measurement: raise it with every change, and what was kept is measured anew."""


class Measurement(Struct, frozen=True):
    """A set of workloads, by number among all variants of all models, and how many times longer than alone
    each took beside the others. `handover_ns`: median wait for a start."""

    members: tuple[int, ...]
    slowdowns: tuple[float, ...]
    handover_ns: int


_DECODER = msgspec.json.Decoder(tuple[Measurement, ...])


def twin_coruns(
    specs: Sequence[ModelSpec], programs: Programs, noise: Noise, features: FeatureTable, folder: Path
) -> CoRuns:
    """The co-runs of these models, kept in `folder`, else measured, which takes some seconds. Raises OSError
    when the folder cannot be used."""
    told = hashlib.sha256(repr((METHOD_VERSION, SEED, N_SETS, SIZES, CHANCES, DECLINE, RUNS)).encode())
    for spec in specs:
        told.update(digest(spec, programs, noise).encode())
    path = folder / f"coruns-{told.hexdigest()[:32]}.json"
    variants = [variant for spec in specs for variant in spec.variants()]
    found = kept(path, _DECODER)
    if found is None:
        found = measure_sets(specs, programs, noise, features)
        keep(path, found)
    observations = []
    for one in found:
        members = [variants[number] for number in one.members]
        for k, (member, slowdown) in enumerate(zip(members, one.slowdowns, strict=True)):
            others = [*members[:k], *members[k + 1 :]]
            solo_ns = features.of(member).solo_ns
            observations.append(steady(member, others, slowdown, solo_ns, one.handover_ns))
    return CoRuns(features=features, observations=observations)


def measure_sets(
    specs: Sequence[ModelSpec], programs: Programs, noise: Noise, features: FeatureTable
) -> tuple[Measurement, ...]:
    """The same sets each time, on a device of its own. Raises MeasureError when a run fails."""
    clock = VirtualClock()
    timers = VirtualTimers(clock)

    def pump() -> None:
        clock.advance_to(timers.next_at())
        timers.run_next()

    device = TwinDevice(programs, timers, n_lanes=max(SIZES), seed=SEED, noise=noise)
    driver = LaneDriver(device, clock, pump)
    rng = np.random.default_rng(SEED)
    workloads = [(spec, variant) for spec in specs for variant in spec.variants()]
    weights = np.concatenate([_chances(spec) for spec in specs]) / len(specs)
    found = []
    for _ in range(N_SETS):
        n = int(rng.choice(SIZES, p=CHANCES))
        members = rng.choice(len(workloads), size=n, p=weights).tolist()
        chosen = [workloads[number] for number in members]
        spans, waits = _together(driver, chosen)
        slowdowns = [
            float(np.median(taken)) / features.of(variant).solo_ns
            for (_, variant), taken in zip(chosen, spans, strict=True)
        ]
        found.append(Measurement(tuple(members), tuple(slowdowns), int(np.median(waits))))
    return tuple(found)


def _chances(spec: ModelSpec) -> Array:
    """Of each variant of a model (n_variants)."""
    weights = np.array([variant_size(variant) ** -DECLINE for variant in spec.variants()])
    return np.asarray(weights / weights.sum())


def _together(
    driver: LaneDriver, chosen: Sequence[tuple[ModelSpec, Variant]]
) -> tuple[list[list[int]], list[int]]:
    """Spans (ns) of each member while all run, and the waits for a start. The device is idle afterwards."""
    spans: list[list[int]] = [[] for _ in chosen]
    decided_at: dict[int, int] = {}
    waits: list[int] = []

    def begin(lane: int) -> None:
        spec, variant = chosen[lane]
        decided_at[lane] = driver.start(lane, spec, variant, {}).decided_at

    for lane in range(len(chosen)):
        begin(lane)
    while driver.n_running:
        done = driver.wait(chosen[0][1])
        waits.append(done.started_at - decided_at[done.lane])
        if any(len(taken) <= RUNS for taken in spans):
            spans[done.lane].append(done.ended_at - done.started_at)
            begin(done.lane)
    return [taken[1:] for taken in spans], waits
