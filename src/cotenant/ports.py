"""Every seam on one page. Each port's docstring is its contract; `cotenant.testing` checks them.

Instants and spans are integer nanoseconds (see `domain`). Unless a port says otherwise it is called from
the one deciding thread, must not block, and must not mutate what it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from msgspec import Struct

from cotenant.domain import (
    Candidate,
    Dispatch,
    Event,
    LoadEstimate,
    Maintain,
    ModelSpec,
    Observation,
    Outcome,
    Request,
    Snapshot,
    SoloProfile,
    Variant,
)

Tensors = Mapping[str, Any]
"""Named numpy arrays; the first axis is the batch where the model has one."""


class Forecast(Struct, frozen=True, kw_only=True):
    """A predictor's answer, as columns of finish instants (ns).

    Each candidate is an alternative: "if it joined what is in flight". Rows of quantiles have one entry
    per `LEVELS` plus the model's own `slo_percentile`, never descending in the level.
    `finish_at`: n_candidates x n_levels. `in_flight_finish_at`: n_candidates x n_in_flight x n_levels, how
    the in-flight dispatches would then end; `baseline_finish_at`: n_in_flight x n_levels, without any.
    """

    finish_at: Sequence[Sequence[int]]
    in_flight_finish_at: Sequence[Sequence[Sequence[int]]]
    baseline_finish_at: Sequence[Sequence[int]]
    version: int
    features: Sequence[tuple[float, ...]] = ()


class Predictor(Protocol):
    """Says when dispatches will finish. Read-only: asking never changes an answer.

    Deterministic in (learned state, arguments). The order of co-runners must not matter.
    """

    @property
    def version(self) -> int:
        """Number of the learned state; grows with every change of it."""
        ...

    def solo(self, variant: Variant, at: int) -> Sequence[int]:
        """Quantiles of the span (ns) of `variant` with nobody beside it: `LEVELS` and the model's own
        level. Used for screening; includes what was learned. Raises KeyError for an unknown model."""
        ...

    def prior(self, variant: Variant) -> int:
        """Median span (ns) by profile alone, nothing learned: for probes that pessimism must not block."""
        ...

    def predict(self, snapshot: Snapshot, candidates: Sequence[Candidate]) -> Forecast:
        """Finish of each candidate and of what is in flight; see `Forecast`. May be called with no
        candidates (then only `baseline_finish_at` is filled)."""
        ...


@runtime_checkable
class Screened(Protocol):
    """A predictor that can answer `solo` with the span to plan with, whatever runs beside: `screens` says
    whether it does."""

    screens: bool


class Learner(Protocol):
    """The writing half of a predictor."""

    def learn(self, observation: Observation) -> int | None:
        """Score what was issued, calibrate, then learn. Returns the new version, or None if unchanged.
        Non-finite or impossible observations are refused, counted, and change nothing."""
        ...

    def loaded(self, spec: ModelSpec, profiles: Sequence[SoloProfile]) -> None:
        """A model was loaded, or loaded anew: take these profiles, forget what was learned of it."""
        ...

    def state(self) -> bytes:
        """The learned state, self-describing; `restore(state())` gives identical predictions."""
        ...

    def restore(self, state: bytes) -> None:
        """Take over a stored state. Raises ValueError with a clear message when it cannot be used."""
        ...


class LoadMeter(Protocol):
    """Characterises the traffic online. Fed by the scheduler with every event that matters."""

    def arrived(self, request: Request) -> None: ...

    def dispatched(self, variant: Variant, lane: int, at: int) -> None:
        """A dispatch was made; `lane` is -1 where it was staged behind another, or is not known."""
        ...

    def freed(self, lane: int, at: int) -> None:
        """A lane has become idle."""
        ...

    def lanes_busy(self, n_busy: int, n_lanes: int, at: int) -> None: ...

    def estimate(self, at: int) -> LoadEstimate:
        """The estimate at `at`; cheap (cached between changes)."""
        ...


class Observer(Protocol):
    """Told, after the fact, what happened: metrics, logs, recorders. Must not raise and must not block."""

    def settled(self, outcome: Outcome) -> None: ...

    def observed(self, observation: Observation) -> None: ...

    def decided(self, spent_ns: int, at: int) -> None:
        """One decision of the scheduler took `spent_ns` of real time (0 when not measured)."""
        ...


class LaneInfo(Struct, frozen=True, kw_only=True, gc=False):
    """One concurrent execution queue. `units` names the compute units it runs on (CPU cores; on a GPU all
    lanes share the same): two lanes without a common unit do not share compute. `depth`: how many
    dispatches may be staged behind the running one. `shares`: to which parts of the device's compute a
    dispatch on it can be confined, ascending, 1.0 (all of it) last; any other share is taken as 1.0."""

    index: int
    units: tuple[int, ...]
    depth: int = 0
    shares: tuple[float, ...] = (1.0,)


Sink = Callable[[Event], None]
"""Where an executor posts events (Started, Progress, Completion, Device, MaintenanceDone). Thread-safe."""


class Executor(Protocol):
    """Runs dispatches on the lanes of one device.

    `start` returns at once; the lane measures and posts exactly one Completion per dispatch. Failure is a
    Completion with an error; nothing is raised into the scheduler. Results go to `results(dispatch_id)`.
    """

    @property
    def lanes(self) -> Sequence[LaneInfo]: ...

    def attach(self, sink: Sink) -> None:
        """Called once before the first `start`: where to post events."""
        ...

    def start(self, dispatch: Dispatch, inputs: Sequence[Tensors]) -> None:
        """Run the dispatch on its lane; `inputs` has one set of tensors per request (none in simulation)."""
        ...

    def preempt(self, dispatch_id: int) -> None:
        """Stop at the next segment boundary, if the device can; else nothing happens."""
        ...

    def abort(self, dispatch_id: int, reason: str) -> None:
        """Withdraw a staged dispatch or give up a running one. A run that cannot be stopped is abandoned:
        its Completion (with error and `lane_lost`) is posted at once and the lane is replaced."""
        ...

    def take_results(self, dispatch_id: int) -> Sequence[Tensors] | None:
        """Outputs per request of a completed dispatch, handed over once; None in simulation or on error."""
        ...

    def maintain(self, action: Maintain) -> None:
        """Begin scheduled work (load, unload, profile, probe); posts MaintenanceDone."""
        ...

    def close(self) -> None:
        """Stop the lanes. Idempotent."""
        ...


class Timers(Protocol):
    """What a driver offers to executors that need to act later (the fake, the simulated devices)."""

    def now(self) -> int: ...

    def call_at(self, at: int, callback: Callable[[], None]) -> Callable[[], None]:
        """Arrange `callback()` at the instant `at`; returns a function that calls it off."""
        ...


class ProfileReader(Protocol):
    """Read access to measured profiles of one device."""

    def solo(self, variant: Variant) -> SoloProfile:
        """The measured profile. Raises KeyError when the variant was never measured."""
        ...

    def spec(self, model: str) -> ModelSpec:
        """The model's spec. Raises KeyError when unknown."""
        ...


class ProfileTable(ProfileReader, Protocol):
    """Profiles that grow while models are loaded."""

    def renew(self, spec: ModelSpec, profiles: Sequence[SoloProfile]) -> None:
        """Replace what is known of a model."""
        ...
