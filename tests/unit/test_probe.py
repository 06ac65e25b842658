"""Probing through an executor, in virtual time, beside stressors that are a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from cotenant.clock import VirtualClock
from cotenant.domain import NS_PER_MS, Dispatch, ModelSpec, Variant
from cotenant.execute.fake import FakeExecutor, FakeScript
from cotenant.ports import LaneInfo
from cotenant.profile.demand import STATICS, feature_table
from cotenant.profile.drive_lanes import LaneDriver, MeasureError
from cotenant.profile.measure import Step, Subject
from cotenant.profile.probe import Bench, ProbeBudget, known_features, measure_features, probed_variants
from cotenant.profile.records import Cost, DeviceFingerprint, DeviceRates
from cotenant.profile.segments import Node
from cotenant.profile.store import ProfileStore
from cotenant.simulate.driver import VirtualTimers

MS = NS_PER_MS
DEVICE = DeviceFingerprint(
    kind="cpu", name="test", n_units=2, lane_units=((0,), (1,)), runtime="none 0", system="Linux x86_64"
)
RATES = DeviceRates(core_flop_per_s=1e11, core_bytes_per_s=2e10, bytes_per_s=4e10, cache_bytes=1 << 20)
SUFFERED = {"compute": 0.0, "bandwidth": 0.5, "cache": 0.25, "core": 0.7}
"""Log slowdown of every model at full intensity."""
UNIT_NS = 1000.0


class Table:
    """A device on which models and stressors slow each other by a table. A model keeps one core busy; a
    stressor works `kept_back` of the time it was asked to."""

    def __init__(self, fails: Variant | None = None, kept_back: float = 1.0) -> None:
        self.clock = VirtualClock()
        self.timers = VirtualTimers(self.clock)
        self.runs: dict[Variant, int] = {}
        self.cores: set[tuple[str, int]] = set()
        self.beside: tuple[str, float] | None = None
        self.kept_back, self.began, self.stressed_ns = kept_back, 0, 0
        lanes = [LaneInfo(index=i, units=(i,)) for i in range(2)]
        script = FakeScript(
            durations=self._duration, raises=lambda d: "broken" if d.variant == fails else None
        )
        self.driver = LaneDriver(FakeExecutor(lanes, self.timers, script), self.clock, self._pump)

    def bench(self, other_core: int | None) -> Bench:
        return Bench(
            driver=self.driver,
            stressors=self,
            rates=RATES,
            device=DEVICE,
            lane_cores=(0,),
            other_core=other_core,
            cpu_ns=lambda: self.clock.now() + self.cpu_ns(),
        )

    def _duration(self, dispatch: Dispatch) -> int:
        self.runs[dispatch.variant] = self.runs.get(dispatch.variant, 0) + 1
        log = SUFFERED[self.beside[0]] * self._reached() if self.beside is not None else 0.0
        return round(4 * MS * dispatch.rows * math.exp(log))

    def _pump(self) -> None:
        self.clock.advance_to(min(self.timers.next_at(), self.clock.now() + 1000 * MS))
        if self.timers.next_at() <= self.clock.now():
            self.timers.run_next()

    # --- Stressors and Stress ---

    @contextmanager
    def running(self, resource: str, intensity: float, core: int) -> Iterator[Table]:
        self.beside, self.began = (resource, intensity), self.clock.now()
        self.cores.add((resource, core))
        yield self
        self.stressed_ns, self.beside = self.cpu_ns(), None

    def alone_ns(self, resource: str, intensity: float, core: int) -> float:
        return UNIT_NS

    def unit_ns(self) -> float:
        return 1.3 * UNIT_NS

    def cpu_ns(self) -> int:
        """Of all stressors so far."""
        now = round((self.clock.now() - self.began) * self._reached()) if self.beside is not None else 0
        return self.stressed_ns + now

    def _reached(self) -> float:
        return self.beside[1] * self.kept_back if self.beside is not None else 0.0


class Plain:
    """The inside of a model of two operators."""

    def cost(self, variant: Variant) -> Cost:
        return Cost(flops=1e6 * variant.rows, n_operators=2)

    def nodes(self, variants: Sequence[Variant]) -> Mapping[Variant, Sequence[Node]]:
        return {v: [Node(name="a", solo_ns=1.0, cost=Cost(n_operators=2))] for v in variants}


def subject(name: str = "m", rows: tuple[int, ...] = (1, 2, 4)) -> Subject:
    spec = ModelSpec(name=name, slo_ns=None, max_batch=rows[-1], row_buckets=rows)
    return Subject(spec=spec, source=f"hash of {name}", inputs=lambda variant: {})


def solo_ns(variant: Variant) -> float:
    return 4.0 * MS * variant.rows


def measure(table: Table, model: Subject | None = None, other_core: int | None = 1, **options: Any):
    bench = table.bench(other_core)
    return measure_features(bench, model or subject(), Plain(), solo_ns=solo_ns, **options)


def test_probes_find_what_the_device_does_at_both_ends_of_a_models_sizes() -> None:
    table = Table()
    records = measure(table)
    assert [bool(record.probes) for record in records] == [True, False, True]
    assert all(record.measured and len(record.segments) == 1 for record in records)
    features = feature_table(records, RATES)
    for rows in (1, 2, 4):
        statics = dict(zip(STATICS, features.of(Variant("m", rows)).statics, strict=True))
        for resource, log in SUFFERED.items():
            assert statics[f"sensitivity_{resource}"] == pytest.approx(log, abs=1e-3)
            assert statics[f"pressure_{resource}"] == pytest.approx(math.log(1.3))
    assert table.cores == {("compute", 1), ("bandwidth", 1), ("cache", 1), ("core", 0)}


def test_a_stressor_kept_from_working_does_not_make_models_look_hardy() -> None:
    records = measure(Table(kept_back=0.4))
    statics = dict(zip(STATICS, feature_table(records, RATES).of(Variant("m", 1)).statics, strict=True))
    assert statics["sensitivity_bandwidth"] == pytest.approx(SUFFERED["bandwidth"], rel=0.01)


def test_a_device_without_a_second_core_is_probed_on_the_lanes_own() -> None:
    (record, *_) = measure(Table(), other_core=None)
    assert {probe.resource for probe in record.probes} == {"core"}


def test_slow_models_get_the_fewest_rounds() -> None:
    table = Table()
    budget = ProbeBudget(per_model_s=0.001, min_rounds=2, min_runs=1)
    measure(table, subject(rows=(1,)), budget=budget)
    assert table.runs == {Variant("m", 1): 1 + 2 * 9}


def test_what_is_stored_is_not_measured_again(tmp_path) -> None:
    steps: list[Step] = []
    with ProfileStore(tmp_path / "p.sqlite") as store:
        first = measure(Table(), store=store)
        table = Table()
        again = measure(table, store=store, progress=steps.append)
    assert table.runs == {}
    assert again == first
    assert [step.reused for step in steps] == [True] * 3


def test_an_interrupted_measurement_resumes_after_the_last_variant(tmp_path) -> None:
    broken = Table(fails=Variant("m", 4))
    with ProfileStore(tmp_path / "p.sqlite") as store:
        with pytest.raises(MeasureError, match="broken"):
            measure(broken, store=store)
        table = Table()
        assert len(measure(table, store=store)) == 3
    assert set(table.runs) == {Variant("m", 4)}


def test_a_model_never_measured_is_known_by_its_graph_until_it_is(tmp_path) -> None:
    with ProfileStore(tmp_path / "p.sqlite") as store:
        known = known_features(subject(), Plain(), solo_ns, store, DEVICE)
        assert [record.cost.flops for record in known] == [1e6, 2e6, 4e6]
        assert not any(record.measured for record in known)
        assert known_features(subject(), None, solo_ns, store, DEVICE) == known
        table = Table()
        assert all(r.measured for r in measure(table, store=store))
        assert set(table.runs) == {Variant("m", 1), Variant("m", 4)}


def test_a_model_of_one_variant_is_probed_once() -> None:
    assert probed_variants((Variant("m", 1),)) == (Variant("m", 1),)
