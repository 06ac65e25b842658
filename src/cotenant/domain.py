"""Frozen values that cross the seams of cotenant: requests, snapshots, predictions, events, actions.

Every instant is an integer count of nanoseconds of one monotonic clock (`_at`); spans are integer
nanoseconds too (`_ns`). Values are `msgspec.Struct`s rather than dataclasses, for two reasons: they are
made several times per request on the decision path (about six times cheaper to construct), and the event
log and the engine's frames are then encoded by the same definitions.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum

from msgspec import Struct

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000

LEVELS: tuple[float, ...] = (0.5, 0.9, 0.95, 0.99)
"""Fixed quantile levels of every prediction; a fifth column holds the model's own `slo_percentile`."""

SLO_COLUMN = len(LEVELS)
"""Column of the model's `slo_percentile` in any row of quantiles."""

Axes = tuple[tuple[str, int], ...]
"""Sizes of the dynamic axes other than the batch, sorted by axis name, for instance `(("seq", 64),)`."""


class JobClass(IntEnum):
    """Scheduling class; a smaller number is served first. V2 `priority` 1, 2, 3."""

    PROTECTED = 1
    STANDARD = 2
    BEST_EFFORT = 3


class OutcomeKind(StrEnum):
    """The one way a request ended."""

    OK = "ok"
    LATE = "late"
    REJECTED = "rejected"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Variant(Struct, frozen=True, gc=False):
    """(model, shape bucket): what is profiled and predicted as one thing."""

    model: str
    rows: int
    axes: Axes = ()

    @property
    def label(self) -> str:
        """Short text for tables and metrics, `bert_mini[4,seq=64]`."""
        sizes = [str(self.rows), *(f"{axis}={size}" for axis, size in self.axes)]
        return f"{self.model}[{','.join(sizes)}]"


class ModelSpec(Struct, frozen=True, kw_only=True):
    """What the scheduler must know of a servable model.

    `slo_ns` is None for a model without SLO, which is best effort. `row_buckets` is ascending and ends
    with `max_batch`; `axis_buckets` lists, per dynamic axis, its ascending declared sizes.
    """

    name: str
    slo_ns: int | None
    slo_percentile: float = 0.99
    job_class: JobClass = JobClass.STANDARD
    max_batch: int = 1
    row_buckets: tuple[int, ...] = (1,)
    axis_buckets: tuple[tuple[str, tuple[int, ...]], ...] = ()
    n_segments: int = 1

    def bucket(self, rows: int, axes: Axes = ()) -> Variant:
        """The smallest variant that holds `rows` rows; `axes` must already be bucket sizes."""
        for size in self.row_buckets:
            if rows <= size:
                return Variant(self.name, size, axes)
        raise ValueError(f"{rows} rows exceed max_batch {self.max_batch} of model {self.name!r}")

    def variants(self) -> tuple[Variant, ...]:
        """Every variant of the model, smallest axes first."""
        combos: list[Axes] = [()]
        for axis, sizes in self.axis_buckets:
            combos = [(*combo, (axis, size)) for combo in combos for size in sizes]
        return tuple(Variant(self.name, rows, axes) for axes in combos for rows in self.row_buckets)


class Request(Struct, frozen=True, kw_only=True, gc=False):
    """One inference as the scheduler sees it; tensors stay with the driver, keyed by `id`.

    `axes` are bucket sizes (the smallest buckets that hold the request). `deadline_at` is None when no
    deadline applies. `answer_ns` of the time until then is needed after the run, to send the answer.
    """

    id: str
    model: str
    arrived_at: int
    deadline_at: int | None
    rows: int = 1
    axes: Axes = ()
    job_class: JobClass = JobClass.STANDARD
    answer_ns: int = 0


# --- what a predictor sees and says ---------------------------------------------------------------


class Overlap(Struct, frozen=True, gc=False):
    """A stretch during which another dispatch, of `variant` on `lane` and `share`, ran beside the one that
    owns this record, having started at `started_at`; `lane` is -1 where it is not known, as `started_at` is
    None."""

    dispatch_id: int
    variant: Variant
    began_at: int
    ended_at: int | None
    lane: int = -1
    share: float = 1.0
    started_at: int | None = None


class InFlight(Struct, frozen=True, kw_only=True):
    """A dispatch that was handed to a lane and has not ended. `started_at` is None while staged.

    `segment, boundary_at` is the last segment boundary observed (the next segment to run and when the
    boundary was passed). Progress is derived from these by the predictor, never stored.
    """

    dispatch_id: int
    variant: Variant
    lane: int
    share: float
    decided_at: int
    started_at: int | None
    segment: int
    end_segment: int
    boundary_at: int | None
    overlaps: tuple[Overlap, ...] = ()


class Candidate(Struct, frozen=True, kw_only=True, gc=False):
    """A dispatch that might be made: `variant` on `lane`, starting at `start_at` (now or later)."""

    variant: Variant
    lane: int
    start_at: int
    share: float = 1.0
    first_segment: int = 0


