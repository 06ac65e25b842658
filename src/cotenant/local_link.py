"""The engine in the front end's own process, behind the same link as a remote one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from cotenant.clock import Clock
from cotenant.domain import ModelMetadata, Outcome
from cotenant.engine import Engine, ModelCounts
from cotenant.engine_client import Absence, Call, ModelStatistics, ModelStatus, Reply
from cotenant.ports import Tensors

DRAINING = Absence(reason="the server is draining")


Page = tuple[bytes, str]


async def no_page(accept: str) -> Page:
    """Where nobody asks for metrics."""
    return b"", "text/plain"


class ModelControl(Protocol):
    """Loads and unloads models by the names that clients know; `done(error)` on the engine's event loop."""

    def load(self, name: str, done: Callable[[str | None], None]) -> None: ...

    def unload(self, name: str, done: Callable[[str | None], None]) -> None: ...


class EngineControl:
    """The `ModelControl` of an engine whose models are those of its configuration."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def load(self, name: str, done: Callable[[str | None], None]) -> None:
        self._engine.maintain("load", name, done)

    def unload(self, name: str, done: Callable[[str | None], None]) -> None:
        self._engine.maintain("unload", name, done)


class LocalLink:
    """Implements `EngineLink` on an engine that runs on the same event loop. `page` renders its metrics."""

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        page: Callable[[str], Awaitable[Page]] = no_page,
        on_refused: Callable[[str, str], None] = lambda model, reason: None,
        control: ModelControl | None = None,
    ) -> None:
        """`control`: what loads and unloads models; the engine itself where they are all configured."""
        self._engine = engine
        self._page = page
        self.refused = on_refused
        control = control or EngineControl(engine)
        self.load, self.unload = control.load, control.unload
        self.now = clock.now

    def submit(self, call: Call, reply: Callable[[Reply], None]) -> None:
        def answer(outcome: Outcome, outputs: Tensors | None) -> None:
            reply(Reply(outcome=outcome, outputs=outputs))

        self._engine.submit(
            call_id=call.id,
            model=call.model,
            inputs=call.inputs,
            rows=call.rows,
            axes=call.axes,
            arrived_at=call.arrived_at,
            slo_ns=call.slo_ns,
            priority=call.priority,
            answer_ns=call.answer_ns,
            reply=answer,
        )

    def cancel(self, call_id: str) -> None:
        self._engine.cancel(call_id)

    def metadata(self) -> Mapping[str, ModelMetadata]:
        return self._engine.models

    def status(self) -> Sequence[ModelStatus]:
        return [
            ModelStatus(name=name, state=found.state, reason=found.reason)
            for name, found in self._engine.states.items()
        ]

    async def statistics(self) -> Sequence[ModelStatistics]:
        self._engine.catch_up()
        return [_statistics(name, counts) for name, counts in self._engine.counts.items()]

    async def metrics(self, accept: str = "") -> Page:
        return await self._page(accept)

    def answered(self, call_id: str, span_ns: int) -> None:
        self._engine.answered(call_id, span_ns)

    def absence(self) -> Absence | None:
        return None if self._engine.accepting else DRAINING

    async def explain(self, call_id: str) -> dict[str, Any] | None:
        return self._engine.explain(call_id)


def _statistics(name: str, counts: ModelCounts) -> ModelStatistics:
    return ModelStatistics(
        name=name,
        last_inference_ms=counts.last_inference_ms,
        inference_count=counts.n_rows,
        execution_count=counts.n_runs,
        success=counts.success,
        fail=counts.fail,
        queue=counts.queue,
        compute=counts.compute,
        batches=[(rows, n, total) for rows, (n, total) in sorted(counts.batches.items())],
    )
