"""The run report: one JSON object per run, with the definitions of what it counts.

Top-level counts, attainment, goodput and percentiles cover protected and standard work only; best-effort work
is in `per_class.best_effort`, `per_model` and `best_effort_per_s` (answers per second). Shares and errors are
fractions; what cannot be said is null.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from cotenant.domain import LEVELS, NS_PER_MS, NS_PER_S, Observation, OutcomeKind
from cotenant.experiment.request_columns import (
    CODES,
    KINDS,
    NEVER,
    RequestColumns,
    RequestRecord,
    columns_of,
)

__all__ = ["BusyInterval", "RequestRecord", "RunFacts", "build_report", "prediction_scores", "versions"]
Spans = NDArray[np.float64]


class BusyInterval(Struct, frozen=True, kw_only=True, gc=False):
    """A lane ran something; `share` of the device's compute units (0..1)."""

    began_at: int
    ended_at: int
    share: float


@dataclass(slots=True, kw_only=True)
class RunFacts:
    """Everything about a run besides its requests."""

    policy: str
    seed: int
    duration_s: float
    config: Mapping[str, Any]
    device: Mapping[str, Any]
    wall_s: float = 0.0
    solo_ms: Mapping[str, float] = field(default_factory=dict)
    busy: Sequence[BusyInterval] = ()
    units_ns: float | None = None
    """Time with all compute units in use that the run amounts to (ns), where the device tells; else lanes
    count with their units."""
    observations: Sequence[Observation] = ()
    decision_ns: Sequence[int] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


def build_report(records: Sequence[RequestRecord], facts: RunFacts) -> dict[str, Any]:
    """The report of DESIGN.md section 6 as plain JSON values (never NaN)."""
    requests = columns_of(records)
    counted = requests.take(requests.counts_in)
    in_time = requests.model[requests.kind == CODES[OutcomeKind.OK]]
    n_ok = zip(requests.names, np.bincount(in_time, minlength=len(requests.names)).tolist(), strict=True)
    useful_ms = sum(facts.solo_ms.get(name, 0.0) * n for name, n in n_ok)
    batches = [observation.rows for observation in facts.observations]
    per_model = {name: _group(rows, facts) for name, rows in requests.by_model()}
    per_class = {name: _group(rows, facts) for name, rows in requests.by_class()}
    report = {
        "policy": facts.policy,
        "seed": facts.seed,
        **_counts(counted, facts.duration_s),
        "tail_variability": _variability(counted, facts.solo_ms, _latencies),
        "service_variability": _variability(counted, facts.solo_ms, _services),
        "device_busy": _busy(facts),
        "device_load": _share(_units_ns(facts), facts.duration_s * NS_PER_S),
        "useful_load": useful_ms / 1000 / facts.duration_s,
        "mean_batch": float(np.mean(batches)) if batches else _mean_batch(requests.batch_rows),
        "fairness": _fairness(per_model),
        "best_effort_per_s": per_class["best_effort"]["goodput_per_s"]
        if "best_effort" in per_class
        else None,
        "per_model": per_model,
        "per_class": per_class,
        "prediction": prediction_scores(facts.observations),
        "decision_us": _percentiles(np.asarray(facts.decision_ns) / 1000, (50, 99)),
        "wall_s": facts.wall_s,
        "config": dict(facts.config),
        "versions": versions(),
        "device": dict(facts.device),
        **facts.extra,
    }
    return report


def versions() -> dict[str, str]:
    """Versions of what the figures depend on."""
    names = ("cotenant", "numpy", "onnxruntime", "starlette", "uvicorn")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _counts(requests: RequestColumns, duration_s: float) -> dict[str, Any]:
    counted = np.bincount(requests.kind, minlength=len(KINDS)).tolist()
    by_kind = {kind.value: n for kind, n in zip(KINDS, counted, strict=True)}
    offered = len(requests)
    assert offered == sum(counted), "every offered request has exactly one outcome"
    found = _percentiles(requests.latency_ms[requests.answered], (50, 95, 99))
    return {
        "offered": offered,
        **by_kind,
        "attainment": by_kind["ok"] / offered if offered else None,
        "goodput_per_s": by_kind["ok"] / duration_s,
        "p50_ms": found["p50"],
        "p95_ms": found["p95"],
        "p99_ms": found["p99"],
        "rejected_lead_ms": _rejected_lead(requests),
    }


def _group(requests: RequestColumns, facts: RunFacts) -> dict[str, Any]:
    """Counts of one model or class; best-effort work has no attainment and `ok` means answered."""
    group = _counts(requests, facts.duration_s)
    if not requests.counts_in.any():
        group["ok"] += group["late"]
        group["late"] = 0
        group["goodput_per_s"] = group["ok"] / facts.duration_s
        group["attainment"] = None
    return group


def _rejected_lead(requests: RequestColumns) -> float | None:
    """How long before the deadline a client was told of the refusal: median over rejected requests (ms)."""
    told = (requests.kind == CODES[OutcomeKind.REJECTED]) & (requests.deadline_at != NEVER)
    leads = (requests.deadline_at[told] - requests.ended_at[told]) / NS_PER_MS
    return float(np.median(leads)) if leads.size else None


