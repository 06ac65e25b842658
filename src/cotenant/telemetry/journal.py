"""Remembers how recent requests went, and a sample of the slow ones for longer.

How this works. The deciding thread only puts references into bounded tables: what was dispatched, what ended,
what was observed. They are joined by dispatch id when somebody asks; those of slow requests are copied a
moment later and joined elsewhere. So a request that nobody asks about costs a few dictionary entries.
"""

from __future__ import annotations

import re
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

import msgspec
from msgspec import structs

from cotenant.domain import NS_PER_MS, NS_PER_S, Dispatch, Observation, Outcome, OutcomeKind, Request, Variant
from cotenant.ports import Timers
from cotenant.telemetry.explanation import FORGOTTEN, UNKNOWN, Explanation
from cotenant.telemetry.joining import Known, explained, in_progress
from cotenant.telemetry.remembered import Run
from cotenant.telemetry.slow import SlowSampler

RECENT = 4096
"""Requests, and runs, that are remembered."""
SLOW_KEPT = 1024
"""Slow requests whose explanation is kept in memory."""
IN_FLIGHT = 1024
"""Dispatches that have not ended."""
SETTLED_NS = 250 * NS_PER_MS
"""How long after its end a slow request is explained (ns): by then its run is observed and it is answered."""
MADE_AT = re.compile(r"[0-9a-f]{1,16}(?=(?:-[0-9a-f]{1,16}){1,2}(-[0-9a-f]{32})?(-[0-9a-f]{16})?\Z)")
"""Ids begin with the instant at which they were made."""

Sink = Callable[[Explanation], None]


