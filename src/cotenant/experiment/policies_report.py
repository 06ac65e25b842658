"""The study of policies for people: tables, and a line for each thing that they rest on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from cotenant.experiment.policies_summary import DROPS, LEVELS
from cotenant.experiment.tables import number, share

Json = Mapping[str, Any]


def show_policies(console: Console, result: Json) -> None:
    """Capacity; all policies at one load; how requests ended there and what deciding cost."""
    for table in (_goodput(result), _reference(result), _endings(result), _costs(result)):
        if table is not None:
            console.print(table)
            console.print()
    for line in remarks(result):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _table(title: str, *names: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    table.add_column("policy", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _goodput(result: Json) -> Table:
    n = len(result["seeds"])
    table = _table(
        f"{result['scenario']}: goodput (answers in time per second), {n} seed{'s' if n > 1 else ''}",
        *("at 95 %", "to simple", "to oracle", "at 99 %", "to simple", "to oracle"),
    )
    for row in result["policies"]:
        cells = []
        for level in LEVELS:
            found, mine = row["goodput_per_s"][level], result["summary"]["goodput"][row["policy"]][level]
            spread = "" if found["ci95"] is None else f" ±{found['ci95']:.1f}"
            cells += [f"{found['mean']:.1f}{spread}"]
            cells += [_times(mine["to_best_simple"]), _times(mine["to_oracle"])]
        table.add_row(row["policy"], *cells)
    return table


def _reference(result: Json) -> Table | None:
    reference, misses = result["summary"]["reference"], result["summary"]["misses"]
    if reference is None and misses is None:
        return None
    title = f"at scale {reference['scale']:.3g}, where {reference['of']} attains 75 %" if reference else ""
    table = _table(title, "attained", "gain", "tail", "less", "misses")
    for row in result["policies"]:
        at = reference["policies"][row["policy"]] if reference else {}
        table.add_row(
            row["policy"],
            share(at.get("attainment")),
            _signed(at.get("gain")),
            number(at.get("tail_variability"), 2),
            _signed(at.get("tail_reduction")),
            share(misses["policies"][row["policy"]]) if misses else "-",
        )
    return table


def _endings(result: Json) -> Table:
    near = result["summary"]["near"]
    every = list(near["policies"].values())
    kinds = [kind for kind in DROPS if any(facts["drops"][kind] for facts in every)]
    best_effort = any(facts["best_effort_per_s"] is not None for facts in every)
    fairness = any("fairness" in facts for facts in every)
    table = _table(
        f"at scale {near['scale']:.3g}, {near['load']:.2f} of the saturated capacity: how requests ended",
        *("attained", *kinds),
        *(("best effort /s",) if best_effort else ()),
        *(("least model", "Jain") if fairness else ()),
    )
    for name, facts in near["policies"].items():
        cells = [share(facts["attainment"]), *(share(facts["drops"][kind]) for kind in kinds)]
        if best_effort:
            cells.append(number(facts["best_effort_per_s"]))
        if fairness:
            found = facts["fairness"]
            cells += [share(found["worst_model"]["attainment"]), number(found["jain"], 3)]
        table.add_row(name, *cells)
    return table


def _costs(result: Json) -> Table:
    near = result["summary"]["near"]
    table = _table(
        "there: the device, predictions, and the time of a decision",
        *("busy", "load", "error", "coverage at 0.9/0.95/0.99", "p99 us"),
    )
    for name, facts in near["policies"].items():
        coverage = (facts["coverage"] or {}).values()
        known = [f"{100 * value:.1f}" for value in coverage if value is not None]
        table.add_row(
            name,
            share(facts["device_busy"]),
            share(facts["device_load"]),
            share(facts["mape"]),
            " ".join(known) or "-",
            number(facts["decision_us_p99"], 0),
        )
    return table


def remarks(result: Json) -> list[str]:
    """What the columns are relative to, the settings chosen, whether the static policy is a fair opponent,
    and what the study cost."""
    summary = result["summary"]
    best, reference, misses = summary["best_simple"], summary["reference"], summary["misses"]
    lines = []
    if best["0.95"]:
        lines.append(f"to simple: as a multiple of {best['0.95']} at 95 %, of {best['0.99']} at 99 %")
    if reference:
        lines.append(f"gain of attainment and less of tail variability: over {reference['of']}")
    if misses:
        (low, high), (most, least) = misses["between"], misses["attained"]
        lines.append(
            f"misses: as a share of {misses['of']}'s, mean over scales {low:.3g} to {high:.3g}, where it "
            f"attains {share(most)} to {share(least)}"
        )
    for name, settings in result["tuned"].items():
        chosen = ", ".join(f"{key} = {value:g}" for key, value in settings.items())
        lines.append(f"{name} is tuned on other seeds: {chosen}")
    honest = summary["honesty"]
    if honest:
        verdict = "a fair opponent" if honest["holds"] else "NOT a fair opponent"
        lines.append(
            f"static_linear is {verdict}: {_times(honest['ratio'])} the best simple policy's goodput at 95 % "
            f"(wanted: {honest['at_least']:g})"
        )
    lines.append(f"{result['n_runs']} runs in {result['elapsed_s']:.0f} s, {result['processes']} at once")
    return lines


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} x"


def _signed(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:+.1f} %" if abs(value) < 10 else f"{100 * value:+.1e} %"
