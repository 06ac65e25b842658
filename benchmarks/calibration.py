"""Whether bounds hold what they promise when residuals change, how wide they are, and what they cost.

How this works. Residuals of four models beside 0 to 3 others are drawn from known distributions that change
midway (`calibration_cases.py`); 3,000 dispatches per half, labels late. Four methods bound them: ours, ours
with the drift detector, windows with adaptive conformal inference, and quantile tracking per group; beside
them the best constant of hindsight, one offset per level for the whole run. Coverage is of what was issued.
Widths are from the true median, as a ratio to those of one who knows every distribution at every instant.
It does not measure a real predictor: there residuals also shrink while it learns.

    python benchmarks/calibration.py [--seeds 20] [--json FILE]
"""

from __future__ import annotations

import math
import timeit
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from calibration_cases import CASES, METHODS, N_PER_HALF, Case, Floats, Run, bounds, draw, ours
from common import Row, arguments, finish, note, table
from cotenant.domain import LEVELS
from cotenant.predict.drift import DriftConfig, DriftDetector

FIRST_WINDOW = 300
UPPER = slice(1, len(LEVELS))
N_POOLED = 5
"""Seeds whose coverage is held against the target (the issue's pooling)."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """Of one method on one case; arrays are per upper level. `halves`: coverage of each half, all seeds;
    `pooled`: over the first `N_POOLED` seeds; `window`: of the first completions after the change; `worst`:
    largest deviation of a group with 300 or more; `width`: against one who knows."""

    halves: Floats
    pooled: Floats
    window: Floats
    worst: Floats
    width: Floats


def score(runs: list[Run], issued: list[Floats]) -> Score:
    hits = np.stack([run.residuals[:, None] <= bound for run, bound in zip(runs, issued, strict=True)])
    hits = hits[:, :, UPPER]
    halves = hits.reshape(len(runs), 2, N_PER_HALF, -1)
    deviations = []
    keys = np.stack([run.models * 4 + run.corunners for run in runs])
    half_of = np.repeat([0, 1], N_PER_HALF)
    for key in range(16):
        for half in (0, 1):
            chosen = (keys == key) & (half_of == half)
            if chosen.sum() >= 300:
                deviations.append(hits[chosen].mean(axis=0) - np.array(LEVELS[UPPER]))
    worst = np.array(deviations)
    widths = sum((bound - run.true[:, :1]).mean(axis=0) for run, bound in zip(runs, issued, strict=True))
    known = sum((run.true - run.true[:, :1]).mean(axis=0) for run in runs)
    return Score(
        halves=halves.mean(axis=(0, 2)),
        pooled=halves[:N_POOLED].mean(axis=(0, 2)),
        window=halves[:, 1, :FIRST_WINDOW].mean(axis=(0, 1)),
        worst=worst[np.abs(worst).argmax(axis=0), range(worst.shape[1])],
        width=widths[UPPER] / known[UPPER],
    )


def constant(run: Run) -> Floats:
    """The best constant of hindsight: at each level the quantile of all the run's residuals."""
    return np.tile(np.quantile(run.residuals, LEVELS), (len(run.residuals), 1))


def scores_of(case: Case, n_seeds: int) -> dict[str, Score]:
    runs = [draw(case, seed) for seed in range(n_seeds)]
    found = {
        name: score(runs, [bounds(make(), run) for run in runs])  # type: ignore[operator]
        for name, make in METHODS.items()
    }
    return {**found, "best constant": score(runs, [constant(run) for run in runs])}


def show(case: Case, scores: dict[str, Score]) -> None:
    shown = Table(title=case.name, title_justify="left", box=None, header_style="bold")
    for name in ("", "first half", "second half", f"first {FIRST_WINDOW} after", "worst group", "width"):
        shown.add_column(name, no_wrap=True)
    for name, found in scores.items():
        cells = [percent(found.halves[0]), percent(found.halves[1]), percent(found.window)]
        shown.add_row(name, *cells, percent(found.worst, "+"), " ".join(f"{v:.2f}" for v in found.width))
    Console(width=130).print(shown)


def percent(shares: Floats, sign: str = "") -> str:
    return " ".join(f"{100 * share:{sign}.1f}" for share in shares)


