"""`cotenant simulate`: the report that other people's scripts rely on, and errors that say what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cotenant.cli import app

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TIMINGS = ("wall_s", "decision_us", "versions")

KEYS = {
    "policy", "seed", "offered", "ok", "late", "rejected", "expired", "cancelled", "failed", "attainment",
    "goodput_per_s", "p50_ms", "p95_ms", "p99_ms", "tail_variability", "service_variability", "device_busy",
    "device_load", "useful_load", "mean_batch", "per_model", "per_class", "prediction", "decision_us",
    "wall_s", "config", "versions", "device",
    "fairness", "rejected_lead_ms", "best_effort_per_s",
}  # fmt: skip
OUTCOMES = ("ok", "late", "rejected", "expired", "cancelled", "failed")

Simulate = Callable[..., Result]


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    """The demo's scenario and profile, two seconds long, with one best-effort model."""
    text = (EXAMPLES / "demo.toml").read_text().replace("duration_s = 60", "duration_s = 2")
    text = text.replace('name = "gpt_mini"', 'name = "gpt_mini"\nclass = "best_effort"')
    path = tmp_path / "demo.toml"
    path.write_text(text)
    shutil.copy(EXAMPLES / "demo.profile.json", tmp_path / "demo.profile.json")
    return path


@pytest.fixture
def simulate(tmp_path: Path) -> Simulate:
    """`simulate(scenario, *flags)`: the command, with an empty store."""

    def run(scenario: Path, *flags: str) -> Result:
        command = ["simulate", str(scenario), "--store", str(tmp_path / "store"), *flags]
        return CliRunner().invoke(app, command)

    return run


def report(simulate: Simulate, scenario: Path, *flags: str) -> dict[str, Any]:
    out = scenario.with_name("report.json")
    result = simulate(scenario, "--capacity", "300", "--json", str(out), *flags)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_the_report_has_every_key_and_its_books_close(simulate: Simulate, scenario: Path) -> None:
    found = report(simulate, scenario, "--scale", "1.5")
    assert set(found) >= KEYS
    assert set(found["prediction"]) >= {
        "n", "mape", "median_ape", "p90_ape", "signed_error", "coverage", "width",
    }  # fmt: skip
    assert set(found["prediction"]["coverage"]) == {"0.9", "0.95", "0.99"}
    assert set(found["decision_us"]) == {"p50", "p99"}
    assert found["offered"] == sum(found[kind] for kind in OUTCOMES) > 0
    for name in ("attainment", "device_busy", "device_load"):
        assert 0 <= found[name] <= 1
    assert found["goodput_per_s"] == pytest.approx(found["ok"] / 2)
    assert found["attainment"] == pytest.approx(found["ok"] / found["offered"])
    for part in (*found["per_model"].values(), *found["per_class"].values()):
        assert part["offered"] == sum(part[kind] for kind in OUTCOMES)


def test_best_effort_work_is_reported_apart(simulate: Simulate, scenario: Path) -> None:
    found = report(simulate, scenario)
    extra = found["per_class"]["best_effort"]
    assert extra["offered"] > 0
    assert found["per_model"]["gpt_mini"]["attainment"] is None
    assert found["best_effort_per_s"] == extra["goodput_per_s"] > 0
    offered = sum(model["offered"] for model in found["per_model"].values())
    assert found["offered"] == offered - extra["offered"]


def test_the_same_seed_gives_the_same_report_and_another_another(simulate: Simulate, scenario: Path) -> None:
    def untimed(*flags: str) -> dict[str, Any]:
        return {key: value for key, value in report(simulate, scenario, *flags).items() if key not in TIMINGS}

    first = untimed("--seed", "5")
    assert untimed("--seed", "5") == first
    other = untimed("--seed", "6")
    assert other["seed"] == 6
    assert other["p99_ms"] != first["p99_ms"]


def test_reports_say_the_policy_asked_for_and_the_one_it_stands_for(
    simulate: Simulate, scenario: Path
) -> None:
    found = report(simulate, scenario, "--policy", "default")
    assert found["policy"] == "default"
    assert found["config"]["policy"] == "deferred_edf"
    tuned = report(simulate, scenario, "--policy", "k_edf")
    assert tuned["config"]["settings"]["k"] >= 1
    assert tuned["config"]["settings"]["margin"] >= 1


def test_more_load_is_attained_less(simulate: Simulate, scenario: Path) -> None:
    light, heavy = (report(simulate, scenario, "--scale", scale)["attainment"] for scale in ("0.3", "3.0"))
    assert light > 0.95 > 0.9 > heavy


@pytest.mark.parametrize(
    ("change", "flags", "wanted"),
    [
        (None, ["--policy", "fastest"], ["fastest", "deferred_edf"]),
        (("rate_per_s", "rate_per_sec"), [], ["rate_per_sec", "rate_per_s"]),
        (("[[model]]\nname = \"echo\"", "[[model]]\nname = \"new\""), [], ["new", "cotenant profile"]),
        (('kind = "cpu"', 'kind = "tpu"'), [], ["tpu", "cpu"]),
        (("scale = 0.8", "scale = -1"), [], ["scale"]),
    ],
    ids=["policy", "key", "profile", "device", "value"],
)  # fmt: skip
def test_mistakes_are_named_with_what_to_do(
    simulate: Simulate, scenario: Path, change: tuple[str, str] | None, flags: list[str], wanted: list[str]
) -> None:
    if change is not None:
        before = scenario.read_text()
        scenario.write_text(before.replace(*change))
        assert scenario.read_text() != before
    result = simulate(scenario, *flags)
    assert result.exit_code != 0
    assert result.exception is None or isinstance(result.exception, SystemExit)
    said = " ".join(result.output.split())
    for word in wanted:
        assert word in said


def test_without_any_profile_the_error_names_the_command_that_makes_one(
    simulate: Simulate, scenario: Path
) -> None:
    scenario.with_name("demo.profile.json").unlink()
    result = simulate(scenario)
    assert result.exit_code != 0
    assert "cotenant profile demo.toml" in " ".join(result.output.split())


def test_a_scenario_that_is_not_there(simulate: Simulate, tmp_path: Path) -> None:
    result = simulate(tmp_path / "nowhere.toml")
    assert result.exit_code != 0
    assert "nowhere.toml" in "".join(result.output.split())
