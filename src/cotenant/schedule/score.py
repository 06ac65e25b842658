"""What a forecast is worth: chances to meet deadlines, and how much of the work comes for free by overlap."""

from __future__ import annotations

from collections.abc import Sequence

from cotenant.schedule.queue import NEVER


def chance(finish_at: Sequence[int], deadline_at: int) -> float:
    """Probability (0..1) that something has ended by `deadline_at`, from its quantiles `finish_at` (ns) at
    `domain.LEVELS`, linear between them; beyond them over one more width of the whole."""
    median, last = finish_at[0], finish_at[3]
    if deadline_at >= last:
        return 0.99 + 0.01 * min(1.0, (deadline_at - last) / max(1, last - median))
    if deadline_at < median:
        return max(0.0, 0.5 - 0.5 * (median - deadline_at) / max(1, last - median))
    if deadline_at < finish_at[1]:
        return 0.5 + 0.4 * (deadline_at - median) / (finish_at[1] - median)
    if deadline_at < finish_at[2]:
        return 0.9 + 0.05 * (deadline_at - finish_at[1]) / (finish_at[2] - finish_at[1])
    return 0.95 + 0.04 * (deadline_at - finish_at[2]) / (last - finish_at[2])


def expected_met(finish_at: Sequence[int], dues: Sequence[int]) -> float:
    """Expected number of `dues` (ns) that are met; work without a deadline counts nothing."""
    met = 0.0
    for due_at in dues:
        if due_at < NEVER:
            met += chance(finish_at, due_at)
    return met


def benefit(at: int, alone_ns: float, done_at: int, then_at: int, finish_at: int) -> float:
    """How far a batch overlaps with what is in flight: by how much the device is done earlier than one after
    the other, as a share of the smaller of the two works that overlap. 1 where it comes for free, 0 where
    overlap gains nothing, negative where it costs.

    The batch takes `alone_ns` by itself and ends at `finish_at` when it starts at `at` beside work that would
    all be done at `done_at`, and then is at `then_at` (medians, ns)."""
    rest, rest_after, span = done_at - at, then_at - at, finish_at - at
    saved = rest + alone_ns - max(rest_after, span)
    mine = alone_ns - max(0, span - rest_after)
    theirs = rest - max(0, rest_after - span)
    return saved / max(1.0, 0.02 * alone_ns, min(mine, theirs))
