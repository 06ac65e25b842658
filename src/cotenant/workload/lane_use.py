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
    """`use`: what was last said of it, None where that has changed since; while a lane is in use it stays."""

    freed_at: int | None = None
    gap_ns: float = 0.0
    at_once: float = 0.0
    n: int = 0
    use: LaneUse | None = None


class LaneMeter:
    """Told when lanes are taken and freed; deterministic in the calls."""

    def __init__(self) -> None:
        self._lanes: dict[int, _Lane] = {}

    def taken(self, lane: int, at: int) -> None:
        """A dispatch went to an idle lane."""
        known = self._lanes.get(lane) or self._new(lane)
        if known.freed_at is None:
            return
        gap = float(at - known.freed_at)
        known.freed_at = known.use = None
        known.n += 1
        weight = max(MEMORY, 1.0 / known.n)
        at_once = gap <= AT_ONCE_NS
        known.at_once += weight * (at_once - known.at_once)
        known.gap_ns += weight * (gap - known.gap_ns)

    def freed(self, lane: int, at: int) -> None:
        """The last dispatch on a lane has ended."""
        known = self._lanes.get(lane) or self._new(lane)
        known.freed_at, known.use = at, None

    def estimate(self, at: int) -> tuple[LaneUse, ...]:
        """Of every lane that was ever used, by its number."""
        said = []
        for number, lane in self._lanes.items():
            if not lane.n:
                continue
            use = lane.use
            if use is None or lane.freed_at is not None:
                fill_per_s = _fill_per_s(lane, at)
                if use is None or use.fill_per_s != fill_per_s:
                    use = lane.use = LaneUse(lane=number, fill_per_s=fill_per_s, refill=lane.at_once)
            said.append(use)
        return tuple(said)

    def _new(self, lane: int) -> _Lane:
        known = self._lanes[lane] = _Lane()
        self._lanes = dict(sorted(self._lanes.items()))
        return known


def _fill_per_s(lane: _Lane, at: int) -> float:
    gap = lane.gap_ns if lane.gap_ns > SHORTEST_GAP_NS else SHORTEST_GAP_NS
    still = 1.0 - OUT_OF_USE
    if lane.freed_at is not None and at > lane.freed_at:
        still *= math.exp(-min(50.0, (at - lane.freed_at) / gap))
    return NS_PER_S / gap * still / (still + OUT_OF_USE)
