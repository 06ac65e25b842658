"""When runs will end, from the true state of the device, without the noise that nobody could know.

Kernels that have not begun take their expected time; the one that runs takes what it really takes. The state
is copied, never changed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from cotenant.domain import Candidate, Variant
from cotenant.simulate.twin.device import FOREVER, State

HANDOVER_NS = 10_000
"""From the decision to the first kernel on an idle lane: the launch of a graph from the host."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A run of a lane: the one on it now, or one that waits. Segments [first, end), not before `at` (ns)."""

    id: int
    variant: Variant
    first: int
    end: int
    at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """Expected instants of ends (ns), by dispatch id. `baseline`: if nothing joins; `candidate_end_at` and
    `beside` (n_candidates): of each candidate if it alone joins, and of the others then."""

    baseline: dict[int, float]
    candidate_end_at: list[float]
    beside: list[dict[int, float]]


CANDIDATE = -(1 << 62)
"""Stands for the id that a candidate does not have yet."""


def what_if(
    state: State, lines: Sequence[Sequence[Planned]], ended: Collection[int], candidates: Sequence[Candidate]
) -> WhatIf:
    """`lines` has the runs of each lane, the one that runs first; what is among `ended` ends now."""
    still = state.silenced()
    now = dict.fromkeys(ended, still.now)
    found = WhatIf(baseline=now | _play(still, lines), candidate_end_at=[], beside=[])
    for candidate in candidates:
        program = still.programs.of[candidate.variant]
        joined = [list(line) for line in lines]
        joined[candidate.lane].append(
            Planned(
                CANDIDATE,
                candidate.variant,
                candidate.first_segment,
                len(program.ends),
                # behind others it begins when they have ended, whenever that was thought to be
                0.0 if joined[candidate.lane] else float(candidate.start_at),
            )
        )
        ends = _play(still, joined)
        found.candidate_end_at.append(ends.pop(CANDIDATE))
        found.beside.append(now | ends)
    return found


def _play(still: State, lines: Sequence[Sequence[Planned]]) -> dict[int, float]:
    """Let everything run to its end."""
    state = still.copy()
    waiting = [deque(line) for line in lines]
    programs, ends, used = state.programs, dict[int, float](), set[int]()
    while True:
        next_at = math.inf
        for lane, line in enumerate(waiting):
            if not line or state.busy(lane):
                continue
            first = line[0]
            if first.at > state.now:
                next_at = min(next_at, first.at)
                continue
            after_ns = programs.spec.launch_gap_ns if lane in used else HANDOVER_NS
            state.begin(lane, programs.of[first.variant], 0, first.first, first.end, after_ns)
        lane = state.advance(min(next_at, FOREVER))
        if lane >= 0:
            used.add(lane)
            ends[waiting[lane].popleft().id] = state.now
        elif math.isinf(next_at):
            return ends
