"""`cotenant simulate` on twin scenarios: no profile step, the same report, the same books."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cotenant.catalogue import places
from cotenant.cli import app
from cotenant.config import ConfigError, load_scenario
from cotenant.domain import NS_PER_MS, Variant
from cotenant.experiment.simulated import SimulatedDevice, device_of, oracle_predictor, simulate
from cotenant.experiment.twin_profile import DEMANDS, STATICS
from cotenant.simulate.twin.specs import SPECS

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
OUTCOMES = ("ok", "late", "rejected", "expired", "cancelled", "failed")

Write = Callable[..., Path]


@pytest.fixture
def scenario(tmp_path: Path) -> Write:
    """`scenario(old, new, ...)`: the headline example, two seconds long, with replacements."""

    def write(*changes: tuple[str, str]) -> Path:
        text = (EXAMPLES / "headline.toml").read_text()
        for old, new in (("duration_s = 120", "duration_s = 2"), ("at_s = 60", "at_s = 1"), *changes):
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "kernels").mkdir(exist_ok=True)
        shutil.copy(EXAMPLES / "kernels" / "v100_forward.csv", tmp_path / "kernels")
        path = tmp_path / "case.toml"
        path.write_text(text)
        return path

    return write


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by the tests of this file, as by the runs of a user."""
    return tmp_path_factory.mktemp("store")


def command(path: Path, store: Path, *flags: str) -> Result:
    return CliRunner().invoke(app, ["simulate", str(path), "--store", str(store), *flags])


def report(path: Path, store: Path, *flags: str) -> dict[str, Any]:
    out = path.with_name("report.json")
    result = command(path, store, "--json", str(out), *flags)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def device(path: Path, store: Path) -> SimulatedDevice:
    return device_of(load_scenario(path), places(store))


@pytest.mark.parametrize("policy", ["default", "fcfs", "exclusive_edf", "deferred_edf", "k_edf"])
def test_every_policy_runs_and_its_books_close(scenario: Write, store: Path, policy: str) -> None:
    found = report(scenario(), store, "--policy", policy)
    assert found["policy"] == policy
    assert found["offered"] == sum(found[kind] for kind in OUTCOMES) > 100
    assert found["failed"] == 0
    assert found["device"]["kind"] == "twin"
    assert found["device"]["name"] == "v100"
    assert 0 < found["device_load"] <= found["device_busy"] <= 1
    assert found["prediction"]["n"] > 0
    for part in found["per_model"].values():
        assert part["offered"] == sum(part[kind] for kind in OUTCOMES)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(scenario: Write, store: Path) -> None:
    path = scenario()
    first, again, other = (
        report(path, store, "--policy", "k_edf", "--seed", seed) for seed in ("3", "3", "4")
    )
    for one in (first, again, other):
        for key in ("wall_s", "decision_us", "versions"):
            del one[key]
    assert first == again
    assert first["p50_ms"] != other["p50_ms"]


def test_what_was_measured_is_kept_and_measured_anew_when_it_changes(scenario: Write, tmp_path: Path) -> None:
    store = tmp_path / "store"
    device(scenario(), store)
    kept = sorted((store / "twins").iterdir())
    assert len(kept) == 6
    before = {file: file.stat().st_mtime_ns for file in kept}
    device(
        scenario(('name = "bert"', 'name = "other"'), ("[phase.model.bert]", "[phase.model.other]")), store
    )
    assert {file: file.stat().st_mtime_ns for file in sorted((store / "twins").iterdir())} == before
    device(scenario(('spec = "v100"', 'spec = "l4"')), store)
    assert len(list((store / "twins").iterdir())) == 12
    kept[0].write_text("[{]")
    device(scenario(), store)
    assert kept[0].read_text() != "[{]"


def test_profiles_agree_with_the_kernels_and_slos_with_the_profiles(scenario: Write, store: Path) -> None:
    found = device(scenario(("slo_scale = 20", "slo_scale = 20\nslo_ms = 1")), store)
    for spec in found.specs:
        for variant in spec.variants():
            solo = found.profiles.solo(variant)
            assert solo.median_ns == pytest.approx(found.truth.programs.of[variant].solo_ns, rel=0.01)
            assert 0 < solo.spread_ns < 0.05 * solo.median_ns
        one = found.profiles.solo(Variant(spec.name, 1)).median_ns
        factor = 20 if spec.name.startswith(("mobile", "resnet")) else 8
        assert spec.slo_ns == int(factor * one)
    bert = Variant("bert", 2)
    assert found.profiles.solo(bert).median_ns == pytest.approx(49.48 * NS_PER_MS, rel=0.01)


