"""What else could have run: kept with each choice, for the log and for explanations. A few at most, without
figures: this is on the decision path."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from cotenant.domain import Alternative, Variant
from cotenant.schedule.queue import NEVER

MOST = 4
"""Alternatives that are kept per choice."""
LATER = "its deadline is later"
HELD = "held back for a larger batch or shorter work"
TRIED = "tried first: to run beside what is in flight does not pay or does harm"
WAITS = "turned down a moment ago, or kept off the last free lane"


class Startable(Protocol):
    """An offer or a job."""

    @property
    def variant(self) -> Variant: ...

    @property
    def due_at(self) -> int: ...


def alternatives(
    chosen: Startable,
    others: Sequence[Startable],
    why: str = LATER,
    but: Iterable[tuple[Startable, str]] = (),
) -> tuple[Alternative, ...]:
    """The first of `others`, without the chosen one; `why` none of them runs, except those in `but`, which
    have a reason of their own."""
    if len(others) < 2:
        return ()
    reasons = {id(other): reason for other, reason in but}
    return tuple(
        [
            Alternative(
                other.variant,
                None if other.due_at >= NEVER else other.due_at,
                reasons.get(id(other), why) if reasons else why,
            )
            for other in others[: MOST + 1]
            if other is not chosen
        ]
    )
