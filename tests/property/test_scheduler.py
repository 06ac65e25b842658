"""Whatever happens, in whatever order: no request is lost or settled twice, no lane is overfull."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotenant.schedule.policies import POLICIES
from cotenant.testing import Chaos

N_SEQUENCES = 10_000


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_ten_thousand_random_event_sequences_settle_every_request_once(policy: str) -> None:
    for seed in range(N_SEQUENCES // len(POLICIES)):
        rng = random.Random(f"{policy}-{seed}")
        chaos = Chaos(policy, depth=seed % 2, n_lanes=1 + seed % 3, n_segments=1 + seed % 2)
        for _ in range(rng.randrange(5, 40)):
            chaos.step(rng.randrange(1 << 30))
        chaos.finish()


@settings(max_examples=150, deadline=None)
@given(
    policy=st.sampled_from(sorted(POLICIES)),
    depth=st.integers(0, 1),
    n_lanes=st.integers(1, 4),
    n_segments=st.integers(1, 3),
    choices=st.lists(st.integers(0, (1 << 30) - 1), max_size=80),
)
def test_hypothesis_finds_no_sequence_that_loses_a_request(
    policy: str, depth: int, n_lanes: int, n_segments: int, choices: list[int]
) -> None:
    chaos = Chaos(policy, depth=depth, n_lanes=n_lanes, n_segments=n_segments)
    for choice in choices:
        chaos.step(choice)
    chaos.finish()
