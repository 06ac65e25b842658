"""Recorded arrivals: reading a file of timestamps or gaps, and playing it back at another rate."""

from __future__ import annotations

import csv
import math
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cotenant.workload.traffic import Traffic

GAP_COLUMNS = ("gap", "gap_s", "interarrival", "interarrival_s", "inter_arrival")
TIME_COLUMNS = ("timestamp", "time", "arrival", "arrived_at", "ts", "arrival_s", "start_time")
UNITS = {"_ms": 1e-3, "_us": 1e-6, "_ns": 1e-9}
"""Endings of a column's name that say its unit; otherwise seconds."""
MAX_TRACE_ROWS = 20_000_000


class Playback:
    """Replays the traces of one model. What is played in several stretches goes on where it was."""

    def __init__(self) -> None:
        self._reached: dict[tuple[Path, str | None, float], float] = {}

    def next(self, traffic: Traffic, span_s: float) -> NDArray[np.float64]:
        """Arrivals of the next `span_s` seconds, from 0: the recording scaled to the wanted mean rate, or
        without one at `speed` times its own, and repeated until the span is full. Raises ValueError."""
        if traffic.file is None:
            raise ValueError('arrivals = "trace" needs `file`')
        gaps = read_gaps(traffic.file, traffic.column)
        length = float(gaps.sum())
        if length <= 0:
            raise ValueError(
                f"{traffic.file}: all arrivals are at the same instant; gaps must add up to more than 0"
            )
        own_per_s = len(gaps) / length
        speed = traffic.rate_per_s / own_per_s if traffic.rate_per_s > 0 else traffic.speed
        key = (traffic.file, traffic.column, traffic.offset_s)
        begin = self._reached.get(key, traffic.offset_s)
        end = self._reached[key] = begin + span_s * speed
        laps = np.arange(max(0, math.floor(begin / length) - 1), math.floor(end / length) + 1)
        times = (np.cumsum(gaps)[None, :] + length * laps[:, None]).ravel()
        return (times[(times >= begin) & (times < end)] - begin) / speed


def read_gaps(path: Path, column: str | None = None) -> NDArray[np.float64]:
    """Gaps (s) between arrivals from a CSV with a gap column or a timestamp column (a number in the unit
    that its name ends in, else seconds; or ISO 8601). Raises ValueError that names the file, the line and
    what was expected."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            header = [name.strip() for name in next(rows, [])]
            index = _find(header, column, path)
            is_gap = _is_gap(header[index])
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
    gaps = np.asarray(values) if is_gap else np.diff(np.sort(np.asarray(values)))
    if not len(gaps):
        raise ValueError(f"{path}: needs at least {1 if is_gap else 2} rows of arrivals")
    return gaps * UNITS.get(header[index].lower()[-3:], 1.0)


def _find(header: list[str], column: str | None, path: Path) -> int:
    """Index of the column."""
    lower = [name.lower() for name in header]
    if column is not None:
        if column.lower() not in lower:
            raise ValueError(f"{path}: has no column {column!r}; it has {', '.join(header)}")
        return lower.index(column.lower())
    for name in (*GAP_COLUMNS, *TIME_COLUMNS):
        if name in lower:
            return lower.index(name)
    for i, name in enumerate(lower):
        if "gap" in name or "arrival" in name or "time" in name:
            return i
    raise ValueError(f"{path}: needs a gap or a timestamp column; it has {', '.join(header) or 'no header'}")


def _is_gap(name: str) -> bool:
    return "gap" in name.lower() or "inter" in name.lower()


def _number(text: str, path: Path, line: int, is_gap: bool) -> float:
    try:
        value = float(text)
    except ValueError:
        value = _instant(text, path, line)
    if not math.isfinite(value) or (is_gap and value < 0):
        raise ValueError(f"{path}, line {line}: {text!r} is not a finite number of seconds, 0 or more")
    return value


def _instant(text: str, path: Path, line: int) -> float:
    """Seconds since 1970; without a time zone UTC is meant, which has no hour that is missing or doubled."""
    try:
        instant = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"{path}, line {line}: {text!r} is neither seconds nor an ISO time") from None
    return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp()
