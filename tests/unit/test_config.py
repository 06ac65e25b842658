"""A configuration that cannot be used says what is wrong, where, and what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from cotenant.config import ConfigError, load_scenario, scenario_from_model
from cotenant.domain import JobClass

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
MODEL = '[[model]]\nname = "a"\nsource = "zoo:echo"\n'


def read(tmp_path: Path, text: str) -> object:
    path = tmp_path / "scenario.toml"
    path.write_text(text)
    return load_scenario(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MODEL + "slo_mss = 5\n", ("slo_mss", "slo_ms", "'a'")),
        (MODEL + "slo_ms = -1\n", ("slo_ms", "greater than 0")),
        (MODEL + 'slo_ms = "x"\n', ("slo_ms", "number")),
        (MODEL + "slo_ms = nan\n", ("slo_ms", "finite")),
        (MODEL + "slo_ms = true\n", ("slo_ms", "number")),
        (MODEL + "max_batch = 0\n", ("max_batch", "1 to 1024")),
        (MODEL + "max_batch = 2.5\n", ("max_batch", "whole")),
        (MODEL + "rate_per_s = -3\n", ("rate_per_s", "negative")),
        (MODEL + 'arrivals = "poison"\n', ("poison", "poisson")),
        (MODEL + 'arrivals = "trace"\n', ("file",)),
        (MODEL + 'class = "protected"\n', ("protected", "slo_ms")),
        (MODEL + 'class = "gold"\n', ("gold", "standard")),
        (MODEL + "buckets = { seq = [64, 32] }\n", ("buckets.seq", "ascending")),
        (MODEL + "buckets = { seq = [] }\n", ("buckets.seq",)),
        (MODEL + "slo_percentile = 1.0\n", ("slo_percentile",)),
        (MODEL + MODEL, ("'a'", "twice")),
        (MODEL.replace('"a"', '"../a"'), ("name", "letters")),
        (MODEL.replace("zoo:echo", "../evil.onnx"), ("source", "out of the folder")),
        (MODEL.replace("zoo:echo", "mymodule:factory"), ("source", "allow_code")),
        (MODEL + 'architecture = "resnet50"\n', ("architecture", ".safetensors", "'zoo:echo'")),
        (MODEL.replace("zoo:echo", "../w.safetensors"), ("source", "out of the folder")),
        (MODEL.replace("zoo:echo", "w.safetensors") + 'architecture = "a/b"\n', ("architecture", "a/b")),
        (MODEL.replace("zoo:echo", "w.safetensors") + 'architectur = "a"\n', ("architectur", "architecture")),
        (MODEL.replace("zoo:echo", "kernels:x.csv"), ("kernels:FILE.csv#MODEL",)),
        ("[load]\nduration_s = 0\n" + MODEL, ("duration_s", "greater than 0")),
        ("[lod]\n" + MODEL, ("lod", "load")),
        ("[device]\nkind = \"gpu\"\n" + MODEL, ("gpu", "cuda")),
        ("[server]\nhttp_workers = 0\n" + MODEL, ("http_workers", "1 to 64")),
        ("[server]\nhttp_workers = 2\nin_process = true\n" + MODEL, ("http_workers", "in_process")),
        ("[server]\nshared_memory_mib = 100\n" + MODEL, ("shared_memory_mib", "128")),
        ("[server]\nengine_silence_s = -1\n" + MODEL, ("engine_silence_s", "0 or more")),
        ("", ("[[model]]", "at least one")),
        ("[model]\nname = 'a'\n", ("double brackets",)),
        ("[[model]\n", ("not valid TOML", "line 1")),
        (MODEL + "[[phase]]\nat_s = 3\n[phase.model.b]\nrate_per_s = 1\n", ("'b'", "known: a")),
        (MODEL + "[[phase]]\nat_s = -3\n", ("at_s",)),
        (MODEL + 'arrivals = "mmpp"\nburst_ratio = 1\n', ("burst_ratio", "greater than 1")),
        (MODEL + 'arrivals = "mmpp"\nburst_ratio = 9\nburst_share = 0.2\n', ("burst_share", "1.8", "exceed")),
        (MODEL + 'arrivals = "mmpp"\nburst_ratio = [2, 3]\n', ("burst_share", "as many entries", "(2)")),
        (MODEL + 'arrivals = "mmpp"\nburst_s = []\n', ("burst_s", "number or a list")),
        (MODEL + 'arrivals = "mmpp"\nburst_s = "x"\n', ("burst_s", "'x'")),
        (MODEL + 'arrivals = "mmpp"\nburst_length_s = 1\n', ("burst_length_s", "burst_s")),
        (MODEL + "burst_s = 2\n", ("burst_s", "mmpp", "never")),
        (MODEL + 'arrivals = "diurnal"\ndiurnal_amplitude = 1.5\n', ("diurnal_amplitude", "0 to 1")),
        (MODEL + 'arrivals = "diurnal"\ndiurnal_period_s = 0\n', ("diurnal_period_s", "greater than 0")),
        (MODEL + 'arrivals = "flash"\nflash_s = 5\n', ("arrivals", "needs `flash_at_s`")),
        (MODEL + 'arrivals = "flash"\nflash_at_s = 5\n', ("arrivals", "needs `flash_s`")),
        (MODEL + 'arrivals = "flash"\nflash_at_s = 5\nflash_s = 2\nflash_ramp_s = 3\n', ("flash_ramp_s",)),
        (MODEL + 'arrivals = "trace"\nfile = "t.csv"\noffset_s = -1\n', ("offset_s", "0 or more")),
        (
            MODEL + '[[phase]]\nat_s = 3\n[phase.model.a]\narrivals = "trace"\n',
            ("[phase.model.a]", "file"),
        ),
        (
            '[load]\nscale_of = "capacity"\n' + MODEL + 'arrivals = "trace"\nfile = "t.csv"\n',
            ("rate_per_s", "share of the capacity"),
        ),
        ('[load]\npopularity = "zip"\n' + MODEL, ("zip", "zipf")),
        ('[load]\npopularity = "zipf"\n' + MODEL, ("[load] rate_per_s", "greater than 0")),
        ("[load]\nrate_per_s = 5\n" + MODEL, ("[load] rate_per_s", "popularity")),
        ("[load]\nzipf_alpha = 1\n" + MODEL, ("[load] zipf_alpha", "popularity")),
        (
            '[load]\npopularity = "zipf"\nrate_per_s = 5\n' + MODEL + "rate_per_s = 1\n",
            ("'a'", "rate_per_s", "zipf", "leave one"),
        ),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_with_a_message_that_helps(
    tmp_path: Path, text: str, words: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    message = str(caught.value)
    assert "scenario.toml" in message
    for word in words:
        assert word in message, message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        load_scenario(tmp_path / "nowhere.toml")


def test_a_model_without_slo_is_best_effort_and_one_with_it_standard(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(MODEL + MODEL.replace('"a"', '"b"') + "slo_ms = 5\n")
    first, second = load_scenario(path).models
    assert first.job_class is JobClass.BEST_EFFORT
    assert second.job_class is JobClass.STANDARD


def test_a_lone_model_file_becomes_a_scenario(tmp_path: Path) -> None:
    scenario = scenario_from_model(tmp_path / "my model.onnx", 50.0)
    assert scenario.models[0].name == "my_model"
    assert scenario.models[0].slo_ms == 50.0


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is not beside this checkout")
@pytest.mark.parametrize("name", ["headline", "busy"])
def test_the_published_scenarios_can_be_read(name: str) -> None:
    assert load_scenario(SHARED / f"{name}.toml").models


def test_the_demo_ships_with_the_package_and_as_an_example() -> None:
    root = Path(__file__).resolve().parents[2]
    shipped = (root / "src/cotenant/data/demo.toml").read_text()
    assert shipped == (root / "examples/demo.toml").read_text()


ZIPF = '[load]\npopularity = "zipf"\nrate_per_s = 30\nzipf_alpha = 1\n'


def test_a_total_rate_is_spread_over_the_models_by_their_order(tmp_path: Path) -> None:
    models = "".join(MODEL.replace('"a"', f'"{name}"') for name in "abc")
    path = tmp_path / "s.toml"
    path.write_text(ZIPF + models)
    rates = [model.rate_per_s for model in load_scenario(path).models]
    assert rates == pytest.approx([30 * 6 / 11, 30 * 3 / 11, 30 * 2 / 11])
    path.write_text(ZIPF.replace("alpha = 1", "alpha = 0") + models)
    assert [model.rate_per_s for model in load_scenario(path).models] == pytest.approx([10, 10, 10])


def test_phases_inherit_what_they_do_not_change(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(
        ZIPF + MODEL + 'arrivals = "mmpp"\n'
        'burst_ratio = [2, 5]\nburst_share = [0.1, 0.05]\nburst_s = [3, 1]\n'
        '[[phase]]\nat_s = 9\n[phase.model.a]\nrate_per_s = 4\n'
        '[[phase]]\nat_s = 5\n[phase.model.a]\nburst_ratio = [3, 6]\n'
    )  # fmt: skip
    scenario = load_scenario(path)
    first, second, third = scenario.stretches(scenario.models[0])
    assert [at_s for at_s, _ in (first, second, third)] == [0, 5, 9]
    assert second[1].burst_ratio == third[1].burst_ratio == (3.0, 6.0)
    assert third[1].burst_share == (0.1, 0.05)
    assert (first[1].rate_per_s, second[1].rate_per_s, third[1].rate_per_s) == (30, 30, 4)


def test_keys_of_a_process_that_only_a_phase_has_may_stand_with_the_model(tmp_path: Path) -> None:
    text = MODEL + 'burst_s = 2\n[[phase]]\nat_s = 5\n[phase.model.a]\narrivals = "mmpp"\n'
    assert read(tmp_path, text)
