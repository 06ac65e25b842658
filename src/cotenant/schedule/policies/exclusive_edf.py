"""Earliest deadline first, one batch at a time on the whole device, largest feasible batch, early drop.

The floor that co-running must beat (Clockwork, OSDI 2020): nothing overlaps, so solo times are near
perfect predictions. Fails when one model cannot fill the device, and when a long batch blocks short work.
"""

from __future__ import annotations

from dataclasses import dataclass

from cotenant.domain import Request
from cotenant.schedule.admission import Verdict, admit_if_feasible_alone
from cotenant.schedule.alternatives import alternatives
from cotenant.schedule.plan import Choice, Plan, offers
from cotenant.schedule.view import View


@dataclass(slots=True, kw_only=True)
class ExclusiveEdf:
    """No settings: batches must fit at the learned upper quantile."""

    name: str = "exclusive_edf"
    fifo: bool = False
    resumes: bool = False
    plans_alone: bool = False

    def admit(self, view: View, request: Request) -> Verdict:
        """Refused only when it could not be served in time on an idle device."""
        return admit_if_feasible_alone(view, request)

    def plan(self, view: View) -> Plan:
        """The earliest deadline, at once, on a lane whose compute units nothing else uses."""
        lane = next((lane for lane in view.apart() if lane.idle), None)
        if lane is None:
            return Plan()
        found, gone = offers(view)
        if gone:
            return Plan(drop=gone)
        if not found:
            return Plan()
        return Plan(
            choice=Choice(
                offer=found[0],
                lane=lane.info.index,
                why="earliest deadline",
                alternatives=alternatives(found[0], found),
            )
        )
