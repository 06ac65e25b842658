"""Simulated runs in processes of their own: what is handed out, and who does it.

How this works. A worker opens the device once and then answers one run after another. Runs and reports cross
a pipe as JSON, never as pickles. A worker that dies is noticed by its closed pipe; when this process dies,
workers read the end of theirs and leave. Ctrl-C reaches this process alone, which stops them.
"""

from __future__ import annotations

import heapq
import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import msgspec
from msgspec import Struct

from cotenant.catalogue import Places
from cotenant.config import Scenario
from cotenant.experiment.simulated import SimulatedDevice, device_of, simulate
from cotenant.schedule.policies.fcfs import Fcfs
from cotenant.schedule.policies.k_edf import KEdf
from cotenant.schedule.policy import Policy

THREADS = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Libraries that would otherwise take every core in every process."""
STOP_WITHIN_S = 5.0
RUN_TIMES = ("flash_at_s", "flash_s", "flash_ramp_s", "diurnal_period_s")
"""Settings of traffic that are meant as shares of the run's time."""

Report = dict[str, Any]


class StudyError(ValueError):
    """A study that cannot be made; the message says which run, why, and what to do."""


class Choice(Struct, frozen=True):
    """A policy, with settings where it is tuned: `k`, `margin`."""

    name: str
    settings: tuple[tuple[str, float], ...] = ()

    def policy(self) -> str | Policy:
        """What `simulate` takes. Raises ValueError for settings of a policy that has none."""
        values = dict(self.settings)
        if not values:
            return self.name
        if self.name == "fcfs":
            return Fcfs(k=int(values["k"]))
        if self.name == "k_edf":
            return KEdf(k=int(values["k"]), margin=values["margin"])
        raise ValueError(f"policy {self.name!r} has no settings")


class Run(Struct, frozen=True):
    """One simulated run; `part` (0..1] of the scenario's time, all phases kept."""

    choice: Choice
    seed: int
    scale: float
    part: float = 1.0

    @property
    def label(self) -> str:
        """For messages."""
        return f"policy {self.choice.name}, seed {self.seed}, scale {self.scale:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What every run has in common. `capacity_per_s` is needed where rates are shares of it."""

    scenario: Scenario
    where: Places
    capacity_per_s: float | None = None


def shortened(scenario: Scenario, part: float) -> Scenario:
    """The same scenario in `part` of its time: phases, crowds and days keep their shares of it."""
    if part == 1.0:
        return scenario

    def times(settings: Mapping[str, Any]) -> dict[str, Any]:
        return {key: settings[key] * part for key in RUN_TIMES if settings.get(key) is not None}

    models = tuple(
        replace(model, **times({key: getattr(model, key, None) for key in RUN_TIMES}))
        for model in scenario.models
    )
    phases = tuple(
        replace(
            phase,
            at_s=phase.at_s * part,
            overrides={name: {**keys, **times(keys)} for name, keys in phase.overrides.items()},
        )
        for phase in scenario.phases
    )
    load = replace(scenario.load, duration_s=scenario.load.duration_s * part)
    return replace(scenario, load=load, models=models, phases=phases)


def perform(world: World, device: SimulatedDevice, run: Run) -> bytes:
    """The report of a run as JSON. Raises StudyError that names the run."""
    try:
        report = simulate(
            shortened(world.scenario, run.part),
            device,
            run.choice.policy(),
            seed=run.seed,
            scale=run.scale,
            capacity_per_s=world.capacity_per_s,
        )
        return msgspec.json.encode(report)
    except (ValueError, OSError) as error:
        raise StudyError(f"{run.label}: {error}") from error
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}, line {last.lineno}"
        raise StudyError(f"{run.label}: {type(error).__name__}: {error} ({where})") from error


class Workers(Protocol):
    """Runs what is submitted, in any order. A context manager: leaving it stops what still runs."""

    def submit(self, run: Run, expected_s: float = 0.0) -> None:
        """Take a run. Those expected to take longest are begun first."""
        ...

    def done(self) -> tuple[Run, Report]:
        """Wait for one that has ended. Raises StudyError when a run failed or a worker died."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None: ...


class InlineWorkers:
    """Everything in this process, when asked for."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._device = device_of(world.scenario, world.where)
        self._waiting: deque[Run] = deque()

    def submit(self, run: Run, expected_s: float = 0.0) -> None:
        self._waiting.append(run)

    def done(self) -> tuple[Run, Report]:
        run = self._waiting.popleft()
        return run, msgspec.json.decode(perform(self._world, self._device, run))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.clear()


class ProcessWorkers:
    """`n` spawned processes, one library thread each."""

    def __init__(self, world: World, n: int) -> None:
        self._n = n
        self._world = world
        self._waiting: list[tuple[float, int, Run]] = []
        """A heap: the longest first, of equals the first that came."""
        self._n_submitted = 0
        self._idle: list[Connection] = []
        self._busy: dict[Connection, Run] = {}
        self._processes: list[multiprocessing.process.BaseProcess] = []

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")
        with _one_thread_each(), _deaf_to_interrupts():
            for i in range(self._n):
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_serve, args=(theirs, self._world), name=f"study-{i}", daemon=True
                )
                process.start()
                theirs.close()
                self._processes.append(process)
                self._idle.append(ours)
        return self

    def submit(self, run: Run, expected_s: float = 0.0) -> None:
        heapq.heappush(self._waiting, (-expected_s, self._n_submitted, run))
        self._n_submitted += 1
        self._hand_out()

    def done(self) -> tuple[Run, Report]:
        ready = wait(list(self._busy))[0]
        assert isinstance(ready, Connection)
        run = self._busy.pop(ready)
        try:
            kind, _, body = ready.recv_bytes().partition(b" ")
        except (EOFError, OSError):
            raise StudyError(
                f"{run.label}: its process died; was memory short? Fewer --processes need less"
            ) from None
        if kind == b"failed":
            raise StudyError(body.decode())
        self._idle.append(ready)
        self._hand_out()
        return run, msgspec.json.decode(body)

    def _hand_out(self) -> None:
        while self._waiting and self._idle:
            connection = self._idle.pop()
            _, _, run = heapq.heappop(self._waiting)
            self._busy[connection] = run
            try:
                connection.send_bytes(msgspec.json.encode(run))
            except OSError:
                continue

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in (*self._idle, *self._busy):
            connection.close()
        for process in self._processes:
            if self._busy or kind is not None:
                process.terminate()
            process.join(STOP_WITHIN_S)
            if process.is_alive():
                process.kill()
                process.join()


def _serve(connection: Connection, world: World) -> None:
    """A worker's life."""
    device: SimulatedDevice | None = None
    while True:
        try:
            run = msgspec.json.decode(connection.recv_bytes(), type=Run)
        except EOFError:
            return
        try:
            device = device or device_of(world.scenario, world.where)
            answer = b"report " + perform(world, device, run)
        except Exception as error:
            answer = b"failed " + str(error).encode()
        try:
            connection.send_bytes(answer)
        except OSError:
            return


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Processes started inside never see Ctrl-C, from their first instruction on; here it waits. The resource
    tracker comes first: starting it would lift the block."""
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started inside compute on one thread each."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