class ModelLoad(Struct, frozen=True, kw_only=True, gc=False):
    """Online estimate of one model's traffic: rows per second, burstiness (CV of gaps), share of requests."""

    rate_per_s: float
    cv: float
    mix: float


class LaneUse(Struct, frozen=True, kw_only=True, gc=False):
    """Rate at which a lane that is idle is taken, and the chance that it is taken at once when it is
    freed."""

    lane: int
    fill_per_s: float
    refill: float


class LoadEstimate(Struct, frozen=True, kw_only=True):
    """What the load meter says at an instant. `refill` is the chance that a freed lane is refilled at once;
    `busy` the recent share of lanes in use (0..1); `fill_per_s` the rate at which an idle lane is taken;
    `span_ns` the mean span for which a lane is then in use; `variants` the mix of what is dispatched (shares
    that add up to 1, the most frequent first); `lanes` says it lane by lane, of those that were ever used."""

    models: dict[str, ModelLoad]
    refill: float
    busy: float
    fill_per_s: float = 0.0
    span_ns: float = 0.0
    variants: tuple[tuple[Variant, float], ...] = ()
    lanes: tuple[LaneUse, ...] = ()


class Snapshot(Struct, frozen=True, kw_only=True):
    """What a predictor may see at the instant `at`."""

    at: int
    in_flight: tuple[InFlight, ...]
    load: LoadEstimate | None = None


class Prediction(Struct, frozen=True, kw_only=True, gc=False):
    """Finish of one dispatch as quantiles: `finish_at[i]` is the instant by which it has ended with
    probability `LEVELS[i]`, and the last entry the one at the model's `slo_level`. Monotone in the level."""

    issued_at: int
    finish_at: tuple[int, ...]
    slo_level: float
    version: int
    corunners: int
    features: tuple[float, ...] = ()


class Observation(Struct, frozen=True, kw_only=True):
    """The predictions issued for a dispatch joined with what was measured; `predictions[0]` was issued at
    dispatch. Failed dispatches are not observed. `staged`: it waited behind another on its lane."""

    dispatch_id: int
    variant: Variant
    rows: int
    lane: int
    share: float
    decided_at: int
    started_at: int
    ended_at: int
    first_segment: int
    end_segment: int
    segment_ended_at: tuple[int, ...]
    predictions: tuple[Prediction, ...]
    overlaps: tuple[Overlap, ...]
    staged: bool = False

    @property
    def span_ns(self) -> int:
        """What the dispatch took: from the decision, hand-over included, or from its start when it was
        staged behind another."""
        return self.ended_at - (self.started_at if self.staged else self.decided_at)

    @property
    def preempted(self) -> bool:
        """Whether it stopped at a boundary before its end."""
        return 0 < len(self.segment_ended_at) < self.end_segment - self.first_segment


class Outcome(Struct, frozen=True, kw_only=True, gc=False):
    """How a request ended and what an explanation needs."""

    request: Request
    kind: OutcomeKind
    reason: str
    ended_at: int
    predicted_at: int | None = None
    dispatch_id: int | None = None
    dispatched_at: int | None = None
    started_at: int | None = None
    batch_rows: int = 0


# --- events: all that can happen to the scheduler --------------------------------------------------


class Arrival(Struct, frozen=True, tag=True, gc=False):
    """A request, and those that were taken in together with it: each is admitted in turn, then one plan is
    made for all."""

    request: Request
    others: tuple[Request, ...] = ()


class Started(Struct, frozen=True, tag=True, gc=False):
    """A staged dispatch began to run."""

    dispatch_id: int
    started_at: int


class Progress(Struct, frozen=True, tag=True, gc=False):
    """A running dispatch passed a boundary; `segment` is the next one. Informs, decides nothing."""

    dispatch_id: int
    segment: int
    passed_at: int


