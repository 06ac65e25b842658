"""`cotenant study policies`: the JSON that others' scripts rely on, and errors before hours of work."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from cotenant.catalogue import places
from cotenant.cli import app
from cotenant.config import load_scenario
from cotenant.experiment.policies_plots import spread
from cotenant.experiment.policies_setup import known_policies, usual_policies
from cotenant.experiment.policies_summary import summarise
from cotenant.experiment.workers import (
    Choice,
    InlineWorkers,
    ProcessWorkers,
    Run,
    StudyError,
    World,
    shortened,
)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MODELS = ("bert_mini", "vit_tiny", "resnet18")
TIMINGS = ("wall_s", "decision_us", "decision_us_p99", "elapsed_s", "processes")
REPORT_KEYS = {
    "policy", "seed", "offered", "ok", "late", "rejected", "expired", "cancelled", "failed", "attainment",
    "goodput_per_s", "p50_ms", "p95_ms", "p99_ms", "tail_variability", "service_variability", "device_busy",
    "device_load", "useful_load", "mean_batch", "per_model", "per_class", "prediction", "decision_us",
    "wall_s", "config", "versions", "device",
}  # fmt: skip
OUTCOMES = ("ok", "late", "rejected", "expired", "cancelled", "failed")

Study = Callable[..., Result]


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    """Three of the demo's models and its profile, 3 s long."""
    head, *models = (EXAMPLES / "demo.toml").read_text().split("[[model]]")
    kept = [model for model in models if any(f'"{name}"' in model for name in MODELS)]
    path = tmp_path / "demo.toml"
    path.write_text("[[model]]".join([head.replace("duration_s = 60", "duration_s = 3"), *kept]))
    shutil.copy(EXAMPLES / "demo.profile.json", tmp_path / "demo.profile.json")
    return path


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """`study(scenario, *flags)`: the command in this process, with an empty store."""

    def run(scenario: Path, *flags: str) -> Result:
        command = ["study", "policies", str(scenario), "--store", str(tmp_path / "store"), *flags]
        if "--processes" not in flags:
            command += ["--processes", "1"]
        return CliRunner().invoke(app, command)

    return run


@pytest.fixture
def world(scenario: Path, tmp_path: Path) -> World:
    return World(scenario=load_scenario(scenario), where=places(tmp_path / "store"), capacity_per_s=300.0)


def result(study: Study, scenario: Path, *flags: str) -> dict[str, Any]:
    out = scenario.with_name("result.json")
    done = study(scenario, "--json", str(out), *flags)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: untimed(inner) for key, inner in value.items() if key not in TIMINGS}
    return [untimed(inner) for inner in value] if isinstance(value, list) else value


def test_a_study_keeps_the_contract(study: Study, scenario: Path, tmp_path: Path) -> None:
    plots = tmp_path / "plots"
    found = result(study, scenario, "--policies", "fcfs,deferred_edf", "--seeds", "1", "--plot", str(plots))
    assert found["scenario"] == "demo.toml"
    assert found["seeds"] == [1]
    assert [row["policy"] for row in found["policies"]] == ["fcfs", "deferred_edf"]
    curves = [[point["scale"] for point in row["curve"]] for row in found["policies"]]
    assert curves[0] == curves[1] == sorted(set(curves[0]))
    assert len(curves[0]) >= 12
    assert [[point["part"] for point in row["curve"]] for row in found["policies"]] == [
        [1.0] * len(curves[0])
    ] * 2
    for row in found["policies"]:
        for level in ("0.95", "0.99"):
            goodput = row["goodput_per_s"][level]
            assert goodput["mean"] > 0
            assert goodput["ci95"] is None, "one seed has no interval"
            assert goodput["mean"] == goodput["per_seed"][0]["goodput_per_s"]
        first, last = row["curve"][0], row["curve"][-1]
        assert set(first) >= REPORT_KEYS
        assert first["offered"] == sum(first[kind] for kind in OUTCOMES)
        assert first["attainment"] > 0.99 or first["offered"] <= 320
        assert last["attainment"] < 0.70
        assert row["goodput_per_s"]["0.95"]["mean"] >= row["goodput_per_s"]["0.99"]["mean"]
    assert set(found["tuned"]["fcfs"]) == {"k"}
    assert found["policies"][0]["curve"][0]["config"]["settings"]["k"] == found["tuned"]["fcfs"]["k"]
    assert not set(found["tuned_on"]["seeds"]) & set(found["seeds"])
    assert found["summary"]["best_simple"]["0.95"] == "deferred_edf"
    assert sorted(path.name for path in plots.iterdir()) == [
        "attainment.png", "outcomes.png", "variability.png",
    ]  # fmt: skip


