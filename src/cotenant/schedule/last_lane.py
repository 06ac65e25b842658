"""Keeping the last free lane for short work, where lanes share no compute (CPU cores).

A batch that takes the last lane leaves none for a while, which harms models whose slack is shorter than that;
waiting harms nobody as long as the next lane is free before the batch must start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cotenant.domain import JobClass, ModelLoad
from cotenant.schedule.plan import Offer
from cotenant.schedule.queue import NEVER, DeadlineQueue
from cotenant.schedule.view import View

RENEWED = 2
"""Models whose slack is looked at anew per decision that needs one."""


@dataclass(slots=True)
class LastLane:
    """How long a new request of each model with traffic could wait on the whole (ns): SLO - upper span.

    A few models are looked at anew each time, so that one decision stays cheap however many there are. One
    per policy instance."""

    known: dict[str, tuple[int, JobClass]] = field(default_factory=dict)
    _names: list[str] = field(default_factory=list)
    _next: int = 0

    def kept_until(self, view: View, offer: Offer) -> int | None:
        """Until when (ns) to keep the last free lane from this offer, or None to let it have the lane."""
        lanes = view.apart()
        if len(lanes) < 2 or sum(lane.idle for lane in lanes) != 1:
            return None
        next_free = min(view.free_at(lane) for lane in lanes if not lane.idle)
        if next_free >= offer.latest_start_at:
            return None
        blocked_ns = min(next_free, view.at + offer.median_ns) - view.at
        return offer.latest_start_at if self._least(view, offer.queue) < blocked_ns else None

    def _least(self, view: View, queue: DeadlineQueue) -> int:
        """The least slack among the other models that are at least as important as `queue`'s."""
        models = view.load.estimate(view.at).models
        if len(models) != len(self._names):
            self._names, self._next = list(models), 0
            self.known.clear()
            self._renew(view, models, len(self._names))
        self._renew(view, models, RENEWED)
        least = NEVER
        for name, (slack, job_class) in self.known.items():
            if slack < least and job_class <= queue.job_class and name != queue.model:
                least = slack
        return least

    def _renew(self, view: View, models: Mapping[str, ModelLoad], n: int) -> None:
        for _ in range(min(n, len(self._names))):
            name = self._names[self._next]
            self._next = (self._next + 1) % len(self._names)
            spec = view.specs.get(name)
            self.known.pop(name, None)
            if spec is None or spec.slo_ns is None or spec.job_class is JobClass.BEST_EFFORT:
                continue
            if name in models and models[name].rate_per_s > 0:
                slack = spec.slo_ns - view.upper(view.smallest[name])
                self.known[name] = (slack, spec.job_class)
