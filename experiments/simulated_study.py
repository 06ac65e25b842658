"""Predictors on simulated free overlap, where the truth is known: errors at dispatch and given the overlap.

    python experiments/simulated_study.py [--seeds 5] [--predictors a,b] [--json FILE]

Three to four lanes, eight workloads with segments, rate, mix and number of lanes changing midway
(`cotenant.experiment.simulated_coruns`, whose truth has the form of no predictor). `oracle` knows the true
rates and nothing else that the others do not. Coverage is given for each half, and for the first 300
completions after the change. Prints a table; the JSON has one row per predictor.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from cotenant.clock import MonotonicClock
from cotenant.experiment.corun_events import lanes_of
from cotenant.experiment.scores import Scores
from cotenant.experiment.simulated_coruns import SimulatedConfig, simulate_coruns
from cotenant.experiment.study_predictors import known_predictors, prequential
from cotenant.experiment.study_report import show_study
from cotenant.predict.zoo.oracle import Oracle

USUAL = (
    "fluid,none,constant,linear,linear-rls,linear-rls-fluid,log-additive-rls,log-additive-rls-fluid,"
    "gaussian-process,gaussian-process-fluid,boosting-fluid,boosting-online-conformal"
)
WINDOW = 300


def coverage(scores: Scores, chosen: Any) -> list[float]:
    """Share within the 0.9, 0.95 and 0.99 quantile."""
    upper, actual = np.array(scores.upper)[chosen], np.array(scores.actual)[chosen]
    return [float(value) for value in (actual[:, None] <= upper).mean(axis=0)]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--runs", type=int, default=6600, help="completions of a seed; the first tenth warms up"
    )
    parser.add_argument("--predictors", default=USUAL)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    console = Console()
    names = [*options.predictors.split(","), "oracle"]
    pooled: dict[str, Scores] = {name: Scores() for name in names}
    parts: dict[str, list[dict[str, list[float]]]] = {name: [] for name in names}
    for seed in range(options.seeds):
        simulated = simulate_coruns(SimulatedConfig(seed=seed, n_runs=options.runs))
        data, clock = simulated.dataset, MonotonicClock()
        known = known_predictors(tuple(names[:-1]))
        known["oracle"] = lambda features, lanes, truth=simulated.truth: Oracle(features, lanes, truth)
        for name in names:
            with console.status(f"seed {seed}: {name}"):
                scores = prequential(data, known[name](data.features, lanes_of(data)), clock)
            pooled[name].extend(scores)
            n = len(scores.actual)
            change = max(0, simulated.changed_from - (data.n - n))
            parts[name].append(
                {
                    "before": coverage(scores, slice(0, change)),
                    "after": coverage(scores, slice(change, n)),
                    "first_300": coverage(scores, slice(change, change + WINDOW)),
                }
            )
    rows = []
    for name in names:
        row = {"predictor": name, "split": "simulated", **pooled[name].report()}
        for part in ("before", "after", "first_300"):
            row[f"coverage_{part}"] = np.mean([found[part] for found in parts[name]], axis=0).tolist()
        rows.append(row)
    show_study(console, rows)
    truth = rows[-1]["groups"]
    for row in rows:
        shown = {
            n: f"{100 * group['mape']:.1f} % ({group['mape'] / truth[n]['mape']:.2f} x oracle)"
            for n, group in row["groups"].items()
        }
        halves = [
            " ".join(f"{100 * v:.1f}" for v in row[f"coverage_{part}"])
            for part in ("before", "after", "first_300")
        ]
        console.print(f"{row['predictor']}: by most others {shown}; coverage {halves}", highlight=False)
    if options.json is not None:
        facts = {"seeds": options.seeds, "runs": options.runs, "rows": rows}
        options.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
