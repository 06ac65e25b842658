"""`cotenant study`: what predictors are worth, on data that anyone recorded."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

WIDE = 120
"""Columns of what is not a terminal."""
study = typer.Typer(no_args_is_help=True, help="Compare predictors on recorded co-runs.")
to_stderr = Console(stderr=True)
to_stdout = Console(width=None if sys.stdout.isatty() else WIDE)

Base = Annotated[
    Path,
    typer.Option("--train", help="Data set: BASE of BASE.profiles.csv, BASE.coruns.csv.", metavar="BASE"),
]


@study.callback()
def root() -> None:
    """Compare predictors on recorded co-runs."""


@study.command()
def predictors(
    train: Base,
    test: Annotated[Path | None, typer.Option(help="Predict this set instead.", metavar="BASE")] = None,
    split: Annotated[
        str, typer.Option(help="Any of random, pair, workload, time.", metavar="A,B")
    ] = "random,pair,workload,time",
    test_share: Annotated[
        float, typer.Option(help="Share held out (random, pair).", min=0.01, max=0.9)
    ] = 0.2,
    seeds: Annotated[int, typer.Option(help="Random splits.", min=1, max=100)] = 5,
    only: Annotated[str, typer.Option("--predictors", help="Only these.", metavar="A,B")] = "",
    plots: Annotated[Path | None, typer.Option(help="Draw into this folder.", metavar="DIR")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the rows here.", metavar="FILE")
    ] = None,
) -> None:
    """Every predictor on a data set of co-runs: errors, coverage, cost."""
    from cotenant.clock import MonotonicClock
    from cotenant.experiment.datasets import DatasetError, read_dataset
    from cotenant.experiment.splits import SPLITS
    from cotenant.experiment.study_predictors import StudyPlan, compared, known_predictors, study_sets
    from cotenant.experiment.study_report import draw_study, show_study

    kinds = tuple(kind.strip() for kind in split.split(",") if kind.strip())
    unknown = [kind for kind in kinds if kind not in SPLITS]
    if unknown or not kinds:
        raise _fail(f"--split: {', '.join(unknown) or 'nothing'}; expected any of {', '.join(SPLITS)}")
    try:
        chosen = known_predictors(tuple(name.strip() for name in only.split(",") if name.strip()))
        plan = StudyPlan(splits=kinds, test_share=test_share, seeds=seeds)
        data = read_dataset(train), None if test is None else read_dataset(test)
        studied = []
        with to_stderr.status("") as told:

            def tell(what: str) -> None:
                told.update(escape(what))

            for one in study_sets(*data, chosen, plan, MonotonicClock(), tell):
                studied.append(one)
    except (DatasetError, ValueError) as error:
        raise _fail(str(error)) from error
    rows: list[dict[str, Any]] = [one.row() for one in studied]
    against = {row.pop("predictor"): row for row in compared(studied)}
    for row in rows:
        if row["split"] == "time" and row["predictor"] in against:
            row["fluid_less_this"] = against[row["predictor"]]
    show_study(to_stdout, rows)
    if json_file is not None:
        json_file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if plots is not None:
        for path in draw_study(studied, plots):
            to_stdout.print(f"wrote {path}", highlight=False)


def _fail(message: str) -> typer.Exit:
    to_stderr.print(f"[red]error:[/] {escape(message)}", highlight=False)
    return typer.Exit(2)