def _fairness(per_model: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Of protected and standard models: the one with the least attainment, and Jain's index of their
    attainments (Jain, Chiu, Hawe, 1984): 1 when all are alike, 1 / n when one gets everything."""
    found = {
        name: group["attainment"] for name, group in per_model.items() if group["attainment"] is not None
    }
    worst = min(found, key=lambda name: found[name], default=None)
    squares = sum(value**2 for value in found.values())
    return {
        "worst_model": {"name": worst, "attainment": None if worst is None else found[worst]},
        "jain": sum(found.values()) ** 2 / (len(found) * squares) if squares else None,
    }


def _latencies(requests: RequestColumns) -> Spans:
    return requests.latency_ms


def _services(requests: RequestColumns) -> Spans:
    """From dispatch to end (ms), of what was dispatched and answered."""
    served = requests.answered & (requests.dispatched_at != NEVER)
    spans: Spans = (requests.ended_at[served] - requests.dispatched_at[served]) / NS_PER_MS
    return spans


def _variability(
    counted: RequestColumns, solo_ms: Mapping[str, float], spans: Callable[[RequestColumns], Spans]
) -> float | None:
    """Mean over models, weighted by offered, of (p99 - p50) / solo median at batch 1."""
    total, weight = 0.0, 0
    for name, requests in counted.by_model():
        found = spans(requests)
        if found.size and solo_ms.get(name):
            p50, p99 = np.percentile(found, (50, 99))
            total += len(requests) * (float(p99) - float(p50)) / solo_ms[name]
            weight += len(requests)
    return total / weight if weight else None


def _busy(facts: RunFacts) -> float | None:
    """Share of the run with any work running."""
    began = np.fromiter((interval.began_at for interval in facts.busy), np.int64, len(facts.busy))
    ended = np.fromiter((interval.ended_at for interval in facts.busy), np.int64, len(facts.busy))
    order = np.argsort(began, kind="stable")
    began, ended = began[order], ended[order]
    reached = np.maximum.accumulate(np.concatenate(([0], ended)))[:-1]
    covered = np.maximum(0, ended - np.maximum(began, reached)).sum() if len(began) else 0
    return _share(int(covered), facts.duration_s * NS_PER_S)


def _units_ns(facts: RunFacts) -> float:
    if facts.units_ns is not None:
        return facts.units_ns
    return sum((b.ended_at - b.began_at) * b.share for b in facts.busy)


def _share(part: float, whole: float) -> float | None:
    return min(1.0, part / whole) if whole > 0 else None


def _mean_batch(batch_rows: NDArray[np.int64]) -> float | None:
    """Mean rows of the batches seen from the requests' side (each batch counted once per row)."""
    rows = batch_rows[batch_rows > 0]
    return len(rows) / float((1.0 / rows).sum()) if rows.size else None


def _percentiles(values: Any, levels: Sequence[int]) -> dict[str, float | None]:
    array = np.asarray(values, float)
    found = np.percentile(array, levels).tolist() if array.size else [None] * len(levels)
    return {f"p{level}": value for level, value in zip(levels, found, strict=True)}


def prediction_scores(observations: Sequence[Observation]) -> dict[str, Any]:
    """How good the predictions issued at dispatch were, of the span from dispatch to end. A dispatch that
    was stopped at a boundary has none: it was predicted to its end. `in_flight`: by the most that were in
    flight at one instant of the run."""
    observations = [observation for observation in observations if not observation.preempted]
    issued = [observation.predictions[0] for observation in observations]
    issued_at = np.asarray([prediction.issued_at for prediction in issued], np.int64)
    actual = (np.asarray([o.ended_at for o in observations], np.int64) - issued_at).astype(float)
    finish_at = np.asarray([p.finish_at[: len(LEVELS)] for p in issued], np.int64).reshape(-1, len(LEVELS))
    spans = (finish_at - issued_at[:, None]).astype(float)
    names = {0.9: "0.9", 0.95: "0.95", 0.99: "0.99"}
    if not len(actual):
        nothing = dict.fromkeys(names.values())
        return {"n": 0, "mape": None, "median_ape": None, "p90_ape": None, "signed_error": None,
                "coverage": nothing, "width": nothing, "in_flight": {}}  # fmt: skip
    median = spans[:, 0]
    error = np.abs(median - actual) / actual
    crowd = np.asarray([_most_in_flight(o) for o in observations])
    upper = {text: spans[:, LEVELS.index(level)] for level, text in names.items()}
    return {
        "n": len(actual),
        "mape": float(error.mean()),
        "median_ape": float(np.median(error)),
        "p90_ape": float(np.percentile(error, 90)),
        "signed_error": float(((median - actual) / actual).mean()),
        "coverage": {text: float((actual <= bound).mean()) for text, bound in upper.items()},
        "width": {text: float(((bound - median) / median).mean()) for text, bound in upper.items()},
        "in_flight": {
            str(n): {"n": int(those.sum()), "mape": float(error[those].mean())}
            for n, those in ((n, crowd == n) for n in np.unique(crowd).tolist())
        },
    }


def _most_in_flight(observation: Observation) -> int:
    """The most dispatches, the observed one among them, that were in flight at one instant of its run."""
    changes = []
    for overlap in observation.overlaps:
        began_at = max(overlap.began_at, observation.started_at)
        ended_at = observation.ended_at if overlap.ended_at is None else overlap.ended_at
        if ended_at > began_at:
            changes += [(began_at, 1), (ended_at, -1)]
    now = most = 1
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most
