"""What a person sees in the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cotenant.domain import NS_PER_MS
from cotenant.profile.features import FeatureTable, WorkloadFeatures
from cotenant.profile.probe import probed_variants
from cotenant.profile.records import StoredProfiles


def number(value: float | None, digits: int = 1, unit: str = "") -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}{unit}"


def share(value: float | None) -> str:
    """A fraction as per cent."""
    return "-" if value is None else f"{100 * value:.1f} %"


def show_report(console: Console, report: Mapping[str, Any]) -> None:
    """One run: a line of totals, then a row per model."""
    console.print(
        f"policy [bold]{report['policy']}[/]: {report['offered']} offered, "
        f"attainment [bold]{share(report['attainment'])}[/], goodput {number(report['goodput_per_s'])} /s, "
        f"p50 {number(report['p50_ms'])} ms, p99 {number(report['p99_ms'])} ms",
        highlight=False,
    )
    worst, jain = report["fairness"]["worst_model"], report["fairness"]["jain"]
    if len(report["per_model"]) > 1 and worst["name"] is not None:
        console.print(
            f"worst model {escape(worst['name'])}: {share(worst['attainment'])}, "
            f"Jain index over models {number(jain, 3)}",
            highlight=False,
        )
    table = Table(box=None, header_style="bold")
    for name in (
        "model",
        "offered",
        "ok",
        "late",
        "refused",
        "expired",
        "other",
        "attained",
        "p50 ms",
        "p99 ms",
    ):
        table.add_column(name, justify="left" if name == "model" else "right")
    for name, group in report["per_model"].items():
        table.add_row(
            name,
            str(group["offered"]),
            str(group["ok"]),
            str(group["late"]),
            str(group["rejected"]),
            str(group["expired"]),
            str(group["cancelled"] + group["failed"]),
            share(group["attainment"]),
            number(group["p50_ms"]),
            number(group["p99_ms"]),
        )
    console.print(table)


def show_profiles(console: Console, profiles: StoredProfiles, *, largest_only: bool = False) -> None:
    """Solo latencies of every measured variant; `largest_only`: one row per model, at its largest axes."""
    table = Table(box=None, header_style="bold")
    for name in ("variant", "median ms", "spread ms", "p99 ms", "runs"):
        table.add_column(name, justify="left" if name == "variant" else "right")
    records = list(profiles.records)
    if largest_only:
        singles = [record for record in records if record.profile.variant.rows == 1]
        records = list({record.profile.variant.model: record for record in singles}.values())
    for record in records:
        found = record.profile
        quantiles = dict(found.quantiles_ns)
        p99 = quantiles.get(0.99)
        table.add_row(
            found.variant.label,
            number(found.median_ns / NS_PER_MS, 2),
            number(found.spread_ns / NS_PER_MS, 2),
            number(None if p99 is None else p99 / NS_PER_MS, 2),
            str(found.n_samples),
        )
    console.print(table)


def show_features(console: Console, table: FeatureTable) -> None:
    """A row per probed variant: demands, sensitivities (log slowdown of the model beside a stressor) and
    pressures (of the stressor beside the model)."""
    grid = Table(box=None, header_style="bold")
    grid.add_column("variant")
    for name in ("solo ms", "segments"):
        grid.add_column(name, justify="right")
    n = len(table.resources)
    for what in ("demand", "sensitivity", "pressure"):
        for resource in table.resources:
            grid.add_column(f"{what if resource == table.resources[0] else ''}\n{resource}", justify="right")
    for entry in table:
        probes = entry.statics[-2 * n :]
        probed = entry.variant in probed_variants([other.variant for other in table if same(other, entry)])
        if probed:
            figures = ["-" if math.isnan(x) else f"{x:.2f}" for x in (*entry.demand, *probes)]
            grid.add_row(
                entry.variant.label, f"{entry.solo_ns / NS_PER_MS:.2f}", str(len(entry.segments)), *figures
            )
    console.print(grid)


def same(one: WorkloadFeatures, other: WorkloadFeatures) -> bool:
    """Whether two workloads are of one model."""
    return one.variant.model == other.variant.model
