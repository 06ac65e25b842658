"""Arrival processes: seeded, one stream of randomness per model, merged in order of time.

A model's instants depend on the seed and its own settings alone, so that adding a model or changing another
one leaves them as they were.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Instants = NDArray[np.int64]
GAP_COLUMNS = ("gap", "gap_s", "interarrival", "interarrival_s", "inter_arrival")
TIME_COLUMNS = ("timestamp", "time", "arrival", "arrived_at", "ts", "arrival_s", "start_time")
MAX_TRACE_ROWS = 20_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """How requests of one model arrive from `from_s` on. `rate_per_s` is the mean; 0 with a trace means
    "as recorded"."""

    from_s: float
    rate_per_s: float
    process: str = "poisson"
    cv: float = 1.0
    file: Path | None = None
    column: str | None = None


def generator(seed: int, name: str) -> np.random.Generator:
    """A generator for one purpose: the same on every machine and independent of every other name's."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def instants(phases: Sequence[Traffic], duration_s: float, seed: int, name: str) -> Instants:
    """Arrival instants (ns from 0, ascending, below the duration) of one model.

    A new phase restarts the model's process at its `from_s`."""
    rng = generator(seed, f"arrivals/{name}")
    parts: list[Instants] = []
    for i, phase in enumerate(phases):
        until_s = phases[i + 1].from_s if i + 1 < len(phases) else duration_s
        until_s = min(until_s, duration_s)
        if until_s > phase.from_s:
            part = _phase(phase, until_s - phase.from_s, rng)
            parts.append((part * 1e9).astype(np.int64) + round(phase.from_s * 1e9))
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def merged(per_model: Sequence[Instants]) -> tuple[Instants, Instants]:
    """All arrivals in order of time: (instants, index of the model); ties in order of the models."""
    at = np.concatenate([*per_model, np.empty(0, np.int64)])
    which = np.concatenate([*(np.full(len(a), i) for i, a in enumerate(per_model)), np.empty(0, np.int64)])
    order = np.argsort(at, kind="stable")
    return at[order], which[order].astype(np.int64)


def _phase(phase: Traffic, span_s: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Seconds from the start of the phase."""
    if phase.process == "trace":
        if phase.file is None:
            raise ValueError('arrivals = "trace" needs `file`')
        return _from_trace(phase, span_s)
    if phase.rate_per_s <= 0:
        return np.empty(0)
    shape = 1.0 if phase.process == "poisson" else 1.0 / phase.cv**2
    scale = 1.0 / (phase.rate_per_s * shape)
    parts: list[NDArray[np.float64]] = []
    reached = 0.0
    while reached < span_s:
        n = max(64, math.ceil((span_s - reached) * phase.rate_per_s * 1.1))
        times = reached + np.cumsum(rng.gamma(shape, scale, n))
        parts.append(times)
        reached = float(times[-1])
    times = np.concatenate(parts)
    return times[times < span_s]


def _from_trace(phase: Traffic, span_s: float) -> NDArray[np.float64]:
    """A recorded trace, scaled to the wanted mean rate and repeated until the span is full."""
    assert phase.file is not None
    gaps = read_gaps(phase.file, phase.column)
    mean = float(gaps.mean())
    if mean <= 0:
        raise ValueError(
            f"{phase.file}: all arrivals are at the same instant; gaps must add up to more than 0"
        )
    factor = 1.0 / (phase.rate_per_s * mean) if phase.rate_per_s > 0 else 1.0
    length_s = float(gaps.sum()) * factor
    times = np.cumsum(np.tile(gaps * factor, math.ceil(span_s / length_s)))
    return times[times < span_s]


def read_gaps(path: Path, column: str | None = None) -> NDArray[np.float64]:
    """Gaps (s) between arrivals from a CSV with a gap column (seconds) or a timestamp column (seconds or
    ISO 8601). Raises ValueError that names the file, the line and what was expected."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            header = [name.strip() for name in next(rows, [])]
            index, is_gap = _find(header, column, path)
            values: list[float] = []
            for line, row in enumerate(rows, start=2):
                if not row:
                    continue
                if index >= len(row):
                    raise ValueError(f"{path}, line {line}: has no column {header[index]!r}")
                values.append(_number(row[index], path, line, is_gap))
                if len(values) > MAX_TRACE_ROWS:
                    raise ValueError(f"{path}: has more than {MAX_TRACE_ROWS} rows")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: is not a CSV text: {error}") from error
    gaps = np.asarray(values) if is_gap else np.diff(np.asarray(sorted(values)))
    if not len(gaps):
        raise ValueError(f"{path}: needs at least {1 if is_gap else 2} rows of arrivals")
    return gaps


def _find(header: list[str], column: str | None, path: Path) -> tuple[int, bool]:
    """Index of the column and whether it holds gaps."""
    lower = [name.lower() for name in header]
    if column is not None:
        if column not in header:
            raise ValueError(f"{path}: has no column {column!r}; it has {', '.join(header)}")
        return header.index(column), "gap" in column.lower() or column.lower() in GAP_COLUMNS
    for names, is_gap in ((GAP_COLUMNS, True), (TIME_COLUMNS, False)):
        for name in names:
            if name in lower:
                return lower.index(name), is_gap
    for i, name in enumerate(lower):
        if "gap" in name or "arrival" in name or "time" in name:
            return i, "gap" in name or "inter" in name
    raise ValueError(f"{path}: needs a gap or a timestamp column; it has {', '.join(header) or 'no header'}")


def _number(text: str, path: Path, line: int, is_gap: bool) -> float:
    try:
        value = float(text)
    except ValueError:
        try:
            value = datetime.fromisoformat(text.strip()[:26]).timestamp()
        except ValueError:
            raise ValueError(f"{path}, line {line}: {text!r} is neither seconds nor an ISO time") from None
    if not math.isfinite(value) or (is_gap and value < 0):
        raise ValueError(f"{path}, line {line}: {text!r} is not a finite number of seconds, 0 or more")
    return value
