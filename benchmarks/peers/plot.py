"""The picture: attainment of the mix by load, a line per server; bars for the echo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from catalogue import SERVERS
from settings import CONNECTIONS

mpl.use("agg")
from matplotlib import pyplot as plt

COLOURS = dict(zip(SERVERS, ("#d1495b", "#30638e", "#00798c", "#8d6a9f", "#e0a030", "#777777"), strict=True))


def draw(result: dict[str, Any], path: Path) -> None:
    """Write the picture as PNG."""
    figure, (left, *right) = plt.subplots(
        1, 3, figsize=(12, 4.2), width_ratios=(2, 1, 1), layout="constrained"
    )
    _mixed(left, result)
    for axes, key, label in (
        (right[0], "req_per_s", "echo: requests/s"),
        (right[1], "cpu_us", "echo: CPU per request (us)"),
    ):
        _bars(axes, result["echo"], key, label)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def _mixed(axes: Any, result: dict[str, Any]) -> None:
    for name in SERVERS:
        points = sorted((r["scale"], r["attainment"]) for r in result["mixed"] if r["server"] == name)
        if points:
            at, shares = zip(*points, strict=True)
            bold = 2.5 if name == "cotenant" else 1.5
            axes.plot(at, [100 * s for s in shares], "o-", color=COLOURS[name], label=name, linewidth=bold)
    axes.set_xlabel(f"offered load / capacity ({result['capacity_per_s']:.0f} requests/s)")
    axes.set_ylabel("answered by their deadline (%)")
    axes.set_title("CNN, encoder and recommender together", fontsize=10)
    axes.set_ylim(0, 102)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _bars(axes: Any, rows: list[dict[str, Any]], key: str, label: str) -> None:
    names = [name for name in SERVERS if any(row["server"] == name for row in rows)]
    for shade, connections in zip((0.55, 1.0), CONNECTIONS, strict=True):
        found = {row["server"]: row[key] for row in rows if row["connections"] == connections}
        places = [i + (0.2 if shade == 1.0 else -0.2) for i in range(len(names))]
        heights = [found.get(name, 0.0) for name in names]
        axes.bar(places, heights, 0.38, color=[COLOURS[name] for name in names], alpha=shade)
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
    axes.set_title(f"{label}, {CONNECTIONS[0]} and {CONNECTIONS[1]} connections", fontsize=9)
    axes.set_yscale("log")
    axes.grid(axis="y", alpha=0.3)
