"""Pictures of a study of policies: attainment and tail variability against load, and where requests went."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cotenant.experiment.policies_summary import points

Json = Mapping[str, Any]

COLOURS = {
    "fcfs": "#8c8c8c", "exclusive_edf": "#4d9221", "deferred_edf": "#01665e", "k_edf": "#e08214",
    "static_linear": "#762a83", "ours": "#b2182b", "default": "#b2182b", "oracle": "#2166ac",
}  # fmt: skip
OTHERS = ("#d6604d", "#f4a582", "#8c510a", "#c51b7d", "#5aae61", "#4393c3", "#bf812d")
BOLD = ("ours", "default")
OUTCOMES = {
    "ok": "#7fbf7b", "late": "#d6604d", "rejected": "#fdae61", "expired": "#c2a5cf",
    "cancelled": "#bababa", "failed": "#404040",
}  # fmt: skip
WIDE = 6.0
"""From this ratio of the loads on their axis is logarithmic."""
LABEL_GAP = 0.042
"""Least distance of two labels, as a share of the axis."""
ZOOM = 85
"""Lowest attainment (%) of the enlarged picture."""
ALIVE = 0.75
"""Variability is drawn as far as it goes while attainment is at least this."""
DPI = 120


def draw_policies(result: Json, path: Path) -> list[Path]:
    """`path` ends in .png: one picture of everything; else a folder: `attainment.png`, `variability.png`,
    `outcomes.png`. Returns what was written."""
    import matplotlib

    matplotlib.use("Agg")
    parts: dict[str, tuple[Callable[[Any, Json], None], int]] = {
        "attainment": (_attainment, 2),
        "variability": (_variability, 1),
        "outcomes": (_outcomes, 1),
    }
    if path.suffix == ".png":
        return [_draw_all(result, path)]
    path.mkdir(parents=True, exist_ok=True)
    return [_draw(draw, n, result, path / f"{name}.png") for name, (draw, n) in parts.items()]


def _draw(draw: Callable[[Any, Json], None], n: int, result: Json, path: Path) -> Path:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, n, figsize=(6 * n + 1.5, 4.6), layout="constrained")
    draw(axes, result)
    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)
    return path


def _draw_all(result: Json, path: Path) -> Path:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(13.5, 9.2), layout="constrained")
    _attainment(axes[0], result)
    _variability(axes[1][0], result)
    _outcomes(axes[1][1], result)
    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)
    return path


def colours(names: Sequence[str]) -> dict[str, str]:
    """The colour of each policy: the same in every picture, whichever were studied."""
    rest = [name for name in names if name not in COLOURS]
    return {name: COLOURS.get(name) or OTHERS[rest.index(name) % len(OTHERS)] for name in names}


def _lines(ax: Any, result: Json, key: str, factor: float, low: float) -> list[tuple[float, float, str]]:
    """A line per policy with its band; `low`: the least that is shown. Returns where each ends, and whose it
    is."""
    rows = {row["policy"]: row for row in result["policies"]}
    inks = colours(list(rows))
    ends: list[tuple[float, float, str]] = []
    for name, row in rows.items():
        line = points(row, key)
        if not line:
            continue
        at = [result["offered_per_s"] * scale for scale, _ in line]
        values = [factor * value for _, value in line]
        widths = [
            factor * (point["ci95"][key] or 0.0) for point in row["curve"] if point.get(key) is not None
        ]
        style = {"color": inks[name], "lw": 2.4 if name in BOLD else 1.5, "zorder": 3 if name in BOLD else 2}
        ax.plot(at, values, marker="o", ms=3, label=name, **style)
        bands = [max(value - width, low) for value, width in zip(values, widths, strict=True)]
        tops = [value + width for value, width in zip(values, widths, strict=True)]
        ax.fill_between(at, bands, tops, color=inks[name], alpha=0.12, lw=0)
        ends.append((at[-1], values[-1], name))
    loads = [result["offered_per_s"] * scale for scale in result["scales"]]
    if len(loads) > 1 and max(loads) / min(loads) > WIDE:
        ax.set_xscale("log")
        ticks = _ticks(min(loads), max(loads))
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.set_xticks([], minor=True)
    ax.set_xlabel("offered load (requests per second)")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25, lw=0.6)
    ax.set_xlim(min(loads) * 0.97, max(loads) * 1.01)
    return ends


def _ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 of every decade between."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    return [tick for tick in found if low * 0.97 <= tick <= high * 1.01]


def _label(ax: Any, ends: Sequence[tuple[float, float, str]], inks: Mapping[str, str]) -> None:
    """Names at the right edge, beside the ends of their lines, moved apart where they would overlap."""
    to_share = ax.transAxes.inverted()
    heights = {name: float(to_share.transform(ax.transData.transform((x, y)))[1]) for x, y, name in ends}
    names = sorted(heights, key=lambda name: heights[name])
    apart = spread([min(max(heights[name], 0.0), 1.0) for name in names], LABEL_GAP)
    for name, height in zip(names, apart, strict=True):
        ax.annotate(
            name, (1.01, height), xycoords="axes fraction", color=inks[name], fontsize=8.5, va="center",
            fontweight="bold" if name in BOLD else "normal", annotation_clip=False,
        )  # fmt: skip


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Ascending positions moved as little as possible (least squares) until all are `gap` apart: pooling of
    adjacent violators."""
    pools: list[tuple[float, int]] = []
    for i, value in enumerate(wanted):
        mean, n = value - i * gap, 1
        while pools and pools[-1][0] > mean:
            before, m = pools.pop()
            mean, n = (mean * n + before * m) / (n + m), n + m
        pools.append((mean, n))
    flat = [mean for mean, n in pools for _ in range(n)]
    return [value + i * gap for i, value in enumerate(flat)]


