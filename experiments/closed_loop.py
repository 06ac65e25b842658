"""Does what the server learns keep its deadlines when the machine turns out to be slower than it was?

How this works. The same load, 0.7 of the measured capacity, is offered twice for 120 s to the engine in
process, from the same seed: once as the server runs, once with learning switched off (profile times, and the
bounds that follow from them). From 20 to 80 s `neighbour.py` runs, which the server knows nothing of, limited
so that saturated capacity falls to about 80 %; both capacities are measured first, in the same way.
Attainment counts every request by its arrival. Three conditions:

    1. from 20 to 60 s after the neighbour's start, attainment >= 0.95 min(1, remaining capacity / offered)
    2. in that time at least 10 points more than with learning off
    3. from 20 s after its end on, within 2 points of before it came

The two runs follow one another, so a machine that others use says little: how many cores they took is kept
with each run, and said.

    python experiments/closed_loop.py --json benchmarks/results/closed_loop.json --plot docs/closed_loop.png
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cotenant.assemble import Prepared, describe_device, prepare
from cotenant.catalogue import places
from cotenant.config import Scenario, load_scenario
from cotenant.domain import NS_PER_S, JobClass, Outcome, OutcomeKind
from cotenant.experiment.live import live_capacity, run_live
from cotenant.experiment.recorder import Recorder
from cotenant.experiment.report import versions
from cotenant.predict.fluid import FluidConfig
from cotenant.predictors import make_fluid

HERE = Path(__file__).resolve().parent
OFFERED = 0.7
"""Load as a share of the capacity without the neighbour."""
REMAINING = 0.8
"""Capacity that the neighbour should leave, as a share."""
PHASES = 6
"""A run has so many equal phases: before; three beside the neighbour, the last two of which are judged; one
to recover; after."""
N_WINDOWS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run: attainment in windows and phases, and the report."""

    learns: bool
    windows: list[float | None]
    before: float
    beside: float
    after: float
    outcomes_beside: dict[str, int]
    others_cores: float
    """Cores that neither the server nor the neighbour used but somebody did, on average."""
    report: dict[str, Any]


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def neighbour(share: float, *, after_s: float = 0.0, seconds: float = 3600.0) -> Iterator[None]:
    """The neighbour process, from `after_s` on for `seconds`; gone at the end."""
    command = [sys.executable, str(HERE / "neighbour.py"), "--share", f"{share}"]
    process = subprocess.Popen([*command, "--after", f"{after_s}", "--seconds", f"{seconds}"])
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


# --- measuring --------------------------------------------------------------------------------------------


def used_by_others_s() -> float:
    """CPU seconds since boot that neither this process nor its ended children used; Linux only."""
    fields = Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]
    user, nice, system, _, _, irq, softirq, steal = (int(field) for field in fields)
    busy_s = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    ours = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return busy_s - sum(usage.ru_utime + usage.ru_stime for usage in ours)


def capacities(prepared: Prepared, scenario: Scenario, seconds: float) -> tuple[float, float, float]:
    """Requests/s of the saturated device alone and beside the neighbour, and the share of each core that
    the neighbour then takes: chosen in one step from a first measurement."""
    measured = {"seconds": seconds, "warm_s": seconds / 2}
    alone = asyncio.run(live_capacity(prepared, scenario, **measured))
    share = 1.0 - REMAINING
    for step in ("first", "second"):
        with neighbour(share):
            beside = asyncio.run(live_capacity(prepared, scenario, **measured))
        note(f"capacity {alone:.0f}/s alone, {beside:.0f}/s beside a neighbour of {share:.2f} per core")
        if step == "first" and abs(beside / alone - REMAINING) > 0.03:
            share *= (1.0 - REMAINING) / max(0.05, 1.0 - beside / alone)
            share = min(0.6, max(0.05, share))
            continue
        break
    return alone, beside, share


def run(
    prepared: Prepared, scenario: Scenario, policy: str, capacity: float, share: float, learns: bool
) -> Run:
    """The load once, with a predictor that knows nothing yet."""
    phase_s = scenario.load.duration_s / PHASES
    recorder = Recorder(prepared.executor.lanes)
    config = FluidConfig(learns=learns)
    predictor = make_fluid(prepared.profiles, prepared.features, prepared.executor.lanes, config)
    others_s = used_by_others_s()
    with neighbour(share, after_s=phase_s, seconds=3 * phase_s):
        report = asyncio.run(
            run_live(
                prepared, scenario, policy, scale=OFFERED, capacity_per_s=capacity, observers=[recorder],
                predictor=predictor, drain_s=2.0,
            )
        )  # fmt: skip
    began_at = min(outcome.request.arrived_at for outcome in recorder.outcomes)
    counted = [o for o in recorder.outcomes if o.request.job_class is not JobClass.BEST_EFFORT]

    def between(begin: float, end: float) -> list[Outcome]:
        """Those that arrived in a span, in phases from the start."""
        bounds = [began_at + int(part * phase_s * NS_PER_S) for part in (begin, end)]
        return [o for o in counted if bounds[0] <= o.request.arrived_at < bounds[1]]

    edges = np.linspace(0.0, PHASES, N_WINDOWS + 1).tolist()
    judged = between(2, 4)
    return Run(
        learns=learns,
        windows=[attainment(between(*edges[i : i + 2])) for i in range(N_WINDOWS)],
        before=attainment(between(0.25, 1)) or 0.0,
        beside=attainment(judged) or 0.0,
        after=attainment(between(5, 6)) or 0.0,
        outcomes_beside={kind.value: sum(1 for o in judged if o.kind is kind) for kind in OutcomeKind},
        others_cores=(used_by_others_s() - others_s) / report["wall_s"],
        report=report,
    )


