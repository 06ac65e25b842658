"""Measurements through an executor, in virtual time."""

from __future__ import annotations

import msgspec
import pytest

from cotenant.clock import VirtualClock
from cotenant.domain import NS_PER_MS, Dispatch, ModelSpec, Variant
from cotenant.execute.fake import FakeExecutor, FakeScript
from cotenant.ports import LaneInfo
from cotenant.profile.drive_lanes import LaneDriver, MeasureError
from cotenant.profile.measure import (
    Budget,
    Step,
    Subject,
    measure_pairs,
    measure_solo,
    summarise,
)
from cotenant.profile.records import DeviceFingerprint
from cotenant.profile.store import ProfileStore
from cotenant.simulate.driver import VirtualTimers

MS = NS_PER_MS
DEVICE = DeviceFingerprint(
    kind="cpu", name="test", n_units=2, lane_units=((0,), (1,)), runtime="none 0", system="Linux x86_64"
)


class Bench:
    """A driver of a fake device in virtual time, which counts the runs of every variant."""

    def __init__(self, duration=lambda d: 4 * MS * d.rows, n_lanes: int = 2, **script) -> None:
        self.clock = VirtualClock()
        self.timers = VirtualTimers(self.clock)
        self.runs: dict[Variant, int] = {}

        def durations(dispatch: Dispatch) -> int:
            self.runs[dispatch.variant] = self.runs.get(dispatch.variant, 0) + 1
            return duration(dispatch)

        lanes = [LaneInfo(index=i, units=(i,)) for i in range(n_lanes)]
        self.executor = FakeExecutor(lanes, self.timers, FakeScript(durations=durations, **script))
        self.driver = LaneDriver(self.executor, self.clock, self.pump)

    def pump(self) -> None:
        self.clock.advance_to(min(self.timers.next_at(), self.clock.now() + 1000 * MS))
        if self.timers.next_at() <= self.clock.now():
            self.timers.run_next()


def subject(name: str = "m", rows: tuple[int, ...] = (1, 2), source: str | None = None) -> Subject:
    spec = ModelSpec(name=name, slo_ns=None, max_batch=rows[-1], row_buckets=rows)
    return Subject(spec=spec, source=source or f"hash of {name}", inputs=lambda variant: {})


def test_every_variant_is_measured_for_its_budget():
    bench = Bench()
    profiles = measure_solo(bench.driver, [subject()], device=DEVICE, budget=Budget(per_variant_s=0.1))
    assert profiles.solo(Variant("m", 1)).median_ns == 4 * MS
    assert profiles.solo(Variant("m", 2)).median_ns == 8 * MS
    assert bench.runs == {Variant("m", 1): 26, Variant("m", 2): 14}


def test_slow_variants_get_few_runs_and_quick_ones_no_more_than_the_limit():
    bench = Bench(lambda d: 400 * MS if d.rows == 2 else MS)
    measure_solo(bench.driver, [subject()], device=DEVICE, budget=Budget(max_runs=50))
    assert bench.runs == {Variant("m", 1): 51, Variant("m", 2): 4}


def test_quantiles_are_given_only_where_samples_support_them():
    def levels(n: int) -> list[float]:
        return [level for level, _ in summarise(Variant("m", 1), range(1, n + 1)).quantiles_ns]

    assert [levels(n) for n in (9, 10, 20, 99, 100)] == [
        [],
        [0.9],
        [0.9, 0.95],
        [0.9, 0.95],
        [0.9, 0.95, 0.99],
    ]


def test_the_spread_ignores_an_outlier():
    profile = summarise(Variant("m", 1), [100, 110, 90, 105, 95, 5000])
    assert profile.spread_ns < 20


def test_what_is_stored_is_not_measured_again(tmp_path):
    steps: list[Step] = []
    with ProfileStore(tmp_path / "p.sqlite") as store:
        first = measure_solo(Bench().driver, [subject()], device=DEVICE, store=store)
        bench = Bench()
        again = measure_solo(
            bench.driver,
            [subject("renamed", source="hash of m")],
            device=DEVICE,
            store=store,
            progress=steps.append,
        )
    assert bench.runs == {}
    assert again.solo(Variant("renamed", 2)).median_ns == first.solo(Variant("m", 2)).median_ns
    assert steps == [Step("renamed[1]", 1, 2, True), Step("renamed[2]", 2, 2, True)]


def test_another_device_is_measured_anew(tmp_path):
    with ProfileStore(tmp_path / "p.sqlite") as store:
        measure_solo(Bench().driver, [subject()], device=DEVICE, store=store)
        bench = Bench()
        other = msgspec.structs.replace(DEVICE, name="other")
        measure_solo(bench.driver, [subject()], device=other, store=store)
    assert bench.runs


def test_an_interrupted_measurement_resumes(tmp_path):
    with ProfileStore(tmp_path / "p.sqlite") as store:
        broken = Bench(raises=lambda d: "ValueError: no" if d.rows == 2 else None)
        with pytest.raises(MeasureError, match=r"measuring m\[2\] failed: ValueError: no"):
            measure_solo(broken.driver, [subject()], device=DEVICE, store=store)
        bench = Bench()
        measure_solo(bench.driver, [subject()], device=DEVICE, store=store)
    assert set(bench.runs) == {Variant("m", 2)}


def test_a_run_that_hangs_is_given_up():
    bench = Bench(hangs=lambda d: True)
    with pytest.raises(MeasureError, match="no end after 60 s"):
        measure_solo(bench.driver, [subject()], device=DEVICE)


def test_the_driver_goes_on_after_a_failure():
    failing = [True]
    bench = Bench(raises=lambda d: "ValueError: no" if failing[0] and d.lane == 0 else None)
    models = [subject("a", (1,)), subject("b", (1,))]
    with pytest.raises(MeasureError):
        measure_pairs(bench.driver, models, device=DEVICE)
    failing[0] = False
    bench.clock.advance_to(bench.clock.now() + 1000 * MS)
    while bench.timers.next_at() <= bench.clock.now():
        bench.timers.run_next()
    assert len(measure_pairs(bench.driver, models, device=DEVICE)) == 4


def test_pairs_give_the_ratio_beside_each_other_model(tmp_path):
    busy = {0: 0, 1: 0}

    def duration(dispatch: Dispatch) -> int:
        # the victim "a" takes 1.5 times as long while lane 1 works; nothing else suffers
        base = {"a": 6 * MS, "b": 4 * MS}[dispatch.variant.model]
        beside = busy[1 - dispatch.lane] > bench.clock.now()
        if dispatch.variant.model == "a" and dispatch.lane == 0 and beside:
            base = base * 3 // 2
        busy[dispatch.lane] = bench.clock.now() + base + 1
        return base

    bench = Bench(duration)
    models = [subject("a", (1,)), subject("b", (1,))]
    with ProfileStore(tmp_path / "p.sqlite") as store:
        pairs = measure_pairs(bench.driver, models, device=DEVICE, store=store)
        table = {(pair.victim.model, pair.aggressor.model): pair.ratio for pair in pairs}
        assert table == {("a", "a"): 1.5, ("a", "b"): 1.5, ("b", "a"): 1.0, ("b", "b"): 1.0}
        assert all(pair.n_samples >= 3 for pair in pairs)
        bench.runs.clear()
        again = measure_pairs(bench.driver, models, device=DEVICE, store=store)
    assert bench.runs == {}
    assert {(p.victim.model, p.aggressor.model): p.ratio for p in again} == table


def test_one_lane_has_no_pairs():
    assert measure_pairs(Bench(n_lanes=1).driver, [subject()], device=DEVICE) == []
