"""Earliest deadline first with up to k batches at once and a flat margin instead of a prediction.

No model of interference at all: solo medians times `margin`. Hard to beat when the best k happens to be
known (XSched, OSDI 2025, saw K-EDF match far more elaborate schedulers); fails when the mix changes.
"""

from __future__ import annotations

from dataclasses import dataclass

from cotenant.domain import Request
from cotenant.schedule.admission import Verdict, admit_if_feasible_alone
from cotenant.schedule.alternatives import alternatives
from cotenant.schedule.plan import Choice, Plan, offers
from cotenant.schedule.view import View


@dataclass(slots=True, kw_only=True)
class KEdf:
    """`k`: most batches in flight; `margin`: factor on the solo median that a batch must fit."""

    k: int = 2
    margin: float = 1.3
    name: str = "k_edf"
    fifo: bool = False
    resumes: bool = False
    plans_alone: bool = False

    def admit(self, view: View, request: Request) -> Verdict:
        """Refused only when it could not be served in time on an idle device."""
        return admit_if_feasible_alone(view, request)

    def plan(self, view: View) -> Plan:
        """The earliest deadline, at once, on the first idle lane, while fewer than k run."""
        lane = next((lane for lane in view.lanes if lane.idle), None)
        if lane is None or len(view.flights) >= self.k:
            return Plan()
        found, gone = offers(view, margin=self.margin)
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
