"""The interface of every scheduling policy."""

from __future__ import annotations

from typing import Protocol

from cotenant.domain import Request
from cotenant.schedule.admission import Verdict
from cotenant.schedule.plan import Plan
from cotenant.schedule.view import View


class Policy(Protocol):
    """Decides who may wait and what runs next. Called by the scheduler only; reads the view, changes nothing
    of it. Deterministic in what it has been asked so far."""

    @property
    def name(self) -> str:
        """The name that reports give."""
        ...

    @property
    def fifo(self) -> bool:
        """Queues in order of arrival, deadlines ignored: nothing expires while it waits."""
        ...

    @property
    def resumes(self) -> bool:
        """Whether it says itself when suspended batches go on; else they do on the first idle lane, before
        anything new starts."""
        ...

    @property
    def plans_alone(self) -> bool:
        """Whether `predictor.solo` is to mean the span with nobody beside it; else the span to plan with
        whatever will run beside it."""
        ...

    def admit(self, view: View, request: Request) -> Verdict:
        """Whether the request, which has just arrived, may wait."""
        ...

    def plan(self, view: View) -> Plan:
        """At most one dispatch to make now; asked again until there is none, or nothing waits."""
        ...
