"""Fluid integration with any slowdown model: slow, clear, and the oracle of the compiled one (`kernel.py`).

How this works. Work proceeds like a fluid: while the set of what runs does not change, each run's solo work
gets done at the rate 1 / slowdown. So the future is stepped from event to event (a segment ends, a run
ends, a run begins), and at each event the slowdowns are asked anew. Finish times solve the integral of dt /
slowdown(active set at t) = solo work. O(events), for any number of runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

SMALLEST = 1e-6
"""Work that counts as done (ns)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """A run from now on. `pieces`: solo spans (ns) of the segments it has still to run, in order, the first
    only as far as it is left; `first`: number of that segment. It begins at `start` (ns from now, at most 0
    when it runs already), but not before the run `after` (its index) has ended."""

    pieces: tuple[float, ...]
    first: int = 0
    start: float = 0.0
    after: int | None = None


Running = tuple[int, int]
"""(index of a run, number of the segment it is in)."""
Slowdown = Callable[[Running, Sequence[Running], float], float]
"""Slowdown (above 0) of a run in a segment beside others in theirs, at a time (ns from now)."""


def replay(
    courses: Sequence[Course],
    slowdown: Slowdown,
    *,
    longest_step: float = math.inf,
    ended: Callable[[int, float], None] | None = None,
) -> list[float]:
    """When each run ends (ns from now). `longest_step` bounds the time for which slowdowns are taken as
    constant (ns); `ended` is told each end (index, time) before the next slowdown is asked.

    Raises ValueError when runs wait for one another in a circle."""
    finish: list[float | None] = [None] * len(courses)
    at = [0] * len(courses)
    left = [course.pieces[0] if course.pieces else 0.0 for course in courses]
    now = 0.0
    while None in finish:
        active = [
            i
            for i, course in enumerate(courses)
            if finish[i] is None
            and course.start <= now
            and (course.after is None or finish[course.after] is not None)
        ]
        if not active:
            now = _next_start(courses, finish, now)
            if math.isinf(now):
                raise ValueError("runs wait for one another in a circle")
            continue
        running = [(i, courses[i].first + at[i]) for i in active]
        rates = {
            i: 1.0 / slowdown(running[k], [other for other in running if other[0] != i], now)
            for k, i in enumerate(active)
        }
        step = min(longest_step, *(left[i] / rates[i] for i in active))
        step = min(step, _next_start(courses, finish, now) - now)
        now += step
        for i in active:
            left[i] -= step * rates[i]
            while left[i] <= SMALLEST and finish[i] is None:
                at[i] += 1
                if at[i] < len(courses[i].pieces):
                    left[i] += courses[i].pieces[at[i]]
                    continue
                finish[i] = now
                if ended is not None:
                    ended(i, now)
    return [value for value in finish if value is not None]


def _next_start(courses: Sequence[Course], finish: Sequence[float | None], now: float) -> float:
    """When the next run that waits for no other begins; infinity when none does."""
    return min(
        (
            course.start
            for i, course in enumerate(courses)
            if finish[i] is None
            and course.start > now
            and (course.after is None or finish[course.after] is not None)
        ),
        default=math.inf,
    )
