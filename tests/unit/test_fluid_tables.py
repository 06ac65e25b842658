"""What the fluid predictor keeps from call to call changes no answer, however much or little fits."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import numpy as np
import pytest

from cotenant.domain import (
    NS_PER_MS,
    NS_PER_S,
    Candidate,
    InFlight,
    LaneUse,
    LoadEstimate,
    ModelSpec,
    Observation,
    Overlap,
    Snapshot,
    SoloProfile,
    Variant,
)
from cotenant.execute.lanes import lane_layout
from cotenant.ports import Forecast
from cotenant.predict.fluid import FluidPredictor
from cotenant.predict.pair_map import ReducedMap
from cotenant.predict.pair_rows import PairRows
from cotenant.profile.features import FeatureTable, WorkloadFeatures

NOW = 10**14
LANES = lane_layout(6, 3)
MODELS = [f"m{k}" for k in range(5)]
NEW = SoloProfile(variant=Variant("m1", 1), share=1.0, median_ns=5_000_000, spread_ns=1, n_samples=9)


def predictor(n_segments: int = 4) -> FluidPredictor:
    rng = np.random.default_rng(1)
    table = FeatureTable(("cpu", "dram"), ("mb",))
    for model in MODELS:
        for rows in (1, 4):
            spans = rng.exponential(2e6, n_segments) + 1e5
            demand = rng.random((n_segments, 2))
            table.add(
                WorkloadFeatures(
                    variant=Variant(model, rows), share=1.0, solo_ns=float(spans.sum()),
                    demand=tuple(demand.mean(axis=0).tolist()), statics=(float(rng.random()),),
                    segment_ns=tuple(spans.tolist()), segment_demand=tuple(map(tuple, demand.tolist())),
                )
            )  # fmt: skip
    return FluidPredictor(table, ReducedMap(table).begin(), lanes=LANES)


class Traffic:
    """Dispatches that come and go on lanes, some staged, with the overlaps that a scheduler would record."""

    def __init__(self, seed: int, n_most: int) -> None:
        self.random, self.at, self.n, self.n_most = random.Random(seed), NOW, 0, n_most
        self.flights: dict[int, InFlight] = {}
        self.overlaps: dict[int, list[Overlap]] = {}

    def variant(self) -> Variant:
        return Variant(self.random.choice(MODELS), self.random.choice((1, 4)))

    def step(self) -> Observation | None:
        self.at += self.random.randint(10_000, 3 * NS_PER_MS)
        if self.flights and (len(self.flights) >= self.n_most or self.random.random() < 0.5):
            return self.end(self.random.choice(list(self.flights)))
        self.begin()
        return None

    def begin(self) -> None:
        self.n += 1
        variant, lane = self.variant(), self.random.randrange(len(LANES))
        staged = self.random.random() < 0.1
        for other in self.flights.values() if not staged else ():
            if other.started_at is not None:
                mine = Overlap(self.n, variant, self.at, None, lane, 1.0, self.at)
                theirs = Overlap(
                    other.dispatch_id, other.variant, self.at, None, other.lane, 1.0, other.started_at
                )
                self.overlaps[other.dispatch_id].append(mine)
                self.overlaps.setdefault(self.n, []).append(theirs)
        self.overlaps.setdefault(self.n, [])
        self.flights[self.n] = InFlight(
            dispatch_id=self.n, variant=variant, lane=lane, share=1.0, decided_at=self.at - 1000,
            started_at=None if staged else self.at, segment=0, end_segment=1, boundary_at=None,
        )  # fmt: skip

    def end(self, number: int) -> Observation:
        flight = self.flights.pop(number)
        for known, overlaps in self.overlaps.items():
            self.overlaps[known] = [
                Overlap(o.dispatch_id, o.variant, o.began_at, self.at, o.lane, o.share, o.started_at)
                if o.ended_at is None and number in (known, o.dispatch_id)
                else o
                for o in overlaps
            ]
        return Observation(
            dispatch_id=number, variant=flight.variant, rows=1, lane=flight.lane, share=1.0,
            decided_at=flight.decided_at, started_at=flight.started_at or flight.decided_at,
            ended_at=self.at, first_segment=0, end_segment=1, segment_ended_at=(), predictions=(),
            overlaps=tuple(self.overlaps.pop(number)), staged=flight.started_at is None,
        )  # fmt: skip

    def question(self) -> tuple[Snapshot, list[Candidate]]:
        flights = []
        for number, flight in self.flights.items():
            values = {name: getattr(flight, name) for name in flight.__struct_fields__}
            flights.append(InFlight(**{**values, "overlaps": tuple(self.overlaps[number])}))
        n_lanes = self.random.randint(1, len(LANES))
        load = LoadEstimate(
            models={}, refill=0.5, busy=0.5, fill_per_s=9.0, span_ns=5e6,
            variants=tuple((self.variant(), 0.25) for _ in range(4)),
            lanes=tuple(LaneUse(lane=k, fill_per_s=9.0 + k, refill=0.5) for k in range(n_lanes)),
        )  # fmt: skip
        candidates = [
            Candidate(variant=self.variant(), lane=self.random.randrange(len(LANES)), start_at=self.at)
            for _ in range(self.random.randint(0, 3))
        ]
        snapshot = Snapshot(
            at=self.at, in_flight=tuple(flights), load=load if self.random.random() < 0.8 else None
        )
        return snapshot, candidates


def assert_alike(one: Forecast, other: Forecast) -> None:
    assert one.version == other.version
    assert np.array(one.features) == pytest.approx(np.array(other.features), rel=1e-9, abs=1e-12)
    for name in ("finish_at", "in_flight_finish_at", "baseline_finish_at"):
        assert np.array(getattr(one, name)) == pytest.approx(np.array(getattr(other, name)), abs=2)


@pytest.mark.parametrize(("seed", "n_most"), [(1, 4), (2, 12), (3, 50)])
def test_an_answer_does_not_depend_on_what_was_asked_before(seed: int, n_most: int) -> None:
    """Far more dispatches and overlaps than there is room for at first; a fresh predictor says the same."""
    traffic, of = Traffic(seed, n_most), predictor()
    for n in range(300):
        ended = traffic.step()
        if ended is not None:
            of.learn(ended)
        if n % 3 == 0:
            snapshot, candidates = traffic.question()
            answer = of.predict(snapshot, candidates)
        if n % 60 == 0:
            fresh = predictor()
            fresh.restore(of.state())
            assert_alike(answer, fresh.predict(snapshot, candidates))
            assert_alike(answer, of.predict(snapshot, candidates))


def test_rows_of_pairs_that_do_not_fit_are_made_anew() -> None:
    traffic, one, other = Traffic(4, 8), predictor(), predictor()
    rows = other.estimator.rows
    other.estimator.rows = PairRows(rows.phi.shape[1], other.estimator._fill_row, capacity=4)
    for _ in range(150):
        ended = traffic.step()
        question = traffic.question()
        assert_alike(one.predict(*question), other.predict(*question))
        if ended is not None:
            assert one.given_overlap(ended) == pytest.approx(other.given_overlap(ended), rel=1e-9)
            one.learn(ended)
            other.learn(ended)
    assert other.estimator.rows.epoch > 5


def test_a_model_loaded_anew_is_looked_up_anew() -> None:
    """Also where a dispatch of the old one is still in flight."""
    traffic, of = Traffic(5, 6), predictor()
    for _ in range(60):
        ended = traffic.step()
        if ended is not None:
            of.learn(ended)
        of.predict(*traffic.question())
    of.loaded(ModelSpec(name="m1", slo_ns=NS_PER_S), [NEW])
    fresh = predictor()
    fresh.restore(of.state())
    fresh.loaded(ModelSpec(name="m1", slo_ns=NS_PER_S), [NEW])
    fresh.estimator.version = of.version
    question = traffic.question()
    assert_alike(of.predict(*question), fresh.predict(*question))


def test_getting_ready_changes_no_answer() -> None:
    traffic, one, other = Traffic(7, 6), predictor(), predictor()
    other.get_ready()
    n_rows = other.estimator.rows.n
    for _ in range(60):
        ended = traffic.step()
        question = traffic.question()
        assert_alike(one.predict(*question), other.predict(*question))
        if ended is not None:
            one.learn(ended)
            other.learn(ended)
    assert n_rows == 10 * 10 * 2  # apart, and on common units


def test_the_features_of_a_pair_are_those_of_many_at_once() -> None:
    made = predictor()
    table, pair_map = made.features, ReducedMap(made.features)
    known = list(table)
    pairs = [(v, a) for v in known for a in known]
    for fitted in (
        ReducedMap(table).begin(),
        pair_map.fit(pairs, 1.0 + np.random.default_rng(2).random(len(pairs))),
    ):
        phi, rest = fitted.rows(pairs)
        for n, (victim, aggressor) in enumerate(pairs):
            mine, left = fitted.features(victim, aggressor)
            assert mine == pytest.approx(phi[n], abs=1e-8)
            assert left == pytest.approx(rest[n], abs=1e-8)


def test_nothing_is_written_outside_of_an_array() -> None:
    """Compiled code does not look where it reads and writes, so it is run uncompiled, where numpy does."""
    code = "import test_fluid_tables as t; t.run_uncompiled()"
    here = os.path.dirname(__file__)
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([here, *sys.path])
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=here, timeout=300)


def run_uncompiled() -> None:
    for n_most in (3, 9):
        traffic, of = Traffic(6, n_most), predictor(n_segments=2)
        for _ in range(40):
            ended = traffic.step()
            if ended is not None:
                of.learn(ended)
                of.given_overlap(ended)
            of.predict(*traffic.question())
