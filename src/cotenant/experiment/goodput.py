"""The largest load at which a level of attainment is held, found with few runs. Pure: runs are asked for.

How this works. Scales lie on a ladder of 1 % steps, so that searches and curves meet on the same runs. A
search keeps a bracket: `held`, the largest scale seen with attainment >= level, and the smallest scale seen
above it, which by that definition is below the level. It widens until both exist, then asks between them,
where the logarithm of the misses, interpolated, crosses the level; where that narrows too slowly it bisects.
It ends when the two are one step apart.

Where a curve of the same policy is known (of shorter runs or other seeds), it serves as a `hint`: `start` is
a guess of the answer, and how far to go from a run is read from how far the hint goes between two
attainments. A hint moves where runs are asked for, never what they mean.

Attainment need not fall steadily: what is returned is the largest scale *that was seen* to hold the level,
with the next step seen to break it. On a curve that falls steadily that is the largest step that holds it,
whatever was known before.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

STEP = 1.01
"""Relative distance of two neighbours on the ladder: what capacity is known to."""
WIDEN = 24
"""Steps of the first widening (a factor of 1.27)."""
FURTHEST = 96
"""Most steps of one widening (a factor of 2.6)."""
FULL = 0.98
"""Below this attainment a device is taken as full: goodput will hardly rise any more. Only how far a search
widens hangs on it."""
LEAST_MISSES = 1e-3
"""Share of misses below which runs are not told apart."""


def scale_at(index: int) -> float:
    """The scale of a step of the ladder, to 5 digits."""
    return float(f"{STEP**index:.5g}")


def position(scale: float) -> float:
    """Where a scale lies on the ladder (steps, any real number). Raises ValueError unless positive."""
    return math.log(scale) / math.log(STEP)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Steps of the ladder between which loads make sense."""

    lowest: int
    highest: int

    def within(self, index: int) -> int:
        """The nearest step inside."""
        return min(max(index, self.lowest), self.highest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bracket:
    """`held`: the largest scale seen at or above the level; `broken`: the smallest seen above that."""

    held: float | None
    broken: float | None


def bracket(seen: Mapping[float, float], level: float) -> Bracket:
    """What attainment by scale (`seen`) says of a level."""
    held = max((scale for scale, attained in seen.items() if attained >= level), default=None)
    above = [scale for scale in seen if held is None or scale > held]
    return Bracket(held=held, broken=min(above, default=None))


Points = Sequence[tuple[float, float]]
"""(scale, value), ascending in scale."""
Asking = Generator[float, float, float | None]
"""Yields a scale to run, is sent the attainment there, returns the scale found (None: no load holds it)."""


def search(
    seen: Mapping[float, float],
    level: float,
    *,
    start: float,
    limits: Limits,
    step: int = 1,
    hint: Points = (),
) -> Asking:
    """The largest scale that holds `level` (0..1), to `step` steps; `limits` when it holds everywhere.

    `seen`: attainment by scale already known, on the ladder or not. `start`: where to begin without; with a
    `hint`, where the answer is expected."""
    seen = dict(seen)
    widths: list[float] = []
    asked: float | None = None
    n_asked = 0
    while True:
        found = bracket(seen, level)
        guess = position(start) if hint and not n_asked else None
        if found.held is None and found.broken is None:
            index = limits.within(step * round(position(start) / step))
        elif guess is not None and _holds(found, guess, step):
            index = limits.within(step * round(guess / step))
        elif found.held is None or found.broken is None:
            if hint:
                edge = _followed(seen, found, level, hint, step * 2 ** max(n_asked - 1, 0), step, limits)
            else:
                edge = _widened(seen, found, level, step, limits)
            if edge is None:
                return found.held
            index = edge
        else:
            inside = _inside(found, step)
            if not inside:
                return found.held
            widths.append(position(found.broken) - position(found.held))
            slow = len(widths) > 2 and widths[-1] > widths[-3] / 2
            index = inside[len(inside) // 2] if slow else _likely(seen, found, level, inside, asked)
        asked = scale_at(index)
        seen[asked] = yield asked
        n_asked += 1


def _holds(found: Bracket, guess: float, step: int) -> bool:
    """Whether a guess (steps) lies inside a bracket and not at its sides."""
    above = found.held is None or guess >= position(found.held) + step
    return above and (found.broken is None or guess <= position(found.broken) - step)


def _followed(
    seen: Mapping[float, float],
    found: Bracket,
    level: float,
    hint: Points,
    least: int,
    step: int,
    limits: Limits,
) -> int | None:
    """A step beyond all that was seen, as far off as the hint goes from what was attained there to the level,
    at least `least` steps; None at the limit."""
    edge = max(seen) if found.broken is None else min(seen)
    towards = 1 if found.broken is None else -1
    wanted = position(hinted_at(hint, level)) - position(hinted_at(hint, seen[edge]))
    reach = min(max(towards * wanted, least), FURTHEST)
    away = math.ceil(towards * (position(edge) + towards * reach) / step - 0.01)
    index = limits.within(towards * step * away)
    beyond = scale_at(index) > edge if towards > 0 else scale_at(index) < edge
    return index if beyond else None


def hinted_at(hint: Points, level: float) -> float:
    """The scale at which a curve, made to fall, attains `level` (at most 1 - LEAST_MISSES): its first where
    it attains less everywhere; beyond its last as if what is too much were shed."""
    level = min(level, 1 - LEAST_MISSES)
    least, falling = 0.0, []
    for scale, attained in reversed(hint):
        least = max(least, attained)
        falling.append((scale, least))
    falling.reverse()
    if level > falling[0][1]:
        return falling[0][0]
    if level <= falling[-1][1]:
        return falling[-1][0] * falling[-1][1] / max(level, 1e-3)
    at = crosses_at(falling, level)
    assert at is not None
    return at


def _widened(
    seen: Mapping[float, float], found: Bracket, level: float, step: int, limits: Limits
) -> int | None:
    """A step beyond all that was seen, on the side where the bracket is open; None at the limit."""
    positions = [position(scale) for scale in seen]
    reach = min(max(WIDEN, max(positions) - min(positions)), FURTHEST)
    if found.broken is None:
        attained = seen[max(seen)]
        if attained < FULL:
            reach = min(reach, max(position(attained / level), 0.0) + 8)
        index = math.ceil(max(positions) + reach)
        index = limits.within(step * math.ceil(index / step))
        return index if scale_at(index) > max(seen) else None
    lowest = min(seen)
    likely = position(max(seen[lowest], 1e-9) / level) if seen[lowest] < level else 0.0
    index = math.floor(min(positions) + max(min(likely, -8.0), -reach))
    index = limits.within(step * math.floor(index / step))
    return index if scale_at(index) < lowest else None


def _inside(found: Bracket, step: int) -> list[int]:
    """Steps strictly between the two sides, none when they are one step apart."""
    assert found.held is not None
    assert found.broken is not None
    low, high = position(found.held), position(found.broken)
    if high - low <= step + 0.01:
        return []
    first, last = math.floor((low + 0.01) / step) + 1, math.ceil((high - 0.01) / step) - 1
    return [step * k for k in range(first, last + 1)]


def _likely(
    seen: Mapping[float, float], found: Bracket, level: float, inside: Sequence[int], asked: float | None
) -> int:
    """The step at which the misses probably reach 1 - level. After a run that held it the step above,
    after one that did not the step below: when the guess is right the next run closes the bracket."""
    assert found.held is not None
    assert found.broken is not None
    at = crossing(found.held, seen[found.held], found.broken, seen[found.broken], level)
    wanted = math.ceil(position(at)) if asked == found.held else math.floor(position(at))
    return min(inside, key=lambda index: abs(index - wanted))


def crossing(low: float, attained_low: float, high: float, attained_high: float, level: float) -> float:
    """The scale between two at which attainment passes `level`: the logarithm of misses is taken as linear in
    that of the scale. `attained_low` >= level >= `attained_high`."""
    least = min(LEAST_MISSES, (1 - level) / 2)
    logs = [math.log(max(1 - attained, least)) for attained in (attained_low, level, attained_high)]
    if logs[2] <= logs[0]:
        return low
    share = min(max((logs[1] - logs[0]) / (logs[2] - logs[0]), 0.0), 1.0)
    return float(low * (high / low) ** share)


def crosses_at(points: Points, level: float) -> float | None:
    """The scale at which a curve of attainment falls below `level` for good, interpolated; None when it is
    below everywhere or above at the last point."""
    at = max((i for i, (_, attained) in enumerate(points) if attained >= level), default=None)
    if at is None or at == len(points) - 1:
        return None
    return crossing(*points[at], *points[at + 1], level)


def value_at(points: Points, scale: float) -> float | None:
    """A curve's value at a scale, linear in the logarithm of the scale; None beyond its ends."""
    for (low, below), (high, above) in pairwise(points):
        if low <= scale <= high:
            share = math.log(scale / low) / math.log(high / low) if high > low else 0.0
            return below + share * (above - below)
    return points[0][1] if len(points) == 1 and points[0][0] == scale else None