def coverage_figures(scores: dict[str, dict[str, Score]]) -> list[Row]:
    """Ours against the targets of the project, the worst case of each; the others beside it."""
    rows = []
    targets = np.array(LEVELS[UPPER])
    errors = np.sqrt(targets * (1 - targets) / (N_POOLED * N_PER_HALF))
    allowed = np.maximum(0.015, 2 * errors)
    for method in (*METHODS, "best constant"):
        of_method = [found[method] for found in scores.values()]
        pooled = max(float((np.abs(found.pooled - targets) / allowed).max()) for found in of_method)
        window = {case: float(np.abs(found[method].window - targets).max()) for case, found in scores.items()}
        n_back = sum(value <= 0.02 for value in window.values())
        widths = [found.width.mean() for found in of_method]
        worst = max(float(np.abs(found.worst).max()) for found in of_method)
        rows += [
            Row(f"{method}: worst half, in allowed deviations", f"{pooled:.2f}", "1.00", pooled <= 1.0),
            Row(
                f"{method}: cases back within 2 points at once",
                f"{n_back} of {len(window)}, worst {100 * max(window.values()):.1f} points",
            ),
            Row(f"{method}: worst group", f"{100 * worst:.1f} points"),
            Row(f"{method}: mean width against one who knows", f"{np.mean(widths):.2f}"),
        ]
    return rows


def drift_figures(n_seeds: int) -> list[Row]:
    """False alarms and delays on Student t with 3 degrees of freedom, standard deviation 1."""
    forms = {"CUSUM": DriftConfig(), "Page-Hinkley": DriftConfig(memory=math.inf)}
    rows = []
    for name, config in forms.items():
        n_alarms = sum(sum(alarms(config, heavy(10_000, seed))) for seed in range(2 * n_seeds))
        rate = n_alarms / (2 * n_seeds)
        rows.append(Row(f"{name}: false alarms in 10,000", f"{rate:.2f}", "1.00", rate < 1.0))
        for shift in (0.5, 1.0, 2.0):
            delays = []
            for seed in range(5 * n_seeds):
                values = heavy(1_500, 1_000 + seed)
                values[500:] += shift
                raised = [i - 500 for i, alarm in enumerate(alarms(config, values)) if alarm and i >= 500]
                delays.append(raised[0] if raised else math.inf)
            median, late = np.median(delays), np.quantile(delays, 0.9, method="higher")
            rows.append(Row(f"{name}: delay of a shift by {shift:g}", f"median {median:.0f}, p90 {late:.0f}"))
    return rows


def heavy(n: int, seed: int) -> Floats:
    return np.random.default_rng(seed).standard_t(3, n) / math.sqrt(3.0)


def alarms(config: DriftConfig, values: Floats) -> list[bool]:
    detector = DriftDetector(config)
    return [detector.learn("m", value) for value in (0.08 * values).tolist()]


def cost_figures() -> list[Row]:
    """Microseconds of a call, best of 5 rounds over the same 6,000 dispatches."""
    run = draw(CASES[1], 1)
    groups, residuals, at = run.groups(), run.residuals.tolist(), run.at.tolist()
    calibrator, detector = ours(), DriftDetector()
    issued = [calibrator.offsets(group, 0) for group in groups]

    def learn() -> None:
        for group, residual, bound, instant in zip(groups, residuals, issued, at, strict=True):
            calibrator.learn(group, residual, bound, instant)

    def ask_anew() -> None:
        for slot, group in enumerate(groups):  # each in a slot of its own: nothing is cached
            calibrator.offsets(group, slot * 1_000_000_000)

    def ask_again() -> None:
        for group in groups:
            calibrator.offsets(group, 0)

    def watch() -> None:
        for group, residual in zip(groups, residuals, strict=True):
            detector.learn(group[0], residual)

    rows = []
    for name, call, target in (
        ("conformal update", learn, 5.0),
        ("offsets, computed", ask_anew, 2.0),
        ("offsets, cached", ask_again, 1.0),
        ("drift detector", watch, 2.0),
    ):
        spent_us = min(timeit.repeat(call, number=1, repeat=5)) / len(groups) * 1e6
        rows.append(Row(name, f"{spent_us:.2f} us", f"{target:g} us", spent_us <= target))
    return rows


def main() -> int:
    options = arguments(__doc__, seeds=20)
    scores: dict[str, dict[str, Score]] = {}
    for case in CASES:
        note(f"{case.name} ...")
        scores[case.name] = scores_of(case, options.seeds)
        show(case, scores[case.name])
    rows = coverage_figures(scores) + drift_figures(options.seeds) + cost_figures()
    table("calibration and drift (levels 0.9, 0.95, 0.99)", rows)
    facts: dict[str, Any] = {
        "command": f"python benchmarks/calibration.py --seeds {options.seeds}",
        "levels": LEVELS[UPPER],
        "cases": {
            case: {method: as_lists(found) for method, found in of_case.items()}
            for case, of_case in scores.items()
        },
    }
    return finish(options, facts, rows)


def as_lists(found: Score) -> dict[str, Any]:
    names = ("halves", "pooled", "window", "worst", "width")
    return {name: np.round(getattr(found, name), 4).tolist() for name in names}


if __name__ == "__main__":
    raise SystemExit(main())
