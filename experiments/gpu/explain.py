"""How much of the slowdown the overlap explains: three ridge regressions of log slowdown, out of fold.

`count`: the victim and how many others were in flight at dispatch. `overlap`: the victim and the share of its
span that each other model was beside it. `segments`: also the shares of its span that its segments were
beside segments of others, weighted by the products of their demands. Runs alternate between the two folds.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

RIDGE = 1e-2
Key = tuple[str, str, str]
Part = tuple[float, float, tuple[float, ...]]
"""Begin, end (ms) and demands of a segment that ran."""


@dataclass
class Run:
    """One dispatch of the recording."""

    episode: int
    key: Key
    start: float
    end: float
    n_others: int
    log_slowdown: float
    parts: list[Part]


def runs_of(tables: dict[str, list[dict[str, str]]]) -> list[Run]:
    """From the tables of a recording (rows of text)."""
    solo = {_key(r): float(r["solo_ms"]) for r in tables["profiles"]}
    demands: dict[Key, list[tuple[float, ...]]] = defaultdict(list)
    for r in sorted(tables["segments"], key=lambda r: int(r["index"])):
        demands[_key(r)].append((float(r["demand_compute"]), float(r["demand_memory"])))
    found = []
    for r in tables["coruns"]:
        key, start, end = _key(r), float(r["start_ms"]), float(r["end_ms"])
        bounds = [start, *(float(at) for at in r["segment_ends_ms"].split(";"))]
        found.append(
            Run(
                episode=int(r["run"]),
                key=key,
                start=start,
                end=end,
                n_others=int(r["queue_n"]),
                log_slowdown=float(np.log(max(1e-6, end - start) / solo[key])),
                parts=list(zip(bounds[:-1], bounds[1:], demands[key], strict=True)),
            )
        )
    return found


def _key(row: dict[str, str]) -> Key:
    return row["workload"], row["batch"], row["share"]


def explained(runs: list[Run]) -> dict[str, float]:
    """Share of the variance of log slowdown explained out of fold (R2), by each set of features."""
    names = sorted({run.key[0] for run in runs})
    by_episode: dict[int, list[Run]] = defaultdict(list)
    for run in runs:
        by_episode[run.episode].append(run)
    tables: dict[str, list[list[float]]] = {"count": [], "overlap": [], "segments": []}
    target, fold = [], []
    for episode, members in by_episode.items():
        for run in members:
            victim = [float(run.key[0] == name) for name in names]
            span = max(1e-6, run.end - run.start)
            beside = [o for o in members if o is not run and o.start < run.end and o.end > run.start]
            shares = dict.fromkeys(names, 0.0)
            products = np.zeros((2, 2))
            for other in beside:
                shares[other.key[0]] += _common(run.start, run.end, other.start, other.end) / span
                for a, b, u in run.parts:
                    for c, d, v in other.parts:
                        common = _common(a, b, c, d)
                        if common > 0:
                            products += np.outer(u, v) * common / span
            tables["count"].append([*victim, *(float(run.n_others == n) for n in range(1, 4))])
            tables["overlap"].append([*victim, *shares.values()])
            tables["segments"].append([*victim, *shares.values(), *products.ravel()])
            target.append(run.log_slowdown)
            fold.append(episode % 2)
    y, parity = np.array(target), np.array(fold)
    return {name: _r2(np.array(rows), y, parity) for name, rows in tables.items()}


def _common(a: float, b: float, c: float, d: float) -> float:
    return max(0.0, min(b, d) - max(a, c))


def _r2(x: Any, y: Any, parity: Any) -> float:
    left = 0.0
    for test in (0, 1):
        fit = parity != test
        if not fit.any() or fit.all():
            return float("nan")
        weights = np.linalg.solve(x[fit].T @ x[fit] + RIDGE * np.eye(x.shape[1]), x[fit].T @ y[fit])
        left += float(((y[~fit] - x[~fit] @ weights) ** 2).sum())
    return 1 - left / float(((y - y.mean()) ** 2).sum())
