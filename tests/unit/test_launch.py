"""What a child process is told to be arrives as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cotenant.config import load_scenario
from cotenant.launch import EngineSettings, FrontSettings, decode, encode
from cotenant.serve.settings import ServeConfig

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.toml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_configuration_arrives_whole(path: Path) -> None:
    scenario = replace(load_scenario(path), phases=())  # as a server is told them
    for record, store in ((None, None), (Path("a/b"), Path("/c"))):
        settings = EngineSettings(
            scenario=scenario, policy="ours", record=record, record_mb=1.5, store=store, arena_bytes=1 << 30
        )
        assert decode(encode(settings), EngineSettings) == settings


def test_a_front_ends_settings_arrive_whole() -> None:
    settings = FrontSettings(
        engine=Path("/x/engine"),
        models=("a", "b"),
        arena_bytes=5,
        serve=ServeConfig(allow_model_control=True),
        config=Path("/x/server.toml"),
        host="127.0.0.1",
    )
    assert decode(encode(settings), FrontSettings) == settings
