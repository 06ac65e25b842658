"""Metrics say what happened, with few labels."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from cotenant.domain import (
    NS_PER_MS,
    JobClass,
    Observation,
    Outcome,
    OutcomeKind,
    Prediction,
    Request,
    Variant,
)
from cotenant.ports import Observer
from cotenant.telemetry.metrics import MAX_REASONS, Metrics

MS = NS_PER_MS


def outcome(kind: OutcomeKind, reason: str = "", model: str = "m", **more: Any) -> Outcome:
    request = Request(id="r", model=model, arrived_at=100 * MS, deadline_at=200 * MS)
    return Outcome(request=request, kind=kind, reason=reason, ended_at=150 * MS, **more)


def observation(ended_ms: int, finish_ms: tuple[int, ...] = (110, 120, 125, 130, 128)) -> Observation:
    prediction = Prediction(
        issued_at=100 * MS,
        finish_at=tuple(ms * MS for ms in finish_ms),
        slo_level=0.97,
        version=1,
        corunners=0,
    )
    return Observation(
        dispatch_id=1,
        variant=Variant("m", 4),
        rows=3,
        lane=1,
        share=1.0,
        decided_at=100 * MS,
        started_at=102 * MS,
        ended_at=ended_ms * MS,
        first_segment=0,
        end_segment=1,
        segment_ended_at=(),
        predictions=(prediction,),
        overlaps=(),
    )


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    for family in metrics.tally.collect():
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return sample.value
    return None


def test_metrics_is_an_observer() -> None:
    observer: Observer = Metrics()
    observer.settled(outcome(OutcomeKind.OK))


def test_an_answered_request_is_counted_and_timed() -> None:
    metrics = Metrics()
    metrics.settled(outcome(OutcomeKind.OK, started_at=120 * MS))
    assert value(metrics, "cotenant_requests_total", model="m", outcome="ok", reason="none") == 1
    assert value(metrics, "cotenant_request_latency_seconds_sum", model="m") == 0.05
    assert value(metrics, "cotenant_request_queue_seconds_sum", model="m") == 0.02
    assert value(metrics, "cotenant_request_service_seconds_sum", model="m") == 0.03


def test_a_refused_request_is_counted_and_not_timed() -> None:
    metrics = Metrics()
    for _ in range(2):
        metrics.settled(outcome(OutcomeKind.REJECTED, "quota exceeded"))
    assert (
        value(metrics, "cotenant_requests_total", model="m", outcome="rejected", reason="quota exceeded") == 2
    )
    assert value(metrics, "cotenant_request_latency_seconds_count", model="m") is None


def test_only_the_fixed_phrase_of_a_reason_becomes_a_label() -> None:
    metrics = Metrics()
    for ms in (1, 2, 3):
        metrics.settled(outcome(OutcomeKind.REJECTED, f"deadline infeasible: predicted {ms} ms"))
    labels = {"model": "m", "outcome": "rejected", "reason": "deadline infeasible"}
    assert value(metrics, "cotenant_requests_total", **labels) == 3


def test_reasons_that_are_fixed_phrases_are_told_apart() -> None:
    metrics = Metrics()
    for reason in ("not available: queue is full", "not available: the server is draining"):
        metrics.settled(outcome(OutcomeKind.REJECTED, reason))
        assert value(metrics, "cotenant_requests_total", model="m", outcome="rejected", reason=reason) == 1


def test_the_number_of_reasons_is_bounded() -> None:
    metrics = Metrics()
    for n in range(MAX_REASONS + 10):
        metrics.settled(outcome(OutcomeKind.FAILED, f"reason {n}"))
    assert value(metrics, "cotenant_requests_total", model="m", outcome="failed", reason="other") == 10


def test_a_dispatch_is_compared_with_its_prediction_at_dispatch() -> None:
    metrics = Metrics()
    metrics.observed(observation(ended_ms=122))
    assert value(metrics, "cotenant_batch_rows_sum", model="m") == 3
    assert value(metrics, "cotenant_lane_busy_seconds_total", lane="1") == 0.02
    assert value(metrics, "cotenant_prediction_ratio_sum", model="m") == 2.2
    assert value(metrics, "cotenant_predictions_total", model="m") == 1
    covered = {
        level: value(metrics, "cotenant_predictions_covered_total", model="m", level=level)
        for level in ("0.5", "0.9", "0.95", "0.99", "slo")
    }
    assert covered == {"0.5": 0, "0.9": 0, "0.95": 1, "0.99": 1, "slo": 1}


def test_a_prediction_of_no_span_gives_no_ratio() -> None:
    metrics = Metrics()
    metrics.observed(observation(ended_ms=122, finish_ms=(100, 100, 100, 100, 100)))
    assert value(metrics, "cotenant_prediction_ratio_count", model="m") == 0


def test_unmeasured_decisions_are_not_counted() -> None:
    metrics = Metrics()
    metrics.decided(0, at=1)
    metrics.decided(50_000, at=2)
    assert value(metrics, "cotenant_decision_seconds_count") == 1


def test_the_page_is_prometheus_text() -> None:
    metrics = Metrics()
    metrics.settled(outcome(OutcomeKind.LATE))
    page, content_type = metrics.render()
    assert content_type.startswith("text/plain")
    assert b'cotenant_requests_total{model="m",outcome="late",reason="none"} 1.0' in page


def test_requests_with_a_promise_are_counted_by_class_and_outcome() -> None:
    metrics = Metrics()
    metrics.settled(outcome(OutcomeKind.OK))
    metrics.settled(outcome(OutcomeKind.LATE))
    best_effort = Request(id="r", model="m", arrived_at=0, deadline_at=None, job_class=JobClass.BEST_EFFORT)
    metrics.settled(Outcome(request=best_effort, kind=OutcomeKind.OK, reason="", ended_at=1))
    counted = {"model": "m", "class": "standard"}
    assert value(metrics, "cotenant_slo_requests_total", **counted, outcome="ok") == 1
    assert value(metrics, "cotenant_slo_requests_total", **counted, outcome="late") == 1
    assert value(metrics, "cotenant_slo_requests_total", model="m", **{"class": "best_effort"}) is None


def test_slowdown_is_the_run_against_the_time_alone() -> None:
    metrics = Metrics(lambda variant: 10 * MS)
    metrics.observed(observation(117))
    assert value(metrics, "cotenant_run_slowdown_sum", model="m") == pytest.approx(1.5)
    assert value(metrics, "cotenant_run_corunners_sum", model="m") == 0


def test_the_slowdown_of_a_model_that_has_gone_is_not_known() -> None:
    def solo(variant: Variant) -> int:
        raise KeyError(variant)

    metrics = Metrics(solo)
    metrics.observed(observation(117))
    assert value(metrics, "cotenant_run_slowdown_count", model="m") == 0


def test_predicted_and_measured_spans_stand_side_by_side() -> None:
    metrics = Metrics()
    metrics.observed(observation(110))
    assert value(metrics, "cotenant_run_measured_seconds_sum", model="m") == pytest.approx(0.010)
    assert value(metrics, "cotenant_run_predicted_seconds_count", model="m") == 1


def test_openmetrics_shows_the_last_request_of_each_bucket() -> None:
    metrics = Metrics()
    traced = "5f5e100-2-4bf92f3577b34da6a3ce929d0e0e4736"
    for request_id in ("5f5e100-1", traced):
        request = Request(id=request_id, model="m", arrived_at=100 * MS, deadline_at=None)
        metrics.settled(Outcome(request=request, kind=OutcomeKind.OK, reason="", ended_at=150 * MS))
    page, content_type = metrics.render("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    (latency,) = [
        family
        for family in parse_openmetrics(page.decode())
        if family.name == "cotenant_request_latency_seconds"
    ]
    (example,) = [sample.exemplar for sample in latency.samples if sample.exemplar]
    assert example.labels == {"trace_id": traced[-32:], "request_id": traced}
    assert example.value == pytest.approx(0.05)
    plain, _ = metrics.render("text/plain")
    assert traced.encode() not in plain
