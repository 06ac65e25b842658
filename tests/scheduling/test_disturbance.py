"""A spell of slowness must not lock any model out for longer than it lasts."""

from __future__ import annotations

import pytest
from rig import outcomes_of

from cotenant.domain import NS_PER_MS, NS_PER_S, ModelSpec, Outcome, OutcomeKind, Request
from cotenant.ports import LaneInfo
from cotenant.workload.arrivals import instants, merged
from cotenant.workload.traffic import Traffic

SOLO_MS = {"short": 3.0, "medium": 12.0, "long": 45.0}
RATES = {"short": 40.0, "medium": 12.0, "long": 4.0}
SLOW_FROM_S, SLOW_UNTIL_S, ENDS_S = 10.0, 30.0, 60.0


def run(policy: str) -> list[Outcome]:
    """60 s of load on two lanes; from 10 s to 30 s every run takes five times as long."""
    specs = {
        name: ModelSpec(
            name=name,
            slo_ns=int(max(20.0, 5 * solo) * NS_PER_MS),
            max_batch=8,
            row_buckets=(1, 2, 4, 8),
        )
        for name, solo in SOLO_MS.items()
    }
    names = list(specs)
    per_model = [
        instants([Traffic(from_s=0.0, rate_per_s=RATES[name])], ENDS_S, seed=3, name=name) for name in names
    ]
    at, which = merged(per_model)
    requests = [
        Request(
            id=f"r{n}",
            model=names[index],
            arrived_at=instant,
            deadline_at=instant + (specs[names[index]].slo_ns or 0),
        )
        for n, (instant, index) in enumerate(zip(at.tolist(), which.tolist(), strict=True))
    ]
    lanes = [LaneInfo(index=i, units=(i,)) for i in range(2)]
    slow = [(5.0, int(SLOW_FROM_S * NS_PER_S)), (1.0, int(SLOW_UNTIL_S * NS_PER_S))]
    return outcomes_of(policy, specs, SOLO_MS, requests, lanes, slow=slow)


@pytest.mark.parametrize("policy", ["deferred_edf", "exclusive_edf", "k_edf", "ours"])
def test_every_model_is_admitted_again_within_15_s_of_the_end_of_a_disturbance(policy: str) -> None:
    outcomes = run(policy)
    back_at = (SLOW_UNTIL_S + 15.0) * NS_PER_S
    for model in SOLO_MS:
        later = [o for o in outcomes if o.request.model == model and o.request.arrived_at >= back_at]
        ok = sum(o.kind is OutcomeKind.OK for o in later)
        assert ok >= 0.95 * len(later), f"{policy}: {model} has {ok} of {len(later)} 15 s after"


def test_the_disturbance_is_felt_while_it_lasts() -> None:
    outcomes = run("deferred_edf")
    during = [
        o
        for o in outcomes
        if (SLOW_FROM_S + 5) * NS_PER_S <= o.request.arrived_at < SLOW_UNTIL_S * NS_PER_S
        and o.request.model == "long"
    ]
    ok = sum(o.kind is OutcomeKind.OK for o in during)
    assert ok < 0.75 * len(during)


def test_before_the_disturbance_deadlines_are_kept() -> None:
    outcomes = run("deferred_edf")
    before = [o for o in outcomes if o.request.arrived_at < SLOW_FROM_S * NS_PER_S]
    assert sum(o.kind is OutcomeKind.OK for o in before) >= 0.97 * len(before)
