"""Models come and go while others are served: states, SLOs, profiles and learned state follow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from cotenant.assemble import Prepared, make_engine, prepare
from cotenant.catalogue import Places, places
from cotenant.clock import MonotonicClock
from cotenant.config import load_scenario
from cotenant.domain import NS_PER_MS, NS_PER_S, OutcomeKind
from cotenant.engine import Engine
from cotenant.engine_client import Call, EngineClient, Reply
from cotenant.experiment.replaying import replay_log
from cotenant.local_link import LocalLink
from cotenant.serve.dataplane import find_model
from cotenant.serve.errors import BadRequest
from cotenant.telemetry.event_log import read

CONFIG = """
[device]
kind = "cpu"
lanes = 1

[[model]]
name = "stays"
source = "zoo:echo"
slo_ms = 1000
max_batch = 2

[[model]]
name = "moves"
source = "zoo:echo"
slo_ms = 30
slo_scale = 5
max_batch = 4

[[model]]
name = "broken"
source = "nowhere.onnx"
"""


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Places:
    return places(tmp_path_factory.mktemp("store"))


@pytest.fixture
def prepared(tmp_path: Path, where: Places) -> Prepared:
    path = tmp_path / "server.toml"
    path.write_text(CONFIG)
    found = prepare(load_scenario(path), where)
    yield found
    found.executor.close()


def with_client(prepared: Prepared, use: Callable, log_path: Path | None = None) -> Engine:
    """Run `use(client)` on a started engine; returns the engine."""

    async def run() -> Engine:
        clock = MonotonicClock()
        engine = make_engine(prepared, clock=clock, log_path=log_path)
        engine.start()
        await use(EngineClient(LocalLink(engine, clock)))
        engine.close_log()
        return engine

    return asyncio.run(run())


async def ask(client: EngineClient, model: str, answer_ns: int = 0) -> Reply:
    inputs = {"input": np.ones((1, 16), np.float32)}
    call = Call(
        id=client.new_id(),
        model=model,
        inputs=inputs,
        rows=1,
        axes=(),
        arrived_at=client.now(),
        answer_ns=answer_ns,
    )
    return await asyncio.wait_for(client.infer(call), 10)


def states(client: EngineClient) -> dict[str, str]:
    return {status.name: status.state for status in client.status()}


def test_statistics_read_right_after_an_answer_count_its_run(prepared: Prepared) -> None:
    async def use(client: EngineClient) -> None:
        await ask(client, "stays")
        (found,) = (statistics for statistics in await client.statistics() if statistics.name == "stays")
        assert found.execution_count == 1
        assert [n for _, n, _ in found.batches] == [1]

    with_client(prepared, use)


def test_slow_answers_leave_most_of_a_budget_for_running(prepared: Prepared) -> None:
    async def use(client: EngineClient) -> None:
        request = (await ask(client, "stays", answer_ns=NS_PER_S)).outcome.request
        assert 0 < request.answer_ns < (request.deadline_at - request.arrived_at) / 2

    with_client(prepared, use)


def test_an_unloaded_model_is_unavailable_and_comes_back_as_it_was(prepared: Prepared) -> None:
    async def use(client: EngineClient) -> None:
        before = client.metadata()["moves"]
        assert states(client) == {"stays": "READY", "moves": "READY", "broken": "UNAVAILABLE"}
        assert await client.unload("moves") is None
        assert states(client)["moves"] == "UNAVAILABLE"
        with pytest.raises(
            BadRequest, match=r"not available: model .moves. is unavailable .unloaded."
        ) as error:
            find_model(client, "moves", None)
        assert error.value.status == 503
        assert (await ask(client, "moves")).outcome.kind is OutcomeKind.REJECTED
        assert (await ask(client, "stays")).outcome.kind is OutcomeKind.OK

        loading = asyncio.create_task(client.load("moves"))
        await asyncio.sleep(0)
        assert states(client)["moves"] == "LOADING"
        assert await loading is None
        assert states(client)["moves"] == "READY"
        after = client.metadata()["moves"]
        assert replace(after, memory_bytes=0) == replace(before, memory_bytes=0)
        reply = await ask(client, "moves")
        assert reply.outcome.kind is OutcomeKind.OK
        assert reply.outcome.request.deadline_at == reply.outcome.request.arrived_at + before.spec.slo_ns

    with_client(prepared, use)


def test_a_model_that_cannot_be_loaded_says_why_without_naming_folders(prepared: Prepared) -> None:
    async def use(client: EngineClient) -> None:
        (reason,) = [status.reason for status in client.status() if status.name == "broken"]
        assert "nowhere.onnx" in reason or "there is no file" in reason
        assert str(prepared.scenario.folder) not in reason
        assert "there is no file" in (await client.load("broken") or "")
        assert states(client)["broken"] == "UNAVAILABLE"
        assert "not in the configuration" in (await client.load("stranger") or "")

    with_client(prepared, use)


def test_a_model_that_is_loaded_anew_serves_meanwhile_and_is_kept_when_that_fails(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(client: EngineClient) -> None:
        loading = asyncio.create_task(client.load("moves"))
        assert (await ask(client, "moves")).outcome.kind is OutcomeKind.OK
        assert await loading is None
        source = prepared.executor._source
        monkeypatch.setattr(
            source, "find", lambda name: (_ for _ in ()).throw(ValueError("the disk is gone"))
        )
        assert await client.load("moves") == "the disk is gone"
        assert states(client)["moves"] == "READY"
        assert (await ask(client, "moves")).outcome.kind is OutcomeKind.OK

    with_client(prepared, use)


def test_a_model_without_a_stored_profile_is_measured_when_it_is_loaded(
    prepared: Prepared, where: Places, tmp_path: Path
) -> None:
    """And a replay of the log learns of the profile as the live run did."""
    log_path = tmp_path / "run.log"

    async def use(client: EngineClient) -> None:
        assert await client.unload("moves") is None
        for file in where.store.glob("profiles.sqlite*"):
            file.unlink()
        assert await client.load("moves") is None
        assert (await ask(client, "moves")).outcome.kind is OutcomeKind.OK

    engine = with_client(prepared, use, log_path)
    spec = engine.models["moves"].spec
    for variant in spec.variants():
        assert 0 < engine.scheduler.view.predictor.prior(variant) < NS_PER_S
    assert spec.slo_ns == max(30 * NS_PER_MS, 5 * engine.models["moves"].solo_ns)
    loads = [entry.event for entry in read(log_path)[1] if getattr(entry.event, "kind", "") == "load"]
    assert [profile.variant for profile in loads[-1].profiles] == list(spec.variants())
    mismatch = replay_log(log_path)[2]
    assert mismatch is None, mismatch.replace("Dispatch(", "\nDispatch(")
