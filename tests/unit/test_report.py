"""The report counts what its definitions say, on cases small enough to count by hand."""

from __future__ import annotations

import json

import pytest
from msgspec import structs

from cotenant.domain import JobClass, Observation, OutcomeKind, Overlap, Prediction, Variant
from cotenant.experiment.report import BusyInterval, RequestRecord, RunFacts, build_report

MS = 1_000_000


def record(
    kind: str, ended_ms: float, *, model: str = "a", job_class: JobClass = JobClass.STANDARD
) -> RequestRecord:
    return RequestRecord(
        model=model,
        job_class=job_class,
        kind=OutcomeKind(kind),
        intended_at=0,
        ended_at=int(ended_ms * MS),
        deadline_at=20 * MS,
    )


def facts(**more: object) -> RunFacts:
    values: dict[str, object] = {
        "policy": "p", "seed": 1, "duration_s": 2.0, "config": {}, "device": {}, "solo_ms": {"a": 5.0},
    }  # fmt: skip
    return RunFacts(**{**values, **more})  # type: ignore[arg-type]


def test_attainment_counts_every_offered_request() -> None:
    kinds = ("ok", "ok", "late", "rejected", "expired", "cancelled", "failed", "ok")
    report = build_report([record(kind, 10) for kind in kinds], facts())
    assert report["offered"] == 8 == sum(report[kind.value] for kind in OutcomeKind)
    assert report["attainment"] == 3 / 8
    assert report["goodput_per_s"] == 1.5
    assert report["useful_load"] == pytest.approx(3 * 0.005 / 2)


def test_best_effort_work_is_reported_apart() -> None:
    rows = [record("ok", 10), record("ok", 10, model="b", job_class=JobClass.BEST_EFFORT),
            record("late", 30, model="b", job_class=JobClass.BEST_EFFORT)]  # fmt: skip
    report = build_report(rows, facts())
    assert report["offered"] == 1
    assert report["per_class"]["best_effort"]["ok"] == 2
    assert report["per_model"]["b"]["attainment"] is None
    assert report["per_class"]["standard"]["attainment"] == 1.0


def test_an_unanswered_request_counts_at_its_deadline_in_tail_variability() -> None:
    answered = [record("ok", 10) for _ in range(50)]
    calm = build_report(answered, facts())["tail_variability"]
    refused = build_report([*answered, *(record("rejected", 0.1) for _ in range(50))], facts())
    assert calm == 0.0
    assert refused["tail_variability"] == pytest.approx((20 - 15) / 5, abs=0.1)


def test_busy_is_the_union_of_the_lanes_and_load_their_weighted_sum() -> None:
    busy = [
        BusyInterval(began_at=0, ended_at=1000 * MS, share=0.5),
        BusyInterval(began_at=500 * MS, ended_at=1500 * MS, share=0.5),
    ]
    report = build_report([], facts(busy=busy))
    assert report["device_busy"] == pytest.approx(0.75)
    assert report["device_load"] == pytest.approx(0.5)


def test_prediction_errors_are_of_the_span_from_dispatch_to_end() -> None:
    predicted = Prediction(
        issued_at=0,
        finish_at=(8 * MS, 9 * MS, 10 * MS, 12 * MS, 12 * MS),
        slo_level=0.99,
        version=1,
        corunners=0,
    )
    seen = Observation(
        dispatch_id=1, variant=Variant("a", 1), rows=2, lane=0, share=1.0, decided_at=0, started_at=MS,
        ended_at=10 * MS, first_segment=0, end_segment=1, segment_ended_at=(), predictions=(predicted,),
        overlaps=(),
    )  # fmt: skip
    report = build_report([], facts(observations=[seen]))
    scores = report["prediction"]
    assert scores["n"] == 1
    assert scores["mape"] == pytest.approx(0.2)
    assert scores["signed_error"] == pytest.approx(-0.2)
    assert scores["coverage"] == {"0.9": 0.0, "0.95": 1.0, "0.99": 1.0}
    assert report["mean_batch"] == 2
    beside = [
        Overlap(2, Variant("b", 1), 2 * MS, 5 * MS),
        Overlap(3, Variant("b", 1), 5 * MS, None),
        Overlap(4, Variant("b", 1), 6 * MS, 7 * MS),
    ]
    crowded = structs.replace(seen, overlaps=tuple(beside))
    stopped = structs.replace(seen, end_segment=4, segment_ended_at=(2 * MS, 3 * MS), ended_at=3 * MS)
    scores = build_report([], facts(observations=[seen, crowded, stopped]))["prediction"]
    assert scores["n"] == 2  # one that was stopped was predicted to its end
    assert {key: of["n"] for key, of in scores["in_flight"].items()} == {"1": 1, "3": 1}
    assert scores["in_flight"]["3"]["mape"] == pytest.approx(0.2)


def test_an_empty_run_is_valid_json_without_nan() -> None:
    found = json.loads(json.dumps(build_report([], facts()), allow_nan=False))
    for key in ("attainment", "rejected_lead_ms", "best_effort_per_s"):
        assert found[key] is None
    assert found["fairness"] == {"worst_model": {"name": None, "attainment": None}, "jain": None}


def test_fairness_names_the_worst_model_and_leaves_best_effort_out() -> None:
    rows = [record("ok", 10) for _ in range(4)]
    rows += [record("ok", 10, model="b"), record("late", 30, model="b")]
    rows += [record("late", 30, model="c", job_class=JobClass.BEST_EFFORT)]
    fairness = build_report(rows, facts())["fairness"]
    assert fairness["worst_model"] == {"name": "b", "attainment": 0.5}
    assert fairness["jain"] == pytest.approx((1 + 0.5) ** 2 / (2 * (1 + 0.25)))


def test_when_nobody_gets_anything_there_is_no_index_of_fairness() -> None:
    fairness = build_report([record("late", 30), record("expired", 30, model="b")], facts())["fairness"]
    assert fairness == {"worst_model": {"name": "a", "attainment": 0.0}, "jain": None}


def test_the_lead_of_refusals_is_the_median_time_left_when_they_were_told() -> None:
    rows = [record("rejected", ended) for ended in (1, 2, 15)]
    rows += [record("expired", 0.5), record("ok", 3), record("rejected", 19, model="b")]
    report = build_report(rows, facts())
    assert report["per_model"]["a"]["rejected_lead_ms"] == pytest.approx(18)
    assert report["per_model"]["b"]["rejected_lead_ms"] == pytest.approx(1)
    assert report["rejected_lead_ms"] == pytest.approx((18 + 5) / 2)
    assert build_report([record("ok", 3)], facts())["rejected_lead_ms"] is None


def test_best_effort_throughput_counts_every_answer() -> None:
    kinds = ("ok", "late", "expired", "ok")
    rows = [record(kind, 10, model="b", job_class=JobClass.BEST_EFFORT) for kind in kinds]
    assert build_report([record("ok", 10), *rows], facts())["best_effort_per_s"] == 1.5


def test_percentiles_and_mean_batch_are_those_of_the_answers() -> None:
    rows = [record("ok", float(ms)) for ms in range(1, 102)] + [record("failed", 5000)]
    report = build_report(rows, facts())
    assert (report["p50_ms"], report["p95_ms"], report["p99_ms"]) == pytest.approx((51, 96, 100))
    two = [structs.replace(record("ok", 5), batch_rows=rows) for rows in (1, 3, 3, 3, 0)]
    assert build_report(two, facts())["mean_batch"] == pytest.approx(2.0)
