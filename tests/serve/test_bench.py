"""The load generator against real servers: open loop, intended arrivals, one report over several pieces."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serving import Server

from cotenant.config import Scenario, load_scenario
from cotenant.experiment.bench import measure_capacity, open_session, run_bench
from cotenant.experiment.load import replaying
from cotenant.serve.http import ServeConfig
from cotenant.telemetry.metrics import Metrics

TEXT = """
[load]
duration_s = 1.0
seed = 3
[[model]]
name = "echo"
source = "zoo:echo"
slo_ms = 500
rate_per_s = 120
"""
Serve = Callable[..., Server]


@pytest.fixture
def scenario(tmp_path: Path) -> Callable[[str], Scenario]:
    """A scenario from a text."""

    def make(text: str = TEXT) -> Scenario:
        path = tmp_path / "scenario.toml"
        path.write_text(text)
        return load_scenario(path)

    return make


def start(serve: Serve) -> tuple[Server, str]:
    server = serve(ServeConfig(), metrics=Metrics())
    return server, f"http://127.0.0.1:{server.port}"


def run(url: str, chosen: Scenario, **more: Any) -> dict[str, Any]:
    return asyncio.run(run_bench(url, chosen, **more))


def test_everything_drawn_is_offered_once_and_counted_once(serve: Serve, scenario: Any) -> None:
    server, url = start(serve)
    report = run(url, scenario())
    kinds = ("ok", "late", "rejected", "expired", "cancelled", "failed")
    assert report["offered"] == sum(report[kind] for kind in kinds) == len(server.link.calls)
    assert 80 <= report["offered"] <= 160
    assert report["attainment"] == 1.0
    assert set(report["generator"]["lateness_ms"]) == {"p50", "p99", "max"}
    assert report["generator"]["cpu_us_per_request"] > 0


def test_the_remaining_budget_is_sent(serve: Serve, scenario: Any) -> None:
    server, url = start(serve)
    run(url, scenario())
    budgets_ms = [call.slo_ns / 1e6 for call in server.link.calls]
    assert all(0 < budget <= 500 for budget in budgets_ms)
    assert min(budgets_ms) < 500  # what the generator was late by is gone


def test_a_server_that_answers_nothing_does_not_hold_up_the_arrivals(serve: Serve, scenario: Any) -> None:
    server, url = start(serve)
    submit = server.link.submit

    def hang(call: Any, reply: Any) -> None:
        server.link.hang_next = True
        submit(call, reply)

    server.link.submit = hang  # type: ignore[method-assign]
    report = run(url, scenario(), drain_s=0.1)
    assert len(server.link.calls) == report["offered"] >= 80
    assert report["ok"] == 0
    assert report["failed"] == report["offered"]
    server.on_loop(server.link.release)


def test_latency_counts_from_the_intended_arrival(serve: Serve, scenario: Any) -> None:
    """Answers held back for the whole run are as late as that, each from its own arrival."""
    server, url = start(serve)
    submit = server.link.submit

    def later(call: Any, reply: Any) -> None:
        asyncio.get_running_loop().call_later(0.3, submit, call, reply)

    server.link.submit = later  # type: ignore[method-assign]
    report = run(url, scenario())
    assert report["ok"] == report["offered"]
    assert 300 <= report["p50_ms"] < 500


def test_a_load_in_two_pieces_is_the_same_load(serve: Serve, scenario: Any) -> None:
    server, url = start(serve)
    whole = run(url, scenario())
    n_whole = len(server.link.calls)

    async def pieces() -> dict[str, Any]:
        session = await open_session(url, scenario())
        await session.offer(0.0, 0.5, 1.0)
        assert 0 < len(server.link.calls) - n_whole < n_whole
        await session.offer(0.5, 1.0, 1.0)
        return await session.report()

    report = asyncio.run(pieces())
    assert report["offered"] == whole["offered"] == len(server.link.calls) - n_whole
    assert report["goodput_per_s"] == whole["goodput_per_s"]


def test_a_file_of_arrivals_is_offered_as_it_stands(serve: Serve, scenario: Any, tmp_path: Path) -> None:
    server, url = start(serve)
    file = tmp_path / "arrivals.csv"
    file.write_text(
        "timestamp_s,model,rows,deadline_ms\n0.3,echo,2,\n0.1,echo,1,900\n0.5,echo,4,700\n0.6,echo,1,0.001\n"
    )
    report = run(url, replaying(scenario(), file, None, None))
    assert report["offered"] == 4 == len(server.link.calls)
    assert [call.rows for call in server.link.calls] == [1, 2, 4, 1]
    budgets_ms = [call.slo_ns / 1e6 for call in server.link.calls]
    assert 700 < budgets_ms[0] <= 900
    assert budgets_ms[1] > 1e6  # none, though the model has one
    assert 500 < budgets_ms[2] <= 700
    assert report["late"] == 1  # answered, but not within a microsecond
    assert report["config"]["arrivals_in"] == str(file)


def test_best_effort_work_is_sent_without_a_budget_and_reported_apart(serve: Serve, scenario: Any) -> None:
    server, url = start(serve)
    report = run(url, scenario(TEXT.replace("slo_ms = 500", 'class = "best_effort"')))
    assert report["offered"] == 0
    assert report["per_class"]["best_effort"]["ok"] == len(server.link.calls) > 0
    assert report["per_model"]["echo"]["attainment"] is None


def test_a_model_that_the_server_lacks_is_named(serve: Serve, scenario: Any) -> None:
    _, url = start(serve)
    with pytest.raises(ValueError, match="has no model 'other'"):
        run(url, scenario(TEXT.replace('"echo"', '"other"')))


def test_a_server_that_is_not_there_is_named(scenario: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ValueError, match=f"{url} cannot be reached"):
        run(url, scenario())
    with pytest.raises(ValueError, match="not an address"):
        run("ftp://nowhere", scenario())


def test_capacity_is_what_comes_back_under_a_standing_backlog(serve: Serve, scenario: Any) -> None:
    """Each answer takes 50 ms and 4 are under way at any time: 80 a second."""
    server, url = start(serve)
    submit = server.link.submit

    def later(call: Any, reply: Any) -> None:
        asyncio.get_running_loop().call_later(0.05, submit, call, reply)

    server.link.submit = later  # type: ignore[method-assign]
    found = asyncio.run(measure_capacity(url, scenario(), seconds=1.0, warm_s=0.2, backlog=4))
    assert 40 <= found <= 84
