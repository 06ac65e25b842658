"""`cotenant demo`: serve the zoo on this machine, offer the same load to three policies, show what it buys.

One server process per policy, all loaded from one profile; they take turns, so that a slow spell of the
machine hits them alike. This process is the load generator.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from cotenant.assemble import prepare
from cotenant.catalogue import places
from cotenant.clock import MonotonicClock
from cotenant.config import Scenario, load_scenario
from cotenant.domain import NS_PER_S
from cotenant.experiment.bench import measure_capacity, open_session
from cotenant.experiment.tables import number, share, show_profiles

POLICIES = ("fcfs", "exclusive_edf", "default")
SCALES = (1.2, 1.0, 0.8, 0.5)
"""In this order: a shared machine that rests during light load is faster for some seconds afterwards, and
would then not be overloaded at 1.2 times the capacity that it can keep up."""
CAPACITY_POLICY = "deferred_edf-no-rejection"
START_LIMIT_S = 60.0
DRAIN_S = 3.0
CAPACITY_S = 6.0
CAPACITY_WARM_S = 8.0
"""Saturation before the capacity is counted (s): many machines, shared ones above all, are faster for the
first seconds than they can keep up."""


def demo_scenario() -> Path:
    """The scenario of the demo, which ships with the package."""
    return Path(str(resources.files("cotenant") / "data" / "demo.toml"))


async def run_demo(console: Console, *, seconds: float, store: Path | None, plot: Path) -> dict[str, Any]:
    """The whole demo; returns `{capacity_per_s, runs: [{scale, policy, <report>}]}`."""
    clock = MonotonicClock()
    began = clock.now()

    def elapsed() -> str:
        return f"[dim]{(clock.now() - began) / NS_PER_S:5.0f} s[/]"

    scenario = load_scenario(demo_scenario())
    scenario = replace(scenario, load=replace(scenario.load, duration_s=seconds))
    console.print(
        f"{elapsed()} making and profiling {len(scenario.models)} models on this machine", highlight=False
    )
    await asyncio.to_thread(_profile, console, scenario, store)
    console.print(f"{elapsed()} starting a server for each of {', '.join(POLICIES)}", highlight=False)
    async with AsyncExitStack() as stack:
        saturated = await stack.enter_async_context(AsyncExitStack())
        *urls, url = await asyncio.gather(
            *(stack.enter_async_context(server(policy, store)) for policy in POLICIES),
            saturated.enter_async_context(server(CAPACITY_POLICY, store)),
        )
        capacity = await measure_capacity(url, scenario, seconds=CAPACITY_S, warm_s=CAPACITY_WARM_S)
        await saturated.aclose()
        console.print(
            f"{elapsed()} capacity of this machine with this mix: [bold]{capacity:.0f} requests/s[/]",
            highlight=False,
        )
        runs = await _compare(console, scenario, dict(zip(POLICIES, urls, strict=True)), capacity)
    _verdict(console, capacity, runs)
    await asyncio.to_thread(draw, runs, capacity, plot)
    console.print(f"{elapsed()} picture in {plot}", highlight=False)
    return {"capacity_per_s": capacity, "seconds": seconds, "runs": runs}


def _profile(console: Console, scenario: Scenario, store: Path | None) -> None:
    with console.status("starting") as status:
        prepared = prepare(
            scenario,
            places(store),
            progress=lambda what, done, total: status.update(f"{what} ({done}/{total})"),
        )
    prepared.executor.close()
    if not prepared.failed:
        show_profiles(console, prepared.profiles, largest_only=True)
    for reason in prepared.failed.values():
        console.print(f"[yellow]left out:[/] {reason}")


@asynccontextmanager
async def server(policy: str, store: Path | None) -> AsyncIterator[str]:
    """A server process with this policy; yields its address, stops the process at the end."""
    command = [
        sys.executable,
        "-m",
        "cotenant",
        "serve",
        str(demo_scenario()),
        "--http-port",
        "0",
        "--policy",
        policy,
    ]
    if store is not None:
        command += ["--store", str(store)]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), START_LIMIT_S)
        if not line.startswith(b"ready "):
            told = (await process.stderr.read(2000)).decode(errors="replace").strip()
            raise ValueError(f"the server with policy {policy} did not start: {told}")
        yield line.split()[1].decode()
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), 15)
            except TimeoutError:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()


async def _compare(
    console: Console, scenario: Scenario, urls: Mapping[str, str], capacity: float
) -> list[dict[str, Any]]:
    """The same seeded load to every policy at every scale, half of it in one order of the policies and half
    in the other: a machine that becomes slower or faster meanwhile favours none."""
    runs: list[dict[str, Any]] = []
    middle, end = scenario.load.duration_s / 2, scenario.load.duration_s
    with Live(_table(runs, None), console=console, refresh_per_second=4) as live:
        for scale in SCALES:
            sessions = [
                await open_session(url, scenario, scale=scale, capacity_per_s=capacity, policy=policy)
                for policy, url in urls.items()
            ]
            turns = [(session, 0.0, middle) for session in sessions]
            turns += [(session, middle, end) for session in reversed(sessions)]
            for session, from_s, to_s in turns:
                live.update(_table(runs, (scale, session.config["policy"])))
                await session.offer(from_s, to_s, DRAIN_S)
            for session in sessions:
                runs.append({"scale": scale, **await session.report()})
            live.update(_table(runs, None))
    return sorted(runs, key=lambda run: run["scale"])


def _table(runs: Sequence[Mapping[str, Any]], now: tuple[float, str] | None) -> Table:
    table = Table(title="same load, three policies", title_justify="left", box=None, header_style="bold")
    for name in (
        "load",
        "policy",
        "attained",
        "goodput /s",
        "p50 ms",
        "p99 ms",
        "refused",
        "expired",
        "late",
    ):
        table.add_column(name, justify="left" if name == "policy" else "right")
    for run in runs:
        last = run["policy"] == POLICIES[-1]
        table.add_row(
            f"{run['scale']:.1f}",
            f"[bold]{run['policy']}[/]" if last else run["policy"],
            share(run["attainment"]),
            number(run["goodput_per_s"]),
            number(run["p50_ms"]),
            number(run["p99_ms"]),
            str(run["rejected"]),
            str(run["expired"]),
            str(run["late"]),
            end_section=last,
        )
    if now is not None:
        table.add_row(f"{now[0]:.1f}", now[1], "[dim]running[/]", *[""] * 6)
    return table


def _verdict(console: Console, capacity: float, runs: Sequence[Mapping[str, Any]]) -> None:
    """What the runs say, in three lines."""
    found = {(run["scale"], run["policy"]): run for run in runs}
    calm, full = found[(min(SCALES), "default")], found[(max(SCALES), "default")]
    fcfs, edf = found[(max(SCALES), "fcfs")], found[(max(SCALES), "exclusive_edf")]
    console.print(
        f"\nat half load {share(calm['attainment'])} of deadlines kept; at 1.2 times capacity goodput is "
        f"{share(full['goodput_per_s'] / capacity)} of capacity, "
        f"{_times(full, fcfs)} that of fcfs, {_times(full, edf)} that of exclusive_edf",
        highlight=False,
    )


def _times(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    if not theirs["goodput_per_s"]:
        return "beyond comparison with"
    return f"{ours['goodput_per_s'] / theirs['goodput_per_s']:.2f} times"


def draw(runs: Sequence[Mapping[str, Any]], capacity: float, path: Path) -> None:
    """Attainment and goodput against load, one line per policy, as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    styles = {"fcfs": ("#b0413e", "o"), "exclusive_edf": ("#6c7a89", "s"), "default": ("#1f6fb2", "D")}
    names = {"default": "cotenant (default)"}
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    for policy in POLICIES:
        mine = [run for run in runs if run["policy"] == policy]
        color, marker = styles[policy]
        loads = [run["scale"] for run in mine]
        kwargs = {"color": color, "marker": marker, "label": names.get(policy, policy)}
        left.plot(loads, [100 * run["attainment"] for run in mine], **kwargs)
        right.plot(loads, [run["goodput_per_s"] for run in mine], **kwargs)
    left.set(
        title="Deadlines kept", xlabel="load (share of capacity)", ylabel="SLO attainment (%)", ylim=(0, 102)
    )
    right.set(
        title="Useful work", xlabel="load (share of capacity)", ylabel="goodput (answers in time per second)"
    )
    right.set_ylim(bottom=0)
    right.axhline(capacity, color="#999999", linewidth=1, linestyle=":")
    right.annotate("saturated capacity", (min(SCALES), capacity), xytext=(0, 3), textcoords="offset points",
                   fontsize=8, color="#666666")  # fmt: skip
    for axes in (left, right):
        axes.set_xticks(SCALES)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, loc="lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
