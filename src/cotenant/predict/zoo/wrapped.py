"""What both wrappers share: when a model is fitted, what it is taught, quantiles, and the stored state."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from cotenant.domain import Observation, Snapshot
from cotenant.ports import LaneInfo
from cotenant.predict.solo import possible
from cotenant.predict.zoo.margins import Margins, MarginsState, remaining
from cotenant.predict.zoo.seam import Row, SlowdownModel, decoded
from cotenant.predict.zoo.workloads import Key, Workloads
from cotenant.profile.features import FeatureTable, WorkloadFeatures

FIRST_FIT = 200
"""Rows after which a model is fitted that never was."""
FORMAT = 1
LEAST_LEFT = 0.02
"""Share of its solo span that a run which should have ended is taken to have left."""
MOST_CACHED = 20_000

MakeModel = Callable[[FeatureTable], SlowdownModel]
_Entry = tuple[Key, list[tuple[Key, float]], float]


class _State(msgspec.Struct):
    format: int
    name: str
    version: int
    fitted: bool
    n_since: int
    n_refused: int
    model: bytes
    rows: list[_Entry]
    margins: MarginsState


class Wrapped:
    """A `SlowdownModel` as a predictor, but for `predict` and `given_overlap`. Deterministic in what it was
    taught."""

    def __init__(self, name: str, features: FeatureTable, lanes: Sequence[LaneInfo], make: MakeModel) -> None:
        self.name = name
        self.version = 0
        self.n_refused = 0
        self.workloads = Workloads(features, lanes)
        self.margins = Margins()
        self._model = make(self.workloads.table)
        self._fitted = False
        self._rows: deque[Row] = deque(maxlen=self._model.window)
        self._n_since = 0
        self._cache: dict[tuple[int, ...], float] = {}

    # --- learning -----------------------------------------------------------------------------------------

    def fit(self, observations: Sequence[Observation]) -> None:
        """See `StudyPredictor.fit`."""
        found = [self.workloads.row(o) for o in observations if possible(o)]
        rows = [row for row in found if row is not None]
        if rows:
            self._rows.extend(rows)
            self._fit(rows)

    def _fit(self, rows: Sequence[Row]) -> None:
        self._model.fit(rows)
        self._fitted, self._n_since = True, 0
        self._changed()

    def _changed(self) -> None:
        self.version += 1
        self._cache.clear()

    def learn(self, observation: Observation) -> int | None:
        """See `StudyPredictor.learn`."""
        if not possible(observation):
            self.n_refused += 1
            return None
        row = self.workloads.row(observation)
        if row is None:
            return None
        self.margins.learn(observation)
        self.version += 1
        if self._model.learn(row):
            self._cache.clear()
        wanted = self._model.refit_every if self._fitted else FIRST_FIT
        if wanted:
            self._rows.append(row)
            self._n_since += 1
            if self._n_since >= wanted:
                self._fit(list(self._rows))
        return self.version

    # --- asking -------------------------------------------------------------------------------------------

    def momentary(self, victim: WorkloadFeatures, others: Sequence[WorkloadFeatures]) -> float:
        """Slowdown while exactly these are beside it."""
        key = (id(victim), *sorted(map(id, others)))
        found = self._cache.get(key)
        if found is None:
            if len(self._cache) >= MOST_CACHED:
                self._cache.clear()
            found = self._cache[key] = self._model.slowdown(victim, [(other, 1.0) for other in others])
        return found

    def _in_flight(self, snapshot: Snapshot, spans: Sequence[float], n_joining: int = 0) -> list[list[int]]:
        """Quantiles of the finish of what is in flight, from medians (ns from now)."""
        at, n_beside = snapshot.at, len(snapshot.in_flight) - 1 + n_joining
        return [
            remaining(
                at, span, at - flight.decided_at, self.margins.offsets(flight.variant.model, n_beside, at)
            )
            for flight, span in zip(snapshot.in_flight, spans, strict=True)
        ]

    # --- state --------------------------------------------------------------------------------------------

    def state(self) -> bytes:
        """See `StudyPredictor.state`."""
        key = self.workloads.key_of
        keeps = not self._fitted or self._model.refit_every > 0
        return msgspec.msgpack.encode(
            _State(
                format=FORMAT,
                name=self.name,
                version=self.version,
                fitted=self._fitted,
                n_since=self._n_since,
                n_refused=self.n_refused,
                model=self._model.state(),
                rows=[
                    (key(row.victim), [(key(other), w) for other, w in row.others], row.slowdown)
                    for row in (self._rows if keeps else ())
                ],
                margins=self.margins.state(),
            )
        )

    def restore(self, state: bytes) -> None:
        """See `StudyPredictor.restore`."""
        found = decoded(state, _State)
        if (found.format, found.name) != (FORMAT, self.name):
            raise ValueError(
                f"the learned state is of {found.name!r}, format {found.format}; expected {self.name!r}, "
                f"format {FORMAT}"
            )
        at = self.workloads.at
        try:
            rows = [Row(at(v), tuple((at(o), w) for o, w in others), s) for v, others, s in found.rows]
        except KeyError as error:
            raise ValueError(f"the learned state has runs of an unknown model: {error}") from error
        self._model.restore(found.model)
        self.margins.restore(found.margins)
        self._rows = deque(rows, maxlen=self._model.window)
        self._fitted, self._n_since = found.fitted, found.n_since
        self._cache.clear()
        self.version, self.n_refused = found.version, found.n_refused
