"""What happens inside the engine, told in the log: failed runs with their details, lanes, models, slow
requests. Lines that a client can cause are bounded per second; the next one says how many were left out."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

from cotenant.domain import NS_PER_MS, Completion, Device, Dispatch, MaintenanceDone
from cotenant.telemetry.explanation import Explanation
from cotenant.telemetry.logs import Logger
from cotenant.telemetry.slow import Allowance

PER_S = 1.0
"""Lines per second of one event and model ..."""
BURST = 10
"""... and at once."""
IDS = 5
"""Request ids that a failed run names."""

_LOG = Logger("engine")


class Reports:
    """One per engine. Nothing here blocks."""

    def __init__(self, now: Callable[[], int]) -> None:
        self._now = now
        self._allowances: dict[tuple[str, str], Allowance] = {}
        self._left_out: dict[tuple[str, str], int] = {}

    def run_failed(self, dispatch: Dispatch, completion: Completion) -> None:
        """A run ended with an error: all that clients are not told."""
        left_out = self._take("run.failed", dispatch.variant.model)
        if left_out is None:
            return
        _LOG.error(
            "run.failed",
            completion.error or "no reason given",
            model=dispatch.variant.model,
            variant=dispatch.variant.label,
            dispatch=dispatch.id,
            lane=completion.lane,
            lane_lost=completion.lane_lost,
            run_ms=round((completion.ended_at - completion.started_at) / NS_PER_MS, 3),
            n_requests=len(dispatch.requests),
            request_id=dispatch.requests[0].id if dispatch.requests else None,
            request_ids=" ".join(request.id for request in dispatch.requests[:IDS]),
            left_out=left_out or None,
        )

    def device(self, event: Device) -> None:
        """A lane was lost or came back, or clocks changed."""
        log = _LOG.info if event.change == "restarted" else _LOG.warning
        what = "the device" if event.lane is None else f"lane {event.lane}"
        log(f"device.{event.change}", f"{what}: {event.change}", lane=event.lane)

    def model(self, event: MaintenanceDone) -> None:
        """A model was loaded, unloaded, profiled or probed, or could not be."""
        if event.error is None:
            _LOG.info(f"model.{event.kind}", f"{event.kind} of {event.model} is done", model=event.model)
        else:
            message = f"{event.kind} of {event.model} failed: {event.error}"
            _LOG.error(f"model.{event.kind}_failed", message, model=event.model)

    def joined(self, work: Future[None]) -> None:
        """Slow requests were looked into, or that went wrong."""
        error = work.exception()
        if error is not None:
            _LOG.error("explain.failed", f"slow requests could not be explained: {error!r}")

    def slow(self, told: Explanation) -> None:
        """A slow request, one of those that are sampled."""
        _LOG.info(
            "request.slow",
            told.sentence,
            request_id=told.id,
            model=told.model,
            outcome=told.outcome,
            total_ms=told.ended_ms,
            deadline_ms=told.deadline_ms,
            queue_ms=told.queue_ms,
            run_ms=told.run_ms,
            predicted_ms=told.predicted_ms,
            slowdown=told.slowdown,
            batch_rows=told.batch_rows,
            lane=told.lane,
        )

    def _take(self, event: str, model: str) -> int | None:
        """How many lines were left out since the last one; None when this one is left out too."""
        key, at = (event, model), self._now()
        allowance = self._allowances.get(key)
        if allowance is None:
            allowance = self._allowances[key] = Allowance(PER_S, BURST, at)
        if allowance.take(at):
            return self._left_out.pop(key, 0)
        self._left_out[key] = self._left_out.get(key, 0) + 1
        return None
