"""What goes with a policy besides its plan: the same in simulation, in a study and on a server."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cotenant.assemble import make_scheduler
from cotenant.catalogue import Places, places
from cotenant.cli import app
from cotenant.clock import VirtualClock
from cotenant.config import ConfigError, Scenario, load_scenario
from cotenant.domain import Request
from cotenant.experiment.load import offer
from cotenant.experiment.simulated import SimulatedDevice, SimulatedRun, device_of, predictor_for, run
from cotenant.experiment.workers import shortened
from cotenant.predictors import PARTS, Measured, make_predictor, parts_of
from cotenant.schedule.policies import POLICIES, make_policy
from cotenant.simulate.driver import VirtualTimers

EXAMPLES = Path(__file__).parents[2] / "examples"
ABLATIONS = ("ours-no-learning", "ours-no-load-meter", "ours-no-conformal")
OUTCOMES = ("ok", "late", "rejected", "expired", "cancelled", "failed")


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Places:
    return places(tmp_path_factory.mktemp("parts") / "store")


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    """Two models on a twin, six seconds of them."""
    return shortened(load_scenario(EXAMPLES / "policy_two_models.toml"), 0.05)


@pytest.fixture(scope="module")
def device(scenario: Scenario, where: Places) -> SimulatedDevice:
    return device_of(scenario, where)


@pytest.fixture(scope="module")
def runs(scenario: Scenario, device: SimulatedDevice) -> dict[str, SimulatedRun]:
    """One run of the whole, and one of each policy that goes without something."""
    offered = offer(scenario)
    names = ("ours", *ABLATIONS, "static_linear")
    return {name: run(scenario, device, make_policy(name), offered, seed=1) for name in names}


def measured(device: SimulatedDevice) -> Measured:
    return Measured(profiles=device.profiles, features=device.features, lanes=(), coruns=device.coruns)


def test_whoever_has_parts_of_its_own_is_a_policy() -> None:
    assert set(PARTS) <= set(POLICIES)
    assert all(make_policy(name).name == name for name in POLICIES)


def test_the_predictor_of_a_run_is_the_one_that_goes_with_its_policy(device: SimulatedDevice) -> None:
    names = {}
    for policy in ("ours", "static_linear", "oracle", "k_edf"):
        executor = device.executor(2, VirtualTimers(VirtualClock()), 0)
        names[policy] = getattr(predictor_for(make_policy(policy))(device, executor), "name", "")
    assert names == {"ours": "fluid", "static_linear": "static_linear", "oracle": "oracle", "k_edf": "fluid"}


def test_what_does_not_learn_predicts_at_the_end_as_in_the_beginning(runs: dict[str, SimulatedRun]) -> None:
    for name, learns in (("ours", True), ("ours-no-learning", False), ("static_linear", False)):
        versions = {p.version for o in runs[name].recorder.observations for p in o.predictions}
        assert (len(versions) > 1) is learns, name


def test_without_calibration_bounds_are_as_wide_as_the_spread_that_is_believed(
    runs: dict[str, SimulatedRun],
) -> None:
    def ratios(name: str) -> set[float]:
        """Of the log widths at 99 % and at 90 %: that of a normal's, unless misses have moved them."""
        issued = [o.predictions[0].features for o in runs[name].recorder.observations]
        return {round((f[4] - f[1]) / (f[2] - f[1]), 6) for f in issued}

    assert ratios("ours-no-conformal") == {round(2.3263478740408408 / 1.2815515655446004, 6)}
    assert len(ratios("ours")) > 1


def test_without_a_load_meter_nothing_is_known_of_what_comes(device: SimulatedDevice) -> None:
    for name, knows in (("ours", True), ("ours-no-load-meter", False), ("static_linear", False)):
        policy = make_policy(name)
        meter = make_scheduler(policy, make_predictor(policy, measured(device)), (), device.specs).view.load
        for k in range(3):
            meter.arrived(
                Request(id=str(k), model=device.specs[0].name, arrived_at=k * 10**6, deadline_at=None)
            )
        assert bool(meter.estimate(10**9).models) is knows, name


def test_coruns_are_measured_once_and_kept(device: SimulatedDevice, where: Places) -> None:
    found = device.coruns()
    kept = {file: file.stat().st_mtime_ns for file in (where.store / "twins").glob("coruns-*.json")}
    again = device.coruns()
    assert again.observations == found.observations
    assert kept == {file: file.stat().st_mtime_ns for file in (where.store / "twins").glob("coruns-*.json")}
    assert len(kept) == 1
    slowdowns = [
        (o.ended_at - o.started_at) / found.features.of(o.variant).solo_ns for o in found.observations
    ]
    assert min(slowdowns) > 0.9
    assert {len(o.overlaps) for o in found.observations} == {1, 2, 3}


def test_a_device_whose_truth_nobody_can_ask_has_no_oracle(device: SimulatedDevice) -> None:
    with pytest.raises(ConfigError, match="twin"):
        make_predictor(make_policy("oracle"), measured(device))


def test_only_what_the_whole_predictor_has_learned_is_kept() -> None:
    whole = {name for name in POLICIES if parts_of(make_policy(name)).whole}
    assert not whole & {*ABLATIONS, "static_linear", "oracle"}
    assert {"ours", "deferred_edf", "k_edf", "ours-no-overlap"} <= whole


@pytest.mark.parametrize("policy", [*ABLATIONS, "static_linear"])
def test_the_command_runs_it_on_a_simulated_cpu_too(tmp_path: Path, policy: str) -> None:
    path = tmp_path / "demo.toml"
    path.write_text((EXAMPLES / "demo.toml").read_text().replace("duration_s = 60", "duration_s = 2"))
    shutil.copy(EXAMPLES / "demo.profile.json", tmp_path / "demo.profile.json")
    out = tmp_path / "out.json"
    command = ["simulate", str(path), "--policy", policy, "--capacity", "300", "--json", str(out)]
    done = CliRunner().invoke(app, [*command, "--store", str(tmp_path / "store")])
    assert done.exit_code == 0, done.output
    report: dict[str, Any] = json.loads(out.read_text())
    assert report["policy"] == report["config"]["policy"] == policy
    assert report["offered"] == sum(report[kind] for kind in OUTCOMES) > 0
    assert report["prediction"]["n"] > 0


def test_a_server_without_pairs_says_what_to_do_for_a_predictor_fitted_on_them(tmp_path: Path) -> None:
    path = tmp_path / "one.toml"
    path.write_text(
        '[device]\nlanes = 2\n[[model]]\nname = "echo"\nsource = "zoo:echo"\nslo_ms = 50\nmax_batch = 1\n'
    )
    command = ["serve", str(path), "--policy", "static_linear", "--http-port", "0"]
    done = CliRunner().invoke(app, [*command, "--store", str(tmp_path / "store")])
    assert done.exit_code == 2
    assert "cotenant profile one.toml --corun" in " ".join(done.output.split())
