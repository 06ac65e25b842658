"""True rates with the information that is there at dispatch: the bound of what any slowdown model can reach.

Only for simulated data, where the truth is known. What it gets wrong, noise and joiners, no predictor of the
present set can get right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cotenant.domain import Variant
from cotenant.ports import LaneInfo
from cotenant.predict.features import FeatureTable, WorkloadFeatures
from cotenant.predict.zoo.in_fluid import InFluid, Part
from cotenant.predict.zoo.none import NoInterference

Active = tuple[Variant, float, int | None]
"""(variant, share, segment); None: some time in its course."""
Truth = Callable[[Active, Sequence[Active]], float]
"""The true slowdown of what is active beside others."""


class Oracle(InFluid):
    """Implements `StudyPredictor`; learns nothing but its margins."""

    def __init__(self, features: FeatureTable, lanes: Sequence[LaneInfo], truth: Truth) -> None:
        super().__init__("oracle", features, lanes, lambda _: NoInterference())
        self._truth = truth

    def pieces(self, workload: WorkloadFeatures) -> tuple[float, ...]:
        return tuple(share * workload.solo_ns for share, _ in workload.segments)

    def slowdown(self, victim: Part, others: Sequence[Part]) -> float:
        return self._truth(_active(victim), [_active(other) for other in others])


def _active(part: Part) -> Active:
    workload, piece = part
    return workload.variant, workload.share, piece
