"""Chains of simulated runs, where what is run next depends on what came before, driven side by side.

A chain asks for some runs and gets their reports. Every run is made once, whoever asks. What a chain is told
depends on its own asking alone, so results are the same however many processes there are.
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

    def drive(self, what: str, chains: Iterable[Chain[R]]) -> list[R]:
        """What the chains return, in their order. Raises StudyError."""
        open_ = [_Open(chain) for chain in chains]
        waiting: dict[Run, list[_Open[R]]] = {}
        done = 0
        self.told(what, 0, 0)
        for one in open_:
            self._go_on(one, None, waiting)
        while waiting:
            self.told(what, done, done + len(waiting))
            run, report = self.workers.done()
            self.known[run] = report
            done += 1
            for one in waiting.pop(run):
                one.missing -= 1
                if not one.missing:
                    self._go_on(one, [self.known[wanted] for wanted in one.wanted], waiting)
        return [one.result[0] for one in open_]

    def _go_on(
        self, one: _Open[R], reports: Sequence[Report] | None, waiting: dict[Run, list[_Open[R]]]
    ) -> None:
        """Let a chain go on until it wants a run that is not known."""
        while True:
            try:
                one.wanted = next(one.chain) if reports is None else one.chain.send(reports)
            except StopIteration as stop:
                one.result.append(stop.value)
                return
            new = [run for run in dict.fromkeys(one.wanted) if run not in self.known]
            if new:
                break
            reports = [self.known[run] for run in one.wanted]
        one.missing = len(new)
        for run in sorted(new, key=lambda run: -run.scale * run.part):
            if run not in waiting:
                waiting[run] = []
                self.workers.submit(run)
            waiting[run].append(one)


def ask(run: Run) -> Chain[Report]:
    """A chain of one run."""
    [report] = yield [run]
    return report


def attained(report: Any) -> float:
    """Attainment of a run; 1 when nothing with a deadline was offered."""
    value = report["attainment"]
    return 1.0 if value is None else float(value)
