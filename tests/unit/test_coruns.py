"""Recording co-runs under random arrivals, in virtual time."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from cotenant.clock import VirtualClock
from cotenant.domain import NS_PER_MS, Dispatch, ModelSpec, Variant
from cotenant.execute.fake import FakeExecutor, FakeScript
from cotenant.experiment.coruns import Recording, record_coruns
from cotenant.experiment.datasets import CoRun, Dataset, DatasetError, read_dataset
from cotenant.experiment.episodes import LENGTH, NOISE_PER_LANE, Episodes
from cotenant.experiment.recorded import summarise_coruns
from cotenant.ports import LaneInfo
from cotenant.profile.drive_lanes import LaneDriver, MeasureError
from cotenant.profile.features import FeatureTable
from cotenant.profile.measure import Subject, summarise
from cotenant.profile.records import SoloRecord, StoredProfiles
from cotenant.simulate.driver import VirtualTimers

MS = NS_PER_MS
SPECS = [
    ModelSpec(name="quick", slo_ns=None, max_batch=2, row_buckets=(1, 2)),
    ModelSpec(name="slow", slo_ns=None, axis_buckets=(("seq", (8, 16)),)),
]
LANES = [LaneInfo(index=i, units=(i % 2,)) for i in range(4)]


def solo_ms(variant: Variant) -> int:
    return {"quick": 4, "slow": 30}[variant.model] * variant.rows * max([1, *dict(variant.axes).values()])


def profiles() -> StoredProfiles:
    variants = [variant for spec in SPECS for variant in spec.variants()]
    return StoredProfiles(
        SPECS,
        [SoloRecord(source="", profile=summarise(v, [solo_ms(v) * MS] * 5), samples_ns=()) for v in variants],
    )


class Device:
    """Four lanes in virtual time; a run takes its solo time and a half for each other run under way."""

    def __init__(self, *, breaks_after: int | None = None, error: type[BaseException] | None = None) -> None:
        self.clock = VirtualClock()
        self.timers = VirtualTimers(self.clock)
        self.busy_until = [0] * len(LANES)
        self.n = 0
        self._breaks_after = breaks_after
        self._error = error
        script = FakeScript(durations=self._span, raises=self._raises)
        self.driver = LaneDriver(FakeExecutor(LANES, self.timers, script), self.clock, self._pump)

    def _span(self, dispatch: Dispatch) -> int:
        others = sum(until > self.clock.now() for until in self.busy_until)
        span = int(solo_ms(dispatch.variant) * MS * (1 + others / 2))
        self.busy_until[dispatch.lane] = self.clock.now() + span
        return span

    def _raises(self, dispatch: Dispatch) -> str | None:
        self.n += 1
        return "ValueError: no" if self._error is None and self.n == self._breaks_after else None

    def _pump(self) -> None:
        if self._error is not None and self.n == self._breaks_after:
            raise self._error
        at = min(self.timers.next_at(), self.clock.now() + MS)
        self.clock.advance_to(at)
        while self.timers.next_at() <= at:
            self.timers.run_next()


def solo_only(known: StoredProfiles) -> FeatureTable:
    table = FeatureTable()
    for record in known.records:
        table.add(table.bare(record.profile.variant, float(record.profile.median_ns)))
    return table


def recording(base: Path, *, seconds: float = 60.0, seed: int = 1) -> Recording:
    subjects = [Subject(spec=spec, source="", inputs=lambda variant: {}) for spec in SPECS]
    features = solo_only(profiles())
    return Recording(base=base, subjects=subjects, features=features, seconds=seconds, seed=seed)


def overlap(first: CoRun, second: CoRun) -> bool:
    assert first.start_ms is not None
    assert second.start_ms is not None
    return first.start_ms < second.end_ms and second.start_ms < first.end_ms


def test_a_recording_is_a_data_set_in_which_every_episode_begins_and_ends_idle(tmp_path: Path) -> None:
    n = record_coruns(Device().driver, recording(tmp_path / "set"))
    found = read_dataset(tmp_path / "set")
    assert found.n == n
    assert {entry.variant for entry in found.features} == {v for spec in SPECS for v in spec.variants()}
    last_s = 0.0
    for rows in found.runs.values():
        began_s = rows[0].began_s
        assert began_s is not None
        assert {row.began_s for row in rows} == {began_s}
        assert began_s >= last_s - 1e-3
        last_s = began_s + max(row.end_ms for row in rows) / 1000
        assert min(row.dispatched_ms or 0.0 for row in rows) == 0.0


def test_rows_say_who_was_in_flight_and_on_which_units(tmp_path: Path) -> None:
    record_coruns(Device().driver, recording(tmp_path / "set", seconds=30))
    for rows in read_dataset(tmp_path / "set").runs.values():
        for row in rows:
            assert row.lane is not None
            assert row.units == LANES[row.lane].units
            earlier = [o for o in rows if o is not row and (o.start_ms or 0) <= (row.start_ms or 0)]
            in_flight = [o.lane for o in earlier if overlap(o, row)]
            assert len(set(in_flight)) == len(in_flight)
            assert row.lane not in in_flight


def test_a_run_slows_down_by_those_that_queue_n_counts(tmp_path: Path) -> None:
    record_coruns(Device().driver, recording(tmp_path / "set", seconds=30))
    found = read_dataset(tmp_path / "set")
    for row in (row for rows in found.runs.values() for row in rows):
        assert row.queue_n is not None
        alone_ms = found.features.of(row.variant).solo_ns / 1e6
        assert row.span_ms == pytest.approx(alone_ms * (1 + row.queue_n / 2), rel=0.02)


def test_one_to_four_lanes_meet(tmp_path: Path) -> None:
    record_coruns(Device().driver, recording(tmp_path / "set", seconds=240))
    facts = summarise_coruns(read_dataset(tmp_path / "set"))
    assert set(facts.others) == {0, 1, 2, 3}
    assert sum(facts.others.values()) == pytest.approx(1)
    assert min(facts.slowdowns) >= 0.99
    assert facts.alone == pytest.approx(1, abs=0.01)
    assert "rows; slowdown median" in facts.text
    assert "again" not in facts.text


def test_solo_times_that_do_not_fit_the_recording_are_told() -> None:
    features = solo_only(profiles())
    quick = Variant("quick", 1)
    rows = [
        CoRun(run=str(i), variant=quick, share=1.0, start_ms=0.0, end_ms=2.0 * solo_ms(quick))
        for i in range(3)
    ]
    facts = summarise_coruns(Dataset(name="x", features=features, runs={row.run: [row] for row in rows}))
    assert facts.alone == 2.0
    assert "again on a quieter machine" in facts.text
    assert facts.noise == ()


def test_noise_episodes_come_again_with_the_same_work(tmp_path: Path) -> None:
    record_coruns(Device().driver, recording(tmp_path / "set", seconds=240))
    found = read_dataset(tmp_path / "set")
    work: dict[str, set[tuple[tuple[int | None, Variant], ...]]] = {}
    n_plays: Counter[str] = Counter()
    for run, rows in found.runs.items():
        if run.startswith("noise-"):
            episode = run.rpartition("-")[0]
            by_lane = sorted(rows, key=lambda row: (row.lane or 0, row.start_ms or 0.0))
            work.setdefault(episode, set()).add(tuple((row.lane, row.variant) for row in by_lane))
            n_plays[episode] += 1
    assert len(work) == 8
    assert all(len(plays) == 1 for plays in work.values())
    assert max(n_plays.values()) > 1
    assert max(summarise_coruns(found).noise) < 0.02  # in virtual time nothing differs


def test_an_episode_follows_from_its_seed_and_name() -> None:
    def draws(seed: int, name: str) -> list[tuple[int, Variant, int]]:
        work = recording(Path("set"), seed=seed)
        made = Episodes(work.subjects, LANES, work.features, seed).draw(name)
        assert 1 <= len(made) <= LENGTH
        return [(draw.lane, draw.variant, draw.pause_ns) for draw in made]

    assert draws(1, "mix-3") == draws(1, "mix-3")
    assert len({str(draws(seed, name)) for seed in (1, 2) for name in ("mix-3", "mix-4", "noise-3")}) == 6
    assert draws(1, "noise-3-0") == draws(1, "noise-3-7")
    assert len(draws(1, "noise-3-0")) == 4 * NOISE_PER_LANE


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_what_was_recorded_before_a_failure_or_an_interrupt_is_kept_and_continued(
    tmp_path: Path, error: type[BaseException] | None
) -> None:
    base = tmp_path / "set"
    with pytest.raises(error or MeasureError):
        record_coruns(Device(breaks_after=400, error=error).driver, recording(base, seconds=1e6))
    before = read_dataset(base)
    assert 100 < before.n < 400
    after_n = record_coruns(Device().driver, recording(base, seconds=20))
    after = read_dataset(base)
    assert after.n == after_n > before.n
    assert list(after.runs)[: len(before.runs)] == list(before.runs)
    assert all(after.runs[run] == rows for run, rows in before.runs.items())
    began = [rows[0].began_s or 0.0 for rows in after.runs.values()]
    assert began == sorted(began)


def test_another_seed_does_not_continue_a_recording(tmp_path: Path) -> None:
    record_coruns(Device().driver, recording(tmp_path / "set", seconds=5))
    before = read_dataset(tmp_path / "set")
    with pytest.raises(DatasetError, match="choose another name with --record"):
        record_coruns(Device().driver, recording(tmp_path / "set", seconds=5, seed=2))
    assert read_dataset(tmp_path / "set").runs == before.runs
