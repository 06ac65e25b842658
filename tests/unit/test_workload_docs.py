"""The page on workloads names every key of a load, and its example can be read."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from cotenant.config import LoadConfig, load_scenario
from cotenant.workload.traffic import PROCESSES, TrafficShape

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "workloads.md").read_text()
KEYS = [f.name for cls in (LoadConfig, TrafficShape) for f in fields(cls)]


@pytest.mark.parametrize("word", [*KEYS, *PROCESSES])
def test_every_key_and_process_is_explained(word: str) -> None:
    assert re.search(rf"\b{word}\b", PAGE)


def test_the_defaults_are_those_of_the_code() -> None:
    row = re.compile(r"`([a-z_]+)` \(([0-9.]+)\)")
    said = {key: float(value) for key, value in row.findall(PAGE)}
    for f in fields(TrafficShape):
        if f.name in said:
            default = f.default[0] if isinstance(f.default, tuple) else f.default
            assert said[f.name] == default, f.name
    assert len(said) >= 9


def test_the_example_can_be_read(tmp_path: Path) -> None:
    example = re.search(r"```toml\n(.*?)```", PAGE, re.S)
    assert example is not None
    path = tmp_path / "s.toml"
    path.write_text(example[1])
    assert len(list(load_scenario(path).stretches(load_scenario(path).models[0]))) == 2


def test_every_scenario_of_the_study_is_listed() -> None:
    for path in (ROOT / "examples").glob("policy_*.toml"):
        assert f"(../examples/{path.name})" in PAGE
