"""How long a dispatch waits between the decision and its start on an idle lane: a robust running median."""

from __future__ import annotations

import math

import msgspec

from cotenant.domain import NS_PER_S

FIRST_STEP, LEAST_STEP = 0.2, 0.02
HALF_LIFE_S = 10.0


class Handover(msgspec.Struct):
    """Stochastic approximation of the median (Robbins & Monro 1951), steps relative to its size. It fades to
    nothing while nothing is seen, so that a slow spell does not outlive itself."""

    median_ns: float = 0.0
    n: int = 0
    learned_at: int = 0

    def at(self, instant: int) -> float:
        """The median (ns), as believed at an instant."""
        idle_s = max(0, instant - self.learned_at) / NS_PER_S
        return self.median_ns * math.exp2(-max(0.0, idle_s - 1.0) / HALF_LIFE_S)

    def learn(self, waited_ns: int, at: int) -> None:
        """Take in one wait (ns, at least 0)."""
        median = self.at(at)
        self.n += 1
        step = max(LEAST_STEP, FIRST_STEP / math.sqrt(self.n)) * max(median, 1_000.0)
        self.median_ns = float(waited_ns) if self.n == 1 else median + math.copysign(step, waited_ns - median)
        self.learned_at = at
