"""Who is passed over when not everything that waits can be served in time."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from cotenant.domain import JobClass
from cotenant.schedule.packing import fewest_late

STANDARD = JobClass.STANDARD


def late(jobs, over, at=0.0):
    """How many of those that are not passed over end after their deadline, run in order of deadline."""
    n = 0
    for due_at, _, cost, name in sorted(jobs, key=lambda job: (job[0], job[3] or "")):
        if name is None or name not in over:
            at += cost
            n += at > due_at
    return n


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 10)), max_size=7))
def test_no_choice_of_fewer_leaves_everything_else_in_time(pairs):
    jobs = [(due_at, STANDARD, float(cost), f"r{n}") for n, (due_at, cost) in enumerate(pairs)]
    over = fewest_late(0.0, jobs)
    assert late(jobs, over) == 0
    names = [job[3] for job in jobs]
    for fewer in combinations(names, max(0, len(over) - 1)):
        assert not over or late(jobs, set(fewer)) > 0


def test_nobody_is_passed_over_while_everything_fits():
    assert fewest_late(0.0, [(10, STANDARD, 5.0, "a"), (20, STANDARD, 5.0, "b")]) == set()


def test_of_equal_ones_the_most_urgent_is_passed_over_so_that_the_others_gain_time():
    burst = [(10 + n, STANDARD, 5.0, f"r{n}") for n in range(4)]
    assert fewest_late(0.0, burst) == {"r0", "r1"}


def test_the_less_important_goes_first_and_what_is_in_flight_stays():
    jobs = [
        (100, STANDARD, 8.0, None),
        (9, JobClass.PROTECTED, 6.0, "protected"),
        (10, STANDARD, 6.0, "standard"),
    ]
    assert fewest_late(0.0, jobs) == {"standard"}
    in_flight = [(5, STANDARD, 8.0, None), (9, STANDARD, 6.0, "waiting")]
    assert fewest_late(0.0, in_flight) == {"waiting"}
    assert fewest_late(0.0, [(5, STANDARD, 8.0, None)]) == set()
