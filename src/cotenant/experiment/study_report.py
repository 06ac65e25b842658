"""The predictor study for people: a table, and three plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from cotenant.experiment.study_predictors import Studied
from cotenant.experiment.tables import number, share

SHOWN = 7
"""Most predictors drawn in one plot: those with the least mean error, ours always among them."""
OURS = "fluid"
COLOURS = ("#b2182b", "#2166ac", "#4d9221", "#e08214", "#762a83", "#01665e", "#8c510a")
WINDOW = 300


def show_study(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """One table per split, the least mean error first: sizes of errors, their mean with its sign, the mean
    size given the overlap, the share within the 0.9, 0.95 and 0.99 quantile, microseconds per
    prediction."""
    for split in dict.fromkeys(row["split"] for row in rows):
        table = Table(title=f"split: {split}", title_justify="left", box=None, header_style="bold")
        for name in ("predictor", "n", "mean", "median", "90 %", "signed", "overlap", "coverage"):
            table.add_column(name, justify="left" if name == "predictor" else "right", no_wrap=True)
        table.add_column("us", justify="right", no_wrap=True)
        for row in sorted((r for r in rows if r["split"] == split), key=lambda r: r["mape"]):
            given, coverage = row["given_overlap"], row["coverage"]
            table.add_row(
                row["predictor"],
                str(row["n"]),
                *(share(row[key]) for key in ("mape", "median_ape", "p90_ape", "signed_error")),
                "-" if given is None else share(given["mape"]),
                "-" if coverage is None else "/".join(f"{100 * v:.0f}" for v in coverage.values()),
                number(row["us_per_prediction"], 0),
                style="bold" if row["predictor"] == OURS else "",
            )
        console.print(table)
        console.print()


def draw_study(studied: Sequence[Studied], folder: Path) -> list[Path]:
    """`errors-SPLIT.png` for every split; for `time` also `overlap.png` and `coverage.png`."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for split in dict.fromkeys(s.split for s in studied):
        chosen = _best([s for s in studied if s.split == split])
        written.append(_draw_errors(chosen, folder / f"errors-{split}.png", split))
        if split == "time":
            written.append(_draw_overlap(chosen, folder / "overlap.png"))
            written.append(_draw_coverage(chosen, folder / "coverage.png"))
    return written


def _best(studied: Sequence[Studied]) -> list[Studied]:
    ranked = sorted(studied, key=lambda s: float(np.abs(s.scores.errors).mean()))
    ours = [s for s in ranked if s.predictor == OURS]
    others = [s for s in ranked if s.predictor != OURS]
    return [*ours, *others[: SHOWN - len(ours)]]


def _axes(ax: Any) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25, lw=0.6)


def _draw_errors(studied: Sequence[Studied], path: Path, split: str) -> Path:
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    for colour, s in zip(COLOURS, studied, strict=False):
        size = np.sort(np.abs(s.scores.errors))
        ax.plot(100 * size, np.linspace(0, 1, len(size)), color=colour, lw=2 if s.predictor == OURS else 1.2,
                label=f"{s.predictor} (mean {100 * size.mean():.1f} %)")  # fmt: skip
    ax.set(xscale="log", xlim=(0.1, 300), ylim=(0, 1), xlabel="size of the error (% of what was measured)")
    ax.set_ylabel("share of predictions")
    ax.set_title(f"Errors of predicted spans, split: {split}", fontsize=11)
    ax.legend(frameon=False, fontsize=8, loc="upper left")
    _axes(ax)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _draw_overlap(studied: Sequence[Studied], path: Path) -> Path:
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    edges = np.linspace(0, 1, 6)
    for colour, s in zip(COLOURS, studied, strict=False):
        size, overlap = np.abs(s.scores.errors), np.array(s.scores.overlap)
        bins = np.clip(np.digitize(overlap, edges) - 1, 0, 4)
        style = {"color": colour, "marker": "o", "ms": 4, "lw": 2 if s.predictor == OURS else 1.2}
        means = [100 * size[bins == k].mean() if (bins == k).sum() > 20 else np.nan for k in range(5)]
        left.plot(100 * (edges[:-1] + edges[1:]) / 2, means, label=s.predictor, **style)
        n_most = np.array(s.scores.n_most)
        ns = [n for n in np.unique(n_most).tolist() if (n_most == n).sum() > 20]
        right.plot(ns, [100 * size[n_most == n].mean() for n in ns], **style)
    left.set(xlabel="share of its span that a run was not alone (%)", ylabel="mean error at dispatch (%)")
    right.set(xlabel="most others in flight during the run")
    right.xaxis.get_major_locator().set_params(integer=True)
    left.legend(frameon=False, fontsize=8)
    for ax in (left, right):
        ax.set_ylim(bottom=0)
        _axes(ax)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _draw_coverage(studied: Sequence[Studied], path: Path) -> Path:
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(8, 4), layout="constrained")
    for colour, s in zip(COLOURS, studied, strict=False):
        upper, actual = np.array(s.scores.upper), np.array(s.scores.actual)
        if not len(actual) or not np.isfinite(upper).all():
            continue
        within = (actual <= upper[:, 0]).astype(float)
        n = min(WINDOW, len(within))
        rolling = np.convolve(within, np.ones(n) / n, mode="valid")
        ax.plot(np.array(s.scores.at_s)[n - 1 :], 100 * rolling, color=colour, label=s.predictor,
                lw=2 if s.predictor == OURS else 1.0)  # fmt: skip
    ax.axhline(90, color="#555555", lw=1, ls="--")
    ax.set(
        xlabel="time of the recording (s)",
        ylabel=f"within the 0.9 quantile (%, last {WINDOW})",
        ylim=(70, 100),
    )
    ax.set_title("Coverage over time", fontsize=11)
    ax.legend(frameon=False, fontsize=8, loc="lower right")
    _axes(ax)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
