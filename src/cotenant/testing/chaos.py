"""Contract checks, fakes and generators for anyone who writes a policy, a predictor or an executor.

Shipped with the package and used by its own tests; production code never imports it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cotenant.domain import (
    NS_PER_MS,
    Abort,
    Action,
    Arrival,
    Cancel,
    Command,
    Completion,
    Device,
    Dispatch,
    Event,
    JobClass,
    Maintain,
    MaintenanceDone,
    ModelSpec,
    ModelVersion,
    Observe,
    OutcomeKind,
    Preempt,
    Progress,
    Request,
    Settle,
    SoloProfile,
    Started,
    Variant,
    Wakeup,
)
from cotenant.ports import LaneInfo
from cotenant.predict.solo import SoloPredictor
from cotenant.schedule.policies import make_policy
from cotenant.schedule.scheduler import Scheduler
from cotenant.workload.no_load import NoLoad


class TableProfiles:
    """Profiles from a table of medians in ms at batch 1; time grows by `per_row` of it for each more row."""

    def __init__(self, specs: Mapping[str, ModelSpec], solo_ms: Mapping[str, float], per_row: float = 0.6):
        self._specs, self._solo_ms, self._per_row = dict(specs), solo_ms, per_row
        self._renewed: dict[Variant, SoloProfile] = {}

    def renew(self, spec: ModelSpec, profiles: Sequence[SoloProfile]) -> None:
        self._specs[spec.name] = spec
        self._renewed.update({profile.variant: profile for profile in profiles})

    def spec(self, model: str) -> ModelSpec:
        return self._specs[model]

    def solo(self, variant: Variant) -> SoloProfile:
        if variant in self._renewed:
            return self._renewed[variant]
        median = int(self._solo_ms[variant.model] * NS_PER_MS * (1 + self._per_row * (variant.rows - 1)))
        return SoloProfile(variant=variant, share=1.0, median_ns=median, spread_ns=median // 20, n_samples=30)


class Chaos:
    """Drives a scheduler with any sequence of events an executor and clients could produce, and checks
    after each that nothing is lost, settled twice, or put on a full lane.

    `step(choice)` does one thing picked by the integer; `finish()` lets everything end and closes the books.
    """

    def __init__(self, policy: str, *, depth: int = 0, n_lanes: int = 2, n_segments: int = 1) -> None:
        solo_ms = {"small": 2.0, "large": 30.0, "filler": 8.0}
        self._specs = {
            "small": ModelSpec(
                name="small",
                slo_ns=20 * NS_PER_MS,
                max_batch=8,
                row_buckets=(1, 2, 4, 8),
                n_segments=n_segments,
            ),
            "large": ModelSpec(
                name="large",
                slo_ns=150 * NS_PER_MS,
                job_class=JobClass.PROTECTED,
                max_batch=4,
                row_buckets=(1, 2, 4),
                axis_buckets=(("seq", (16, 32)),),
                n_segments=n_segments,
            ),
            "filler": ModelSpec(
                name="filler", slo_ns=None, job_class=JobClass.BEST_EFFORT, n_segments=n_segments
            ),
        }
        self.predictor = SoloPredictor(TableProfiles(self._specs, solo_ms))
        lanes = [LaneInfo(index=i, units=(i % 2,), depth=depth) for i in range(n_lanes)]
        self.scheduler = Scheduler(
            policy=make_policy(policy),
            predictor=self.predictor,
            load=NoLoad(),
            lanes=lanes,
            specs=self._specs.values(),
        )
        self._depth = depth
        self.now = 0
        self._n = 0
        self._offered: dict[str, Request] = {}
        self.settled: dict[str, OutcomeKind] = {}
        self._flying: dict[int, Dispatch] = {}
        self._lost: set[int] = set()
        self._suspended: set[int] = set()

    def step(self, choice: int) -> None:
        """Advance time a little and let one event happen, picked by `choice`."""
        kind, rest = choice % 20, choice // 20
        self.now += (rest % 97) * NS_PER_MS // 8
        pick = rest // 97
        if kind < 9:
            self._arrive(pick)
        elif kind < 13 and self._running():
            self._complete(pick)
        elif kind == 13 and self._offered:
            ids = list(self._offered)
            self._send(Cancel(ids[pick % len(ids)]))
        elif kind == 14 and self._running():
            dispatch = self._running()[pick % len(self._running())]
            self._send(Progress(dispatch.id, dispatch.first_segment, self.now))
        elif kind == 15:
            self._command(pick)
        elif kind == 16 and self._lost:
            self._restart()
        elif kind == 17:
            self._send(ModelVersion(pick))
        else:
            wake = self.scheduler.next_wakeup()
            if wake is not None:
                self.now = max(self.now, wake)
                self._send(Wakeup())

    def finish(self) -> None:
        """Let everything end; then every request offered must have ended in exactly one way."""
        for name in self._specs:
            self._send(MaintenanceDone(maintenance_id=0, kind="load", model=name, spec=self._specs[name]))
        for _ in range(10_000):
            self._restart()
            wake = self.scheduler.next_wakeup()
            if self._running():
                self.now += NS_PER_MS
                self._complete(0, ok=True)
            elif wake is not None:
                self.now = max(self.now, wake)
                self._send(Wakeup())
            else:
                break
        assert not self._suspended, f"tensors of batches that never went on: {sorted(self._suspended)[:5]}"
        missing = set(self._offered) - set(self.settled)
        assert not missing, f"requests never settled: {sorted(missing)[:5]}"

    def _arrive(self, pick: int) -> None:
        model = ("small", "large", "filler", "ghost")[pick % 40 if pick % 40 < 3 else pick % 3]
        spec = self._specs.get(model)
        self._n += 1
        slo = spec.slo_ns if spec else None
        request = Request(
            id=f"r{self._n}",
            model=model,
            arrived_at=self.now,
            deadline_at=None if slo is None else self.now + slo * (1 + pick % 3) // 2,
            rows=1 + (pick // 3) % (spec.max_batch if spec else 1),
            axes=(("seq", 16 if pick % 2 else 32),) if model == "large" else (),
            job_class=spec.job_class if spec else JobClass.STANDARD,
        )
        self._offered[request.id] = request
        self._send(Arrival(request))

    def _running(self) -> list[Dispatch]:
        """The first dispatch of every lane: what can complete."""
        first: dict[int, Dispatch] = {}
        for dispatch in self._flying.values():
            first.setdefault(dispatch.lane, dispatch)
        return list(first.values())

    def _complete(self, pick: int, *, ok: bool = False) -> None:
        running = self._running()
        dispatch = running[pick % len(running)]
        how = 0 if ok else (pick // 7) % 12
        del self._flying[dispatch.id]
        error = "the model raised" if how == 1 else "lane lost" if how == 2 else None
        stopped = dispatch.first_segment + 1 if how == 3 else None
        if stopped is not None and stopped >= dispatch.end_segment:
            stopped = None
        if how == 2:
            self._lost.add(dispatch.lane)
        if stopped is not None and error is None:
            self._suspended.add(dispatch.id)
        self._send(
            Completion(
                dispatch_id=dispatch.id,
                lane=dispatch.lane,
                started_at=max(dispatch.decided_at, self.now - NS_PER_MS),
                ended_at=self.now,
                next_segment=stopped,
                error=error,
                lane_lost=how == 2,
            )
        )
        following = next((d for d in self._flying.values() if d.lane == dispatch.lane), None)
        if following is not None:
            self._send(Started(following.id, self.now))

    def _command(self, pick: int) -> None:
        name = ("small", "large", "filler")[pick % 3]
        if pick % 4 == 0:
            self._send(Command("unload", name))
        elif pick % 31 == 0:
            self._send(Command("drain"))
        else:
            self._send(Command("load", name))

    def _restart(self) -> None:
        for lane in sorted(self._lost):
            self._lost.discard(lane)
            self._send(Device("restarted", lane))

    def _send(self, event: Event) -> None:
        for action in self.scheduler.handle(event, self.now):
            self._check(action)
        assert self.scheduler.next_wakeup() is None or self.now >= 0

    def _check(self, action: Action) -> None:
        match action:
            case Settle(outcome):
                name = outcome.request.id
                assert name in self._offered, f"{name} was settled but never offered"
                assert name not in self.settled, f"{name} was settled twice"
                self.settled[name] = outcome.kind
            case Dispatch():
                assert action.lane not in self._lost, "dispatched to a lost lane"
                on_lane = sum(1 for d in self._flying.values() if d.lane == action.lane)
                assert on_lane <= self._depth, f"lane {action.lane} is over its depth"
                assert sum(r.rows for r in action.requests) == action.rows <= action.variant.rows
                assert all(r.id not in self.settled for r in action.requests), "a settled request is run"
                assert action.resumes is None or action.resumes in self._suspended, "resumed twice"
                self._suspended.discard(action.resumes or 0)
                self._flying[action.id] = action
            case Abort(dispatch_id, _):
                dispatch = self._flying.pop(dispatch_id, None)
                if dispatch is not None:
                    self._send_later(dispatch)
                else:
                    assert dispatch_id in self._suspended, "neither running nor suspended: nothing to abort"
                    self._suspended.discard(dispatch_id)
            case Maintain():
                if action.kind == "load":
                    spec = self._specs[action.model]
                    done = MaintenanceDone(
                        maintenance_id=action.id, kind="load", model=action.model, spec=spec
                    )
                    self.scheduler_later(done)
            case Observe(observation):
                assert observation.ended_at >= observation.started_at
                self.predictor.learn(observation)
            case Preempt():
                pass

    def _send_later(self, dispatch: Dispatch) -> None:
        self.scheduler_later(
            Completion(
                dispatch_id=dispatch.id,
                lane=dispatch.lane,
                started_at=dispatch.decided_at,
                ended_at=self.now,
                error="given up",
                lane_lost=False,
            )
        )

    def scheduler_later(self, event: Event) -> None:
        """Feed an event that an action brought about, after the current ones were checked."""
        self._send(event)