def _attainment(axes: Sequence[Any], result: Json) -> None:
    """The whole range, and the upper end enlarged."""
    names = [row["policy"] for row in result["policies"]]
    n = len(result["seeds"])
    ends = [_lines(ax, result, "attainment", 100.0, low) for ax, low in zip(axes, (0, ZOOM), strict=True)]
    for ax, low in zip(axes, (0, ZOOM), strict=True):
        for level in (95, 99):
            ax.axhline(level, color="#555555", lw=0.9, ls="--", zorder=1)
        ax.set_ylim(low, 100.4 if low else 102)
        ax.set_ylabel("SLO attainment (% of requests offered)")
    band = f"band: 95 % interval, {n} seeds" if n > 1 else "one seed"
    axes[0].set_title(f"{result['scenario']}: deadlines kept ({band})", fontsize=10.5)
    axes[1].set_title(f"the same from {ZOOM} % on; dashed: 95 % and 99 %", fontsize=10.5)
    high = [
        scale
        for row in result["policies"]
        for scale, attained in points(row, "attainment")
        if 100 * attained >= ZOOM
    ]
    if high:
        axes[1].set_xlim(right=1.2 * result["offered_per_s"] * max(high))
    axes[1].legend(frameon=False, fontsize=8.5, loc="lower left")
    _label(axes[0], ends[0], colours(names))


def _variability(ax: Any, result: Json) -> None:
    """Lines of policies that keep few deadlines may leave the picture at the top."""
    inks = colours([row["policy"] for row in result["policies"]])
    ends = _lines(ax, result, "tail_variability", 1.0, 0.0)
    alive = [
        point["tail_variability"]
        for row in result["policies"]
        for point in row["curve"]
        if point["tail_variability"] and (point["attainment"] or 0.0) >= ALIVE
    ]
    top = 1.25 * max(alive, default=1.0)
    if alive and top > 6 * min(alive):
        ax.set_yscale("log")
        ax.set_ylim(min(alive) / 1.2, top)
    else:
        ax.set_ylim(0, top)
    ax.set_ylabel("tail variability: (p99 - p50) / solo median")
    ax.set_title("Spread of latencies, unanswered requests counted at their deadline", fontsize=10.5)
    _label(ax, ends, inks)


def _outcomes(ax: Any, result: Json) -> None:
    """How requests ended, at the point of the curve nearest to where the reference policy attains 75 %."""
    reference = result["summary"]["reference"] or result["summary"]["near"]
    scale = min(result["scales"], key=lambda at: abs(math.log(at / reference["scale"])))
    rows = [(row["policy"], _point(row, scale)) for row in result["policies"]]
    kinds = [kind for kind in OUTCOMES if any(point[kind] for _, point in rows)]
    for y, (_, point) in enumerate(rows):
        left = 0.0
        for kind in kinds:
            width = 100 * point[kind] / point["offered"] if point["offered"] else 0.0
            ax.barh(y, width, left=left, color=OUTCOMES[kind], label=kind if y == 0 else None, height=0.7)
            if width >= 4:
                ax.text(left + width / 2, y, f"{width:.0f}", ha="center", va="center", fontsize=8)
            left += width
    ax.set_yticks(range(len(rows)), [name for name, _ in rows])
    ax.invert_yaxis()
    ax.set(xlim=(0, 100), xlabel="share of requests offered (%)")
    at = result["offered_per_s"] * scale
    of = f" ({reference['of']}: about 75 %)" if "of" in reference else ""
    ax.set_title(f"How requests ended at {at:.0f} per second{of}", fontsize=10.5)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(ncols=len(kinds), frameon=False, fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, -0.13))


def _point(row: Json, scale: float) -> Json:
    found: Json = next(point for point in row["curve"] if point["scale"] == scale)
    return found
