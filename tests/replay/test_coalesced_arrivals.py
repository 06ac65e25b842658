"""Requests that come in together are one event: each is still settled once, and the log replays."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from cotenant.assemble import Prepared, make_engine, prepare
from cotenant.catalogue import places
from cotenant.clock import MonotonicClock
from cotenant.config import load_scenario
from cotenant.domain import Arrival, Dispatch, Outcome, OutcomeKind, Settle
from cotenant.experiment.replaying import replay_log
from cotenant.profile.measure import Budget
from cotenant.telemetry.event_log import read

N = 24


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    path = tmp_path / "scenario.toml"
    path.write_text('[[model]]\nname = "echo"\nsource = "zoo:echo"\nslo_ms = 500\nmax_batch = 8\n')
    found = prepare(load_scenario(path), places(tmp_path), budget=Budget(per_variant_s=0.02, min_runs=3))
    yield found
    found.executor.close()


def test_a_burst_of_one_turn_is_one_event_and_batches(prepared: Prepared, tmp_path: Path) -> None:
    log = tmp_path / "events.log"
    outcomes: list[tuple[str, OutcomeKind]] = []

    async def burst() -> None:
        clock = MonotonicClock()
        engine = make_engine(prepared, clock=clock, log_path=log)
        engine.start()
        for n in range(N):
            value = np.full((1, 16), n, np.float32)

            def reply(outcome: Outcome, outputs: object, n: int = n) -> None:
                assert outputs["output"][0, 0] == n  # type: ignore[index]
                outcomes.append((outcome.request.id, outcome.kind))

            engine.submit(
                call_id=f"r{n}", model="echo", inputs={"input": value}, rows=1, axes=(),
                arrived_at=clock.now(), slo_ns=None, priority=0, reply=reply,
            )  # fmt: skip
        engine.cancel("never submitted")  # takes in what was submitted before it
        while engine.n_unanswered:
            await asyncio.sleep(0.001)
        engine.close_log()

    asyncio.run(burst())
    assert sorted(outcomes) == sorted((f"r{n}", OutcomeKind.OK) for n in range(N))

    entries = list(read(log)[1])
    arrivals = [entry for entry in entries if isinstance(entry.event, Arrival)]
    assert len(arrivals) == 1
    assert [request.id for request in (arrivals[0].event.request, *arrivals[0].event.others)] == [
        f"r{n}" for n in range(N)
    ]
    first = next(action for action in arrivals[0].actions if isinstance(action, Dispatch))
    assert first.rows == 8
    actions = [action for entry in entries for action in entry.actions]
    settled = [action.outcome.request.id for action in actions if isinstance(action, Settle)]
    run = [request.id for action in actions if isinstance(action, Dispatch) for request in action.requests]
    assert sorted(settled) == sorted(run) == sorted(f"r{n}" for n in range(N))
    assert replay_log(log)[2] is None
