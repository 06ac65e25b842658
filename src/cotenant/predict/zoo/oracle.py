"""True rates with the information that is there at dispatch: the bound of what any slowdown model can reach.

Only for simulated data, where the truth is known. Joiners are counted on as the load estimate says, to first
order: each lane that is not known to be in use is with a chance that grows from its `refill` (or nothing, if
it was idle) to the usual one, and slows what runs down by the mean over the mix. What the oracle gets wrong,
noise and who exactly joins when, no predictor can get right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from cotenant.domain import NS_PER_S, Candidate, InFlight, LoadEstimate, Variant
from cotenant.ports import LaneInfo
from cotenant.predict.replay import Course, Running, replay
from cotenant.predict.zoo.in_fluid import InFluid, Part
from cotenant.predict.zoo.none import NoInterference
from cotenant.profile.features import FeatureTable, WorkloadFeatures

STEPS_PER_SPAN = 4.0
"""The chance of joiners is looked at anew so many times in the mean span of a run."""
MOST_CACHED = 50_000

Active = tuple[Variant, float, int | None]
"""(variant, share, segment); None: some time in its course."""
Truth = Callable[[Active, Sequence[Active]], float]
"""The true slowdown of what is active beside others."""


class Oracle(InFluid):
    """Implements `StudyPredictor`; learns nothing but its margins. `joiners`: count on them."""

    def __init__(
        self, features: FeatureTable, lanes: Sequence[LaneInfo], truth: Truth, *, joiners: bool = True
    ) -> None:
        super().__init__("oracle", features, lanes, lambda _: NoInterference())
        self._truth, self._joiners, self._lanes = truth, joiners, [lane.index for lane in lanes]
        self._true: dict[tuple[Active, tuple[Active, ...]], float] = {}

    def pieces(self, workload: WorkloadFeatures) -> tuple[float, ...]:
        return tuple(share * workload.solo_ns for share, _ in workload.segments)

    def slowdown(self, victim: Part, others: Sequence[Part]) -> float:
        return self._true_of(_active(victim), [_active(other) for other in others])

    def _true_of(self, victim: Active, others: Sequence[Active]) -> float:
        key = (victim, tuple(sorted(others, key=repr)))
        found = self._true.get(key)
        if found is None:
            if len(self._true) >= MOST_CACHED:
                self._true.clear()
            found = self._true[key] = self._truth(victim, key[1])
        return found

    def _replayed(
        self, runs: Sequence[InFlight | Candidate], courses: Sequence[Course], load: LoadEstimate | None
    ) -> list[float]:
        if not self._joiners or load is None or load.span_ns <= 0 or load.fill_per_s <= 0:
            return super()._replayed(runs, courses, load)
        victims = [self.workloads.victim(run.variant, run.share) for run in runs]
        chance = _Joiners(load, self._lanes, [run.lane for run in runs])
        mix = [((variant, 1.0, None), weight) for variant, weight in load.variants]

        def slowdown(running: Running, others: Sequence[Running], now: float) -> float:
            victim = _active((victims[running[0]], running[1]))
            beside = [_active((victims[j], piece)) for j, piece in others]
            known = self._true_of(victim, beside)
            joined = sum(weight * self._true_of(victim, [*beside, joiner]) for joiner, weight in mix)
            return known + chance.expected(now) * (joined - known)

        return replay(courses, slowdown, longest_step=load.span_ns / STEPS_PER_SPAN, ended=chance.ended)


class _Joiners:
    """How many runs that nobody knows of yet are expected to be active."""

    def __init__(self, load: LoadEstimate, lanes: Sequence[int], taken: Sequence[int]) -> None:
        leave_per_s = NS_PER_S / load.span_ns
        self._likely = load.fill_per_s / (load.fill_per_s + leave_per_s)
        self._tau_ns = NS_PER_S / (load.fill_per_s + leave_per_s)
        self._refill, self._taken = load.refill, list(taken)
        self._free = [(0.0, 0.0) for lane in lanes if lane not in taken]  # (since when, chance then)

    def ended(self, i: int, now: float) -> None:
        """Run i has ended: its lane may be refilled, unless another known run waits for it."""
        lane = self._taken[i]
        if self._taken.count(lane) == 1 or lane < 0:
            self._free.append((now, self._refill))
        self._taken[i] = -2 - i

    def expected(self, now: float) -> float:
        return sum(
            self._likely + (chance - self._likely) * math.exp(-(now - since) / self._tau_ns)
            for since, chance in self._free
        )


def _active(part: Part) -> Active:
    workload, piece = part
    return workload.variant, workload.share, piece