def test_features_say_what_models_use_and_suffer(scenario: Write, store: Path) -> None:
    found = device(scenario(), store)
    features = found.features
    assert (features.resources, features.statics) == (DEMANDS, STATICS)
    assert len(features) == 30
    for entry in features:
        assert sum(entry.segment_ns) == pytest.approx(entry.solo_ns)
        assert len(entry.segment_demand) == len(entry.segment_ns) == 16
        assert all(0 <= u <= 1 for row in entry.segment_demand for u in row)

    def known(model: str, rows: int) -> dict[str, float]:
        entry = features.of(Variant(model, rows))
        return dict(zip((*DEMANDS, *STATICS), (*entry.demand, *entry.statics), strict=True))

    small, large = known("mobilenetv2", 1), known("bert", 16)
    assert small["compute"] < 0.5 < 0.9 < large["compute"]
    assert small["sensitivity_dram_2"] > large["sensitivity_dram_2"] > 0
    assert large["pressure_compute_2"] > small["pressure_compute_2"] > 0
    assert small["sensitivity_compute_1"] < small["sensitivity_compute_2"]
    assert abs(small["sensitivity_copy_in_2"]) < 0.1


def test_the_oracle_predicts_better_than_what_has_to_learn(scenario: Write, store: Path) -> None:
    case = load_scenario(scenario())
    found = device_of(case, places(store))
    learned = simulate(case, found, "exclusive_edf")
    told = simulate(case, found, "exclusive_edf", predictor_factory=oracle_predictor)
    assert told["config"]["predictor"] == "oracle"
    assert told["prediction"]["median_ape"] <= learned["prediction"]["median_ape"] < 0.05


@pytest.mark.parametrize("spec", SPECS)
def test_every_device_can_be_simulated(scenario: Write, tmp_path: Path, spec: str) -> None:
    changes = [('spec = "v100"', f'spec = "{spec}"\nlanes = 3'), ("max_batch = 16", "max_batch = 3")]
    found = report(scenario(*changes), tmp_path / "store", "--policy", "k_edf")
    assert found["offered"] > 100
    assert found["device"]["lanes"] == 3


def test_capacity_can_be_what_rates_refer_to(scenario: Write, store: Path) -> None:
    found = report(scenario(("scale = 1.0 ", 'scale = 0.5\nscale_of = "capacity" ')), store)
    assert found["config"]["capacity_per_s"] > 50
    assert found["attainment"] > 0.5


def zoo_scenario(folder: Path, extra: str = "") -> Path:
    models = "".join(
        f'[[model]]\nname = "{name}"\nsource = "zoo:{name}"\nslo_scale = 10\nrate_per_s = 200\n'
        for name in (
            "resnet18",
            "mobilenet",
            "vit_tiny",
            "dlrm",
            "gpt_mini",
            "echo",
            "gpt_small",
            "bert_mini",
        )
    )
    text = f'[load]\nduration_s = 1\n[device]\nkind = "twin"\nspec = "h100"\n{models}{extra}'
    path = folder / "zoo.toml"
    path.write_text(text)
    return path


def test_models_of_the_zoo_run_on_a_twin_with_their_axes(tmp_path: Path, store: Path) -> None:
    path = zoo_scenario(tmp_path, "buckets = {seq = [16, 48]}\n")
    found = device(path, store)
    bert = found.specs[-1]
    assert bert.axis_buckets == (("seq", (16, 48)),)
    assert found.specs[-2].axis_buckets == (("seq", (128, 512)),)
    short, long = (found.profiles.solo(Variant("bert_mini", 8, (("seq", n),))).median_ns for n in (16, 48))
    assert short < long
    run = report(path, store, "--policy", "deferred_edf")
    assert run["offered"] > 1000
    assert run["failed"] == 0
    assert run["per_model"]["resnet18"]["attainment"] > 0.8


def test_an_axis_that_a_model_has_not_is_named(tmp_path: Path, store: Path) -> None:
    result = command(zoo_scenario(tmp_path, "buckets = {length = [16]}\n"), store)
    assert result.exit_code == 2
    assert "'bert_mini' has no axis 'length'; its axes: seq" in result.output.replace("\n", "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('spec = "v100"', 'spec = "b900"'), "[device] spec: 'b900' is no device"),
        (("v100_forward.csv#bert", "absent.csv#bert"), "absent.csv: cannot be read"),
        (("#bert", "#berta"), "has no model 'berta'; models there: bert, efficientnet"),
        (('name = "bert"\n', 'name = "bert"\nbuckets = {seq = [8]}\n'), "traces of kernels have no axes"),
        (("kernels:kernels/v100_forward.csv#bert", "torch:resnet50"), "cannot be simulated on a twin"),
        (("kernels:kernels/v100_forward.csv#bert", "zoo:bert_minni"), "did you mean 'bert_mini'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_the_place(
    scenario: Write, store: Path, change: tuple[str, str], message: str
) -> None:
    path = scenario(change)
    result = command(path, store)
    assert result.exit_code == 2
    assert message in result.output.replace("\n", "")
    with pytest.raises(ConfigError, match=r"case\.toml"):
        device(path, store)
