"""Baselines of the predictor: what each is for, on cases small enough to know the answer."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from cotenant.domain import Candidate, InFlight, Observation, Overlap, Snapshot, Variant
from cotenant.experiment.corun_events import Ended, Replay
from cotenant.experiment.simulated_coruns import SimulatedConfig, simulate_coruns
from cotenant.ports import LaneInfo
from cotenant.predict.zoo import ZOO
from cotenant.predict.zoo.at_dispatch import AtDispatch
from cotenant.predict.zoo.encoding import SHARED_UNITS
from cotenant.predict.zoo.in_fluid import InFluid
from cotenant.predict.zoo.linear import Linear
from cotenant.predict.zoo.log_additive import LogAdditive
from cotenant.predict.zoo.none import ConstantInflation, NoInterference
from cotenant.predict.zoo.oracle import Oracle
from cotenant.predict.zoo.recursive import Recursive
from cotenant.predict.zoo.seam import Row
from cotenant.predict.zoo.workloads import Workloads
from cotenant.profile.features import FeatureTable, WorkloadFeatures

T = 10_000_000


def table(n: int = 4, seed: int = 0) -> FeatureTable:
    rng = np.random.default_rng(seed)
    found = FeatureTable(("compute", "dram"))
    for k in range(n):
        found.add(
            WorkloadFeatures(
                variant=Variant(f"m{k}", 1),
                share=1.0,
                solo_ns=float(T),
                demand=tuple(rng.uniform(0.1, 0.9, 2)),
            )
        )
    return found


class Always(NoInterference):
    """A slowdown of 1.6 beside anybody."""

    def slowdown(self, victim, others):
        return 1.6 if others else 1.0


def observation(overlaps: tuple[Overlap, ...], span: int, lane: int = 0) -> Observation:
    return Observation(
        dispatch_id=1, variant=Variant("m0", 1), rows=1, lane=lane, share=1.0, decided_at=0, started_at=0,
        ended_at=span, first_segment=0, end_segment=1, segment_ended_at=(), predictions=(), overlaps=overlaps,
    )  # fmt: skip


def leaving_soon() -> tuple[Snapshot, Candidate]:
    """A run in flight that has done all but an eighth of its work (the first part of it alone)."""
    flight = InFlight(
        dispatch_id=7, variant=Variant("m1", 1), lane=1, share=1.0, decided_at=0, started_at=0, segment=0,
        end_segment=1, boundary_at=None,
    )  # fmt: skip
    at = T * 7 // 8
    return Snapshot(at=at, in_flight=(flight,)), Candidate(variant=Variant("m0", 1), lane=0, start_at=at)


def test_at_dispatch_counts_who_is_there_as_there_throughout_and_fluid_does_not():
    """Beside an eighth of T of foreign work at 1.6, a run takes T + 1.6 T / 8 - T / 8 (worked by hand)."""
    snapshot, candidate = leaving_soon()
    whole = AtDispatch("x", table(), (), lambda _: Always()).predict(snapshot, [candidate])
    fluid = InFluid("x", table(), (), lambda _: Always()).predict(snapshot, [candidate])
    assert whole.features[0][0] == pytest.approx(1.6 * T)
    assert fluid.features[0][0] == pytest.approx(T * (1 + 0.6 / 8))


def test_given_the_overlap_fluid_integrates_progress():
    """Present for c = 0.2 T of wall time at 1.6: T + c (1 - 1 / 1.6)."""
    predictor = InFluid("x", table(), (), lambda _: Always())
    span = round(T * (1 + 0.2 * (1 - 1 / 1.6)))
    beside = Overlap(2, Variant("m1", 1), 0, round(0.2 * T), 1)
    assert predictor.given_overlap(observation((beside,), span)) == pytest.approx(span, rel=1e-6)


def test_an_overlap_without_an_end_lasts_throughout():
    steady = observation((Overlap(-1, Variant("m1", 1), 0, None, -1),), 2 * T, lane=-1)
    for wrapper in (AtDispatch, InFluid):
        predictor = wrapper("x", table(), (), lambda _: Always())
        assert predictor.given_overlap(steady) == pytest.approx(1.6 * T)


def test_rows_weigh_others_by_the_share_of_the_span_that_they_were_there():
    beside = Overlap(2, Variant("m1", 1), -T, T // 2, 1)
    row = Workloads(table(), ()).row(observation((beside,), 2 * T))
    assert row is not None
    assert (row.others[0][1], row.slowdown) == (0.25, 2.0)


def test_a_neighbour_on_the_same_cores_is_told_from_one_on_others():
    lanes = [LaneInfo(index=0, units=(0,)), LaneInfo(index=1, units=(1,)), LaneInfo(index=2, units=(0,))]
    workloads = Workloads(table(), lanes)
    assert workloads.table.resources[-1] == SHARED_UNITS
    other = Variant("m1", 1)
    assert workloads.beside(other, 1.0, 2, of_lane=0).demand[-1] == 1.0
    assert workloads.beside(other, 1.0, 1, of_lane=0).demand[-1] == 0.0


def test_where_lanes_share_everything_features_stay_as_they_are():
    lanes = [LaneInfo(index=i, units=(0, 1)) for i in range(2)]
    assert Workloads(table(), lanes).table.resources == ("compute", "dram")


def test_log_additive_finds_sensitivities_and_pressures():
    features = list(table(6))
    rng = np.random.default_rng(1)
    own, pressure = rng.uniform(0.0, 0.3, 6), rng.uniform(0.0, 0.6, 6)
    rows = [
        Row(features[i], ((features[j], 1.0),), math.exp(own[i] + pressure[j]))
        for i in range(6)
        for j in range(6)
        if (i + j) % 5
    ]
    model = LogAdditive(table(6))
    model.fit(rows)
    errors = [
        abs(model.slowdown(features[i], [(features[j], 1.0)]) / math.exp(own[i] + pressure[j]) - 1)
        for i in range(6)
        for j in range(6)
    ]
    assert max(errors) < 0.06


def test_linear_never_predicts_a_speed_up():
    features = list(table())
    model = Linear(table())
    model.fit([Row(features[i], ((features[1], 1.0),), 0.7) for i in range(4)])
    assert model.slowdown(features[0], [(features[1], 1.0)]) == 1.0


def test_constant_inflation_is_the_factor_with_the_least_relative_error():
    features = list(table())
    model = ConstantInflation()
    model.fit([Row(features[0], ((features[1], 1.0),), s) for s in (1.5, 1.5, 1.5, 4.0)])
    assert model.factor == pytest.approx(1.5)


def test_recursive_least_squares_stays_bounded_without_excitation():
    rls = Recursive(np.zeros(5), 0.9)
    x = np.array([1.0, 0.0, 0.0, 0.0, 0.0])
    for _ in range(5_000):
        rls.learn(x, 2.0)
    assert np.trace(rls.covariance) <= 2.0 * 5 * 9.0
    assert rls.weights[0] == pytest.approx(2.0, rel=1e-3)


def test_the_same_seed_simulates_the_same_coruns_and_another_one_others():
    first, again, other = (
        simulate_coruns(SimulatedConfig(n_runs=60, seed=seed)).dataset.runs["0"] for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


def test_simulated_runs_slow_each_other_down_and_alone_take_their_solo_span():
    config = SimulatedConfig(n_runs=400, run_noise=0.0, profile_noise=0.0)
    simulated = simulate_coruns(config)
    slowdowns = {True: [], False: []}
    for event in Replay(simulated.dataset):
        if isinstance(event, Ended):
            o = event.observation
            solo = simulated.dataset.features.of(o.variant).solo_ns
            slowdowns[not o.overlaps].append((o.ended_at - o.started_at) / solo)
    assert max(abs(s - 1) for s in slowdowns[True]) < 1e-3
    assert float(np.median(slowdowns[False])) > 1.2
    assert 150 < simulated.changed_from < 250


def test_the_oracle_is_right_about_a_known_overlap():
    """But for the runs' own noise (2 %), and the others' segments, of which it takes the mean."""
    simulated = simulate_coruns(SimulatedConfig(n_runs=300))
    events = Replay(simulated.dataset)
    oracle = Oracle(simulated.dataset.features, events.lanes, simulated.truth)
    errors = [
        abs(oracle.given_overlap(e.observation) / (e.observation.ended_at - e.observation.started_at) - 1)
        for e in events
        if isinstance(e, Ended)
    ]
    assert float(np.mean(errors)) < 0.04


@pytest.mark.parametrize("name", ["gaussian-process", "boosting", "boosting-online"])
def test_without_scikit_learn_the_message_says_what_to_install(monkeypatch, name):
    for module in [m for m in sys.modules if m == "sklearn" or m.startswith("sklearn.")]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    for module in ("gaussian_process", "boosting", "boosting_online", "quantile_trees"):
        monkeypatch.delitem(sys.modules, f"cotenant.predict.zoo.{module}", raising=False)
    with pytest.raises(ImportError, match=r"cotenant\[predict\]"):
        ZOO[name](table(), ())


def test_the_registry_does_not_import_scikit_learn():
    code = "import sys, cotenant.predict.zoo; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
