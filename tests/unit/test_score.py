"""What a forecast is worth: chances, overlap, and passing over the most urgent requests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.domain import LEVELS
from cotenant.schedule.queue import NEVER
from cotenant.schedule.score import benefit, chance, expected_met
from cotenant.schedule.skip import look_ahead

rows = st.lists(st.integers(1, 10**9), min_size=4, max_size=4).map(lambda values: [*sorted(values), 10**9])


@given(rows, st.lists(st.integers(0, 2 * 10**9), min_size=2, max_size=2))
def test_a_later_deadline_is_never_less_likely_to_be_met(finish_at, instants):
    early, late = sorted(instants)
    assert 0.0 <= chance(finish_at, early) <= chance(finish_at, late) <= 1.0


@given(st.lists(st.integers(10, 10**6), min_size=4, max_size=4))
def test_the_chance_at_a_quantile_is_its_level_and_linear_between(widths):
    row = [sum(widths[: i + 1]) for i in range(4)]
    assert [chance(row, at) for at in row] == pytest.approx(LEVELS)
    for i in range(3):
        middle = (row[i] + row[i + 1]) // 2
        share = (middle - row[i]) / (row[i + 1] - row[i])
        assert chance(row, middle) == pytest.approx(LEVELS[i] + share * (LEVELS[i + 1] - LEVELS[i]))


def test_work_without_a_deadline_counts_nothing():
    assert expected_met([10, 11, 12, 13, 13], [NEVER, NEVER]) == 0.0


def test_the_overlap_of_two_that_do_not_disturb_each_other_is_free():
    assert benefit(0, 50, 100, 100, 50) == 1.0


def test_the_overlap_of_two_that_only_take_turns_gains_nothing():
    assert benefit(0, 50, 100, 150, 100) == 0.0


def test_an_overlap_that_costs_is_negative():
    assert benefit(0, 50, 100, 180, 170) < 0.0


def test_the_order_of_two_that_overlap_does_not_matter():
    parasite = benefit(0, 18, 32, 32, 39)  # a short one joins a long one and outlasts it
    host = benefit(0, 32, 18, 39, 32)
    assert abs(parasite - host) < 1e-9


BUCKETS = [(1, 30, 31), (2, 48, 50), (4, 92, 95), (8, 179, 185)]


def test_skipping_the_head_lets_larger_batches_run():
    dues = [40] + [200] * 8
    met_with_head, *_ = look_ahead(dues, BUCKETS, 0, 0)
    met_without, first, rows = look_ahead(dues, BUCKETS, 0, 1)
    assert (first, rows) == (1, 2)
    assert met_without > met_with_head


def test_what_cannot_make_it_is_passed_over():
    assert look_ahead([10, 10, 100], BUCKETS, 0, 0) == (1, 2, 1)
