"""In which order what follows from an event is done, and how much of a budget is kept for the answer."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cotenant.clock import VirtualClock
from cotenant.domain import NS_PER_MS, Arrival, ModelSpec, Observation, Outcome, OutcomeKind, Request
from cotenant.drive import Drive
from cotenant.execute.fake import FakeExecutor, FakeScript
from cotenant.execute.lanes import lane_layout
from cotenant.predict.solo import SoloPredictor
from cotenant.schedule.policies import make_policy
from cotenant.schedule.scheduler import Scheduler
from cotenant.serve.answering import RENEWED_EVERY, AnswerTimes
from cotenant.simulate.driver import VirtualTimers
from cotenant.testing import TableProfiles
from cotenant.workload.characterise import OnlineLoadMeter

SOLO_MS = 10.0


class Told:
    """An observer that notes what it is told, beside the answers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.outcomes: list[Outcome] = []

    def settled(self, outcome: Outcome) -> None:
        """Noted in `answer`."""

    def observed(self, observation: Observation) -> None:
        self.notes.append(f"learned {observation.dispatch_id}")

    def decided(self, spent_ns: int, at: int) -> None:
        self.notes.append("decided")

    def answer(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.notes.append(f"answered {outcome.request.id}")


class Bench:
    """One lane in virtual time. `takes_ms`: how long a run really takes."""

    def __init__(self, later: Callable[[], None] | None = None, takes_ms: float = SOLO_MS) -> None:
        spec = ModelSpec(name="m", slo_ns=None)
        self.clock = VirtualClock()
        self.timers = VirtualTimers(self.clock)
        self.told = Told()
        predictor = SoloPredictor(TableProfiles({"m": spec}, {"m": SOLO_MS}))
        script = FakeScript(durations=lambda _: int(takes_ms * NS_PER_MS))
        lanes = lane_layout(1, 1)
        executor = FakeExecutor(lanes, self.timers, script)
        self.drive = Drive(
            scheduler=Scheduler(
                policy=make_policy("deferred_edf"),
                predictor=predictor,
                load=OnlineLoadMeter(),
                lanes=lanes,
                specs=[spec],
            ),
            executor=executor,
            learner=predictor,
            clock=self.clock,
            on_settled=self.told.answer,
            observers=[self.told],
            stopwatch=self.clock,
            later=later,
        )
        executor.attach(self.drive.post)

    def ask(self, name: str, budget_ms: float | None = None, answer_ms: float = 0.0) -> None:
        now = self.clock.now()
        self.drive.post(
            Arrival(
                Request(
                    id=name,
                    model="m",
                    arrived_at=now,
                    deadline_at=None if budget_ms is None else now + int(budget_ms * NS_PER_MS),
                    answer_ns=int(answer_ms * NS_PER_MS),
                )
            )
        )

    def run_one(self) -> None:
        """Let the run end."""
        self.clock.advance_to(self.timers.next_at())
        self.timers.run_next()


def test_an_answer_and_the_next_run_do_not_wait_until_the_last_run_is_learned_from() -> None:
    asked: list[None] = []
    bench = Bench(later=lambda: asked.append(None))
    bench.ask("a")
    bench.ask("b")
    bench.run_one()
    assert bench.told.notes[-1] == "answered a"
    assert list(bench.drive.scheduler.view.flights) == [2]
    assert asked
    bench.drive.learn()
    assert bench.told.notes[-1] == "learned 1"
    bench.drive.learn()
    assert bench.told.notes.count("learned 1") == 1


def test_nothing_is_decided_before_what_ran_was_learned_from() -> None:
    bench = Bench(later=lambda: None)
    bench.ask("a")
    bench.run_one()
    assert "learned 1" not in bench.told.notes
    bench.ask("b")
    assert bench.told.notes[-2:] == ["learned 1", "decided"]


def test_without_a_later_it_is_learned_from_at_once() -> None:
    bench = Bench()
    bench.ask("a")
    bench.run_one()
    assert bench.told.notes[-2:] == ["answered a", "learned 1"]


@pytest.mark.parametrize(("answer_ms", "runs"), [(0.0, True), (2.0, True), (4.0, False)])
def test_a_request_whose_answer_could_not_be_sent_in_time_is_not_run(answer_ms: float, runs: bool) -> None:
    bench = Bench()
    bench.drive.scheduler.policy = make_policy("exclusive_edf")
    bench.ask("a", budget_ms=13.0, answer_ms=answer_ms)
    assert bool(bench.drive.scheduler.view.flights) is runs


def test_what_ends_before_its_deadline_is_not_late_even_if_it_ends_later_than_planned() -> None:
    bench = Bench(takes_ms=12.0)
    bench.ask("a", budget_ms=13.0, answer_ms=2.0)
    bench.run_one()
    assert bench.told.outcomes[0].kind is OutcomeKind.OK


def test_the_reserve_covers_nearly_all_of_the_latest_answers() -> None:
    times = AnswerTimes()
    for n in range(RENEWED_EVERY - 1):
        times.sent(n)
    assert times.reserve_ns == 0
    for n in range(1000):
        times.sent(1_000_000 if n % 100 == 50 else 300 + n % 10)
    assert 300 <= times.reserve_ns < 1000
    for _ in range(1000):
        times.sent(50)
    assert times.reserve_ns == 50
