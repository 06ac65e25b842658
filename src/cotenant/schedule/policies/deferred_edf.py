"""Earliest deadline first on the whole device, with deferral, predicted admission and a lane kept free.

How this works. As `exclusive_edf`, and besides: a batch is held back while a larger one is still feasible
and expected (Symphony, arXiv 2308.07470); a request is refused at arrival when its predicted completion
misses its deadline; and where the device has several lanes that share no compute (CPU cores), the last
free one is kept for short work as long as the long batch can wait for the next one.
Choose it where batches pay and overlap does not. Fails where one model cannot fill the device.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cotenant.domain import Request
from cotenant.schedule.admission import Admission, Verdict
from cotenant.schedule.alternatives import HELD, alternatives
from cotenant.schedule.last_lane import LastLane
from cotenant.schedule.plan import Choice, Offer, Plan, offers, wait_until
from cotenant.schedule.queue import NEVER
from cotenant.schedule.view import LaneState, View


@dataclass(slots=True, kw_only=True)
class DeferredEdf:
    """`rejects`: refuse at arrival by predicted completion, and keep a lane for short work. Off only to
    measure saturated capacity: whatever waits, however far its deadline, then runs when a lane is free."""

    rejects: bool = True
    name: str = "deferred_edf"
    fifo: bool = False
    resumes: bool = False
    plans_alone: bool = False
    _admission: Admission = field(default_factory=Admission)
    _last: LastLane = field(default_factory=LastLane)

    def admit(self, view: View, request: Request) -> Verdict:
        """Refused when the predicted completion misses the deadline or breaks one already promised."""
        if not self.rejects:
            return Verdict(admitted=True)
        return self._admission.admit(view, request)

    def plan(self, view: View) -> Plan:
        """The earliest deadline that is not worth holding back."""
        lanes = view.apart()
        idle = [lane for lane in lanes if lane.idle]
        if not idle:
            return Plan()
        found, gone = offers(view)
        if gone:
            return Plan(drop=gone)
        wake_at: int | None = None
        held: list[tuple[Offer, int]] = []
        load = view.load.estimate(view.at)
        for offer in found:
            model_load = load.models.get(offer.queue.model)
            rate = model_load.rate_per_s if model_load else 0.0
            until = wait_until(view, offer, rate, lane_would_idle=len(found) == len(held) + 1)
            if until is None and self.rejects and not offer.aged:
                until = self._last.kept_until(view, offer)
            if until is not None:
                held.append((offer, until))
                if until < NEVER:
                    wake_at = until if wake_at is None else min(wake_at, until)
                continue
            blocked = self._would_miss(view, lanes, idle, offer, held)
            chosen, why = (blocked, "cannot wait") if blocked else (offer, "earliest deadline")
            others = alternatives(chosen, found, but=[(other, HELD) for other, _ in held])
            return Plan(choice=Choice(offer=chosen, lane=idle[0].info.index, why=why, alternatives=others))
        return Plan(wake_at=wake_at)

    @staticmethod
    def _would_miss(
        view: View, lanes: list[LaneState], idle: list[LaneState], offer: Offer, held: list[tuple[Offer, int]]
    ) -> Offer | None:
        """The most urgent held offer that could no longer start in time if `offer` took the last lane."""
        if len(idle) > 1 or not held:
            return None
        next_free = min(
            view.at + offer.median_ns,
            min((view.free_at(lane) for lane in lanes if not lane.idle), default=NEVER),
        )
        at_risk = [other for other, _ in held if other.latest_start_at < next_free]
        return min(at_risk, key=lambda other: other.latest_start_at, default=None)
