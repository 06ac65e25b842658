"""Curves and capacity searches on attainments made up: few runs, right answers, whoever runs them."""

from __future__ import annotations

import io
import math
import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from cotenant.clock import VirtualClock
from cotenant.domain import NS_PER_S
from cotenant.experiment.capacities import LEVELS, Plan, measured
from cotenant.experiment.chains import Runs, every
from cotenant.experiment.goodput import Limits, bracket, hinted_at, position, scale_at, search
from cotenant.experiment.progress import progress
from cotenant.experiment.workers import Choice, Report, Run

LIMITS = Limits(lowest=-300, highest=400)
SCALES = tuple(scale_at(index) for index in range(-100, 180, 25))
SEEDS = (1, 2, 3)
Curve = Callable[[float], float]


def falling(capacity: float, steepness: float) -> Curve:
    return lambda scale: 1 / (1 + math.exp(min(steepness * math.log(scale / capacity), 700)))


class MadeUp:
    """Workers whose runs are read off a curve, moved by a seed and by noise, in any order."""

    def __init__(self, curves: dict[str, Curve], apart: float = 0.0, noise: float = 0.0, order: int = 0):
        self.curves, self.apart, self.noise = curves, apart, noise
        self.made: list[Run] = []
        self._waiting: list[tuple[float, Run]] = []
        self._order = random.Random(order)

    def submit(self, run: Run, expected_s: float = 0.0) -> None:
        self._waiting.append((expected_s, run))

    def attained(self, run: Run) -> float:
        moved = self.apart * (run.seed % 3 - 1) + (0.02 if run.part < 1 else 0.0)
        value = self.curves[run.choice.name](run.scale * (1 + moved))
        value += random.Random(str(run)).gauss(0, self.noise) if self.noise else 0.0
        return min(1.0, max(0.0, value))

    def done(self) -> tuple[Run, Report]:
        _, run = self._waiting.pop(self._order.randrange(len(self._waiting)))
        self.made.append(run)
        report = {"attainment": self.attained(run), "wall_s": run.scale * run.part}
        return run, report

    def __enter__(self) -> MadeUp:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def plan(part: float = 0.2) -> Plan:
    return Plan(seeds=SEEDS, parts=tuple((scale, part) for scale in SCALES), limits=LIMITS)


def studied(workers: MadeUp, chosen: Plan) -> Runs:
    runs = Runs(workers, lambda *_: None)
    chains = [measured(Choice(name), seed, chosen) for seed in SEEDS for name in workers.curves]
    runs.drive("curves and capacities", chains)
    return runs


def found(runs: Runs, name: str, seed: int, level: float) -> float | None:
    seen = {
        run.scale: report["attainment"]
        for run, report in runs.known.items()
        if run.choice.name == name and run.seed == seed and run.part == 1.0
    }
    return bracket(seen, level).held


curves = st.builds(falling, st.floats(0.4, 3.0), st.floats(4.0, 40.0))


@settings(max_examples=30, deadline=None)
@given(curve=curves, apart=st.floats(0.0, 0.1), part=st.sampled_from((0.2, 1.0)))
def test_the_last_step_that_holds_a_level_is_found_for_every_seed(
    curve: Curve, apart: float, part: float
) -> None:
    workers = MadeUp({"ours": curve}, apart)
    runs = studied(workers, plan(part))
    for seed in SEEDS:
        for level in LEVELS:
            scale = found(runs, "ours", seed, level)
            assert scale is not None
            above = scale_at(round(position(scale)) + 1)
            assert workers.attained(Run(Choice("ours"), seed, scale)) >= level
            assert workers.attained(Run(Choice("ours"), seed, above)) < level


def searches(workers: MadeUp) -> list[Run]:
    """Whole runs, which only searches ask for where the curve is of short ones."""
    return [run for run in workers.made if run.part == 1.0]


@pytest.mark.parametrize(("apart", "noise"), [(0.0, 0.0), (0.02, 0.001), (0.04, 0.003)])
def test_a_search_takes_about_three_runs_and_none_at_a_load_far_from_the_answer(
    apart: float, noise: float
) -> None:
    rng = random.Random(1)
    shapes = {f"p{k}": falling(rng.uniform(0.5, 2.0), rng.uniform(4, 30)) for k in range(20)}
    workers = MadeUp(shapes, apart, noise)
    runs = studied(workers, plan())
    assert len(searches(workers)) / (len(shapes) * len(SEEDS) * len(LEVELS)) < 4.2
    for run in searches(workers):
        answers = [found(runs, run.choice.name, run.seed, level) for level in LEVELS]
        assert any(answer and abs(position(run.scale / answer)) < 45 for answer in answers)


