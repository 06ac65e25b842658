"""What is refused before the engine sees it: the throttle alone, on a virtual clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.clock import VirtualClock
from cotenant.domain import NS_PER_MS, NS_PER_S, Outcome, OutcomeKind, Request
from cotenant.serve.gate import Denial, Gate, Refusal, Ticket
from cotenant.serve.keys import ANYONE, Tenant
from cotenant.serve.quota import TenantUse, TokenBucket
from cotenant.serve.settings import FrontDoor
from cotenant.serve.shedding import SPARE, Throttle


class Engine:
    """Takes `capacity_per_s` requests, evenly, and refuses the others."""

    def __init__(self, capacity_per_s: float) -> None:
        self.capacity_per_s = capacity_per_s
        self._next_at = 0.0

    def takes(self, now: int) -> bool:
        if now < self._next_at:
            return False
        self._next_at = max(self._next_at, now - 0.1 * NS_PER_S) + NS_PER_S / self.capacity_per_s
        return True


def run(
    throttle: Throttle, engine: Engine, offered_per_s: float, from_s: float, to_s: float
) -> tuple[float, float]:
    """(passed, taken) per second."""
    n_passed = n_taken = 0
    for index in range(int((to_s - from_s) * offered_per_s)):
        now = int((from_s + index / offered_per_s) * NS_PER_S)
        if throttle.passes(now):
            n_passed += 1
            if engine.takes(now):
                n_taken += 1
            else:
                throttle.refused(40.0)
    return n_passed / (to_s - from_s), n_taken / (to_s - from_s)


def test_nothing_is_shed_while_the_engine_takes_what_it_is_offered() -> None:
    assert run(Throttle(0), Engine(1000), 900, 0, 10) == (900, 900)


@pytest.mark.parametrize("overload", [2, 10, 100])
def test_under_overload_the_engine_sees_little_more_than_it_takes_and_loses_none(overload: int) -> None:
    throttle, engine = Throttle(0), Engine(200)
    run(throttle, engine, 200 * overload, 0, 3)
    passed, taken = run(throttle, engine, 200 * overload, 3, 10)
    assert taken >= 0.99 * 200
    assert passed <= 1.2 * SPARE * 200
    assert throttle.retry_after_ms == 40.0


def test_capacity_that_comes_back_is_used() -> None:
    throttle, engine = Throttle(0), Engine(10)
    run(throttle, engine, 1000, 0, 5)
    engine.capacity_per_s = 2000
    run(throttle, engine, 1000, 5, 15)
    assert run(throttle, engine, 1000, 15, 20)[1] == 1000


def test_after_a_pause_nothing_is_held_against_anybody() -> None:
    throttle, engine = Throttle(0), Engine(10)
    run(throttle, engine, 1000, 0, 5)
    assert run(throttle, Engine(1000), 100, 7, 8) == (100, 100)


@given(st.lists(st.tuples(st.integers(0, 300), st.booleans()), max_size=300))
def test_a_throttle_never_stops_everything(steps: list[tuple[int, bool]]) -> None:
    throttle, now, passed_at = Throttle(0), 0, 0
    for wait_ms, refuse in steps:
        now += wait_ms * NS_PER_MS
        if throttle.passes(now):
            passed_at = now
            if refuse:
                throttle.refused(None)
        assert now - passed_at <= NS_PER_S


def refused_by_the_engine(at: int) -> Outcome:
    request = Request(id="r", model="m", arrived_at=at, deadline_at=at + 50 * NS_PER_MS)
    late_at = at + 90 * NS_PER_MS
    return Outcome(
        request=request, kind=OutcomeKind.REJECTED, reason="late", ended_at=at, predicted_at=late_at
    )


def test_the_gate_refuses_what_the_engine_keeps_refusing_and_nothing_else() -> None:
    clock = VirtualClock()
    gate = Gate(None, FrontDoor(), clock.now)
    found = []
    for _ in range(50):
        entered = gate.enter(ANYONE, "m", 50 * NS_PER_MS, 0)
        found.append(entered)
        if isinstance(entered, Ticket):
            entered.outcome = refused_by_the_engine(clock.now())
            entered.leave()
    assert isinstance(found[0], Ticket)
    refusal = found[-1]
    assert isinstance(refusal, Refusal)
    assert refusal.denial is Denial.OVERLOADED
    assert refusal.retry_after_ms == 40.0
    assert isinstance(gate.enter(ANYONE, "m", 5000 * NS_PER_MS, 0), Ticket)
    assert isinstance(gate.enter(ANYONE, "other", 50 * NS_PER_MS, 0), Ticket)
    clock.advance_to(2 * NS_PER_S)
    assert isinstance(gate.enter(ANYONE, "m", 50 * NS_PER_MS, 0), Ticket)


def test_without_shedding_the_engine_decides_alone() -> None:
    gate = Gate(None, FrontDoor(shed=False), VirtualClock().now)
    for _ in range(50):
        entered = gate.enter(ANYONE, "m", 50 * NS_PER_MS, 0)
        assert isinstance(entered, Ticket)
        entered.outcome = refused_by_the_engine(0)
        entered.leave()


# --- quotas -----------------------------------------------------------------------------------------------


def test_a_bucket_gives_a_burst_and_then_its_rate() -> None:
    bucket = TokenBucket(10.0, 3, 0)
    assert [bucket.take(0) for _ in range(3)] == [0, 0, 0]
    assert bucket.take(0) == pytest.approx(NS_PER_S / 10)
    assert bucket.take(NS_PER_S // 10) == 0
    assert bucket.take(NS_PER_S // 10) > 0
    assert [bucket.take(100 * NS_PER_S) for _ in range(4)][-1] > 0


@given(st.lists(st.integers(0, 500), max_size=200), st.integers(1, 20), st.floats(0.5, 100))
def test_no_span_gets_more_than_its_rate_and_one_burst(waits_ms: list[int], burst: int, per_s: float) -> None:
    bucket, now, n_taken = TokenBucket(per_s, burst, 0), 0, 0
    for wait_ms in waits_ms:
        now += wait_ms * NS_PER_MS
        n_taken += bucket.take(now) == 0
    assert n_taken <= burst + per_s * now / NS_PER_S + 1e-6


def test_other_limits_keep_what_is_in_flight() -> None:
    use = TenantUse(Tenant(name="a", max_in_flight=2), 0)
    use.n_in_flight = 2
    use.limit(Tenant(name="a", requests_per_s=1.0, max_in_flight=5), 0)
    assert (use.n_in_flight, use.max_in_flight) == (2, 5)
    assert use.bucket is not None
