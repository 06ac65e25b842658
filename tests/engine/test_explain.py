"""The engine says what has become of a request at any time: while it waits, while it runs, and afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cotenant.assemble import make_engine, prepare
from cotenant.catalogue import places
from cotenant.clock import MonotonicClock
from cotenant.config import load_scenario
from cotenant.engine import Engine
from cotenant.engine_client import Call, EngineClient
from cotenant.local_link import LocalLink
from cotenant.profile.measure import Budget
from cotenant.telemetry.explanation import Explanation

CONFIG = """
[device]
lanes = 1
[[model]]
name = "echo"
source = "zoo:echo"
slo_ms = 5000
max_batch = 1
"""

Use = Callable[[EngineClient, Engine], Awaitable[None]]


@pytest.fixture
def with_engine(tmp_path: Path) -> Callable[..., None]:
    """`with_engine(use, told_slow=...)` runs `use(client, engine)` on a started engine."""

    def run(use: Use, **more: Any) -> None:
        path = tmp_path / "server.toml"
        path.write_text(CONFIG)
        scenario = load_scenario(path)
        prepared = prepare(scenario, places(tmp_path), budget=Budget(per_variant_s=0.02, min_runs=3))

        async def main() -> None:
            clock = MonotonicClock()
            engine = make_engine(prepared, clock=clock, **more)
            engine.start()
            await use(EngineClient(LocalLink(engine, clock)), engine)
            engine.stop()

        asyncio.run(main())

    return run


def call(client: EngineClient, **more: Any) -> Call:
    inputs = {"input": np.ones((1, 16), np.float32)}
    return Call(
        id=client.new_id(), model="echo", inputs=inputs, rows=1, axes=(), arrived_at=client.now(), **more
    )


def test_a_request_that_has_not_ended_is_said_to_wait_or_to_run(with_engine: Callable[..., None]) -> None:
    async def use(client: EngineClient, engine: Engine) -> None:
        calls = [call(client) for _ in range(5)]
        tasks = [asyncio.create_task(client.infer(one)) for one in calls]
        await asyncio.sleep(0)
        first, last = [await client.explain(one.id) for one in (calls[0], calls[-1])]
        assert first is not None
        assert last is not None
        assert (first["state"], first["outcome"]) == ("running", None)
        assert first["sentence"].startswith("still runs: ")
        assert first["predicted"]
        assert (last["state"], last["outcome"]) == ("waiting", None)
        assert "3 of echo before it" in last["sentence"]
        await asyncio.gather(*tasks)
        told = await client.explain(calls[-1].id)
        assert told is not None
        assert (told["state"], told["outcome"]) == ("ended", "ok")
        assert told["behind"][0]["model"] == "echo"
        assert told["behind"][0]["runs"] == 4

    with_engine(use)


def test_the_front_end_adds_how_long_answering_took(with_engine: Callable[..., None]) -> None:
    async def use(client: EngineClient, engine: Engine) -> None:
        one = call(client)
        await client.infer(one)
        engine.answered(one.id, 2_500_000)
        engine.answered("nobody", 1)
        told = await client.explain(one.id)
        assert told is not None
        assert told["answer_ms"] == 2.5

    with_engine(use)


def test_slow_requests_are_told_when_the_engine_stops_at_the_latest(with_engine: Callable[..., None]) -> None:
    slow: list[Explanation] = []

    async def use(client: EngineClient, engine: Engine) -> None:
        reply = await client.infer(call(client, slo_ns=1000))
        assert reply.outcome.kind.value == "rejected"

    with_engine(use, told_slow=[slow.append])
    assert [told.outcome for told in slow] == ["rejected"]
