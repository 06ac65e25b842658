"""An engine in memory, for tests of the front end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cotenant.clock import MonotonicClock, wall_time_s
from cotenant.domain import (
    NS_PER_S,
    JobClass,
    ModelMetadata,
    ModelSpec,
    Outcome,
    OutcomeKind,
    Request,
    TensorSpec,
)
from cotenant.engine_client import Absence, Call, ModelStatistics, ModelStatus, Reply

ECHO = ModelMetadata(
    name="echo",
    platform="onnxruntime_onnx",
    versions=("1",),
    inputs=(TensorSpec(name="input", datatype="FP32", shape=(-1, 16), axes=("batch", None)),),
    outputs=(TensorSpec(name="output", datatype="FP32", shape=(-1, 16), axes=("batch", None)),),
    batched=True,
    spec=ModelSpec(name="echo", slo_ns=NS_PER_S, max_batch=8, row_buckets=(1, 2, 4, 8)),
)
"""16 floats in, the same out."""


class EchoLink:
    """An engine in memory, an `EngineLink`: output i of a model is its input i.

    It answers on the next turn of the event loop. `next_outcome` (and `next_reason`, `next_predicted_ns`)
    decides how the next call ends; `hang_next` leaves it unanswered until it is cancelled or `release()`d.
    `control_error` is what loading a model ends with. A call that breaks the contract of `Call` raises
    AssertionError.
    """

    def __init__(self, *models: ModelMetadata) -> None:
        self._models = {model.name: model for model in models or (ECHO,)}
        self._configured = dict(self._models)
        self._waiting: dict[str, tuple[Call, Callable[[Reply], None]]] = {}
        self._counts: dict[str, list[int]] = {name: [0, 0, 0] for name in self._models}
        self.now = MonotonicClock.now
        self.next_outcome = OutcomeKind.OK
        self.next_reason = ""
        self.next_predicted_ns: int | None = None
        self.hang_next = False
        self.draining = False
        self.control_error: str | None = None
        self.calls: list[Call] = []
        self.cancelled: list[str] = []

    def submit(self, call: Call, reply: Callable[[Reply], None]) -> None:
        """Answer soon, as told."""
        self._check(call)
        self.calls.append(call)
        if self.hang_next:
            self.hang_next = False
            self._waiting[call.id] = (call, reply)
            return
        kind, self.next_outcome = self.next_outcome, OutcomeKind.OK
        reason, self.next_reason = self.next_reason, ""
        predicted_ns, self.next_predicted_ns = self.next_predicted_ns, None
        answer = self._reply(call, kind, reason, predicted_ns)
        asyncio.get_running_loop().call_soon(reply, answer)

    def cancel(self, call_id: str) -> None:
        """End a hanging call as cancelled; one that has ended is not touched."""
        self.cancelled.append(call_id)
        waiting = self._waiting.pop(call_id, None)
        if waiting is not None:
            call, reply = waiting
            reply(self._reply(call, OutcomeKind.CANCELLED, "cancelled by the client", None))

    def release(self) -> None:
        """Answer every hanging call. Call it on the event loop."""
        for call, reply in self._waiting.values():
            reply(self._reply(call, OutcomeKind.OK, "", None))
        self._waiting.clear()

    @property
    def n_waiting(self) -> int:
        """How many calls hang."""
        return len(self._waiting)

    def metadata(self) -> Mapping[str, ModelMetadata]:
        return self._models

    def status(self) -> Sequence[ModelStatus]:
        return [
            ModelStatus(name=name, state="READY" if name in self._models else "UNAVAILABLE")
            for name in self._configured
        ]

    async def statistics(self) -> Sequence[ModelStatistics]:
        return [
            ModelStatistics(
                name=name,
                last_inference_ms=int(wall_time_s() * 1000),
                inference_count=n_rows,
                execution_count=n_ok,
                success=(n_ok, 0),
                fail=(n_failed, 0),
                queue=(n_ok, 0),
                compute=(n_ok, 0),
                batches=((1, n_ok, 0),) if n_ok else (),
            )
            for name, (n_ok, n_failed, n_rows) in self._counts.items()
        ]

    async def metrics(self, accept: str = "") -> tuple[bytes, str]:
        return b"", "text/plain"

    def answered(self, call_id: str, span_ns: int) -> None: ...

    def refused(self, model: str, reason: str) -> None: ...

    def load(self, name: str, done: Callable[[str | None], None]) -> None:
        if self.control_error is not None:
            done(self.control_error)
            return
        if name in self._configured:
            self._models[name] = self._configured[name]
        done(None if name in self._configured else "no such model")

    def unload(self, name: str, done: Callable[[str | None], None]) -> None:
        done(None if self._models.pop(name, None) else "not loaded")

    def absence(self) -> Absence | None:
        return Absence(reason="the server is draining") if self.draining else None

    async def explain(self, call_id: str) -> dict[str, Any] | None:
        for call in self.calls:
            if call.id == call_id:
                return {"request_id": call.id, "model": call.model, "rows": call.rows}
        return None

    def _check(self, call: Call) -> None:
        model = self._models[call.model]
        assert set(call.inputs) == {spec.name for spec in model.inputs}
        assert 1 <= call.rows <= model.spec.max_batch
        for array in call.inputs.values():
            assert isinstance(array, np.ndarray)
            assert array.flags.c_contiguous
            assert array.flags.aligned
            assert not model.batched or array.shape[0] == call.rows

    def _reply(self, call: Call, kind: OutcomeKind, reason: str, predicted_ns: int | None) -> Reply:
        model = self._models[call.model]
        answered = kind in (OutcomeKind.OK, OutcomeKind.LATE)
        counts = self._counts[call.model]
        counts[0 if answered else 1] += 1
        slo_ns = call.slo_ns or model.spec.slo_ns
        outcome = Outcome(
            request=Request(
                id=call.id,
                model=call.model,
                arrived_at=call.arrived_at,
                deadline_at=None if slo_ns is None else call.arrived_at + slo_ns,
                rows=call.rows,
                axes=call.axes,
                job_class=JobClass.STANDARD,
            ),
            kind=kind,
            reason=reason,
            ended_at=self.now(),
            predicted_at=None if predicted_ns is None else call.arrived_at + predicted_ns,
        )
        if not answered:
            return Reply(outcome=outcome)
        counts[2] += call.rows
        pairs = zip(model.inputs, model.outputs, strict=True)
        return Reply(outcome=outcome, outputs={to.name: call.inputs[of.name] for of, to in pairs})
