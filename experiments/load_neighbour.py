"""What do resident models feel while another model is loaded and unloaded?

How this works. A server of its own serves four residents under open-loop load at half of its capacity, over
HTTP. The load is cut into pieces: in every second one a newcomer, which lies in the server's model
repository, is loaded and unloaded over the API again and again, with a pause in between. Reported is, per
resident and over all of them, the 99th percentile of latency from the intended arrival (an unanswered request
counts at its deadline) in the pieces without, and of those requests in the others that met a load or an
unload; their ratio, and how long a load took.

    python experiments/load_neighbour.py [--seconds 30] [--repeats 3] [--newcomer resnet18] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cotenant import zoo
from cotenant.catalogue import places
from cotenant.config import load_scenario
from cotenant.domain import NS_PER_MS, NS_PER_S
from cotenant.experiment.bench import Session, measure_capacity, open_session
from cotenant.experiment.report import RequestRecord, versions

RESIDENTS = {"echo": 30.0, "dlrm": 30.0, "mobilenet": 20.0, "bert_mini": 10.0}
"""Models and their shares of the load."""
SCALE = 0.5
"""Load as a share of the capacity."""
PAUSE_S = 0.5
"""Between a load and an unload."""


def write_configs(folder: Path, newcomer: str) -> tuple[Path, Path]:
    """The server's configuration and the load's."""
    models = folder / "models" / "newcomer" / "1"
    models.mkdir(parents=True)
    shutil.copy(zoo.ensure(newcomer, places().cache / "zoo"), models / "model.onnx")
    (folder / "models" / "newcomer" / "config.toml").write_text("max_batch = 8\n")
    residents = "".join(
        f'\n[[model]]\nname = "{name}"\nsource = "zoo:{name}"\nslo_ms = 20\nslo_scale = 5\n'
        f"rate_per_s = {share}\nmax_batch = 8\n"
        for name, share in RESIDENTS.items()
    )
    server, load = folder / "server.toml", folder / "load.toml"
    server.write_text('[repository]\npath = "models"\nmode = "explicit"\n' + residents)
    load.write_text('[load]\nduration_s = 3600\nscale_of = "capacity"\n' + residents)
    return server, load


@contextmanager
def served(config: Path, store: Path) -> Iterator[str]:
    """The address of a server of its own."""
    command = [sys.executable, "-m", "cotenant", "serve", str(config), "--http-port", "0"]
    process = subprocess.Popen(
        [*command, "--store", str(store), "--record-mb", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("ready "):
            raise RuntimeError("the server did not start")
        yield line.split()[1]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


class Newcomer:
    """Loads and unloads a model in a thread until told to stop."""

    def __init__(self, url: str) -> None:
        self._address = url.partition("//")[2]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.loads_s: list[float] = []
        self.busy: list[tuple[int, int]] = []
        """When it loaded or unloaded (ns)."""
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            for action in ("load", "unload"):
                began = time.monotonic_ns()
                self._ask(action)
                self.busy.append((began, time.monotonic_ns()))
                self._stop.wait(PAUSE_S)
            began, ended = self.busy[-2]
            self.loads_s.append((ended - began) / NS_PER_S)

    def met(self, record: RequestRecord) -> bool:
        """Whether it loaded or unloaded while the request waited or ran."""
        until = record.ended_at
        return any(began < until and record.intended_at < ended for began, ended in self.busy)

    def _ask(self, action: str) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=60)
        connection.request("POST", f"/v2/repository/models/newcomer/{action}")
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        if answer.status != 200:
            raise RuntimeError(f"{action}: {text}")

    def stop(self) -> None:
        """Wait for the end of what is under way."""
        self._stop.set()
        self._thread.join()


def latency_ms(record: RequestRecord) -> float:
    """From the intended arrival to the answer; to the deadline where there was none."""
    answered = record.reason == ""
    until = record.ended_at if answered or record.deadline_at is None else record.deadline_at
    return (until - record.intended_at) / NS_PER_MS


def percentiles(records: list[RequestRecord]) -> dict[str, dict[str, float]]:
    """p50, p99 and attainment per model and over all."""
    groups = {name: [r for r in records if r.model == name] for name in RESIDENTS} | {"all": records}
    return {
        name: {
            "n": len(group),
            "p50_ms": float(np.percentile([latency_ms(r) for r in group], 50)),
            "p99_ms": float(np.percentile([latency_ms(r) for r in group], 99)),
            "attainment": sum(r.kind == "ok" for r in group) / len(group),
        }
        for name, group in groups.items()
    }


async def piece(session: Session, from_s: float, seconds: float, url: str, *, beside: bool) -> Any:
    """Offer a piece of the load; (its records, how long loads took)."""
    known = len(session.records)
    newcomer = Newcomer(url) if beside else None
    try:
        await session.offer(from_s, from_s + seconds, 5.0)
    finally:
        if newcomer is not None:
            await asyncio.to_thread(newcomer.stop)
    found = session.records[known:]
    if newcomer is None:
        return found, []
    return [record for record in found if newcomer.met(record)], newcomer.loads_s


async def measure(url: str, load: Path, seconds: float, repeats: int) -> dict[str, Any]:
    """All pieces, the first of which warms up and is not counted."""
    scenario = load_scenario(load)
    capacity = await measure_capacity(url, scenario)
    session = await open_session(url, scenario, scale=SCALE, capacity_per_s=capacity)
    await session.offer(0.0, 5.0, 5.0)
    session.records.clear()
    records: dict[bool, list[RequestRecord]] = {False: [], True: []}
    loads_s: list[float] = []
    at_s = 5.0
    for n in range(2 * repeats):
        beside = n % 2 == 1
        found, took = await piece(session, at_s, seconds, url, beside=beside)
        records[beside] += found
        loads_s += took
        at_s += seconds
    before, during = percentiles(records[False]), percentiles(records[True])
    return {
        "capacity_per_s": capacity,
        "scale": SCALE,
        "before": before,
        "during": during,
        "p99_ratio": {name: during[name]["p99_ms"] / before[name]["p99_ms"] for name in before},
        "loads": len(loads_s),
        "load_s": float(np.median(loads_s)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="of every piece")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of pieces")
    parser.add_argument("--newcomer", default="resnet18", help="model of the zoo")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server, load = write_configs(Path(folder), options.newcomer)
        with served(server, Path(folder) / "store") as url:
            found = asyncio.run(measure(url, load, options.seconds, options.repeats))
    found |= {"newcomer": options.newcomer, "seconds": options.seconds, "versions": versions()}
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    for name, ratio in found["p99_ratio"].items():
        before, during = found["before"][name], found["during"][name]
        print(
            f"{name:10} p99 {before['p99_ms']:7.2f} -> {during['p99_ms']:7.2f} ms ({ratio:.2f}x)  "
            f"attainment {before['attainment']:.4f} -> {during['attainment']:.4f}  n {during['n']}"
        )
    print(f"{found['loads']} loads of {options.newcomer}, {found['load_s']:.2f} s each")


if __name__ == "__main__":
    main()
