"""Operators become few segments, and nothing gets lost on the way."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.profile.records import Cost, DeviceRates
from cotenant.profile.segments import MOST_SEGMENTS, Node, add, group, memory_bytes

RATES = DeviceRates(core_flop_per_s=100e9, core_bytes_per_s=20e9, bytes_per_s=40e9, cache_bytes=1 << 20)


def node(solo_ns: float, flops: float = 0.0, weights: float = 0.0, activations: float = 0.0) -> Node:
    moved = weights + activations
    return Node(
        name="n",
        solo_ns=solo_ns,
        cost=Cost(flops=flops, weight_bytes=weights, moved_bytes=moved, held_bytes=moved, n_operators=1),
    )


sizes = st.integers(0, 10**7)
nodes = st.builds(node, st.integers(0, 10**6), sizes, sizes, sizes)


@given(st.lists(nodes, min_size=1, max_size=60), st.integers(1, 10**9), st.integers(1, MOST_SEGMENTS))
def test_segments_are_few_in_order_and_keep_every_sum(run: list[Node], solo_ns: int, most: int) -> None:
    parts = group(run, solo_ns, RATES, most)
    if sum(n.solo_ns for n in run) == 0:
        assert parts == ()
        return
    assert 1 <= len(parts) <= most
    assert sum(part.solo_ns for part in parts) == pytest.approx(solo_ns)
    ends = list(accumulate(part.cost.n_operators for part in parts))
    assert ends[-1] == len(run)
    for part, begin, end in zip(parts, [0, *ends], ends, strict=False):
        assert part.cost == add([n.cost for n in run[begin:end]])


def test_a_run_of_even_demand_is_one_segment() -> None:
    assert len(group([node(1000, 50_000)] * 40, 40_000, RATES)) == 1


def test_phases_of_unlike_demand_are_told_apart() -> None:
    run = [node(1000, 90_000)] * 10 + [node(1000, 1000, weights=4e7)] * 20 + [node(1000, 90_000)] * 10
    assert [part.solo_ns for part in group(run, 40_000, RATES)] == [10_000, 20_000, 10_000]


def test_a_short_operator_of_another_kind_does_not_cut_a_phase() -> None:
    run = [node(1000, 90_000)] * 10 + [node(1, 0.0, weights=4e4)] + [node(1000, 20_000)] * 10
    assert len(group(run, 20_001, RATES)) == 2


def test_weights_miss_a_cache_that_the_whole_run_overflows_and_activations_only_their_own() -> None:
    part = node(1, weights=100.0, activations=50.0).cost
    small, large = Cost(held_bytes=200.0), Cost(held_bytes=5000.0)
    assert memory_bytes(part, small, 1000.0) == 0.0
    assert memory_bytes(part, large, 1000.0) == 100.0
    assert memory_bytes(part, large, 10.0) == 150.0