class Completion(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """A dispatch left its lane: done, preempted (`next_segment` set), or failed (`error` set).

    `lane_lost` says that the lane can take no work until a `Device` event brings it back."""

    dispatch_id: int
    lane: int
    started_at: int
    ended_at: int
    segment_ended_at: tuple[int, ...] = ()
    next_segment: int | None = None
    error: str | None = None
    lane_lost: bool = False


class Cancel(Struct, frozen=True, tag=True, gc=False):
    request_id: str
    reason: str = "cancelled by the client"


class Wakeup(Struct, frozen=True, tag=True, gc=False):
    """The instant that `next_wakeup()` asked for has come. `late_ns`: how late the driver's timers have been
    of late (ns, 0 in simulation); the scheduler allows that much less to wait."""

    late_ns: int = 0


class ModelVersion(Struct, frozen=True, tag=True, gc=False):
    """The predictor changed to `version`."""

    version: int


class Device(Struct, frozen=True, tag=True, gc=False):
    """`lane` is `lost` or `restarted`; or the device's `clocks` changed (lane None)."""

    change: str
    lane: int | None = None


class MaintenanceDone(Struct, frozen=True, tag=True, kw_only=True):
    """The end of a `Maintain`. A load that made a model servable brings its spec, its solo profiles as far
    as they are known, and what its users see of it (None in simulation)."""

    maintenance_id: int
    kind: str
    model: str
    error: str | None = None
    spec: ModelSpec | None = None
    profiles: tuple[SoloProfile, ...] = ()
    metadata: ModelMetadata | None = None


class Command(Struct, frozen=True, tag=True, gc=False):
    """The operator wants something: `load`, `unload`, `profile`, `probe` a model, or `drain` (refuse every
    arrival from now on, `model` empty)."""

    kind: str
    model: str = ""


class Respecified(Struct, frozen=True, tag=True, gc=False):
    """The operator gave a loaded model another SLO or class; its variants are as they were. Requests that
    have been admitted keep their deadlines."""

    spec: ModelSpec


Event = (
    Arrival
    | Started
    | Progress
    | Completion
    | Cancel
    | Wakeup
    | ModelVersion
    | Device
    | MaintenanceDone
    | Command
    | Respecified
)

EVENT_ORDER: dict[type, int] = {
    Completion: 0,
    Started: 1,
    Progress: 2,
    Device: 3,
    MaintenanceDone: 4,
    ModelVersion: 5,
    Command: 6,
    Respecified: 7,
    Cancel: 8,
    Arrival: 9,
    Wakeup: 10,
}
"""Ties are broken by (time, this order, sequence number): completions before arrivals."""


# --- actions: all that the scheduler can ask for ---------------------------------------------------


class Alternative(Struct, frozen=True, gc=False):
    """What could have run instead of what was chosen, due at `due_at` (None: no deadline), and why it does
    not."""

    variant: Variant
    due_at: int | None
    why: str


class Dispatch(Struct, frozen=True, tag=True, kw_only=True):
    """Run segments [first_segment, end_segment) of a batch on a lane, starting by `latest_start_at`. `why`
    and `alternatives` are the policy's."""

    id: int
    variant: Variant
    requests: tuple[Request, ...]
    rows: int
    lane: int
    share: float
    decided_at: int
    latest_start_at: int | None
    first_segment: int
    end_segment: int
    resumes: int | None = None
    prediction: Prediction
    snapshot: Snapshot
    why: str = ""
    alternatives: tuple[Alternative, ...] = ()


class Preempt(Struct, frozen=True, tag=True, gc=False):
    """Stop at the next segment boundary; the lane answers with a Completion that has `next_segment`."""

    dispatch_id: int


class Abort(Struct, frozen=True, tag=True, gc=False):
    """Withdraw a staged dispatch, or give up a running one. The lane answers with a Completion."""

    dispatch_id: int
    reason: str


class Settle(Struct, frozen=True, tag=True, gc=False):
    """The request has ended: tell whoever waits for it."""

    outcome: Outcome


class Observe(Struct, frozen=True, tag=True, gc=False):
    """Score what was issued, calibrate, learn, tell the observers: before the next event."""

    observation: Observation


class Maintain(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """Do scheduled work that is no request: `load`, `unload`, `profile` or `probe` a model."""

    id: int
    kind: str
    model: str
    lane: int | None = None


Action = Dispatch | Preempt | Abort | Settle | Observe | Maintain


# --- what a front end must know of a model ----------------------------------------------------------


class TensorSpec(Struct, frozen=True, kw_only=True):
    """One input or output. `datatype` is the V2 name (`FP32`, `INT64`, `BYTES` ...); in `shape` -1 is
    variable; `axes` names each dimension (`batch`, `seq`, ...), None where its size is fixed. `low, high`
    bound valid integer values (high exclusive) where the model states them. `labels`: what the elements of
    an output stand for, by index, where that is known."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    low: int | None = None
    high: int | None = None
    labels: tuple[str, ...] = ()


class SoloProfile(Struct, frozen=True, kw_only=True):
    """Measured solo latency of a variant on a share of the device, in ns.

    `quantiles_ns` pairs levels with spans, only for levels the `n_samples` can support."""

    variant: Variant
    share: float
    median_ns: int
    spread_ns: int
    n_samples: int
    quantiles_ns: tuple[tuple[float, int], ...] = ()


def model_of(name: str) -> str:
    """What clients call a model: its name without the version that one of a repository carries, `m@3`."""
    return name.partition("@")[0]


def version_of(name: str) -> str:
    """The version of a model by its name; a model of the configuration has version 1 alone."""
    return name.partition("@")[2] or "1"


class ModelMetadata(Struct, frozen=True, kw_only=True):
    """A servable model as its users see it. `name` is unique: each version of a model of a repository is one
    of its own (`model_of`, `version_of`). `batched`: the first dimension of every input is rows. `solo_ns`:
    measured median span at batch 1, None when nothing was measured. `memory_bytes`: what it takes of the
    device's memory, None where that is not known."""

    name: str
    platform: str
    versions: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batched: bool
    spec: ModelSpec
    solo_ns: int | None = None
    memory_bytes: int | None = None
