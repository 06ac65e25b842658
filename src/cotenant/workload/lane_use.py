"""How soon each lane is taken again after it was freed, online.

How this works. Of each lane the mean idle gap is kept (exponentially weighted), and how often it was taken
again at once. A lane that has been idle for long against its usual gap may be out of use: with a chance
`OUT_OF_USE` per gap that nothing follows, Bayes' rule says how likely it still is in use, and its rate of
being taken counts as much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cotenant.domain import NS_PER_MS, NS_PER_S, LaneUse

MEMORY = 0.15
"""Weight of the newest gap."""
AT_ONCE_NS = NS_PER_MS
"""A gap up to this long (ns) counts as taken at once."""
OUT_OF_USE = 0.1
SHORTEST_GAP_NS = 10_000.0


@dataclass(slots=True)
class _Lane:
    freed_at: int | None = None
    gap_ns: float = 0.0
    at_once: float = 0.0
    n: int = 0


class LaneMeter:
    """Told when lanes are taken and freed; deterministic in the calls."""

    def __init__(self) -> None:
        self._lanes: dict[int, _Lane] = {}

    def taken(self, lane: int, at: int) -> None:
        """A dispatch went to an idle lane."""
        known = self._lanes.setdefault(lane, _Lane())
        if known.freed_at is None:
            return
        gap = float(at - known.freed_at)
        known.freed_at = None
        known.n += 1
        weight = max(MEMORY, 1.0 / known.n)
        at_once = gap <= AT_ONCE_NS
        known.at_once += weight * (at_once - known.at_once)
        known.gap_ns += weight * (gap - known.gap_ns)

    def freed(self, lane: int, at: int) -> None:
        """The last dispatch on a lane has ended."""
        self._lanes.setdefault(lane, _Lane()).freed_at = at

    def estimate(self, at: int) -> tuple[LaneUse, ...]:
        """Of every lane that was ever used, by its number."""
        return tuple(
            LaneUse(lane=number, fill_per_s=_fill_per_s(lane, at), refill=lane.at_once)
            for number, lane in sorted(self._lanes.items())
            if lane.n
        )


def _fill_per_s(lane: _Lane, at: int) -> float:
    gap = max(SHORTEST_GAP_NS, lane.gap_ns)
    idle = 0.0 if lane.freed_at is None else max(0.0, float(at - lane.freed_at))
    still = math.exp(-min(50.0, idle / gap)) * (1.0 - OUT_OF_USE)
    return NS_PER_S / gap * still / (still + OUT_OF_USE)
