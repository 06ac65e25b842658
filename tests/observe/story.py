"""Requests through the real scheduler in virtual time, with a journal that remembers them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cotenant.clock import VirtualClock
from cotenant.domain import NS_PER_MS, Dispatch, JobClass, ModelSpec, Observation, Outcome, Request
from cotenant.execute.fake import FakeExecutor, FakeScript
from cotenant.ports import LaneInfo
from cotenant.predict.solo import SoloPredictor
from cotenant.schedule.policies import make_policy
from cotenant.schedule.scheduler import Scheduler
from cotenant.simulate.driver import Simulation, VirtualTimers
from cotenant.telemetry.explanation import Explanation
from cotenant.telemetry.journal import Journal
from cotenant.testing import TableProfiles
from cotenant.workload.characterise import OnlineLoadMeter

MS = NS_PER_MS
WALL_S = 1_700_000_000.0


@dataclass
class Observing:
    """Hands observations to the journal, as the engine does."""

    journal: Journal

    def settled(self, outcome: Outcome) -> None: ...

    def decided(self, spent_ns: int, at: int) -> None: ...

    def observed(self, observation: Observation) -> None:
        self.journal.observed(observation)


def spec(name: str, slo_ms: float | None, *, batch: int = 1, segments: int = 1, **more: object) -> ModelSpec:
    rows = tuple(2**k for k in range(batch.bit_length()) if 2**k <= batch)
    slo_ns = None if slo_ms is None else int(slo_ms * MS)
    return ModelSpec(name=name, slo_ns=slo_ns, max_batch=batch, row_buckets=rows, n_segments=segments, **more)  # type: ignore[arg-type]


def asked(spec: ModelSpec, at_ms: float, number: int = 0) -> Request:
    at = int(at_ms * MS)
    return Request(
        id=f"{at:x}-{number:x}",
        model=spec.name,
        arrived_at=at,
        deadline_at=None if spec.slo_ns is None else at + spec.slo_ns,
        job_class=spec.job_class,
    )


def played(
    policy: str,
    solo_ms: Mapping[ModelSpec, float],
    requests: Sequence[Request],
    *,
    n_lanes: int = 1,
    script: Callable[[TableProfiles], FakeScript] | None = None,
    recent: int = 4096,
    sinks: Sequence[Callable[[Explanation], None]] = (),
) -> tuple[Journal, dict[str, Outcome]]:
    """The journal after everything has ended, and the outcomes by request id."""
    specs = {spec.name: spec for spec in solo_ms}
    profiles = TableProfiles(specs, {spec.name: ms for spec, ms in solo_ms.items()})
    clock = VirtualClock()
    timers = VirtualTimers(clock)
    lanes = [LaneInfo(index=i, units=(0,)) for i in range(n_lanes)]
    plain = FakeScript(
        durations=lambda dispatch: profiles.solo(dispatch.variant).median_ns,
        n_segments={spec.name: spec.n_segments for spec in solo_ms},
    )
    executor = FakeExecutor(lanes, timers, script(profiles) if script else plain)
    predictor = SoloPredictor(profiles)
    journal = Journal(
        n_lanes=n_lanes,
        solo=predictor.prior,
        now=clock.now,
        wall_s=lambda: WALL_S + clock.now() / 1e9,
        timers=timers,
        sinks=sinks,
        recent=recent,
    )
    outcomes: dict[str, Outcome] = {}

    def settled(outcome: Outcome) -> None:
        outcomes[outcome.request.id] = outcome
        journal.ended(outcome, outcome.request.arrived_at)

    scheduler = Scheduler(
        policy=make_policy(policy),
        predictor=predictor,
        load=OnlineLoadMeter(),
        lanes=lanes,
        specs=specs.values(),
    )
    Simulation(
        scheduler=scheduler,
        executor=executor,
        learner=predictor,
        clock=clock,
        timers=timers,
        on_settled=settled,
        on_dispatched=journal.dispatched,
        observers=[Observing(journal)],
    ).run(sorted(requests, key=lambda request: request.arrived_at))
    return journal, outcomes


BEST_EFFORT, PROTECTED = JobClass.BEST_EFFORT, JobClass.PROTECTED
Script = Callable[[Dispatch], int]
