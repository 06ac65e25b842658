"""`cotenant study`: what predictors are worth on data that anyone recorded, and policies on a scenario."""

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
study = typer.Typer(no_args_is_help=True, help="Compare predictors, or policies.")
to_stderr = Console(stderr=True)
to_stdout = Console(width=None if sys.stdout.isatty() else WIDE)

Base = Annotated[
    Path,
    typer.Option("--train", help="Data set: BASE of BASE.profiles.csv, BASE.coruns.csv.", metavar="BASE"),
]


@study.callback()
def root() -> None:
    """Compare predictors on recorded co-runs, or policies on a scenario."""


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


@study.command()
def policies(
    scenario: Annotated[Path, typer.Argument(help="Scenario TOML.", metavar="SCENARIO.toml")],
    names: Annotated[str, typer.Option("--policies", help="Only these.", metavar="A,B")] = "",
    seeds: Annotated[int, typer.Option(help="Runs of everything, from the scenario's seed on.")] = 3,
    scales: Annotated[
        str, typer.Option(help="Loads of the curve; else chosen. The capacity search stays.", metavar="X,Y")
    ] = "",
    processes: Annotated[int | None, typer.Option(help="Runs at once; else one per core.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the result here.", metavar="FILE")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw: one picture FILE.png, or three into a folder.", metavar="FILE.png|DIR"),
    ] = None,
    store: Annotated[Path | None, typer.Option("--store", help="Folder of profiles.", metavar="DIR")] = None,
) -> None:
    """Every policy on a scenario: attainment by load, goodput at 95 and 99 %."""
    from cotenant.catalogue import places
    from cotenant.clock import MonotonicClock
    from cotenant.config import load_scenario
    from cotenant.cores import available_cores
    from cotenant.experiment.policies_plots import draw_policies
    from cotenant.experiment.policies_report import show_policies
    from cotenant.experiment.policies_setup import StudyConfig, known_policies
    from cotenant.experiment.progress import progress
    from cotenant.experiment.study_policies import study as run_study

    try:
        config = StudyConfig(
            policies=known_policies(_listed(names)),
            n_seeds=seeds,
            scales=tuple(sorted({_number("--scales", text) for text in _listed(scales)})),
            processes=len(available_cores()) if processes is None else processes,
        )
        for flag, path in (("--json", json_file), ("--plot", plot)):
            _check_writable(
                flag, path, folder=flag == "--plot" and path is not None and path.suffix != ".png"
            )
        clock = MonotonicClock()
        with progress(to_stderr, clock) as told:
            result = run_study(load_scenario(scenario), places(store), config, clock, told)
        if json_file is not None:
            json_file.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        show_policies(to_stdout, result)
        for path in () if plot is None else draw_policies(result, plot):
            to_stdout.print(f"wrote {path}", highlight=False, markup=False)
    except KeyboardInterrupt:
        to_stderr.print("stopped; nothing is written")
        raise typer.Exit(130) from None
    except (ValueError, OSError) as error:
        raise _fail(str(error)) from error


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _number(flag: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{flag}: {text!r} is not a number") from None


def _check_writable(flag: str, path: Path | None, *, folder: bool = False) -> None:
    """Whether a result can be written once it is there; a `folder` is made. Raises ValueError."""
    if path is None:
        return
    try:
        if folder:
            path.mkdir(parents=True, exist_ok=True)
        file = path / ".writable" if folder else path
        is_new = not file.exists()
        file.open("a").close()
        if is_new:
            file.unlink()
    except OSError as error:
        raise ValueError(f"{flag}: {path} cannot be written: {error.strerror}") from None


def _fail(message: str) -> typer.Exit:
    to_stderr.print(f"[red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    return typer.Exit(2)
