"""One run of the comparison: its parts in order, each measured once and kept."""

from __future__ import annotations

import asyncio
import base64
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from catalogue import SERVERS, Place, Server
from environments import versions
from mixed_inputs import INPUTS, MAX_BATCH, SHARES, SLO_SCALE
from mixed_load import Ask, make_asks, offer, prompt, rest, saturate, schedule
from processes import Meter, Running, ServerError, running
from settings import (
    BEYOND,
    CAPACITY_WARM_S,
    CONNECTIONS,
    FLOATS,
    HERE,
    SCALES,
    WARM_ECHO_S,
    WARM_MIXED_S,
    WARM_SCALE,
    cores,
)
from summary import Partial, Row, commit, machine, medians

from wrk import run_wrk

TOLERANCE = 1e-3
"""Of answers, against those of the reference: batches and threads change the last digits."""


@dataclass(kw_only=True)
class Run:
    """One call of the command."""

    seconds: float
    repeats: int
    partial: Partial
    pythons: dict[str, Path]
    folder: Path
    reference: Row = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:6.0f} s  {text}", file=sys.stderr, flush=True)

    @property
    def slo_ms(self) -> dict[str, float]:
        return {model: SLO_SCALE * solo for model, solo in self.reference["solo_ms"].items()}

    # --- parts ----------------------------------------------------------------------------------------

    def everything(self) -> None:
        """All parts that are not measured yet."""
        self.reference = self._part("reference", self._reference)
        solo = ", ".join(f"{model} {ms:.2f} ms" for model, ms in self.reference["solo_ms"].items())
        self.say(f"solo: {solo}")
        for name in self.pythons:
            self._of_server("capacity", name, 0, self._capacity)
        self.say(f"capacity: {self.capacity_per_s:.0f} requests/s, the best of all servers")
        order = list(self.pythons)
        for repeat in range(self.repeats):
            for name in order[repeat % len(order) :] + order[: repeat % len(order)]:
                self._of_server("echo", name, repeat, self._echo)
                self._of_server("mixed", name, repeat, self._mixed)

    def _part(self, key: str, measure: Callable[[], Any]) -> Any:
        if key not in self.partial.parts:
            self.say(key)
            self.partial.add(key, measure())
        return self.partial.parts[key]

    def _of_server(self, kind: str, name: str, repeat: int, measure: Callable[[Server, int], Any]) -> None:
        """A part; a server that fails in it is left out of the rest of the same application."""
        app = "echo" if kind == "echo" else "mixed"
        if f"{name}, {app}" in self.left_out:
            return
        try:
            self._part(f"{kind} {name} {repeat}", lambda: measure(SERVERS[name], repeat))
        except (ServerError, ValueError, OSError, subprocess.SubprocessError) as error:
            self.left_out[f"{name}, {app}"] = str(error)
            self.say(f"{name} left out of {app}: {error}")

    @property
    def _capacities(self) -> dict[str, float]:
        parts = {name: self.partial.parts.get(f"capacity {name} 0") for name in self.pythons}
        return {name: part["per_s"] for name, part in parts.items() if part}

    @property
    def capacity_per_s(self) -> float:
        """The best of all servers."""
        if not self._capacities:
            raise SystemExit("no server could be started: " + json.dumps(self.left_out, indent=1))
        return max(self._capacities.values())

    # --- measuring ------------------------------------------------------------------------------------

    def _reference(self) -> Row:
        path = self.folder / "reference.json"
        command = [sys.executable, str(HERE / "reference.py"), str(path), str(min(3.0, self.seconds))]
        subprocess.run(command, check=True)
        found: Row = json.loads(path.read_text())
        return found

    def _place(self, server: Server, app: str) -> Place:
        return Place(
            app=app, python=self.pythons[server.name], folder=self.folder / f"{server.name}-{app}",
            cores=cores(), slo_ms=self.slo_ms,
        )  # fmt: skip

    def _echo(self, server: Server, repeat: int) -> list[Row]:
        def is_right(found: Running) -> bool:
            return bool(server.echoed(found.post(server.echo())[0]) == FLOATS)

        post, rows = server.echo(), []
        with running(server, self._place(server, "echo"), is_right) as found:
            url = found.url + post.path
            run_wrk(url, post.body, post.headers, CONNECTIONS[0], WARM_ECHO_S)
            for connections in CONNECTIONS:
                meter = Meter(found)
                row = run_wrk(url, post.body, post.headers, connections, self.seconds)
                spent = meter.stop()
                if row["errors"] > row["requests"] / 2:
                    raise ServerError(f"most requests of the echo failed; {found.tail()}")
                cpu_us = 1e6 * spent.server_s / max(1, row["requests"])
                rows.append(
                    {
                        "server": server.name, "connections": connections, "req_per_s": row["req_per_s"],
                        "p50_ms": row["p50_ms"], "cpu_us": cpu_us, "errors": row["errors"],
                        "others_cpu": spent.others,
                    }
                )  # fmt: skip
                self.say(
                    f"  {connections:2} connections: {row['req_per_s']:.0f}/s, p50 {row['p50_ms']:.2f} ms, "
                    f"{cpu_us:.0f} us CPU each; others {spent.others:.1%}"
                )
        return rows

    @contextmanager
    def _mixed_server(self, server: Server) -> Iterator[Running]:
        def is_right(found: Running) -> bool:
            return all(self._same(found, server, model) for model in INPUTS)

        with running(server, self._place(server, "mixed"), is_right) as found:
            yield found

    def _same(self, found: Running, server: Server, model: str) -> bool:
        """Whether the server answers what the model gives."""
        request, wanted = (base64.b64decode(self.reference[k][model][0]) for k in ("requests", "answers"))
        answer = server.answered(*found.post(server.ask(model, request)))
        given, right = (np.frombuffer(raw, np.float32) for raw in (answer, wanted))
        return bool(given.shape == right.shape and np.allclose(given, right, atol=TOLERANCE))

    def _asks(self, found: Running) -> list[Ask]:
        requests = {m: [base64.b64decode(r) for r in all_] for m, all_ in self.reference["requests"].items()}
        return make_asks(found, requests, self.slo_ms)

    def _capacity(self, server: Server, _: int) -> Row:
        with self._mixed_server(server) as found, prompt():
            asks, meter = self._asks(found), Meter(found)
            per_s = asyncio.run(saturate(found, asks, min(CAPACITY_WARM_S, self.seconds), self.seconds))
            spent = meter.stop()
        self.say(f"  {per_s:.0f}/s; others {spent.others:.1%}")
        return {"per_s": per_s, "others_cpu": spent.others}

    def _mixed(self, server: Server, repeat: int) -> list[Row]:
        scales = [*(BEYOND if server.takes_deadlines else ()), *SCALES]
        rows: list[Row] = []
        while len(rows) < len(scales):
            n_before = len(rows)
            with self._mixed_server(server) as found, prompt():
                asks = self._asks(found)
                warm_s = min(WARM_MIXED_S, self.seconds)
                asyncio.run(offer(found, asks, *schedule(WARM_SCALE * self.capacity_per_s, warm_s, [0])))
                for scale in scales[n_before:]:
                    if not asyncio.run(rest(found, asks)):
                        self.say("  it does not come to rest: started anew")
                        break
                    rows.append(self._at(found, asks, scale, repeat))
                if len(rows) == n_before:
                    raise ServerError(f"it does not work off the load of its warming: {found.tail()}")
        return rows

    def _at(self, found: Running, asks: Sequence[Ask], scale: float, repeat: int) -> Row:
        """One run of the mix."""
        load = schedule(scale * self.capacity_per_s, self.seconds, [1 + repeat, round(100 * scale)])
        meter = Meter(found)
        counts = asyncio.run(offer(found, asks, *load)).row()
        spent = meter.stop()
        shares = ", ".join(f"{m} {s:.0%}" for m, s in counts["per_model"].items() if s is not None)
        self.say(
            f"  {scale:g} x: {counts['attainment']:.1%} of {counts['offered']} ({shares}); "
            f"others {spent.others:.1%}"
        )
        return {
            "server": found.server.name, "scale": scale, **counts, "server_cpu_s": spent.server_s,
            "generator_cpu_s": spent.generator_s, "others_cpu": spent.others,
        }  # fmt: skip

    # --- the result -----------------------------------------------------------------------------------

    def result(self) -> Row:
        parts = self.partial.parts
        echo = [row for key, rows in parts.items() if key.startswith("echo ") for row in rows]
        mixed = [row for key, rows in parts.items() if key.startswith("mixed ") for row in rows]
        capacities = [part for key, part in parts.items() if key.startswith("capacity ")]
        others = [row["others_cpu"] for row in [*capacities, *echo, *mixed]]
        return {
            "capacity_per_s": self.capacity_per_s,
            "echo": medians(echo, ("server", "connections")),
            "mixed": medians(mixed, ("server", "scale")),
            "others_cpu": {"median": statistics.median(others or [0.0]), "max": max(others, default=0.0)},
            "capacities": self._capacities,
            "solo_ms": self.reference["solo_ms"],
            "slo_ms": self.slo_ms,
            "shares": SHARES,
            "max_batch": MAX_BATCH,
            "seconds": self.seconds,
            "repeats": self.repeats,
            "cores": cores(),
            "left_out": self.left_out,
            "machine": machine(),
            "versions": {
                name: versions(python, [SERVERS[name].package, "torch", "numpy"])
                for name, python in self.pythons.items()
            },
            "commit": commit(),
        }
