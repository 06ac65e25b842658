"""The run report: one JSON object per run, with the definitions of what it counts.

Top-level counts, attainment, goodput and percentiles cover protected and standard work only; best-effort work
is in `per_class.best_effort` and `per_model`. Shares and errors are fractions; what cannot be said is null.
"""

from __future__ import annotations

import platform
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import numpy as np
from msgspec import Struct

from cotenant.domain import LEVELS, NS_PER_MS, NS_PER_S, JobClass, Observation, OutcomeKind

ANSWERED = (OutcomeKind.OK, OutcomeKind.LATE)


class RequestRecord(Struct, frozen=True, kw_only=True, gc=False):
    """What a report needs of one offered request. Instants in ns of one clock; `intended_at` is when the
    load said it should arrive."""

    model: str
    job_class: JobClass
    kind: OutcomeKind
    intended_at: int
    ended_at: int
    deadline_at: int | None = None
    dispatched_at: int | None = None
    batch_rows: int = 0
    reason: str = ""


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
    counted = [record for record in records if record.job_class is not JobClass.BEST_EFFORT]
    by_model: dict[str, list[RequestRecord]] = defaultdict(list)
    by_class: dict[str, list[RequestRecord]] = defaultdict(list)
    for record in records:
        by_model[record.model].append(record)
        by_class[record.job_class.name.lower()].append(record)
    ok_answers = [record for record in records if record.kind is OutcomeKind.OK]
    useful_s = sum(facts.solo_ms.get(record.model, 0.0) for record in ok_answers) / 1000
    batches = [observation.rows for observation in facts.observations]
    report = {
        "policy": facts.policy,
        "seed": facts.seed,
        **_counts(counted, facts.duration_s),
        "tail_variability": _variability(counted, facts.solo_ms, _latency_ns),
        "service_variability": _variability(counted, facts.solo_ms, _service_ns),
        "device_busy": _busy(facts),
        "device_load": _share(_units_ns(facts), facts.duration_s * NS_PER_S),
        "useful_load": useful_s / facts.duration_s,
        "mean_batch": float(np.mean(batches)) if batches else _mean_batch(records),
        "per_model": {name: _group(rows, facts) for name, rows in sorted(by_model.items())},
        "per_class": {name: _group(rows, facts) for name, rows in sorted(by_class.items())},
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


def _counts(records: Sequence[RequestRecord], duration_s: float) -> dict[str, Any]:
    by_kind = {kind.value: 0 for kind in OutcomeKind}
    for record in records:
        by_kind[record.kind.value] += 1
    offered = len(records)
    assert offered == sum(by_kind.values()), "every offered request has exactly one outcome"
    latency = np.asarray([_latency_ns(r) for r in records if r.kind in ANSWERED], float) / NS_PER_MS
    found = _percentiles(latency, (50, 95, 99))
    return {
        "offered": offered,
        **by_kind,
        "attainment": by_kind["ok"] / offered if offered else None,
        "goodput_per_s": by_kind["ok"] / duration_s,
        "p50_ms": found["p50"],
        "p95_ms": found["p95"],
        "p99_ms": found["p99"],
    }


def _group(records: Sequence[RequestRecord], facts: RunFacts) -> dict[str, Any]:
    """Counts of one model or class; best-effort work has no attainment and `ok` means answered."""
    group = _counts(records, facts.duration_s)
    if all(record.job_class is JobClass.BEST_EFFORT for record in records):
        group["ok"] += group["late"]
        group["late"] = 0
        group["goodput_per_s"] = group["ok"] / facts.duration_s
        group["attainment"] = None
    return group


def _latency_ns(record: RequestRecord) -> int:
    """From the intended arrival; an unanswered request counts at its deadline."""
    if record.kind in ANSWERED or record.deadline_at is None:
        return record.ended_at - record.intended_at
    return record.deadline_at - record.intended_at


def _service_ns(record: RequestRecord) -> int | None:
    """From dispatch to end, for what was dispatched and answered."""
    if record.kind not in ANSWERED or record.dispatched_at is None:
        return None
    return record.ended_at - record.dispatched_at


def _variability(records: Sequence[RequestRecord], solo_ms: Mapping[str, float], span: Any) -> float | None:
    """Mean over models, weighted by offered, of (p99 - p50) / solo median at batch 1."""
    per_model: dict[str, list[float]] = defaultdict(list)
    offered: dict[str, int] = defaultdict(int)
    for record in records:
        offered[record.model] += 1
        value = span(record)
        if value is not None:
            per_model[record.model].append(value / NS_PER_MS)
    total, weight = 0.0, 0
    for name, values in per_model.items():
        if solo_ms.get(name):
            p50, p99 = np.percentile(values, (50, 99))
            total += offered[name] * (float(p99) - float(p50)) / solo_ms[name]
            weight += offered[name]
    return total / weight if weight else None


def _busy(facts: RunFacts) -> float | None:
    """Share of the run with any work running."""
    covered, reached = 0, 0
    for interval in sorted(facts.busy, key=lambda interval: interval.began_at):
        begin = max(interval.began_at, reached)
        if interval.ended_at > begin:
            covered += interval.ended_at - begin
            reached = interval.ended_at
    return _share(covered, facts.duration_s * NS_PER_S)


def _units_ns(facts: RunFacts) -> float:
    if facts.units_ns is not None:
        return facts.units_ns
    return sum((b.ended_at - b.began_at) * b.share for b in facts.busy)


def _share(part: float, whole: float) -> float | None:
    return min(1.0, part / whole) if whole > 0 else None


def _mean_batch(records: Iterable[RequestRecord]) -> float | None:
    """Mean rows of the batches seen from the requests' side (each batch counted once per row)."""
    inverse = [1.0 / record.batch_rows for record in records if record.batch_rows > 0]
    return len(inverse) / sum(inverse) if inverse else None


def _percentiles(values: Any, levels: Sequence[int]) -> dict[str, float | None]:
    array = np.asarray(values, float)
    if not array.size:
        return {f"p{level}": None for level in levels}
    return {f"p{level}": float(np.percentile(array, level)) for level in levels}


def prediction_scores(observations: Sequence[Observation]) -> dict[str, Any]:
    """How good the predictions issued at dispatch were, of the span from dispatch to end."""
    issued = [observation.predictions[0] for observation in observations]
    actual = np.asarray([o.ended_at - p.issued_at for o, p in zip(observations, issued, strict=True)], float)
    spans = np.asarray([[at - p.issued_at for at in p.finish_at[: len(LEVELS)]] for p in issued], float)
    names = {0.9: "0.9", 0.95: "0.95", 0.99: "0.99"}
    if not len(actual):
        nothing = dict.fromkeys(names.values())
        return {"n": 0, "mape": None, "median_ape": None, "p90_ape": None, "signed_error": None,
                "coverage": nothing, "width": nothing}  # fmt: skip
    median = spans[:, 0]
    error = np.abs(median - actual) / actual
    upper = {text: spans[:, LEVELS.index(level)] for level, text in names.items()}
    return {
        "n": len(actual),
        "mape": float(error.mean()),
        "median_ape": float(np.median(error)),
        "p90_ape": float(np.percentile(error, 90)),
        "signed_error": float(((median - actual) / actual).mean()),
        "coverage": {text: float((actual <= bound).mean()) for text, bound in upper.items()},
        "width": {text: float(((bound - median) / median).mean()) for text, bound in upper.items()},
    }
