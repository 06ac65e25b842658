"""What a study asks of a predictor: the fluid one and every baseline of `zoo`, driven by the same code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cotenant.domain import Candidate, Observation, Snapshot
from cotenant.ports import Forecast


class StudyPredictor(Protocol):
    """A predictor under study. Deterministic in (what it was taught, arguments); asking never changes an
    answer."""

    @property
    def name(self) -> str:
        """As tables show it."""
        ...

    def fit(self, observations: Sequence[Observation]) -> None:
        """Batch training in time order, before anything is predicted: steady runs (overlaps without an end)
        or intervals."""
        ...

    def predict(self, snapshot: Snapshot, candidates: Sequence[Candidate]) -> Forecast:
        """As `ports.Predictor.predict`; `features[c][0]` is the median span (ns) of candidate c before
        quantile offsets. What `features` holds comes back in the observation's first prediction."""
        ...

    def learn(self, observation: Observation) -> int | None:
        """Online: returns the new version, None where nothing changed. What is not finite or impossible is
        refused. Predictors that are fitted in batches refit on a buffer now and then, or do nothing."""
        ...

    def given_overlap(self, observation: Observation) -> float:
        """Span (ns) from start to end that is expected for exactly the overlap that was; an overlap without
        an end lasts throughout."""
        ...

    def state(self) -> bytes:
        """All that was learned; see `restore`."""
        ...

    def restore(self, state: bytes) -> None:
        """Take over a stored state, with identical predictions. Raises ValueError when it cannot be used."""
        ...
