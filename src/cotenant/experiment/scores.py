"""Errors of predicted spans and coverage of their quantiles, as the study reports them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

LEVELS = ("0.9", "0.95", "0.99")
Array = np.ndarray[Any, Any]


@dataclass(slots=True)
class Scores:
    """One entry per row: what was predicted and measured (ns), upper quantiles (n x 3, NaN where there are
    none), the same given the overlap (NaN where not asked), most others in flight, share of its span it was
    not alone, and its block of time."""

    predicted: list[float] = field(default_factory=list)
    actual: list[float] = field(default_factory=list)
    upper: list[tuple[float, float, float]] = field(default_factory=list)
    given: list[float] = field(default_factory=list)
    given_actual: list[float] = field(default_factory=list)
    n_most: list[int] = field(default_factory=list)
    overlap: list[float] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)
    spent_us: list[float] = field(default_factory=list)

    def add(
        self,
        predicted: float,
        actual: float,
        *,
        upper: tuple[float, float, float] = (np.nan, np.nan, np.nan),
        given: float = np.nan,
        given_actual: float = np.nan,
        n_most: int = 0,
        overlap: float = np.nan,
        at_s: float = 0.0,
        spent_us: float = np.nan,
    ) -> None:
        """One row."""
        self.predicted.append(predicted)
        self.actual.append(actual)
        self.upper.append(upper)
        self.given.append(given)
        self.given_actual.append(given_actual)
        self.n_most.append(n_most)
        self.overlap.append(overlap)
        self.at_s.append(at_s)
        self.spent_us.append(spent_us)

    def extend(self, other: Scores) -> None:
        """Take over the rows of another."""
        for name in self.__slots__:
            getattr(self, name).extend(getattr(other, name))

    @property
    def errors(self) -> Array:
        """Signed relative errors (n)."""
        return np.asarray(np.array(self.predicted) / np.array(self.actual) - 1.0)

    @property
    def given_errors(self) -> Array:
        """Signed relative errors given the overlap (n, NaN where not asked)."""
        return np.asarray(np.array(self.given) / np.array(self.given_actual) - 1.0)

    def report(self) -> dict[str, Any]:
        """The keys of a row of the study but for who and what; shares and errors are fractions."""
        errors = self.errors
        found: dict[str, Any] = {"n": len(errors), **summary(errors)}
        found["coverage"], found["width"] = self._coverage()
        spent = [value for value in self.spent_us if np.isfinite(value)]
        found["us_per_prediction"] = float(np.median(spent)) if spent else None
        found["groups"] = self._groups(errors)
        given = self.given_errors
        known = np.isfinite(given)
        found["given_overlap"] = summary(given[known]) if known.any() else None
        return found

    def _coverage(self) -> tuple[dict[str, float] | None, dict[str, float] | None]:
        """Share of rows that ended by each quantile, and its mean distance from the median over that."""
        upper, actual = np.array(self.upper).reshape(-1, 3), np.array(self.actual)
        if not np.isfinite(upper).all() or not len(upper):
            return None, None
        within = (actual[:, None] <= upper).mean(axis=0)
        width = (upper / np.array(self.predicted)[:, None] - 1.0).mean(axis=0)
        return (
            {level: float(value) for level, value in zip(LEVELS, within, strict=True)},
            {level: float(value) for level, value in zip(LEVELS, width, strict=True)},
        )

    def _groups(self, errors: Array) -> dict[str, Any]:
        """By the most others in flight while it was: from 0."""
        n_most, given = np.array(self.n_most), self.given_errors
        found = {}
        for n in np.unique(n_most).tolist():
            chosen = n_most == n
            row: dict[str, Any] = {"n": int(chosen.sum()), **summary(errors[chosen])}
            known = chosen & np.isfinite(given)
            if known.any():
                row["given_overlap_mape"] = float(np.abs(given[known]).mean())
            found[str(n)] = row
        return found


def summary(errors: Array) -> dict[str, float]:
    """Mean, median and 90 % quantile of the size of errors, and their mean."""
    size = np.abs(errors)
    return {
        "mape": float(size.mean()),
        "median_ape": float(np.median(size)),
        "p90_ape": float(np.quantile(size, 0.9)),
        "signed_error": float(errors.mean()),
    }


def block_bootstrap(
    ours: Scores, other: Scores, *, block_s: float = 60.0, n: int = 1000, seed: int = 0
) -> dict[str, float]:
    """Difference of mean absolute errors (ours - other) over the same rows, with its 95 % interval by
    resampling blocks of time (Kuensch 1989)."""
    difference = np.abs(ours.errors) - np.abs(other.errors)
    blocks = (np.array(ours.at_s) // block_s).astype(np.int64)
    names = np.unique(blocks)
    sums = np.array([difference[blocks == name].sum() for name in names])
    counts = np.array([(blocks == name).sum() for name in names])
    drawn = np.random.default_rng(seed).integers(len(names), size=(n, len(names)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return {"difference": float(difference.mean()), "low": float(low), "high": float(high)}


def overlap_share(spans: Sequence[tuple[int, int]], begin: int, end: int) -> float:
    """Share (0..1) of [begin, end] that lies within any of the spans."""
    covered, at = 0, begin
    for a, b in sorted(spans):
        a, b = max(a, at), min(b, end)
        if b > a:
            covered += b - a
            at = b
    return covered / max(1, end - begin)