@given(order=st.integers(1, 1000), noise=st.sampled_from((0.0, 0.01)))
@settings(max_examples=20, deadline=None)
def test_runs_are_made_once_and_are_the_same_in_whatever_order_they_end(order: int, noise: float) -> None:
    shapes = {"fcfs": falling(0.7, 20.0), "ours": falling(1.2, 6.0), "oracle": lambda scale: 0.5}
    one, other = MadeUp(shapes, 0.03, noise), MadeUp(shapes, 0.03, noise, order)
    first, second = studied(one, plan()), studied(other, plan())
    assert max(Counter(other.made).values()) == 1
    assert set(one.made) == set(other.made)
    assert first.known == second.known


def test_every_policy_and_seed_runs_the_same_curve() -> None:
    workers = MadeUp({"fcfs": falling(0.7, 20.0), "ours": falling(1.2, 6.0)}, 0.03)
    studied(workers, plan())
    short = [(run.choice.name, run.seed, run.scale) for run in workers.made if run.part < 1.0]
    assert sorted(short) == sorted((n, s, x) for n in workers.curves for s in SEEDS for x in SCALES)


def test_runs_expected_to_take_longest_are_handed_out_first() -> None:
    handed: list[Run] = []

    class Longest(MadeUp):
        def done(self) -> tuple[Run, Report]:
            self._waiting.sort(key=lambda each: -each[0])
            _, run = self._waiting.pop(0)
            handed.append(run)
            cost = {"fcfs": 1.0, "oracle": 10.0}[run.choice.name]
            return run, {"attainment": 1.0, "wall_s": cost * run.scale * run.part}

    workers = Longest({})
    runs = Runs(workers, lambda *_: None)
    runs.drive("first", [every([Run(Choice(name), 0, 0.1)]) for name in ("fcfs", "oracle")])
    del handed[:]
    wanted = [Run(Choice(name), 1, scale) for name in ("fcfs", "oracle") for scale in (0.5, 2.0, 8.0)]
    runs.drive("then", [every(wanted)])
    costs = [{"fcfs": 1.0, "oracle": 10.0}[run.choice.name] * run.scale for run in handed]
    assert costs == sorted(costs, reverse=True)


@given(curve=curves, level=st.sampled_from(LEVELS), hint=curves, start=st.floats(0.2, 5.0))
def test_a_wrong_hint_costs_runs_but_not_the_answer(
    curve: Curve, level: float, hint: Curve, start: float
) -> None:
    known: dict[float, float] = {}
    points = [(scale, hint(scale)) for scale in SCALES]
    asking = search(known, level, start=start, limits=LIMITS, hint=points)
    scale = next(asking)
    try:
        while True:
            assert scale not in known
            known[scale] = curve(scale)
            scale = asking.send(known[scale])
    except StopIteration as stop:
        answer = stop.value
    holding = [i for i in range(LIMITS.lowest, LIMITS.highest + 1) if curve(scale_at(i)) >= level]
    assert answer == scale_at(max(holding))
    assert len(known) <= 24


@pytest.mark.parametrize(("attained", "answer"), [(0.5, None), (1.0, scale_at(LIMITS.highest))])
def test_a_hinted_search_ends_at_the_limits(attained: float, answer: float | None) -> None:
    hint = [(1.0, 1.0), (2.0, 0.5)]
    asking = search({}, 0.95, start=1.1, limits=LIMITS, hint=hint)
    scales, ended = [next(asking)], None
    while ended is None:
        try:
            scales.append(asking.send(attained))
        except StopIteration as stop:
            ended = stop
    assert ended.value == answer
    assert len(scales) < 20
    assert max(scales) <= scale_at(LIMITS.highest)


def test_a_hint_is_read_as_falling_and_beyond_its_end_as_shedding() -> None:
    hint = [(1.0, 0.98), (2.0, 0.99), (4.0, 0.6)]
    assert hinted_at(hint, 0.995) == 1.0
    assert 2.0 <= hinted_at(hint, 0.985) < 4.0
    assert hinted_at(hint, 0.3) == pytest.approx(8.0)


def test_where_nobody_watches_a_line_now_and_then_says_what_a_study_is_at() -> None:
    out, clock = io.StringIO(), VirtualClock()
    with progress(Console(file=out, width=40), clock, "headline") as told:
        told("tuning", 0, 0)
        for done in range(60):
            clock.advance_to(done * NS_PER_S)
            told("tuning", done, 90)
        clock.advance_to(61 * NS_PER_S)
        told("curves", 0, 0)
    assert out.getvalue().splitlines() == [
        "0:00 headline: tuning",
        "0:20 headline: tuning, 20 of 90 runs",
        "0:40 headline: tuning, 40 of 90 runs",
        "1:01 headline: curves",
    ]
