"""Who ran beside whom, and when: the overlap history of dispatches, which predictors learn from."""

from __future__ import annotations

from collections.abc import Iterable

from cotenant.domain import Overlap
from cotenant.schedule.view import Flight


def overlap_begins(flight: Flight, others: Iterable[Flight], at: int) -> None:
    """`flight` has started at `at` (ns): it overlaps with every one of `others` that runs."""
    for other in others:
        if other is not flight and other.started_at is not None:
            mine, theirs = flight.dispatch, other.dispatch
            flight.overlaps.append(
                Overlap(theirs.id, theirs.variant, at, None, theirs.lane, theirs.share, other.started_at)
            )
            other.overlaps.append(Overlap(mine.id, mine.variant, at, None, mine.lane, mine.share, at))


def overlap_ends(flight: Flight, others: Iterable[Flight], at: int) -> None:
    """`flight` has ended at `at` (ns), and with it its overlaps with everything else."""
    mine = flight.overlaps
    for k, overlap in enumerate(mine):
        if overlap.ended_at is None:
            mine[k] = _closed(overlap, at)
    ended = flight.dispatch.id
    for other in others:
        theirs = other.overlaps
        for k in range(len(theirs) - 1, -1, -1):  # one at most, and a late one
            overlap = theirs[k]
            if overlap.dispatch_id == ended:
                theirs[k] = _closed(overlap, at)
                break


def _closed(overlap: Overlap, at: int) -> Overlap:
    return Overlap(
        overlap.dispatch_id,
        overlap.variant,
        overlap.began_at,
        max(at, overlap.began_at),
        overlap.lane,
        overlap.share,
        overlap.started_at,
    )
