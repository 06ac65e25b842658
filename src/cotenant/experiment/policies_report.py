"""The study of policies for people: two tables and a line for what was asked of fairness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from cotenant.experiment.tables import number, share

Json = Mapping[str, Any]


def show_policies(console: Console, result: Json) -> None:
    """Capacity and one load compared; then costs and predictions."""
    summary = result["summary"]
    _show_goodput(console, result)
    console.print()
    _show_near(console, summary["near"])
    console.print()
    for line in remarks(result):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _table(title: str, names: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    for name in names:
        table.add_column(name, justify="left" if name == "policy" else "right", no_wrap=True)
    return table


def _show_goodput(console: Console, result: Json) -> None:
    summary, rows = result["summary"], {row["policy"]: row for row in result["policies"]}
    reference, misses = summary["reference"], summary["misses"]
    seeds = f"{len(result['seeds'])} seed{'s' if len(result['seeds']) > 1 else ''}"
    table = _table(
        f"{result['scenario']}: goodput (answers in time per second) by attainment held, {seeds}",
        ("policy", "at 95 %", "to simple", "to oracle", "at 99 %", "to simple", "to oracle", "attained",
         "gain", "tail", "less", "misses"),
    )  # fmt: skip
    for name, row in rows.items():
        cells = []
        for level in ("0.95", "0.99"):
            found, mine = row["goodput_per_s"][level], summary["goodput"][name][level]
            spread = "" if found["ci95"] is None else f" ±{found['ci95']:.1f}"
            cells += [
                f"{found['mean']:.1f}{spread}",
                _times(mine["to_best_simple"]),
                _times(mine["to_oracle"]),
            ]
        at = reference["policies"][name] if reference else {}
        cells += [
            share(at.get("attainment")),
            _signed(at.get("gain")),
            number(at.get("tail_variability"), 2),
            _signed(at.get("tail_reduction")),
            share(misses["policies"][name]) if misses else "-",
        ]
        table.add_row(name, *cells)
    console.print(table)


def _show_near(console: Console, near: Json) -> None:
    kinds = [
        kind
        for kind in ("late", "rejected", "expired", "cancelled", "failed")
        if any(facts["drops"][kind] for facts in near["policies"].values())
    ]
    best_effort = any(facts["best_effort_per_s"] is not None for facts in near["policies"].values())
    fairness = any("fairness" in facts for facts in near["policies"].values())
    table = _table(
        f"at scale {near['scale']:.3g}, {near['load']:.2f} of the saturated capacity",
        ("policy", "attained", *kinds, "busy", "load", "error", "coverage", "decision us",
         *(("best effort /s",) if best_effort else ()), *(("least", "Jain") if fairness else ())),
    )  # fmt: skip
    for name, facts in near["policies"].items():
        coverage = facts["coverage"] or {}
        known = [value for value in coverage.values() if value is not None]
        table.add_row(
            name,
            share(facts["attainment"]),
            *(share(facts["drops"][kind]) for kind in kinds),
            share(facts["device_busy"]),
            share(facts["device_load"]),
            share(facts["mape"]),
            "/".join(f"{100 * value:.1f}" for value in known) or "-",
            number(facts["decision_us_p99"], 0),
            *((number(facts["best_effort_per_s"]),) if best_effort else ()),
            *(_fairness(facts["fairness"]) if fairness else ()),
        )
    console.print(table)


def remarks(result: Json) -> list[str]:
    """What the columns are relative to, the settings chosen, whether the static policy is a fair opponent,
    and what the study cost."""
    summary = result["summary"]
    best, reference, misses = summary["best_simple"], summary["reference"], summary["misses"]
    lines = []
    if best["0.95"]:
        lines.append(f"to simple: as a multiple of {best['0.95']} at 95 %, of {best['0.99']} at 99 %")
    if reference:
        lines.append(
            f"attained, gain, tail, less: at scale {reference['scale']:.3g}, where {reference['of']} attains "
            f"75 %; gain and less (of tail variability) over {reference['of']}"
        )
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


def _fairness(found: Json) -> tuple[str, str]:
    """Attainment of the model with the least, and Jain's index."""
    return share(found["worst_model"]["attainment"]), number(found["jain"], 3)


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} x"


def _signed(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:+.1f} %" if abs(value) < 10 else f"{100 * value:+.1e} %"