def attainment(outcomes: Sequence[Outcome]) -> float | None:
    """Share answered in time; None where nothing was offered."""
    ok = sum(1 for outcome in outcomes if outcome.kind is OutcomeKind.OK)
    return ok / len(outcomes) if outcomes else None


# --- judging ----------------------------------------------------------------------------------------------


def judge(on: Run, off: Run, remaining_per_offered: float) -> list[dict[str, Any]]:
    """The three conditions."""
    floor = 0.95 * min(1.0, remaining_per_offered)
    found = [
        ("attainment beside the neighbour", on.beside, floor, on.beside >= floor),
        ("the same, above learning off", on.beside - off.beside, 0.10, on.beside - off.beside >= 0.10),
        ("after it, away from before", abs(on.after - on.before), 0.02, abs(on.after - on.before) <= 0.02),
    ]
    return [{"name": name, "figure": f, "bound": bound, "met": met} for name, f, bound, met in found]


def plot(path: Path, runs: Sequence[Run], seconds: float, share_left: float) -> None:
    """Both curves, the neighbour shaded."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4))
    at = (np.arange(N_WINDOWS) + 0.5) * seconds / N_WINDOWS
    for one, colour in zip(runs, ("tab:blue", "tab:red"), strict=True):
        values = [np.nan if value is None else 100 * value for value in one.windows]
        label = "learning on" if one.learns else "learning off"
        axes.plot(at, values, color=colour, label=f"{label}: {100 * one.beside:.1f} % in the judged part")
    begin, judged, end = (seconds / PHASES * k for k in (1, 2, 4))
    axes.axvspan(begin, end, color="0.92", label=f"neighbour: {100 * share_left:.0f} % of the capacity left")
    axes.axvspan(judged, end, color="0.85")
    axes.set(xlabel="s", ylabel="requests answered in time, %", ylim=(0, 101), xlim=(0, seconds))
    axes.legend(loc="lower left")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


KEPT_OF_RUN = ("before", "beside", "after", "outcomes_beside", "others_cores", "windows")


def facts(one: Run) -> dict[str, Any]:
    """What of a run is committed."""
    kept = ("offered", "ok", "late", "rejected", "expired", "cancelled", "failed", "attainment", "p99_ms",
            "device_busy", "prediction", "decision_us")  # fmt: skip
    return {
        "learns": one.learns,
        **{name: getattr(one, name) for name in KEPT_OF_RUN},
        "report": {name: one.report[name] for name in kept},
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenario", type=Path, default=HERE / "closed_loop.toml")
    parser.add_argument("--policy", default="default")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--capacity-seconds", type=float, default=10.0)
    parser.add_argument("--store", type=Path, help="profiles to use; without it they are measured anew")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    scenario = load_scenario(options.scenario)
    scenario = replace(scenario, load=replace(scenario.load, duration_s=options.seconds))
    where = places(options.store or Path(tempfile.mkdtemp(prefix="cotenant-closed-loop-")))
    prepared = prepare(scenario, where)
    try:
        alone, beside, share = capacities(prepared, scenario, options.capacity_seconds)
        runs = [run(prepared, scenario, options.policy, alone, share, learns) for learns in (True, False)]
    finally:
        prepared.executor.close()
    conditions = judge(*runs, beside / (OFFERED * alone))
    for one in runs:
        note(
            f"learning {'on' if one.learns else 'off'}: before {one.before:.3f}, "
            f"beside {one.beside:.3f} {one.outcomes_beside}, after {one.after:.3f}; "
            f"others used {one.others_cores:.2f} cores{' (NOT QUIET)' if one.others_cores > 0.15 else ''}"
        )
    for condition in conditions:
        note(f"{condition['name']}: {condition['figure']:.3f} ({condition['bound']:.3f}) {condition['met']}")
    if options.plot:
        plot(options.plot, runs, options.seconds, beside / alone)
    if options.json:
        body = {
            "scenario": options.scenario.name,
            "policy": runs[0].report["config"]["policy"],
            "seconds": options.seconds,
            "seed": scenario.load.seed,
            "capacity_per_s": alone,
            "capacity_beside_per_s": beside,
            "neighbour_share_of_each_core": share,
            "offered_per_s": OFFERED * alone,
            "conditions": conditions,
            "runs": [facts(one) for one in runs],
            "versions": versions(),
            "device": describe_device(prepared.device),
            "machine": {"cores": os.cpu_count()},
        }
        options.json.write_text(json.dumps(body, indent=1, allow_nan=False) + "\n")
    return 0 if all(condition["met"] for condition in conditions) else 1


if __name__ == "__main__":
    sys.exit(main())
