"""Every policy on many scenarios: is the best simple policy beaten, and by how much, wherever one looks?

    python experiments/policy_suite.py SCENARIO.toml... [--seeds 3] [--policies a,b] [--folder docs/results]

Runs `cotenant study policies` on each scenario and writes `policies_NAME.json` into the folder, on one line
and with figures of 7 digits. `--part 0.25` runs a quarter of each scenario's time, all phases kept. A
scenario whose file is there is not run again (`--again` runs it anyway); one that fails is named at the end
and does not stop the others. Prints, per scenario and level, goodput of `--of` (`ours`) as a multiple of the
best simple policy's (`fcfs`, `exclusive_edf`, `deferred_edf`, `k_edf`, the first and last tuned), then median
and least.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cotenant.catalogue import places
from cotenant.clock import MonotonicClock
from cotenant.config import load_scenario
from cotenant.cores import available_cores
from cotenant.experiment.policies_setup import StudyConfig, known_policies
from cotenant.experiment.policies_summary import LEVELS
from cotenant.experiment.progress import progress
from cotenant.experiment.study_policies import study
from cotenant.experiment.workers import shortened

console = Console(width=None if sys.stdout.isatty() else 120)


def target(folder: Path, scenario: Path) -> Path:
    """Where the study of a scenario is kept."""
    return folder / f"policies_{scenario.stem.removeprefix('policy_')}.json"


def run(scenario: Path, config: StudyConfig, store: Path | None, part: float) -> dict[str, Any]:
    """One study, telling what it is at."""
    clock = MonotonicClock()
    with progress(Console(stderr=True), clock, scenario.stem) as told:
        result = study(shortened(load_scenario(scenario), part), places(store), config, clock, told)
    return {**result, "part": part}


def rounded(value: Any) -> Any:
    """The same with every figure to 7 digits: these files are kept in the repository."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list | tuple) else value


def compared(results: Sequence[dict[str, Any]], of: str) -> Table:
    """A row per scenario, then the median and the least."""
    table = Table(title=f"{of} as a multiple of the best simple policy", title_justify="left", box=None)
    table.add_column("scenario")
    for level in LEVELS:
        for name in (f"{of} at {100 * float(level):g} %", "best simple", "multiple"):
            table.add_column(name, justify="right")
    multiples: dict[str, list[float]] = {level: [] for level in LEVELS}
    for result in results:
        cells = []
        for level in LEVELS:
            mine = result["summary"]["goodput"].get(of)
            best = result["summary"]["best_simple"][level]
            if mine is None or best is None or mine[level]["to_best_simple"] is None:
                cells += ["-", best or "-", "-"]
                continue
            multiples[level].append(mine[level]["to_best_simple"])
            cells += [f"{mine[level]['per_s']:.1f} /s", best, f"{multiples[level][-1]:.3f}"]
        table.add_row(result["scenario"], *cells)
    for name, measure in (("median", statistics.median), ("least", min)):
        cells = []
        for level in LEVELS:
            cells += ["", "", f"{measure(multiples[level]):.3f}" if multiples[level] else "-"]
        table.add_row(name, *cells, style="bold")
    return table


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenarios", nargs="+", type=Path, metavar="SCENARIO.toml")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--part", type=float, default=1.0, help="share of each scenario's time that is run")
    parser.add_argument("--policies", default="", help="only these, separated by commas")
    parser.add_argument("--of", default="ours", help="the policy whose multiples are printed")
    parser.add_argument("--folder", type=Path, default=Path("docs/results"))
    parser.add_argument("--processes", type=int, default=len(available_cores()))
    parser.add_argument("--store", type=Path)
    parser.add_argument("--again", action="store_true", help="run scenarios whose result is there, too")
    options = parser.parse_args()
    try:
        names = tuple(name.strip() for name in options.policies.split(",") if name.strip())
        config = StudyConfig(
            policies=known_policies(names), n_seeds=options.seeds, processes=options.processes
        )
        if not 0.0 < options.part <= 1.0:
            raise ValueError(f"--part must be greater than 0 and at most 1, not {options.part:g}")
        for scenario in options.scenarios:
            load_scenario(scenario)
        options.folder.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    results, failed = [], []
    for scenario in options.scenarios:
        path = target(options.folder, scenario)
        if path.exists() and not options.again:
            kept = json.loads(path.read_text(encoding="utf-8"))
            console.print(f"kept {path} (seeds {kept['seeds']})", highlight=False, markup=False)
            results.append(kept)
            continue
        try:
            result = run(scenario, config, options.store, options.part)
        except (ValueError, OSError) as error:
            failed.append(f"{scenario.name}: {error}")
            continue
        part = path.with_suffix(".part")
        part.write_text(json.dumps(rounded(result), allow_nan=False) + "\n", encoding="utf-8")
        part.replace(path)
        console.print(f"wrote {path} ({result['n_runs']} runs, {result['elapsed_s']:.0f} s)", highlight=False)
        results.append(result)
    console.print(compared(results, options.of))
    for message in failed:
        console.print(f"failed: {message}", highlight=False, markup=False, soft_wrap=True)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        raise SystemExit(130) from None
