"""A best-effort model that would take everything: how full is the device, and does the protected one notice?

    python experiments/busy.py [SCENARIO.toml] [--policy ours] [--seeds 5] [--json FILE]

Simulates the scenario (`examples/busy.toml`) with and without its best-effort models, from the same seeds,
which give the other models the same requests. Prints per seed, and as means: attainment of the protected
class, how busy the device was, what best-effort work got done, and the 99 % quantile of the protected class's
latency as a multiple of what it is without best-effort work. Asked for: attainment 99 %, busy 85 %, 1.10.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cotenant.catalogue import places
from cotenant.config import Scenario, load_scenario
from cotenant.domain import JobClass
from cotenant.experiment.simulated import SimulatedDevice, device_of, simulate

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
console = Console(width=None if sys.stdout.isatty() else 110)


def without_best_effort(scenario: Scenario) -> Scenario:
    """The same with nothing to fill the device. Raises SystemExit where there is nothing to compare."""
    classes = [model.job_class for model in scenario.models]
    for wanted in (JobClass.BEST_EFFORT, JobClass.PROTECTED):
        if wanted not in classes:
            raise SystemExit(f"{scenario.path}: no model has class = '{wanted.name.lower()}'")
    left = tuple(model for model in scenario.models if model.job_class is not JobClass.BEST_EFFORT)
    return replace(scenario, models=left)


Case = tuple[Scenario, SimulatedDevice]


def compared(cases: Sequence[Case], policy: str, seed: int) -> dict[str, Any]:
    """One seed, with and without best-effort work."""
    full, without = (simulate(scenario, device, policy, seed=seed) for scenario, device in cases)
    protected, before = (report["per_class"]["protected"] for report in (full, without))
    return {
        "seed": seed,
        "protected_attainment": protected["attainment"],
        "attainment": full["attainment"],
        "device_busy": full["device_busy"],
        "device_busy_without": without["device_busy"],
        "best_effort_per_s": full["best_effort_per_s"],
        "protected_p99_ms": protected["p99_ms"],
        "protected_p99_ms_without": before["p99_ms"],
        "p99_ratio": protected["p99_ms"] / before["p99_ms"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenario", type=Path, nargs="?", default=EXAMPLES / "busy.toml")
    parser.add_argument("--policy", default="ours")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    scenario = load_scenario(options.scenario)
    with tempfile.TemporaryDirectory() as store:
        cases = [
            (one, device_of(one, places(Path(store)))) for one in (scenario, without_best_effort(scenario))
        ]
        found = []
        for seed in range(1, options.seeds + 1):
            found.append(compared(cases, options.policy, seed))
            console.print(f"seed {seed} of {options.seeds} done", style="dim")
    keys = [key for key in found[0] if key != "seed"]
    means = {key: statistics.mean(one[key] for one in found) for key in keys}
    table = Table(title=f"{options.scenario.name}, {options.policy}", title_justify="left", box=None)
    for name in ("", "mean", "least", "most"):
        table.add_column(name, justify="right" if name else "left")
    for key in keys:
        values = [one[key] for one in found]
        table.add_row(key, *(f"{value:.3f}" for value in (means[key], min(values), max(values))))
    console.print(table)
    if options.json:
        facts = {"scenario": options.scenario.name, "policy": options.policy, "seeds": found, "means": means}
        options.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
