"""Prometheus metrics of one engine, fed as an `Observer`; `exposition.py` makes pages of them.

Label sets stay small: models come from the configuration, and of a reason that goes into details (`DETAILED`)
only the phrase before ":" is kept; there are at most `MAX_REASONS` different ones.
"""

from __future__ import annotations

from collections.abc import Callable

from cotenant.domain import LEVELS, NS_PER_S, JobClass, Observation, Outcome, OutcomeKind, Request, Variant
from cotenant.telemetry.exposition import page
from cotenant.telemetry.tally import Count, Tally

SPAN_BUCKETS_S = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
DECISION_BUCKETS_S = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
ROWS_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
RATIO_BUCKETS = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 2.0, 3.0, 5.0, 10.0)
SLOWDOWN_BUCKETS = (0.8, 0.9, 1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0, 10.0)
CORUNNERS_BUCKETS = (0, 1, 2, 3, 4, 6, 8, 12, 16)
MAX_REASONS = 64
OTHER = "other"
DETAILED = ("deadline infeasible", "execution failed")
"""Reasons with figures or an error's text behind the ':'."""

LEVEL_LABELS = (*(f"{level:g}" for level in LEVELS), "slo")
"""Label of each column of a prediction; `slo` is the model's own `slo_percentile`."""


class _OfModel:
    """The label children of one model."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self.latency = metrics.latency.labels(model)
        self.queue = metrics.queue.labels(model)
        self.service = metrics.service.labels(model)
        self.rows = metrics.rows.labels(model)
        self.ratio = metrics.ratio.labels(model)
        self.predicted_span = metrics.predicted_span.labels(model)
        self.measured_span = metrics.measured_span.labels(model)
        self.slowdown = metrics.slowdown.labels(model)
        self.corunners = metrics.corunners.labels(model)
        self.predicted = metrics.predicted.labels(model)
        self.covered = tuple(metrics.covered.labels(model, level) for level in LEVEL_LABELS)


class Metrics:
    """An `Observer`. `solo` tells the measured span (ns) of a variant with nobody beside it, KeyError where
    it is unknown; slowdowns are compared with it."""

    def __init__(self, solo: Callable[[Variant], int] | None = None) -> None:
        self.solo = solo
        self.tally = tally = Tally()
        of_model, seconds = ("model",), SPAN_BUCKETS_S
        self.latency = tally.histogram(
            "cotenant_request_latency_seconds", "Arrival to answer, ok and late.", of_model, seconds
        )
        self.queue = tally.histogram(
            "cotenant_request_queue_seconds",
            "Arrival to the start of the run, ok and late.",
            of_model,
            seconds,
        )
        self.service = tally.histogram(
            "cotenant_request_service_seconds",
            "Start of the run to the answer, ok and late.",
            of_model,
            seconds,
        )
        self.outcomes = tally.counter(
            "cotenant_requests", "Requests by how they ended.", ("model", "outcome", "reason")
        )
        self.slo = tally.counter(
            "cotenant_slo_requests",
            "Protected and standard requests by how they ended; attainment is the share with outcome ok.",
            ("model", "class", "outcome"),
        )
        self.denials = tally.counter(
            "cotenant_denied",
            "Requests refused for their key, by reason, whatever they asked for.",
            ("reason",),
        )
        self.rows = tally.histogram(
            "cotenant_batch_rows", "Rows per completed dispatch.", of_model, ROWS_BUCKETS
        )
        self.ratio = tally.histogram(
            "cotenant_prediction_ratio",
            "Measured span / predicted median span, dispatch to end.",
            of_model,
            RATIO_BUCKETS,
        )
        self.predicted_span = tally.histogram(
            "cotenant_run_predicted_seconds", "Median span predicted at dispatch.", of_model, seconds
        )
        self.measured_span = tally.histogram(
            "cotenant_run_measured_seconds",
            "Measured span of the same dispatches, dispatch to end.",
            of_model,
            seconds,
        )
        self.slowdown = tally.histogram(
            "cotenant_run_slowdown",
            "Start to end / measured span with nobody beside it, of runs that were not stopped.",
            of_model,
            SLOWDOWN_BUCKETS,
        )
        self.corunners = tally.histogram(
            "cotenant_run_corunners", "Dispatches that ran beside one.", of_model, CORUNNERS_BUCKETS
        )
        self.predicted = tally.counter("cotenant_predictions", "Dispatches with a prediction.", of_model)
        self.covered = tally.counter(
            "cotenant_predictions_covered",
            "Dispatches that ended by the quantile predicted at dispatch; divide by cotenant_predictions.",
            ("model", "level"),
        )
        self.lane_busy = tally.counter(
            "cotenant_lane_busy_seconds", "Time a lane spent on completed runs.", ("lane",)
        )
        self.device_busy = tally.counter(
            "cotenant_device_busy_seconds", "Time with any lane running."
        ).labels()
        self.absolute_error = tally.summary(
            "cotenant_prediction_absolute_error", "|predicted - measured| / measured span, dispatch to end."
        ).labels()
        # two gauges and no summary: OpenMetrics has no sums that may shrink
        self.signed_sum = tally.gauge(
            "cotenant_prediction_signed_error_sum",
            "Sum of (predicted - measured) / measured span, dispatch to end.",
        ).labels()
        self.signed_count = tally.gauge(
            "cotenant_prediction_signed_error_count", "Dispatches in that sum."
        ).labels()
        self.decision = tally.histogram(
            "cotenant_decision_seconds",
            "Real time of one decision of the scheduler.",
            (),
            DECISION_BUCKETS_S,
        ).labels()
        self._covered_until: list[tuple[int, int]] = []
        self._models: dict[str, _OfModel] = {}
        self._outcomes: dict[tuple[str, str, str], Count] = {}
        self._slo: dict[tuple[str, JobClass, OutcomeKind], Count] = {}
        self._reasons: set[str] = set()
        self._lanes: dict[int, Count] = {}

    def settled(self, outcome: Outcome) -> None:
        """Count a request's end; time it if it was answered."""
        request = outcome.request
        model = request.model
        key = (model, outcome.kind.value, outcome.reason)
        counter = self._outcomes.get(key)
        (counter or self._outcome(model, outcome.kind, outcome.reason)).inc()
        if request.job_class is not JobClass.BEST_EFFORT:
            (self._slo.get((model, request.job_class, outcome.kind)) or self._promised(outcome)).inc()
        if outcome.kind is not OutcomeKind.OK and outcome.kind is not OutcomeKind.LATE:
            return
        children = self._of_model(model)
        arrived_at, ended_at = request.arrived_at, outcome.ended_at
        children.latency.observe_of((ended_at - arrived_at) / NS_PER_S, request.id, ended_at)
        if outcome.started_at is not None:
            children.queue.observe_of((outcome.started_at - arrived_at) / NS_PER_S, request.id, ended_at)
            children.service.observe_of((ended_at - outcome.started_at) / NS_PER_S, request.id, ended_at)

    def refused(self, model: str, reason: str) -> None:
        """Count a request that the front end refused before the engine saw it."""
        key = (model, OutcomeKind.REJECTED.value, reason)
        counter = self._outcomes.get(key)
        (counter or self._outcome(model, OutcomeKind.REJECTED, reason)).inc()

    def denied(self, reason: str) -> None:
        """Count a request that was refused for its key."""
        self.denials.labels(reason).inc()

    def observed(self, observation: Observation) -> None:
        """Count a completed dispatch and compare it with what was predicted when it was made."""
        children = self._of_model(observation.variant.model)
        children.rows.observe(observation.rows)
        busy_ns = max(0, observation.ended_at - observation.started_at)
        self._lane(observation.lane).inc(busy_ns / NS_PER_S)
        children.corunners.observe(len(observation.overlaps))
        if self.solo is not None and not observation.first_segment and not observation.preempted:
            self._slow_down(children, observation.variant, busy_ns)
        self.device_busy.inc(self._newly_covered(observation.started_at, observation.ended_at) / NS_PER_S)
        if not observation.predictions:
            return
        finish_at = observation.predictions[0].finish_at
        predicted_ns = finish_at[0] - observation.decided_at
        if predicted_ns > 0:
            measured_ns = max(1, observation.ended_at - observation.decided_at)
            children.ratio.observe(measured_ns / predicted_ns)
            children.predicted_span.observe(predicted_ns / NS_PER_S)
            children.measured_span.observe(measured_ns / NS_PER_S)
            error = (predicted_ns - measured_ns) / measured_ns
            self.signed_sum.inc(error)
            self.signed_count.inc()
            self.absolute_error.observe(abs(error))
        children.predicted.inc()
        for covered, at in zip(children.covered, finish_at, strict=False):
            if observation.ended_at <= at:
                covered.inc()

    def _newly_covered(self, began_at: int, ended_at: int) -> int:
        """How much of the interval no earlier one has covered (ns). Runs end in order of time, so only the
        last few stretches can still be touched."""
        covered = 0
        while self._covered_until and self._covered_until[-1][1] >= began_at:
            begin, end = self._covered_until.pop()
            covered += end - begin
            began_at, ended_at = min(begin, began_at), max(end, ended_at)
        self._covered_until.append((began_at, ended_at))
        del self._covered_until[:-64]
        return ended_at - began_at - covered

    def decided(self, spent_ns: int, at: int) -> None:
        """Time one decision; 0 means that it was not measured."""
        if spent_ns > 0:
            self.decision.observe(spent_ns / NS_PER_S)

    def _slow_down(self, children: _OfModel, variant: Variant, busy_ns: int) -> None:
        assert self.solo is not None
        try:
            solo_ns = self.solo(variant)
        except KeyError:  # the model has gone meanwhile
            return
        if solo_ns > 0:
            children.slowdown.observe(busy_ns / solo_ns)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The page of these alone and its content type, for a client that accepts `accept`."""
        return page([self.tally], accept)

    def _of_model(self, model: str) -> _OfModel:
        children = self._models.get(model)
        if children is None:
            children = self._models[model] = _OfModel(self, model)
        return children

    def _lane(self, lane: int) -> Count:
        counter = self._lanes.get(lane)
        if counter is None:
            counter = self._lanes[lane] = self.lane_busy.labels(str(lane))
        return counter

    def _promised(self, outcome: Outcome) -> Count:
        request: Request = outcome.request
        counter = self.slo.labels(request.model, request.job_class.name.lower(), outcome.kind.value)
        self._slo[request.model, request.job_class, outcome.kind] = counter
        return counter

    def _outcome(self, model: str, kind: OutcomeKind, reason: str) -> Count:
        phrase = reason.partition(":")[0].strip()
        if phrase not in DETAILED:
            phrase = reason.strip() or "none"
        if phrase not in self._reasons:
            if len(self._reasons) >= MAX_REASONS:
                phrase = OTHER
            else:
                self._reasons.add(phrase)
        key = (model, kind.value, phrase)
        counter = self._outcomes.get(key)
        if counter is None:
            counter = self._outcomes[key] = self.outcomes.labels(*key)
        return counter
