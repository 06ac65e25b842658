"""How soon lanes are taken again, lane by lane."""

from __future__ import annotations

import pytest

from cotenant.domain import NS_PER_MS, NS_PER_S
from cotenant.workload.lane_use import LaneMeter

RUN = 5 * NS_PER_MS


def used(gap_ns: int, n: int = 60) -> tuple[LaneMeter, int]:
    """Lane 0 runs for 5 ms and is idle for `gap_ns`, again and again; freed at the instant returned."""
    meter, at = LaneMeter(), NS_PER_S
    for _ in range(n):
        meter.taken(0, at)
        at += RUN
        meter.freed(0, at)
        at += gap_ns
    return meter, at - gap_ns


def test_the_rate_of_a_lane_follows_its_gaps() -> None:
    meter, freed_at = used(10 * NS_PER_MS)
    (use,) = meter.estimate(freed_at)
    assert use.lane == 0
    assert use.fill_per_s == pytest.approx(100, rel=0.1)
    assert use.refill < 0.05


def test_a_lane_that_is_taken_at_once_says_so() -> None:
    meter, freed_at = used(100_000)
    assert meter.estimate(freed_at)[0].refill > 0.95


def test_a_lane_idle_for_long_against_its_gaps_is_believed_out_of_use() -> None:
    meter, freed_at = used(10 * NS_PER_MS)
    now, later = (meter.estimate(freed_at + span)[0].fill_per_s for span in (0, 100 * NS_PER_MS))
    assert later < 0.05 * now


def test_a_lane_never_used_is_not_counted_and_one_in_use_keeps_its_rate() -> None:
    meter = LaneMeter()
    meter.freed(3, NS_PER_S)
    assert meter.estimate(NS_PER_S) == ()
    meter, freed_at = used(10 * NS_PER_MS)
    meter.taken(0, freed_at + 10 * NS_PER_MS)
    busy_for_long = meter.estimate(freed_at + 60 * NS_PER_S)[0]
    assert busy_for_long.fill_per_s == pytest.approx(100, rel=0.1)


def test_asking_changes_nothing() -> None:
    meter, freed_at = used(3 * NS_PER_MS)
    assert meter.estimate(freed_at + RUN) == meter.estimate(freed_at + RUN)
