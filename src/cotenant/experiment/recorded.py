"""What a recording of co-runs holds: how much models slowed each other, beside how many, and the noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cotenant.domain import Variant
from cotenant.experiment.datasets import CoRun, Dataset

NOISE = "noise-"
SOLO_MAY_DIFFER = 0.1
"""Relative difference between rows alone and the solo times above which a recording is doubtful."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Facts of a data set. `slowdowns`: of every row, as in the file. `others`: share of rows (0..1)
    by the most others that ran beside it at once. `alone`: median over workloads of the slowdown of rows with
    nobody beside them; far from 1, the solo times are not those of the machine as it was recorded (None:
    there are no such rows). `noise`: deviations of repeated rows from their median,
    relative; empty where nothing was repeated."""

    n: int
    slowdowns: tuple[float, ...]
    others: Mapping[int, float]
    alone: float | None
    noise: tuple[float, ...]

    @property
    def text(self) -> str:
        """One line for people."""
        shares = ", ".join(f"{share:.0%} beside {k}" for k, share in sorted(self.others.items()))
        median, p90 = np.quantile(self.slowdowns, (0.5, 0.9))
        line = f"{self.n} rows; slowdown median {median:.2f}, p90 {p90:.2f}; {shares}"
        if self.alone is not None:
            line += f"; alone {self.alone:.2f} x solo"
            if abs(self.alone - 1.0) > SOLO_MAY_DIFFER:
                line += " (profile and record again on a quieter machine, with a --store of its own)"
        if self.noise:
            line += (
                f"; repeats deviate by {np.median(self.noise):.1%} (median), {np.mean(self.noise):.1%} (mean)"
            )
        return line


def summarise_coruns(dataset: Dataset) -> Summary:
    """Facts of a data set that has at least one row."""
    slowdowns: list[float] = []
    counts: dict[int, int] = {}
    alone: dict[tuple[Variant, float], list[float]] = {}
    for rows in dataset.runs.values():
        for row, most in zip(rows, _most_others(rows), strict=True):
            slowdowns.append(row.span_ms * 1e6 / dataset.features.of(row.variant, row.share).solo_ns)
            counts[most] = counts.get(most, 0) + 1
            if most == 0:
                alone.setdefault((row.variant, row.share), []).append(slowdowns[-1])
    n = len(slowdowns)
    return Summary(
        n=n,
        slowdowns=tuple(slowdowns),
        others={most: count / n for most, count in counts.items()},
        alone=float(np.median([np.median(found) for found in alone.values()])) if alone else None,
        noise=tuple(noise_of(dataset)),
    )


def _most_others(rows: Sequence[CoRun]) -> list[int]:
    """For each row the most others that ran beside it at once; in a steady run, all."""
    if any(row.start_ms is None for row in rows):
        return [len(rows) - 1] * len(rows)
    begins = np.array([row.start_ms for row in rows], float)
    ends = np.array([row.end_ms for row in rows])
    at = np.sort(begins)
    in_flight = np.searchsorted(at, at, "right") - np.searchsorted(np.sort(ends), at, "right")
    most = []
    for begin, end in zip(begins, ends, strict=True):
        during = in_flight[(at >= begin) & (at < end)]
        most.append(int(during.max(initial=1)) - 1)
    return most


def noise_of(dataset: Dataset) -> list[float]:
    """Relative deviations of spans from their medians over the repeats `noise-<k>-<repeat>` of an episode:
    what nobody can predict. The j-th row of a lane is the same work in every repeat."""
    spans: dict[tuple[str, int | None, int], list[float]] = {}
    for run, rows in dataset.runs.items():
        if not run.startswith(NOISE):
            continue
        episode = run.rpartition("-")[0]
        n_of_lane: dict[int | None, int] = {}
        for row in sorted(rows, key=lambda row: row.start_ms or 0.0):
            j = n_of_lane[row.lane] = n_of_lane.get(row.lane, -1) + 1
            spans.setdefault((episode, row.lane, j), []).append(row.span_ms)
    found: list[float] = []
    for same in spans.values():
        if len(same) > 1:
            median = float(np.median(same))
            found += [abs(span - median) / median for span in same]
    return found
