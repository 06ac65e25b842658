"""`profile --corun`: models beside each other, measured in pairs for the simulated CPU and recorded under
random arrivals as a data set. And the recording of whatever runs live."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from cotenant.assemble import Prepared, Progress, no_progress, subjects_of
from cotenant.catalogue import Places
from cotenant.clock import MonotonicClock
from cotenant.domain import NS_PER_MS, NS_PER_S
from cotenant.experiment.corun_recorder import CoRunRecorder
from cotenant.experiment.datasets import CoRun, DatasetError, read_dataset, write_dataset
from cotenant.experiment.episodes import Episodes, Player, names, rows_of
from cotenant.experiment.live import lane_turnaround
from cotenant.profile.drive_lanes import LaneDriver
from cotenant.profile.export import ScenarioProfile, scenario_profile
from cotenant.profile.features import FeatureTable
from cotenant.profile.measure import Step, Subject, measure_pairs
from cotenant.profile.store import ProfileStore

SAVE_EVERY_NS = 60 * NS_PER_S
"""How often a recording under way is written (ns); the device idles meanwhile."""
SAME_SOLO = 1e-4
"""Solo times that differ by less (relative) are the same measurement, as written and read back."""


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


def record_prepared(prepared: Prepared, base: Path, seconds: float, progress: Progress = no_progress) -> None:
    """Record co-runs of a scenario's models on its own lanes; see `record_coruns`."""
    recording = Recording(
        base=base,
        subjects=subjects_of(prepared),
        features=prepared.features,
        seconds=seconds,
        seed=prepared.scenario.load.seed,
    )
    record_coruns(LaneDriver(prepared.executor, MonotonicClock()), recording, progress)


@contextmanager
def recorded_live(
    prepared: Prepared, base: Path, max_mb: float, complain: Callable[[str], None]
) -> Iterator[list[CoRunRecorder]]:
    """Observers that record what a server or a live run does meanwhile to `base`, on at most `max_mb` of
    disk; none when that is 0. Written to the last row at the end."""
    if not max_mb:
        yield []
        return
    recorder = CoRunRecorder(
        base,
        prepared.executor.lanes,
        lambda: prepared.features,
        max_mb=max_mb,
        complain=complain,
    )
    try:
        yield [recorder]
    finally:
        recorder.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What to record: co-runs of `subjects`, for `seconds`, to `base`; episodes follow from `seed`."""

    base: Path
    subjects: Sequence[Subject]
    features: FeatureTable
    seconds: float
    seed: int


def record_coruns(driver: LaneDriver, recording: Recording, progress: Progress = no_progress) -> int:
    """Record episodes until the time is over; returns how many rows the data set then has. Blocks.

    A data set of that name, with the same profiles, is continued: its rows are kept and its episodes are not
    played again. However this ends, the episodes that have ended are written. Raises DatasetError when the
    data set cannot be continued, MeasureError when a run fails."""
    lanes, clock, base = driver.executor.lanes, driver.clock, recording.base
    episodes = Episodes(recording.subjects, lanes, recording.features, recording.seed)
    rows = _rows_before(recording, episodes)
    n_before = len({row.run for row in rows})
    began_at = clock.now()
    origin_at = began_at - int(max((_ended_s(row) for row in rows), default=0.0) * NS_PER_S)
    until_at = saved_at = began_at
    until_at += int(recording.seconds * NS_PER_S)
    player = Player(driver)
    try:
        for name in islice(names(), n_before, None):
            if clock.now() >= until_at:
                break
            rows += rows_of(name, player.play(episodes.draw(name)), lanes, origin_at)
            done_s = int((clock.now() - began_at) / NS_PER_S)
            progress(f"recording co-runs, {len(rows)} so far", done_s, int(recording.seconds))
            if clock.now() - saved_at > SAVE_EVERY_NS:
                write_dataset(base, recording.features, rows)
                saved_at = clock.now()
    finally:
        if rows:
            write_dataset(base, recording.features, rows)
    return len(rows)


def _rows_before(recording: Recording, episodes: Episodes) -> list[CoRun]:
    """Rows of the data set to be continued; none when there is no such data set."""
    base = recording.base
    if not base.with_name(f"{base.name}.profiles.csv").exists():
        return []
    before = read_dataset(base)
    solo = {(f.variant, f.share): f.solo_ns for f in before.features}
    now = {(f.variant, f.share): f.solo_ns for f in recording.features}
    first = next(names())
    played = sorted((row.lane or 0, row.variant.label) for row in before.runs.get(first, ()))
    drawn = sorted((draw.lane, draw.variant.label) for draw in episodes.draw(first))
    same = solo.keys() == now.keys() and all(abs(solo[k] / now[k] - 1) < SAME_SOLO for k in solo)
    if not same or played != drawn:
        raise DatasetError(
            f"{base} is there already, with other models, lanes, seed or solo times, so that it cannot be "
            "continued; choose another name with --record, or move it away"
        )
    return [row for rows in before.runs.values() for row in rows]


def _ended_s(row: CoRun) -> float:
    return (row.began_s or 0.0) + row.end_ms * NS_PER_MS / NS_PER_S
