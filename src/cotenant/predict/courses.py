"""Lays out for the compiled forecast what is in flight, what might be dispatched, and who may join.

Only indices and instants are gathered here; everything else is looked up and computed in
`forecast_kernel.py`, also the progress of what is in flight: it is never stored. What is remembered from call
to call are values that were handed in, so an answer does not depend on what was asked before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count

import numpy as np

from cotenant.domain import (
    NS_PER_S,
    SLO_COLUMN,
    Candidate,
    LaneUse,
    LoadEstimate,
    Observation,
    Snapshot,
    Variant,
)
from cotenant.predict.calibrate import Calibrator
from cotenant.predict.estimator import Estimator, Overlapped
from cotenant.predict.flights import FlightTables
from cotenant.predict.forecast_kernel import ON_LANE, SEGMENT, WORK, forecast
from cotenant.predict.row_kernels import Array
from cotenant.predict.workloads import Known

MOST_IN_MIX = 8
"""Workloads that joiners are made of."""
N_LEVELS = SLO_COLUMN + 1
UNKNOWN_USE = -1.0


class Courses:
    """Asks `forecast_kernel.forecast`. `declare` makes a model known to the calibrator."""

    def __init__(
        self,
        estimator: Estimator,
        calibrator: Calibrator,
        declare: Callable[[str], None],
        *,
        joiners: bool = True,
    ) -> None:
        self._estimator, self._calibrator, self._declare = estimator, calibrator, declare
        self._joiners = joiners
        self._tables = FlightTables(estimator, self._know)
        self._mix: tuple[tuple[Variant, float], ...] = ()
        self._mix_index: Array = np.zeros(0, np.int64)
        self._mix_weights: Array = np.zeros(0)
        self._uses: Array = np.full((len(estimator.lanes), 2), UNKNOWN_USE)
        self._lanes: list[LaneUse | None] = [None] * len(estimator.lanes)
        self._n_used = 0
        self._none = np.zeros(0, np.int64), np.zeros(0), np.zeros((0, 2)), 0.0

    def forget(self) -> None:
        """Workloads have changed: indices of them do not hold any more."""
        self._tables.forget()
        self._mix = ()

    def ask(
        self, snapshot: Snapshot, candidates: Sequence[Candidate], handover_ns: float
    ) -> tuple[Array, Array]:
        """Quantiles of finish instants (ns): row 0 of what is in flight without any candidate, row 1 + c with
        candidate c, whose own stand last (1 + n_candidates x n_in_flight + 1 x n_levels). And what is issued
        with each candidate's: its median span (ns) and the log offsets (n_candidates x 1 + n_levels)."""
        estimator, at = self._estimator, snapshot.at
        tables = self._tables
        in_flight = tables.rows(snapshot.in_flight)
        n_asked = len(candidates)
        asked, starts = np.empty((n_asked, 3), np.int64), np.empty(n_asked)
        for c, candidate in enumerate(candidates):
            known = estimator.workload(candidate.variant, candidate.share)
            if not known.declared:
                self._know(known)
            asked[c, WORK], asked[c, ON_LANE] = known.index, estimator.lane(candidate.lane)
            asked[c, SEGMENT] = candidate.first_segment
            starts[c] = candidate.start_at - at if candidate.start_at > at else 0
        mix, weights, uses, leave_per_s = self._joining(snapshot.load)
        quantiles = np.zeros((1 + n_asked, len(in_flight) + 1, N_LEVELS), np.int64)
        issued = np.zeros((n_asked, 1 + N_LEVELS))
        for n_before in count():
            n_missing = forecast(
                at, estimator.step(), handover_ns, in_flight, tables.flights, tables.instants, tables.who,
                tables.times, asked, starts, mix, weights, uses, leave_per_s, estimator.tables.all,
                estimator.places, estimator.beliefs, estimator.pair_map.bias, estimator.pair_map.scale,
                self._calibrator.tables, self._calibrator.on_grid(at), quantiles, issued,
            )  # fmt: skip
            if not n_missing:
                break
            estimator.rows.fill(n_missing, n_before)
        return quantiles, issued

    def beside(self, known: Known, observation: Observation) -> Overlapped:
        """Who was beside a run that has ended; until the next call."""
        overlaps = observation.overlaps
        first = self._tables.ended(observation.dispatch_id, known, observation.lane, overlaps)
        return Overlapped(self._tables.who, self._tables.times, first, len(overlaps))

    def _know(self, known: Known) -> None:
        """See that the calibrator knows a workload's model."""
        model = known.features.variant.model
        self._declare(model)
        self._estimator.tables.of_model[known.index] = self._calibrator.index(model)
        known.declared = True

    # --- joiners ----------------------------------------------------------------------------------------

    def _joining(self, load: LoadEstimate | None) -> tuple[Array, Array, Array, float]:
        """Workloads that may join, their shares, how lanes are used, and at which rate (per s) they leave;
        nothing where that is not known."""
        likely = load is not None and load.span_ns > 0 and bool(load.lanes) and bool(load.variants)
        if load is None or not likely or not self._joiners or not self._lanes:
            return self._none
        if load.variants is not self._mix:
            self._take_mix(load.variants)
        self._take_uses(load.lanes)
        if self._n_used > len(load.lanes):
            self._lanes, self._n_used = [None] * len(self._lanes), 0
            self._uses[:] = UNKNOWN_USE
            self._take_uses(load.lanes)
        return self._mix_index, self._mix_weights, self._uses, NS_PER_S / load.span_ns

    def _take_uses(self, of_lanes: Sequence[LaneUse]) -> None:
        """Write what has changed of how lanes are used."""
        lanes, uses = self._lanes, self._uses
        for use in of_lanes:
            lane = use.lane
            if lane < len(lanes) and lanes[lane] is not use:
                self._n_used += lanes[lane] is None
                lanes[lane] = use
                uses[lane] = (use.fill_per_s, use.refill)

    def _take_mix(self, mix: tuple[tuple[Variant, float], ...]) -> None:
        self._mix = mix
        known = [self._estimator.workload(variant, 1.0).index for variant, _ in mix[:MOST_IN_MIX]]
        weights = np.array([weight for _, weight in mix[:MOST_IN_MIX]])
        self._mix_index, self._mix_weights = np.array(known, np.int64), weights / weights.sum()
