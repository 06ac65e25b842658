"""How a request waited: with every lane taken, with some free, or with nothing running at all."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct


class Busy(Struct, frozen=True):
    """A lane that was taken from `began_at` to `ended_at` (ns) by a batch of a model."""

    lane: int
    began_at: int
    ended_at: int
    model: str
    rows: int


class Wait(Struct, frozen=True, kw_only=True):
    """Spans (ns) of a wait: `idle_ns` nothing ran, `part_ns` a lane was free beside what ran, `full_ns` none
    was. `behind`: per model batches, rows, and for how long any of them ran."""

    idle_ns: int
    part_ns: int
    full_ns: int
    behind: dict[str, tuple[int, int, int]]


def split(began_at: int, ended_at: int, busy: Iterable[Busy], n_lanes: int) -> Wait:
    """Split the wait from `began_at` to `ended_at` by what ran meanwhile on the `n_lanes` lanes."""
    edges: list[tuple[int, int, Busy]] = []
    for one in busy:
        begin, end = max(one.began_at, began_at), min(one.ended_at, ended_at)
        if begin < end:
            edges += [(begin, 1, one), (end, -1, one)]
    edges.sort(key=lambda edge: edge[:2])
    on_lane: dict[int, int] = {}
    of_model: dict[str, int] = {}
    n_busy, spans, at = 0, [0, 0, 0], began_at
    runs: dict[str, list[int]] = {}
    for instant, change, one in edges:
        spans[_kind(n_busy, n_lanes)] += instant - at
        for model, count in of_model.items():
            if count:
                runs[model][2] += instant - at
        at = instant
        before = on_lane.get(one.lane, 0)
        on_lane[one.lane] = before + change
        n_busy += (before + change > 0) - (before > 0)
        of_model[one.model] = of_model.get(one.model, 0) + change
        if change > 0:
            entry = runs.setdefault(one.model, [0, 0, 0])
            entry[0] += 1
            entry[1] += one.rows
    spans[_kind(n_busy, n_lanes)] += ended_at - at
    return Wait(
        idle_ns=spans[0],
        part_ns=spans[1],
        full_ns=spans[2],
        behind={model: (n, rows, span) for model, (n, rows, span) in runs.items()},
    )


def _kind(n_busy: int, n_lanes: int) -> int:
    return 0 if n_busy == 0 else 1 if n_busy < n_lanes else 2
