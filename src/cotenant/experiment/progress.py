"""What a long study is at: a bar for who watches, a line now and then for a log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from cotenant.clock import Clock
from cotenant.domain import NS_PER_S
from cotenant.experiment.chains import Told

EVERY_S = 20
"""Seconds between two lines, at least; a line is written when a run has ended."""


@contextmanager
def progress(console: Console, clock: Clock, label: str = "") -> Iterator[Told]:
    """Shows what it is told on a console. `label` stands before every stage."""
    before = f"{label}: " if label else ""
    if not console.is_terminal:
        yield _lines(console, clock, before)
        return
    with Progress(
        TextColumn(before.replace("{", "{{").replace("}", "}}") + "{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} runs"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    ) as bar:
        task = bar.add_task("starting", total=1)

        def told(what: str, done: int, known: int) -> None:
            bar.update(task, description=what, completed=done, total=max(1, known))

        yield told


def _lines(console: Console, clock: Clock, before: str) -> Told:
    """A line when a stage begins, then one every EVERY_S."""
    began = clock.now()
    stage, written_at = "", began

    def told(what: str, done: int, known: int) -> None:
        nonlocal stage, written_at
        now = clock.now()
        if what == stage and now - written_at < EVERY_S * NS_PER_S:
            return
        runs = f", {done} of {known} runs" if what == stage else ""
        minutes, seconds = divmod((now - began) // NS_PER_S, 60)
        console.print(
            f"{minutes}:{seconds:02d} {before}{what}{runs}", highlight=False, markup=False, soft_wrap=True
        )
        stage, written_at = what, now

    return told
