"""A file of arrivals says exactly what was offered; a bad one is refused with line and reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from cotenant.cli import app
from cotenant.config import Scenario, load_scenario
from cotenant.domain import ModelSpec
from cotenant.experiment.arrival_files import NO_DEADLINE, Offered, read_arrivals, write_arrivals
from cotenant.experiment.load import arrivals, offer, replaying
from cotenant.experiment.simulated import requests

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TEXT = """
[load]
duration_s = 30
[[model]]
name = "a"
source = "zoo:echo"
slo_ms = 40
rate_per_s = 20
rows = 2
[[model]]
name = "b"
source = "zoo:echo"
rate_per_s = 5
arrivals = "mmpp"
"""
SLO_NS = (40_000_000, None)
SPEED = {"wall_s", "decision_us", "config"}


@pytest.fixture
def scenario(tmp_path: Path) -> Scenario:
    path = tmp_path / "s.toml"
    path.write_text(TEXT)
    return load_scenario(path)


def test_what_is_written_is_read_back_to_the_nanosecond(scenario: Scenario, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    drawn = offer(scenario)
    write_arrivals(path, scenario, drawn, SLO_NS)
    assert path.read_text().startswith("timestamp_s,model,rows,deadline_ms\n")
    read = read_arrivals(path, scenario)
    assert (read.at == drawn.at).all()
    assert (read.which == drawn.which).all()
    assert (read.rows == drawn.rows).all()
    assert read.rows.tolist() == [2 if model == 0 else 1 for model in read.which]
    assert (read.budgets(SLO_NS) == drawn.budgets(SLO_NS)).all()
    assert set(read.budgets((1, 1)).tolist()) == {40_000_000, NO_DEADLINE}


def test_instants_of_a_long_run_keep_their_nanoseconds(scenario: Scenario, tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text("timestamp_s,model\n1000000.123456789,a\n0.000000001,a\n")
    text = (tmp_path / "s.toml").read_text().replace("duration_s = 30", "duration_s = 2e6")
    (tmp_path / "s.toml").write_text(text)
    read = read_arrivals(path, load_scenario(tmp_path / "s.toml"))
    assert read.at.tolist() == [1, 1_000_000_123_456_789]


def test_columns_are_found_by_name_and_may_be_left_out(scenario: Scenario, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("note,model,timestamp_s\nx,b,2.5\n\ny,a,1\n")
    read = read_arrivals(path, scenario)
    assert read.at.tolist() == [1_000_000_000, 2_500_000_000]
    assert read.which.tolist() == [0, 1]
    assert read.rows.tolist() == [2, 1]
    assert read.budgets(SLO_NS).tolist() == [40_000_000, NO_DEADLINE]


HEAD = "timestamp_s,model,rows,deadline_ms\n1,a,1,5\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ("timestamp_s, model", "no header")),
        ("timestamp,model\n", ("it has timestamp, model",)),
        (HEAD + "2,aa,1,5\n", ("line 3", "'aa'", "did you mean 'a'")),
        (HEAD + "x,a,1,5\n", ("line 3", "timestamp_s", "'x'")),
        (HEAD + "-1,a,1,5\n", ("line 3", "timestamp_s", "0 or more")),
        (HEAD + "nan,a,1,5\n", ("line 3", "timestamp_s")),
        (HEAD + "inf,a,1,5\n", ("line 3", "timestamp_s")),
        (HEAD + "1e308,a,1,5\n", ("line 3", "timestamp_s")),
        (HEAD + "1,a,1e30,5\n", ("line 3", "rows")),
        (HEAD + "30,a,1,5\n", ("line 3", "duration_s (30)")),
        (HEAD + "2,a,0,5\n", ("line 3", "rows", "1 or more")),
        (HEAD + "2,a,1.5,5\n", ("line 3", "rows", "whole number")),
        (HEAD + "2,a,9,5\n", ("line 3", "rows 9", "max_batch 8")),
        (HEAD + "2,a,1,0\n", ("line 3", "deadline_ms", "greater than 0")),
        (HEAD + "2,a,1,soon\n", ("line 3", "deadline_ms", "'soon'")),
        (HEAD + "\n2,a,1\n", ("line 4", "3 entries, the header 4")),
    ],
)
def test_a_bad_file_is_refused_with_line_and_reason(
    scenario: Scenario, tmp_path: Path, text: str, words: tuple[str, ...]
) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        read_arrivals(path, scenario)
    for word in ("bad.csv", *words):
        assert word in str(caught.value)


def test_a_file_that_is_not_there_is_named(scenario: Scenario, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.csv: cannot be read"):
        read_arrivals(tmp_path / "nowhere.csv", scenario)


def test_a_scenario_that_replays_draws_nothing_and_takes_no_scale(scenario: Scenario, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(HEAD)
    replay = replaying(scenario, path, None, None)
    assert arrivals(replay, seed=9)[0].tolist() == [1_000_000_000]
    with pytest.raises(ValueError, match=r"scale does not go with .*a\.csv"):
        arrivals(replay, scale=2.0)
    with pytest.raises(ValueError, match="capacity does not go with"):
        replaying(scenario, path, None, 300.0)
    assert replaying(scenario, None, 2.0, 300.0) is scenario


def test_many_requests_are_written_and_read(tmp_path: Path, scenario: Scenario) -> None:
    n = 200_000
    at = np.sort(np.random.default_rng(1).integers(0, 30_000_000_000, n))
    ones = np.ones(n, np.int64)
    path = tmp_path / "many.csv"
    write_arrivals(path, scenario, Offered(at=at, which=ones, rows=ones), SLO_NS)
    assert (read_arrivals(path, scenario).at == at).all()


# --- the command ------------------------------------------------------------------------------------


def simulate(folder: Path, *flags: str, seed: str = "4") -> Result:
    """The demo for three seconds."""
    text = (EXAMPLES / "demo.toml").read_text().replace("duration_s = 60", "duration_s = 3")
    (folder / "demo.toml").write_text(text)
    shutil.copy(EXAMPLES / "demo.profile.json", folder / "demo.profile.json")
    command = [
        "simulate",
        str(folder / "demo.toml"),
        "--store",
        str(folder / "store"),
        "--seed",
        seed,
        *flags,
    ]
    return CliRunner().invoke(app, command)


def report(folder: Path, *flags: str) -> dict[str, Any]:
    result = simulate(folder, *flags, "--json", str(folder / "r.json"))
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads((folder / "r.json").read_text())
    return found


@pytest.mark.parametrize("policy", ["default", "fcfs"])
def test_a_replayed_run_has_the_same_report(tmp_path: Path, policy: str) -> None:
    file = str(tmp_path / "a.csv")
    load = ("--scale", "1.3", "--capacity", "350")
    first = report(tmp_path, "--policy", policy, *load, "--arrivals-out", file)
    again = report(tmp_path, "--policy", policy, "--arrivals-in", file)
    assert again["offered"] == first["offered"] > 500
    assert {k: v for k, v in again.items() if k not in SPEED} == {
        k: v for k, v in first.items() if k not in SPEED
    }
    assert again["config"]["arrivals_in"] == file
    assert again["config"]["scale"] is None
    assert first["config"]["scale"] == 1.3


@pytest.mark.parametrize("flag", ["--scale", "--capacity"])
def test_a_replay_takes_neither_scale_nor_capacity(tmp_path: Path, flag: str) -> None:
    result = simulate(tmp_path, "--arrivals-in", str(tmp_path / "a.csv"), flag, "2")
    assert result.exit_code == 2
    assert f"{flag[2:]} does not go with" in " ".join(result.output.split())


def test_the_simulator_takes_rows_and_deadlines_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    first = report(tmp_path, "--capacity", "200", "--scale", "0.3", "--arrivals-out", str(file))
    head, *lines = file.read_text().splitlines()
    cells = [line.split(",") for line in lines]
    impossible = "\n".join(f"{at},{model},1,0.001" for at, model, _, _ in cells)
    file.write_text(f"{head}\n{impossible}\n")
    assert report(tmp_path, "--arrivals-in", str(file))["ok"] == 0
    endless = "\n".join(f"{at},{model},8," for at, model, _, _ in cells)
    file.write_text(f"{head}\n{endless}\n")
    found = report(tmp_path, "--arrivals-in", str(file))
    assert found["ok"] == found["offered"] == first["offered"]
    assert found["mean_batch"] == 8
    assert found["p50_ms"] > 2 * first["p50_ms"]


def test_requests_have_the_axes_of_their_model_whatever_else_there_is(scenario: Scenario) -> None:
    axis = (("seq", (32, 64, 128)),)
    specs = tuple(
        ModelSpec(name=model.name, slo_ns=slo, max_batch=8, row_buckets=(8,), axis_buckets=axes)
        for model, slo, axes in zip(scenario.models, SLO_NS, (axis, ()), strict=True)
    )
    offered = offer(scenario)
    drawn = list(requests(specs, offered, 1))
    assert drawn == list(requests(specs, offered, 1))
    sizes = [request.axes for request in drawn if request.model == "a"]
    assert set(sizes) == {(("seq", 32),), (("seq", 64),), (("seq", 128),)}
    assert all(request.axes == () for request in drawn if request.model == "b")
    only = offered.which == 0
    alone = Offered(at=offered.at[only], which=offered.which[only], rows=offered.rows[only])
    assert [request.axes for request in requests(specs[:1], alone, 1)] == sizes
