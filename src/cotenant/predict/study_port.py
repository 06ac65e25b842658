"""What the predictor study asks of a predictor: the ports, and two things besides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cotenant.domain import Candidate, Observation, Snapshot
from cotenant.ports import Forecast


class StudyPredictor(Protocol):
    """A predictor and learner that can also be fitted at once and asked in hindsight."""

    name: str

    def fit(self, observations: Sequence[Observation]) -> None:
        """Begin anew from these, before anything is predicted."""
        ...

    def predict(self, snapshot: Snapshot, candidates: Sequence[Candidate]) -> Forecast:
        """As `ports.Predictor`; `features[c][0]` is the median span (ns) before quantiles were added."""
        ...

    def learn(self, observation: Observation) -> int | None:
        """As `ports.Learner`."""
        ...

    def given_overlap(self, observation: Observation) -> float:
        """Span (ns) from start to end that is expected for exactly the overlap that was; an overlap without
        an end lasts throughout."""
        ...

    def state(self) -> bytes:
        """As `ports.Learner`."""
        ...

    def restore(self, state: bytes) -> None:
        """As `ports.Learner`."""
        ...