def test_the_goodput_found_is_that_of_a_run_that_holds_the_level(study: Study, scenario: Path) -> None:
    found = result(study, scenario, "--policies", "deferred_edf", "--seeds", "2", "--scales", "0.5")
    for level in ("0.95", "0.99"):
        entry = found["policies"][0]["goodput_per_s"][level]
        for seed in entry["per_seed"]:
            out = scenario.with_name("run.json")
            command = ["simulate", str(scenario), "--policy", "deferred_edf", "--json", str(out),
                       "--seed", str(seed["seed"]), "--scale", str(seed["scale"]),
                       "--capacity", str(found["capacity_per_s"]),
                       "--store", str(scenario.with_name("store"))]  # fmt: skip
            assert CliRunner().invoke(app, command).exit_code == 0
            run = json.loads(out.read_text())
            assert run["attainment"] >= float(level)
            assert run["goodput_per_s"] == seed["goodput_per_s"]
        values = [seed["goodput_per_s"] for seed in entry["per_seed"]]
        assert entry["mean"] == pytest.approx(sum(values) / 2)
        assert entry["ci95"] == pytest.approx(12.706 * abs(values[0] - values[1]) / 2)


def test_scales_limit_the_curve_and_processes_change_nothing(study: Study, scenario: Path) -> None:
    flags = ("--policies", "fcfs", "--seeds", "2", "--scales", "1.1,0.6")
    one, two = (untimed(result(study, scenario, *flags, "--processes", n)) for n in ("1", "2"))
    assert one["scales"] == [0.6, 1.1]
    assert [point["scale"] for point in one["policies"][0]["curve"]] == [0.6, 1.1]
    assert one == two


def test_the_table_says_who_is_compared_and_what_was_tuned(study: Study, scenario: Path) -> None:
    done = study(scenario, "--policies", "fcfs,exclusive_edf", "--seeds", "1", "--scales", "0.5,0.9")
    said = " ".join(done.output.split())
    for words in ("goodput", "at 95 %", "exclusive_edf", "fcfs is tuned on other seeds: k =", "runs in"):
        assert words in said


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (["--policies", "deferd_edf"], ["deferd_edf", "did you mean 'deferred_edf'"]),
        (["--scales", "0.5,-1"], ["--scales", "-1", "greater than 0"]),
        (["--scales", "0.5,nan"], ["--scales", "nan"]),
        (["--scales", "half"], ["--scales", "'half'"]),
        (["--seeds", "0"], ["--seeds", "from 1"]),
        (["--processes", "0"], ["--processes", "1 or more"]),
        (["--json", "nowhere/at/all.json"], ["--json", "all.json", "cannot be written"]),
        (["--json", "."], ["--json", "cannot be written"]),
        (["--plot", "nowhere/at/all.png"], ["--plot", "all.png", "cannot be written"]),
    ],
    ids=lambda value: value[0].strip("-") + value[1] if value[0].startswith("--") else "",
)
def test_mistakes_are_named_before_any_work(
    study: Study, scenario: Path, flags: list[str], wanted: list[str]
) -> None:
    done = study(scenario, *flags)
    assert done.exit_code == 2
    said = " ".join(done.output.split())
    for word in wanted:
        assert word in said


def test_a_scenario_without_deadlines_has_nothing_to_study(study: Study, scenario: Path) -> None:
    text = scenario.read_text().replace("slo_ms = 20\n", "").replace("slo_scale = 5\n", "")
    scenario.write_text(text)
    done = study(scenario)
    assert done.exit_code == 2
    assert "best effort" in done.output


def test_a_run_that_fails_in_a_process_says_which_and_why(world: World) -> None:
    with ProcessWorkers(world, 1) as workers:
        workers.submit(Run(Choice("nonesuch"), 7, 0.5))
        with pytest.raises(StudyError, match=r"policy nonesuch, seed 7, scale 0\.5: unknown policy"):
            workers.done()
    assert not multiprocessing.active_children()


def test_a_process_takes_the_run_that_is_expected_to_last_longest(world: World) -> None:
    short = replace(world, scenario=shortened(world.scenario, 0.1))
    with ProcessWorkers(short, 1) as workers:
        for seed, expected_s in ((1, 1.0), (2, 3.0), (3, 9.0), (4, 3.0)):
            workers.submit(Run(Choice("fcfs"), seed, 0.5), expected_s)
        assert [workers.done()[0].seed for _ in range(4)] == [1, 3, 2, 4], "the first was begun at once"


def test_a_process_that_dies_is_named_and_the_others_are_stopped(world: World) -> None:
    with ProcessWorkers(world, 2) as workers:
        workers.submit(Run(Choice("fcfs"), 1, 0.5))
        workers.submit(Run(Choice("fcfs"), 2, 0.5))
        for child in multiprocessing.active_children():
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(StudyError, match="its process died"):
            workers.done()
    assert not multiprocessing.active_children()


