"""Models of a repository come and go on a live engine: by command, or as their folder changes."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
from scaled_models import write_model

from cotenant.assemble import Prepared, make_engine, prepare
from cotenant.catalogue import Places, places
from cotenant.clock import MonotonicClock
from cotenant.config import load_scenario
from cotenant.domain import OutcomeKind
from cotenant.engine_client import Call, EngineClient
from cotenant.local_link import LocalLink
from cotenant.repository_control import control_of
from cotenant.serve.dataplane import find_model
from cotenant.serve.errors import BadRequest

EXPLICIT = '[device]\nlanes = 1\n[repository]\npath = "models"\nmode = "explicit"\npoll_s = 0.05\n'
POLL = EXPLICIT.replace("explicit", "poll")
NONE = EXPLICIT.replace("explicit", "none")


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Places:
    return places(tmp_path_factory.mktemp("store"))


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def live(
    tmp_path: Path, where: Places, config: str, use: Callable[[EngineClient, Prepared], Awaitable[None]]
) -> None:
    """Run `use(client, prepared)` on an engine that serves this configuration."""
    path = tmp_path / "server.toml"
    path.write_text(config)
    prepared = prepare(load_scenario(path), where)

    async def run() -> None:
        clock = MonotonicClock()
        engine = make_engine(prepared, clock=clock)
        engine.start()
        control = control_of(engine, prepared.scenario, prepared.stamps, prepared.configured)
        assert control is not None
        try:
            await asyncio.wait_for(use(EngineClient(LocalLink(engine, clock, control=control)), prepared), 60)
        finally:
            control.stop()
            engine.close_log()

    try:
        asyncio.run(run())
    finally:
        prepared.executor.close()


async def factor(client: EngineClient, model: str, version: str | None = None) -> float:
    """What the model multiplies by."""
    metadata = find_model(client, model, version)
    call = Call(
        id=client.new_id(),
        model=metadata.name,
        inputs={"x": np.ones((1, 4), np.float32)},
        rows=1,
        axes=(),
        arrived_at=client.now(),
    )
    reply = await client.infer(call)
    assert reply.outcome.kind in (OutcomeKind.OK, OutcomeKind.LATE), reply.outcome
    assert reply.outputs is not None
    return float(reply.outputs["y"][0, 0])


def status(client: EngineClient, model: str, version: str | None = None) -> int:
    try:
        find_model(client, model, version)
    except BadRequest as error:
        return error.status
    return 200


def states(client: EngineClient) -> dict[str, str]:
    return {found.name: found.state for found in client.status()}


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def test_by_command_the_chosen_versions_come_and_the_others_go(
    tmp_path: Path, models: Path, where: Places
) -> None:
    write_model(models, "m", 1, 10)
    write_model(models, "m", 2, 20)

    async def use(client: EngineClient, _: Prepared) -> None:
        assert client.metadata() == {}
        await until(lambda: states(client) == {"m@1": "UNAVAILABLE", "m@2": "UNAVAILABLE"})
        assert status(client, "m") == 503
        assert await client.load("m") is None
        assert states(client) == {"m@1": "UNAVAILABLE", "m@2": "READY"}
        assert await factor(client, "m") == 20
        assert status(client, "m", "1") == 503

        (models / "m" / "config.toml").write_text('versions = "all"\nslo_ms = 500')
        write_model(models, "m", 3, 30)
        assert await client.load("m") is None
        assert [await factor(client, "m", v) for v in (None, "1", "2", "3")] == [30, 10, 20, 30]
        assert find_model(client, "m", "3").spec.slo_ns == 500_000_000

        (models / "m" / "config.toml").write_text("versions = [1]")
        assert await client.load("m") is None
        assert [status(client, "m", v) for v in ("1", "2", "3")] == [200, 503, 503]
        assert await client.unload("m") is None
        assert status(client, "m") == 503
        assert await client.unload("m") == "it is not loaded"

    live(tmp_path, where, EXPLICIT, use)


def test_a_version_is_loaded_anew_only_when_its_files_have_changed(
    tmp_path: Path, models: Path, where: Places
) -> None:
    write_model(models, "m", 1, 10)

    async def use(client: EngineClient, _: Prepared) -> None:
        await client.load("m")
        before = client.metadata()["m@1"]
        await client.load("m")
        assert client.metadata()["m@1"] is before
        write_model(models, "m", 1, 11)
        assert await client.load("m") is None
        assert await factor(client, "m") == 11

    live(tmp_path, where, EXPLICIT, use)


def test_what_served_goes_on_when_the_new_version_cannot_be_loaded(
    tmp_path: Path, models: Path, where: Places
) -> None:
    write_model(models, "m", 1, 10)

    async def use(client: EngineClient, _: Prepared) -> None:
        await client.load("m")
        broken = models / "m" / "2" / "model.onnx"
        broken.parent.mkdir()
        broken.write_bytes(b"no model")
        error = await client.load("m")
        assert error is not None
        assert error.startswith("version 2: model file model.onnx: ")
        assert str(tmp_path) not in error
        assert await factor(client, "m") == 10
        write_model(models, "m", 2, 20)
        assert await client.load("m") is None
        assert await factor(client, "m") == 20
        assert status(client, "m", "1") == 503

    live(tmp_path, where, EXPLICIT, use)


def test_an_unknown_or_unreadable_model_is_told_and_changes_nothing(
    tmp_path: Path, models: Path, where: Places
) -> None:
    write_model(models, "m", 1, 10)
    write_model(models, "wrong", 1, 10)
    (models / "wrong" / "config.toml").write_text("slo = 3")
    (models / "empty").mkdir()

    async def use(client: EngineClient, _: Prepared) -> None:
        await until(lambda: "wrong" in states(client))
        before = states(client)
        for name in ("nope", "..", "m@1", "models/m"):
            assert (await client.load(name) or "").startswith("unknown model")
            assert (await client.unload(name) or "").startswith("unknown model")
        error = await client.load("wrong") or ""
        assert "unknown key 'slo'" in error
        assert str(tmp_path) not in error
        assert "none of the versions" in (await client.load("empty") or "")
        assert states(client) == before

    live(tmp_path, where, EXPLICIT, use)


def test_polling_follows_the_folder(tmp_path: Path, models: Path, where: Places) -> None:
    write_model(models, "m", 1, 10)

    async def use(client: EngineClient, _: Prepared) -> None:
        assert await factor(client, "m") == 10
        write_model(models, "m", 2, 20)
        write_model(models, "late", 1, 7)
        await until(lambda: status(client, "late") == 200 and status(client, "m", "1") == 503)
        assert [await factor(client, name) for name in ("m", "late")] == [20, 7]
        write_model(models, "late", 1, 8)
        changed = client.metadata()["late@1"]
        await until(lambda: client.metadata()["late@1"] is not changed)
        assert await factor(client, "late") == 8
        shutil.rmtree(models / "late")
        await until(lambda: status(client, "late") == 404)
        assert "by command" in (await client.load("m") or "")
        assert "by command" in (await client.unload("m") or "")
        assert await factor(client, "m") == 20

    live(tmp_path, where, POLL, use)


def test_polling_tries_a_broken_version_again_when_it_changes_only(
    tmp_path: Path, models: Path, where: Places
) -> None:
    (models / "m" / "1").mkdir(parents=True)
    (models / "m" / "1" / "model.onnx").write_bytes(b"half a mod")

    async def use(client: EngineClient, prepared: Prepared) -> None:
        assert states(client)["m@1"] == "UNAVAILABLE"
        tried: list[str] = []
        source = prepared.executor._source
        find = source.find
        source.find = lambda name: (tried.append(name), find(name))[1]
        write_model(models, "other", 1, 5)
        await until(lambda: status(client, "other") == 200)
        assert tried == ["other@1"]
        write_model(models, "m", 1, 10)
        await until(lambda: status(client, "m") == 200)
        assert await factor(client, "m") == 10

    live(tmp_path, where, POLL, use)


def test_without_a_mode_what_was_there_at_the_start_stays(
    tmp_path: Path, models: Path, where: Places
) -> None:
    write_model(models, "m", 1, 10)
    config = NONE + '[[model]]\nname = "echo"\nsource = "zoo:echo"\n'

    async def use(client: EngineClient, _: Prepared) -> None:
        assert "by command" in (await client.load("m") or "")
        assert await client.unload("echo") is None
        assert await client.load("echo") is None
        assert await factor(client, "m") == 10

    live(tmp_path, where, config, use)


def test_a_model_beyond_the_memory_budget_is_not_loaded_and_the_figures_are_said(
    tmp_path: Path, models: Path, where: Places
) -> None:
    write_model(models, "a", 1, 1, n_weights=5 << 20)  # 20 MiB
    write_model(models, "b", 1, 2, n_weights=30 << 20)  # 120 MiB
    config = EXPLICIT.replace("[device]\n", "[device]\nmemory_mib = 128\n")

    async def use(client: EngineClient, _: Prepared) -> None:
        assert await client.load("a") is None
        held = client.metadata()["a@1"].memory_bytes
        assert held is not None
        assert 20 << 20 <= held < 100 << 20
        error = await client.load("b") or ""
        assert "it needs about 120.0 MiB of memory" in error
        assert "of the 128.0 MiB that [device] memory_mib allows are left; unload a model first" in error
        assert await factor(client, "a") == 1
        assert await client.unload("a") is None
        assert await client.load("b") is None
        assert await factor(client, "b") == 2

    live(tmp_path, where, config, use)
