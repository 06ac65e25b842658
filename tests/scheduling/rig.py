"""Runs requests through the real scheduler in virtual time, on a device of which every span is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from cotenant.clock import VirtualClock
from cotenant.domain import ModelSpec, Outcome, Request
from cotenant.execute.fake import FakeExecutor, FakeScript
from cotenant.ports import LaneInfo
from cotenant.predict.solo import SoloPredictor
from cotenant.schedule.policies import make_policy
from cotenant.schedule.scheduler import Scheduler
from cotenant.simulate.driver import Simulation, VirtualTimers
from cotenant.testing import TableProfiles
from cotenant.workload.characterise import OnlineLoadMeter


def outcomes_of(
    policy: str,
    specs: Mapping[str, ModelSpec],
    solo_ms: Mapping[str, float],
    requests: Iterable[Request],
    lanes: Sequence[LaneInfo],
    *,
    predicts: type[SoloPredictor] = SoloPredictor,
    slow: Sequence[tuple[float, int]] = (),
) -> list[Outcome]:
    """How requests end. `slow`: (factor on every span, from when on, ns)."""
    profiles = TableProfiles(specs, solo_ms)
    clock = VirtualClock()
    timers = VirtualTimers(clock)
    script = FakeScript(durations=lambda dispatch: profiles.solo(dispatch.variant).median_ns)
    executor = FakeExecutor(lanes, timers, script)
    for factor, at in slow:
        executor.slow_down(factor, at=at)
    predictor = predicts(profiles)
    outcomes: list[Outcome] = []
    simulation = Simulation(
        scheduler=Scheduler(
            policy=make_policy(policy),
            predictor=predictor,
            load=OnlineLoadMeter(),
            lanes=lanes,
            specs=specs.values(),
        ),
        executor=executor,
        learner=predictor,
        clock=clock,
        timers=timers,
        on_settled=outcomes.append,
    )
    simulation.run(requests)
    return outcomes