def test_a_mistake_of_ours_in_a_run_is_said_with_its_place(world: World) -> None:
    workers = InlineWorkers(world)
    workers.submit(Run(Choice("k_edf", (("k", 2),)), 1, 0.5))
    with pytest.raises(StudyError, match=r"KeyError: 'margin' \(workers\.py, line \d+\)"):
        workers.done()


def test_a_shortened_scenario_keeps_its_phases(scenario: Path) -> None:
    scenario.write_text(
        scenario.read_text() + "\n[[phase]]\nat_s = 1.0\n[phase.model.vit_tiny]\nrate_per_s = 3.0\n"
    )
    half = shortened(load_scenario(scenario), 0.5)
    assert half.load.duration_s == 1.5
    assert [phase.at_s for phase in half.phases] == [0.5]
    assert half.phases[0].overrides["vit_tiny"] == {"rate_per_s": 3.0}


def test_policies_are_the_usual_ones_that_the_device_can_run_unless_named(scenario: Path) -> None:
    on_cpu = ("fcfs", "exclusive_edf", "deferred_edf", "k_edf", "static_linear", "ours")
    assert usual_policies(load_scenario(scenario)) == on_cpu
    assert usual_policies(load_scenario(EXAMPLES / "headline.toml")) == (*on_cpu, "oracle")
    assert known_policies(("k_edf", "default", "k_edf")) == ("k_edf", "default")


@given(st.lists(st.floats(0, 1), min_size=1, max_size=10).map(sorted))
def test_labels_are_moved_apart_and_no_further_than_needed(wanted: list[float]) -> None:
    placed = spread(wanted, 0.04)
    assert all(b - a >= 0.04 - 1e-9 for a, b in pairwise(placed))
    assert sum(placed) == pytest.approx(sum(wanted))
    if all(b - a >= 0.04 for a, b in pairwise(wanted)):
        assert placed == pytest.approx(wanted)


def row(policy: str, goodput: float, attained: list[float]) -> dict[str, Any]:
    """A policy's entry over scales 1, 2, 4; the offered load is the scale."""
    return {
        "policy": policy,
        "goodput_per_s": {level: {"mean": goodput, "ci95": None} for level in ("0.95", "0.99")},
        "curve": [
            {
                "scale": scale, "load": scale / 4, "attainment": value, "tail_variability": 10 * (1 - value),
                "offered": 100, "ok": 100 * value, "late": 0, "rejected": 100 * (1 - value), "expired": 0,
                "cancelled": 0, "failed": 0, "device_busy": 0.5, "device_load": 0.4, "per_class": {},
                "prediction": {"mape": 0.1, "coverage": {"0.9": 0.9}}, "decision_us": {"p50": 1, "p99": 9},
            }
            for scale, value in zip((1.0, 2.0, 4.0), attained, strict=True)
        ],
    }  # fmt: skip


def test_the_summary_compares_with_the_best_simple_the_static_and_the_oracle() -> None:
    found = summarise(
        {
            "policies": [
                row("fcfs", 1.0, [0.9, 0.5, 0.1]),
                row("k_edf", 2.0, [1.0, 0.9, 0.5]),
                row("static_linear", 1.9, [1.0, 0.75, 0.5]),
                row("ours", 3.0, [1.0, 0.95, 0.75]),
                row("oracle", 4.0, [1.0, 1.0, 0.8]),
            ]
        }
    )
    assert found["best_simple"] == {"0.95": "k_edf", "0.99": "k_edf"}
    assert found["goodput"]["ours"]["0.95"] == {"per_s": 3.0, "to_best_simple": 1.5, "to_oracle": 0.75}
    assert found["reference"]["of"] == "static_linear"
    assert found["reference"]["scale"] == pytest.approx(2.0)
    ours = found["reference"]["policies"]["ours"]
    assert ours["attainment"] == pytest.approx(0.95)
    assert ours["gain"] == pytest.approx(0.95 / 0.75 - 1)
    assert ours["tail_reduction"] == pytest.approx(1 - 0.5 / 2.5)
    assert found["honesty"] == {"ratio": pytest.approx(0.95), "at_least": 0.9, "holds": True}
    assert found["misses"]["policies"]["k_edf"] == pytest.approx(1.0)
    assert found["misses"]["policies"]["ours"] == pytest.approx(0.5)
    assert found["misses"]["policies"]["oracle"] < 0.2
    assert found["near"]["scale"] == 4.0
    assert found["near"]["policies"]["fcfs"]["drops"]["rejected"] == pytest.approx(0.9)


def test_the_summary_of_one_policy_says_what_it_can() -> None:
    found = summarise({"policies": [row("ours", 3.0, [0.9, 0.85, 0.8])]})
    assert found["best_simple"] == {"0.95": None, "0.99": None}
    assert found["reference"] is None
    assert found["misses"] is None
    assert found["honesty"] is None
    assert found["goodput"]["ours"]["0.95"]["to_best_simple"] is None
