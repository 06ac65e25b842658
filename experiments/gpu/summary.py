"""A page of facts about a recording: `summary.md` and its pictures, from the files that record.py wrote.

    python experiments/gpu/summary.py DIR

How to read it. Slowdown is the span of a run over its solo median. In flight counts the others at dispatch.
Two models gain by overlapping when the work they do per unit of time, 1 / slowdown each, adds up to more
than 1; below 1 running them one after the other is faster.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from explain import explained, runs_of

from cotenant.experiment.packed import read_text

BATCHES = (1, 4, 16)
Table = list[dict[str, str]]
Slowdowns = dict[tuple[str, int, int], list[float]]
"""(model, batch, others in flight) -> slowdowns of its runs on the whole device."""


def table(folder: Path, name: str) -> Table:
    """A CSV of the recording, packed or not."""
    return list(csv.DictReader(io.StringIO(read_text(folder / f"corun.{name}.csv"))))


def slowdowns(tables: dict[str, Table]) -> Slowdowns:
    solo = {(r["workload"], r["batch"], r["share"]): float(r["solo_ms"]) for r in tables["profiles"]}
    found: Slowdowns = defaultdict(list)
    for r in tables["coruns"]:
        if float(r["share"]) == 1.0:
            span = float(r["end_ms"]) - float(r["start_ms"])
            key = (r["workload"], int(r["batch"]), int(r["queue_n"]))
            found[key].append(span / solo[r["workload"], r["batch"], r["share"]])
    return found


def draw_slowdowns(found: Slowdowns, path: Path) -> None:
    names = sorted({name for name, _, _ in found})
    most = max(n for _, _, n in found)
    figure, axes = plt.subplots(figsize=(10, 4.2), layout="constrained")
    width = 0.8 / (most + 1)
    for n in range(most + 1):
        pooled = [
            [s for (m, _, k), spans in found.items() if m == name and k == n for s in spans] for name in names
        ]
        at = np.arange(len(names)) + (n - most / 2) * width
        middle = np.array([np.median(spans) if spans else np.nan for spans in pooled])
        high = np.array([np.percentile(spans, 90) if spans else np.nan for spans in pooled])
        shade = 0.75 - 0.6 * n / max(1, most)
        axes.bar(at, middle, width * 0.92, color=str(shade), label=f"{n} others")
        axes.errorbar(at, middle, [np.zeros(len(names)), high - middle], fmt="none", ecolor="#b04040", lw=1)
    axes.axhline(1.0, color="#888888", lw=0.8, ls=":")
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("slowdown (x solo median)")
    axes.set_title("Slowdown by others in flight at dispatch: median, line to the 90 % quantile", fontsize=11)
    axes.legend(frameon=False, ncols=4, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_table(values: Any, rows: list[str], columns: list[str], title: str, label: str, path: Path) -> None:
    """A table as colours around 1, with its numbers."""
    figure, axes = plt.subplots(
        figsize=(1.8 + 0.72 * len(columns), 1.6 + 0.5 * len(rows)), layout="constrained"
    )
    reach = max(0.3, float(np.nanmax(np.abs(values - 1))))
    image = axes.imshow(values, cmap="RdBu", vmin=1 - reach, vmax=1 + reach, aspect="auto")
    for i in range(len(rows)):
        for j in range(len(columns)):
            dark = abs(values[i, j] - 1) > 0.65 * reach
            axes.text(
                j, i, f"{values[i, j]:.2f}", ha="center", va="center", fontsize=8, color="w" if dark else "k"
            )
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_title(title, fontsize=11)
    figure.colorbar(image, shrink=0.85, label=label)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_pairs(pairs: list[dict[str, Any]], path: Path) -> dict[tuple[str, str], float]:
    """The throughput of each pair, as a multiple of taking turns."""
    names = sorted({pair["victim"] for pair in pairs})
    slow = {(pair["victim"], pair["aggressor"]): pair["slowdown"] for pair in pairs}
    gain = {(a, b): 1 / slow[a, b] + 1 / slow[b, a] for a in names for b in names}
    draw_table(
        np.array([[gain[a, b] for b in names] for a in names]), names, names,
        "Work of two models side by side, as a multiple of taking turns",
        "1 / slowdown + 1 / slowdown of the other", path,
    )  # fmt: skip
    return gain


def draw_stressors(rows: Table, folder: Path) -> None:
    """Slowdown of every model beside every stressor at its highest intensity, and the other way round."""
    highest = [r for r in rows if float(r["intensity"]) == 1.0]
    names = sorted({f"{r['workload']} [{r['batch']}]" for r in highest})
    kinds = list(dict.fromkeys(r["stressor"] for r in highest))
    for column, title in (
        ("sensitivity", "Speed of models beside stressors (1: as alone)"),
        ("pressure", "Speed of stressors beside models (1: as alone)"),
    ):
        values = np.full((len(names), len(kinds)), np.nan)
        for r in highest:
            place = names.index(f"{r['workload']} [{r['batch']}]"), kinds.index(r["stressor"])
            values[place] = float(r[column])
        draw_table(1 / values, names, kinds, title, "speed (x alone)", folder / f"{column}.png")


def slowdown_lines(found: Slowdowns) -> list[str]:
    most = max(n for _, _, n in found)
    lines = [
        "| model | batch | " + " | ".join(str(n) for n in range(most + 1)) + " |",
        "|---|---|" + "---|" * (most + 1),
    ]
    for name, batch in sorted({(name, batch) for name, batch, _ in found}):
        if batch not in BATCHES:
            continue
        cells = []
        for n in range(most + 1):
            spans = found.get((name, batch, n))
            cells.append(f"{np.median(spans):.2f} ({np.percentile(spans, 90):.2f})" if spans else "")
        lines.append(f"| {name} | {batch} | " + " | ".join(cells) + " |")
    return lines


def partition_lines(facts: dict[str, Any], profiles: Table) -> list[str]:
    found = facts["partitions"]
    if not found["available"]:
        return [f"No partitions here: {found['why']}."]
    solo = {(r["workload"], r["batch"], float(r["share"])): float(r["solo_ms"]) for r in profiles}
    shares = sorted({share for _, _, share in solo})
    lines = [
        "SMs by share: " + ", ".join(f"{share}: {sms}" for share, sms in found["sms"].items()),
        "",
        "Latency alone, as a multiple of that on the whole device:",
        "",
        "| model | batch | " + " | ".join(str(share) for share in shares) + " |",
        "|---|---|" + "---|" * len(shares),
    ]
    for name, batch in sorted({(name, batch) for name, batch, _ in solo}, key=lambda k: (k[0], int(k[1]))):
        if int(batch) in BATCHES:
            cells = [f"{solo[name, batch, share] / solo[name, batch, 1.0]:.2f}" for share in shares]
            lines.append(f"| {name} | {batch} | " + " | ".join(cells) + " |")
    ratio = [sum(1 / s for s in pair["halves"]) / sum(1 / s for s in pair["free"]) for pair in found["pairs"]]
    lines += [
        "",
        f"Work of pairs on complementary halves over free overlap: median {np.median(ratio):.2f}, "
        f"from {min(ratio):.2f} to {max(ratio):.2f}.",
    ]
    return lines


def policy_lines(facts: dict[str, Any]) -> list[str]:
    found = facts.get("policies", {"skipped": "the recording ended before"})
    if "skipped" in found:
        return [f"Not run: {found['skipped']}."]
    runs = found["runs"]
    scales = sorted({run["scale"] for run in runs})
    share = {(run["policy"], run["scale"]): run["attainment"] for run in runs}
    lines = [
        f"Capacity {found['capacity_per_s']:.0f} requests/s; deadlines {found['slo_scale']} x solo; "
        f"{found['seconds_each']:.1f} s each. Attainment by load:",
        "",
        "| policy | " + " | ".join(f"{scale:g} x" for scale in scales) + " |",
        "|---|" + "---|" * len(scales),
    ]
    for policy in dict.fromkeys(run["policy"] for run in runs):
        cells = [f"{100 * share[policy, scale]:.1f} %" for scale in scales]
        lines.append(f"| {policy} | " + " | ".join(cells) + " |")
    return lines


def section(lines: Callable[[], list[str]]) -> list[str]:
    """Its lines or, when the recording ended before or that part failed, that there are none."""
    try:
        return [*lines(), ""]
    except (KeyError, ValueError, FileNotFoundError) as error:
        return [f"Not recorded ({type(error).__name__}: {error}).", ""]


def head_lines(facts: dict[str, Any]) -> list[str]:
    failed = [f"- **failed** {name}: {why}" for name, why in facts.get("failed", {}).items()]
    return [
        "# What this device does when models run side by side",
        "",
        *(["**A dry run: small models on a CPU. Nothing here is a GPU's.**", ""] if facts["dry_run"] else []),
        *failed,
        *(f"- {key}: {value}" for key, value in facts["device"].items()),
        f"- {facts['dispatches']} dispatches in {facts.get('wall_s', float('nan')):.0f} s",
    ]


def right_lines(facts: dict[str, Any]) -> list[str]:
    worst = max(facts["reference"]["relative_error"].values())
    correct = facts["correct"]
    return [
        f"- outputs against fp32 on the CPU: largest relative error {worst:.1e}",
        f"- co-located outputs against those alone: {correct['batches']} batches, "
        f"{correct['different']} different",
    ]


def cost_lines(facts: dict[str, Any]) -> list[str]:
    noise = facts["noise"]["median_relative_deviation_by_lanes"]
    return [
        "- noise (the same episode again), median deviation of a span, by lanes: "
        + ", ".join(f"{lanes}: {100 * value:.1f} %" for lanes, value in noise.items()),
        "- host (us): " + ", ".join(f"{key.removesuffix('_us')} {v:.0f}" for key, v in facts["host"].items()),
        f"- memory (MiB) before and after the co-runs: {facts['memory_mib']['before']}, "
        f"{facts['memory_mib']['after']}",
        f"- counters: {facts['counters']}",
    ]


def corun_lines(folder: Path) -> list[str]:
    tables = {name: table(folder, name) for name in ("profiles", "segments", "coruns")}
    found = slowdowns(tables)
    draw_slowdowns(found, folder / "slowdown.png")
    share = explained(runs_of(tables))
    return [
        "![slowdown by others in flight](slowdown.png)",
        "",
        "Median slowdown (90 % quantile) by others in flight at dispatch:",
        "",
        *slowdown_lines(found),
        "",
        "Variance of log slowdown explained out of fold: "
        + ", ".join(f"{name} {100 * value:.0f} %" for name, value in share.items())
        + " (the number in flight at dispatch; which models were beside it, and for how much of its span; "
        "also which segments).",
    ]


def pair_lines(facts: dict[str, Any], folder: Path) -> list[str]:
    gain = draw_pairs(facts["pairs"], folder / "pairs.png")
    pairs = sorted((g, a, b) for (a, b), g in gain.items() if a <= b)
    return [
        "![work of pairs](pairs.png)",
        "",
        "Overlap loses most and gains most:",
        "",
        *(f"- {a} and {b}: {g:.2f}" for g, a, b in (*pairs[:4], *pairs[-4:])),
    ]


def stressor_lines(folder: Path) -> list[str]:
    draw_stressors(table(folder, "stressors"), folder)
    return ["![sensitivity](sensitivity.png) ![pressure](pressure.png)"]


def page(folder: Path) -> str:
    """The text, after the pictures were drawn; what was not recorded is said in its place."""
    facts = json.loads((folder / "facts.json").read_text())
    lines = [
        *section(lambda: head_lines(facts)),
        *section(lambda: right_lines(facts)),
        *section(lambda: cost_lines(facts)),
        *section(lambda: corun_lines(folder)),
        *section(lambda: pair_lines(facts, folder)),
        *section(lambda: stressor_lines(folder)),
        *("## Partitions", ""),
        *section(lambda: partition_lines(facts, table(folder, "profiles"))),
        *("## Simple policies, live", ""),
        *section(lambda: policy_lines(facts)),
    ]
    return "\n".join(lines)


def main() -> int:
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "facts.json").is_file():
        print("usage: summary.py DIR, where DIR has a recording (facts.json)", file=sys.stderr)
        return 2
    folder = Path(sys.argv[1])
    (folder / "summary.md").write_text(page(folder))
    print(f"wrote {folder / 'summary.md'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
