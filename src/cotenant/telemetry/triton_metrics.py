"""The counters under the names that Triton's users have dashboards for; `[server] triton_metrics = true`.

Durations are cumulative microseconds. Inputs and outputs are handed over inside a run, so their durations
stay 0. What expired in the queue counts as REJECTED, as with Triton's own queue timeouts. Triton's counters
do not end in `_total`, which OpenMetrics wants of counters: there they are of unknown type.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from prometheus_client.core import HistogramMetricFamily, Metric

from cotenant.domain import NS_PER_MS, Observation, Outcome, OutcomeKind
from cotenant.telemetry.gauges import EngineGauges
from cotenant.telemetry.tally import Count, Exemplify, Spread

RESPONSE_BUCKETS_MS = (100.0, 500.0, 2000.0, 5000.0)
FAILURES = {
    OutcomeKind.REJECTED: "REJECTED",
    OutcomeKind.EXPIRED: "REJECTED",
    OutcomeKind.CANCELLED: "CANCELED",
    OutcomeKind.FAILED: "BACKEND",
}
REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
NS_PER_US = 1000
NAMED = re.compile(rb"^(# (?:HELP|TYPE) nv_\w+)_total ", re.MULTILINE)


class _OfModel:
    """Sums of one model."""

    __slots__ = ("failed", "first_response", "infer", "n_rows", "n_runs", "queue", "request", "success")

    def __init__(self) -> None:
        self.success, self.n_rows, self.n_runs = Count(), Count(), Count()
        self.request, self.queue, self.infer = Count(), Count(), Count()
        self.failed = {reason: Count() for reason in REASONS}
        self.first_response = Spread(RESPONSE_BUCKETS_MS)


class TritonMetrics:
    """An `Observer`. `version_of`: the newest version of a model whose name has none."""

    def __init__(self, version_of: Callable[[str], str] = lambda model: "1") -> None:
        self.version_of = version_of
        self._models: dict[str, _OfModel] = {}

    def settled(self, outcome: Outcome) -> None:
        """Count a request's end and its durations."""
        sums = self._of_model(outcome.request.model)
        reason = FAILURES.get(outcome.kind)
        if reason is not None:
            sums.failed[reason].inc()
            return
        arrived_at, ended_at = outcome.request.arrived_at, outcome.ended_at
        sums.success.inc()
        sums.n_rows.inc(outcome.request.rows)
        sums.request.inc((ended_at - arrived_at) / NS_PER_US)
        sums.first_response.observe((ended_at - arrived_at) / NS_PER_MS)
        if outcome.started_at is not None:
            sums.queue.inc((outcome.started_at - arrived_at) / NS_PER_US)
            sums.infer.inc((ended_at - outcome.started_at) / NS_PER_US)

    def observed(self, observation: Observation) -> None:
        """Count a run."""
        self._of_model(observation.variant.model).n_runs.inc()

    def decided(self, spent_ns: int, at: int) -> None:
        """Triton has nothing of the kind."""

    def _of_model(self, model: str) -> _OfModel:
        sums = self._models.get(model)
        if sums is None:
            sums = self._models[model] = _OfModel()
        return sums

    def collect(self, gauges: EngineGauges, exemplar: Exemplify | None = None) -> Iterator[Metric]:
        """Every family; `exemplar` is given where the page is OpenMetrics."""
        kind = "counter" if exemplar is None else "unknown"
        models = list(self._models.items())
        for name, text, of in COUNTERS:
            family = Metric(name, text, kind)
            for model, sums in models:
                family.add_sample(name, self._labels(model), of(sums).value)
            yield family
        failures = Metric("nv_inference_request_failure", "Requests that failed, by reason.", kind)
        for model, sums in models:
            for reason, count in sums.failed.items():
                failures.add_sample(failures.name, self._labels(model) | {"reason": reason}, count.value)
        yield failures
        pending = Metric("nv_inference_pending_request_count", "Requests that wait.", "gauge")
        for model, now in gauges.models.items():
            pending.add_sample(pending.name, self._labels(model), now.waiting)
        yield pending
        response = HistogramMetricFamily(
            "nv_inference_first_response_histogram_ms", "Arrival to answer (ms).", labels=["model", "version"]
        )
        for model, sums in models:
            sums.first_response.add_to(response, list(self._labels(model).values()))
        yield response

    def _labels(self, model: str) -> dict[str, str]:
        """To the engine a version of a repository's model is a model of its own; Triton has labels for it."""
        name, _, version = model.partition("@")
        return {"model": name, "version": version or self.version_of(model)}


COUNTERS: tuple[tuple[str, str, Callable[[_OfModel], Count]], ...] = (
    ("nv_inference_request_success", "Requests that were answered.", lambda sums: sums.success),
    ("nv_inference_count", "Rows that were inferred.", lambda sums: sums.n_rows),
    ("nv_inference_exec_count", "Batches that were run.", lambda sums: sums.n_runs),
    ("nv_inference_request_duration_us", "Arrival to answer (us).", lambda sums: sums.request),
    ("nv_inference_queue_duration_us", "Arrival to start (us).", lambda sums: sums.queue),
    ("nv_inference_compute_input_duration_us", "Always 0.", lambda sums: Count()),
    ("nv_inference_compute_infer_duration_us", "Start to end (us).", lambda sums: sums.infer),
    ("nv_inference_compute_output_duration_us", "Always 0.", lambda sums: Count()),
)


def as_named(page: bytes) -> bytes:
    """A page of Prometheus' text in which Triton's counters are called what Triton calls them."""
    return NAMED.sub(rb"\1 ", page)


class TritonPage:
    """Shows the counters, with gauges of an instant."""

    def __init__(self, metrics: TritonMetrics, gauges: EngineGauges) -> None:
        self._metrics, self._gauges = metrics, gauges

    def collect(self, exemplar: Exemplify | None = None) -> Iterator[Metric]:
        """Every family."""
        return self._metrics.collect(self._gauges, exemplar)
