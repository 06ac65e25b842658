"""When runs will end, from the true state of the device, without the noise that nobody could know.

Kernels that have not begun take their expected time; the one that runs takes what it really takes. The state
is copied, never changed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from cotenant.domain import Candidate, Variant
from cotenant.simulate.twin.device import State
from cotenant.simulate.twin.what_if_kernels import begin_due, play

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


class Outlook:
    """Answers what-if questions about a device, each course of things played once per instant: what has been
    decided is asked for again as a forecast, and what has begun as what is in flight."""

    def __init__(self) -> None:
        self._at = -1.0
        self._played: dict[tuple[object, ...], list[float]] = {}

    def ask(
        self,
        state: State,
        lines: Sequence[Sequence[Planned]],
        ended: Collection[int],
        candidates: Sequence[Candidate],
        stopping: Collection[int] = (),
    ) -> WhatIf:
        """`lines` has the runs of each lane, the one that runs first; what is among `ended` ends now, what
        runs on lanes `stopping` at its next boundary."""
        still = state.silenced()
        for lane in stopping:
            still.stop_at_boundary(lane)
        if still.now != self._at:
            self._at = still.now
            self._played.clear()
        ids = [[run.id for run in line] for line in lines]
        now = dict.fromkeys(ended, still.now)
        found = WhatIf(baseline=now | _named(ids, self._ends(still, lines)), candidate_end_at=[], beside=[])
        for candidate in candidates:
            joined = [*lines]
            joined[candidate.lane] = [*lines[candidate.lane], _joining(candidate, lines, still)]
            ends = self._ends(still, joined)
            own = sum(map(len, joined[: candidate.lane + 1])) - 1
            found.candidate_end_at.append(ends[own])
            found.beside.append(now | _named(ids, ends[:own] + ends[own + 1 :]))
        return found

    def _ends(self, still: State, lines: Sequence[Sequence[Planned]]) -> list[float]:
        """When the runs of all lines end (ns), line by line."""
        if not any(lines):
            return []
        of = still.programs.of
        runs = np.array([of[run.variant].row(run.first, run.end) for line in lines for run in line], np.int64)
        at = np.array([0.0 if run.at <= still.now else run.at for line in lines for run in line])
        lasts = np.cumsum([len(line) for line in lines])
        heads = lasts - [len(line) for line in lines]
        after = np.full(len(lines), float(HANDOVER_NS))
        i, f, totals = still.i.copy(), still.f.copy(), still.totals.copy()
        begin_due(i, f, totals, runs, at, heads, lasts, after)
        key = i.tobytes(), f.tobytes(), runs.tobytes(), at.tobytes(), lasts.tobytes()
        ends = self._played.get(key)
        if ends is None:
            table, segments = still.programs.tables()
            ends = play(
                i, f, totals, still.marks, runs, at, heads, lasts, after, table, segments,
                still.settings,
            ).tolist()  # fmt: skip
            self._played[key] = ends
        return ends


def _joining(candidate: Candidate, lines: Sequence[Sequence[Planned]], still: State) -> Planned:
    """The candidate as the last of its lane."""
    return Planned(
        CANDIDATE,
        candidate.variant,
        candidate.first_segment,
        len(still.programs.of[candidate.variant].ends),
        # behind others it begins when they have ended, whenever that was thought to be
        0.0 if lines[candidate.lane] else float(candidate.start_at),
    )


def _named(ids: Sequence[Sequence[int]], ends: Sequence[float]) -> dict[int, float]:
    return dict(zip((one for line in ids for one in line), ends, strict=True))
