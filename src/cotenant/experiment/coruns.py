"""What a simulated CPU is made of besides solo profiles: how lanes slow each other, and how long they stand
still between dispatches."""

from __future__ import annotations

import asyncio

from cotenant.assemble import Prepared, Progress, no_progress, subjects_of
from cotenant.catalogue import Places
from cotenant.clock import MonotonicClock
from cotenant.experiment.live import lane_turnaround
from cotenant.profile.drive_lanes import LaneDriver
from cotenant.profile.export import ScenarioProfile, scenario_profile
from cotenant.profile.measure import Step, measure_pairs
from cotenant.profile.store import ProfileStore


def measure_coruns(prepared: Prepared, where: Places, progress: Progress = no_progress) -> ScenarioProfile:
    """Measure the lane-by-lane slowdowns and the turnaround of a lane; with the solo profiles they are what
    a simulated CPU is made of. Blocks for about 0.3 s per pair of models, and 3 s."""
    driver = LaneDriver(prepared.executor, MonotonicClock())
    subjects = subjects_of(prepared)

    def told(step: Step) -> None:
        progress(f"measuring {step.label}", step.n_done, step.n)

    with ProfileStore(where.profiles) as store:
        pairs = measure_pairs(driver, subjects, device=prepared.device, store=store, progress=told)
        progress("measuring the turnaround of a lane", len(pairs), len(pairs))
        overhead_ns = asyncio.run(lane_turnaround(prepared, prepared.scenario))
        store.put_overhead(overhead_ns, prepared.device)
    return scenario_profile(prepared.device, prepared.specs, prepared.profiles.records, pairs, overhead_ns)