class Journal:
    """One per engine; every method is called on the deciding thread and none blocks.

    `solo`: measured span (ns) of a variant, KeyError when it is unknown. `sinks` are told every slow request
    that is sampled, a moment after it has ended; without `timers` none is. `elsewhere` runs what takes long,
    sinks included, on one other thread; without it that is done at once."""

    def __init__(
        self,
        *,
        n_lanes: int,
        solo: Callable[[Variant], int],
        now: Callable[[], int],
        wall_s: Callable[[], float],
        timers: Timers | None = None,
        sinks: Sequence[Sink] = (),
        elsewhere: Callable[[Callable[[], None]], object] = lambda work: work(),
        sampler: SlowSampler | None = None,
        recent: int = RECENT,
    ) -> None:
        self._n_lanes, self._solo, self._now, self._wall_s = n_lanes, solo, now, wall_s
        self._timers, self._sinks = timers, tuple(sinks)
        self._elsewhere = elsewhere
        self._sampler = sampler or SlowSampler()
        self._began_at = now()
        self._n_recent = recent
        self._ended: OrderedDict[str, tuple[Outcome, int]] = OrderedDict()
        self._answer_ns: dict[str, int] = {}
        self._dispatched: dict[int, Dispatch] = {}
        self._runs: dict[int, Run] = {}
        self._order: deque[Run] = deque()
        self._due: deque[tuple[Outcome, int]] = deque()
        self._slow: OrderedDict[str, bytes] = OrderedDict()
        self._call_off: Callable[[], None] | None = None

    # --- what happens -------------------------------------------------------------------------------------

    def dispatched(self, dispatch: Dispatch) -> None:
        """A dispatch was handed to its lane."""
        self._dispatched[dispatch.id] = dispatch
        if len(self._dispatched) > IN_FLIGHT:
            del self._dispatched[next(iter(self._dispatched))]

    def ended(self, outcome: Outcome, taken_at: int) -> None:
        """A request has ended, which the scheduler was offered at `taken_at` (ns)."""
        ended = self._ended
        ended[outcome.request.id] = (outcome, taken_at)
        if len(ended) > self._n_recent:
            gone, _ = ended.popitem(last=False)
            self._answer_ns.pop(gone, None)
        if outcome.kind is OutcomeKind.FAILED and outcome.dispatch_id in self._dispatched:
            self._remember(Run.failed(self._dispatched.pop(outcome.dispatch_id), outcome))
        if self._sampler.takes(outcome) and self._timers is not None:
            self._due.append((outcome, taken_at))
            if self._call_off is None:
                self._call_off = self._timers.call_at(self._now() + SETTLED_NS, self._look_into_slow)

    def answered(self, call_id: str, span_ns: int) -> None:
        """The answer was sent so long (ns) after the run had ended."""
        if call_id in self._ended:
            self._answer_ns[call_id] = span_ns

    def observed(self, observation: Observation) -> None:
        """A dispatch has ended and was measured. Off the decision path: with what is learned of it."""
        dispatch = self._dispatched.pop(observation.dispatch_id, None)
        if dispatch is not None:
            self._remember(Run.of(dispatch, observation))

    def _remember(self, run: Run) -> None:
        self._runs[run.id] = run
        self._order.append(run)
        if len(self._order) > self._n_recent:
            del self._runs[self._order.popleft().id]

    # --- what is asked ------------------------------------------------------------------------------------

    def explain(self, call_id: str) -> Explanation:
        """All that is known of a request that has ended; its `state` and `sentence` say so where that is
        nothing."""
        found = self._ended.get(call_id)
        if found is not None:
            return explained(*found, self._answer_ns.get(call_id), self._known())
        kept = self._slow.get(call_id)
        if kept is not None:
            return _DECODER.decode(kept)
        return self._nothing(call_id)

    def unfinished(
        self, request: Request, taken_at: int, dispatch: Dispatch | None, n_ahead: int | None
    ) -> Explanation:
        """Of a request that waits behind `n_ahead` of its model, runs in `dispatch`, or has been stopped."""
        return in_progress(request, taken_at, dispatch, n_ahead, self._known())

    def close(self) -> None:
        """Have the slow requests explained that are left; none is from now on. Idempotent."""
        self._timers = None
        if self._call_off is not None:
            self._call_off()
            self._look_into_slow()

    def _known(self) -> Known:
        return Known(
            runs=self._runs,
            in_order=self._order,
            in_flight=self._dispatched,
            n_lanes=self._n_lanes,
            solo=self._solo,
            now=self._now(),
            wall_s=self._wall_s(),
        )

    def _look_into_slow(self) -> None:
        self._call_off = None
        due = [(*entry, self._answer_ns.get(entry[0].request.id)) for entry in self._due]
        self._due.clear()
        known = structs.replace(
            self._known(),
            runs=dict(self._runs),
            in_order=list(self._order),
            in_flight=dict(self._dispatched),
        )
        self._elsewhere(lambda: self._explain_slow(due, known))

    def _explain_slow(self, due: Sequence[tuple[Outcome, int, int | None]], known: Known) -> None:
        for outcome, taken_at, answer_ns in due:
            told = explained(outcome, taken_at, answer_ns, known)
            self._slow[told.id] = _ENCODER.encode(told)
            if len(self._slow) > SLOW_KEPT:
                self._slow.popitem(last=False)
            for sink in self._sinks:
                sink(told)

    def _nothing(self, call_id: str) -> Explanation:
        made = MADE_AT.match(call_id)
        made_at = int(made[0], 16) if made else None
        now = self._now()
        oldest_at = next(iter(self._ended.values()))[0].request.arrived_at if self._ended else now
        shown = f"'{call_id:.100}'"
        if made_at is None or made_at > now or oldest_at <= made_at:
            text = f"no request {shown} is known; give the x-request-id of an answer of this server"
            return Explanation(id=call_id, state=UNKNOWN, sentence=text)
        age_s, reach_s = (now - made_at) / NS_PER_S, (now - oldest_at) / NS_PER_S
        if made_at < self._began_at:
            text = (
                f"request {shown} came {age_s:.0f} s ago, before this server started; what was kept of slow "
                "requests is in the store: `cotenant explain ID --store DIR`"
            )
        else:
            text = (
                f"request {shown} is no longer remembered: it came {age_s:.1f} s ago, and the last "
                f"{len(self._ended)} requests, which go back {reach_s:.1f} s, and a sample of slow "
                "ones are kept"
            )
        return Explanation(id=call_id, state=FORGOTTEN, sentence=text)


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Explanation)
