"""Remembers what a run did, for its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cotenant.domain import Observation, Outcome
from cotenant.experiment.report import BusyInterval, RequestRecord
from cotenant.ports import LaneInfo


class Recorder:
    """An `Observer` that keeps everything in memory; for bounded runs only.

    `intended_at` overrides a request's arrival for those whose id it has (open-loop load)."""

    def __init__(self, lanes: Sequence[LaneInfo]) -> None:
        n_units = len({unit for lane in lanes for unit in lane.units})
        self._share = {lane.index: len(lane.units) / n_units for lane in lanes}
        self.outcomes: list[Outcome] = []
        self.observations: list[Observation] = []
        self.decision_ns: list[int] = []

    def settled(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def observed(self, observation: Observation) -> None:
        self.observations.append(observation)

    def decided(self, spent_ns: int, at: int) -> None:
        self.decision_ns.append(spent_ns)

    def records(self, intended_at: Mapping[str, int] | None = None) -> list[RequestRecord]:
        """One record per settled request."""
        intended = intended_at or {}
        return [
            RequestRecord(
                model=outcome.request.model,
                job_class=outcome.request.job_class,
                kind=outcome.kind,
                intended_at=intended.get(outcome.request.id, outcome.request.arrived_at),
                ended_at=outcome.ended_at,
                deadline_at=outcome.request.deadline_at,
                dispatched_at=outcome.dispatched_at,
                batch_rows=outcome.batch_rows,
                reason=outcome.reason,
            )
            for outcome in self.outcomes
        ]

    def busy(self) -> list[BusyInterval]:
        """When each lane ran."""
        return [
            BusyInterval(began_at=o.started_at, ended_at=o.ended_at, share=self._share[o.lane])
            for o in self.observations
        ]
