"""Chains of simulated runs, where what is run next depends on what came before, driven side by side.

A chain asks for some runs and gets their reports. Every run is made once, whoever asks. What a chain is told
depends on its own asking alone, so results are the same however many processes there are. Of the runs that
are wanted those expected to take longest are started first, so that all processes end at about the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from cotenant.experiment.workers import Report, Run, Workers

R = TypeVar("R")
Chain = Generator[Sequence[Run], Sequence[Report], R]
"""Yields runs, is sent their reports in the same order, returns what it found."""
Told = Callable[[str, int, int], None]
"""Told (what is being done, runs done, runs known of)."""


@dataclass(slots=True)
class _Open(Generic[R]):
    chain: Chain[R]
    wanted: Sequence[Run] = ()
    missing: int = 0
    result: list[R] = field(default_factory=list)


@dataclass(slots=True)
class Runs:
    """Runs made so far, and who makes more."""

    workers: Workers
    told: Told
    known: dict[Run, Report] = field(default_factory=dict)
    _taken: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Seconds, and work in scale times share of the time, by policy."""

    def drive(self, what: str, chains: Iterable[Chain[R]]) -> list[R]:
        """What the chains return, in their order. Raises StudyError."""
        open_ = [_Open(chain) for chain in chains]
        waiting: dict[Run, list[_Open[R]]] = {}
        done = 0
        self.told(what, 0, 0)
        self._submit(run for one in open_ for run in self._go_on(one, None, waiting))
        while waiting:
            self.told(what, done, done + len(waiting))
            run, report = self.workers.done()
            self.known[run] = report
            self._note(run, report)
            done += 1
            wanted: list[Run] = []
            for one in waiting.pop(run):
                one.missing -= 1
                if not one.missing:
                    wanted += self._go_on(one, [self.known[run] for run in one.wanted], waiting)
            self._submit(wanted)
        return [one.result[0] for one in open_]

    def _note(self, run: Run, report: Report) -> None:
        """Learn how long runs of a policy take."""
        seconds, work = self._taken.get(run.choice.name, (0.0, 0.0))
        seconds += float(report.get("wall_s") or 0.0)
        self._taken[run.choice.name] = (seconds, work + run.scale * run.part)

    def _expected_s(self, run: Run) -> float:
        """How long a run will take, as far as its policy is known; else as the slowest."""
        per_work = {name: seconds / work for name, (seconds, work) in self._taken.items()}
        rate = per_work.get(run.choice.name, max(per_work.values(), default=1.0))
        return rate * run.scale * run.part

    def _submit(self, new: Iterable[Run]) -> None:
        expected = [(self._expected_s(run), run) for run in new]
        for seconds, run in sorted(expected, key=lambda each: -each[0]):
            self.workers.submit(run, seconds)

    def _go_on(
        self, one: _Open[R], reports: Sequence[Report] | None, waiting: dict[Run, list[_Open[R]]]
    ) -> list[Run]:
        """Let a chain go on until it wants runs that are not known; returns those nobody waits for yet."""
        while True:
            try:
                one.wanted = next(one.chain) if reports is None else one.chain.send(reports)
            except StopIteration as stop:
                one.result.append(stop.value)
                return []
            new = [run for run in dict.fromkeys(one.wanted) if run not in self.known]
            if new:
                break
            reports = [self.known[run] for run in one.wanted]
        one.missing = len(new)
        fresh = [run for run in new if run not in waiting]
        for run in new:
            waiting.setdefault(run, []).append(one)
        return fresh


def every(runs: Sequence[Run]) -> Chain[None]:
    """A chain of runs that are only to be made."""
    yield runs


def attained(report: Any) -> float:
    """Attainment of a run; 1 when nothing with a deadline was offered."""
    value = report["attainment"]
    return 1.0 if value is None else float(value)
