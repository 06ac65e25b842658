"""What a host shows of its engine: a page of metrics, with counters, gauges and its process."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from cotenant import __version__
from cotenant.assemble import Prepared
from cotenant.domain import NS_PER_S, ModelSpec
from cotenant.engine import READY, Engine
from cotenant.ports import Observer
from cotenant.telemetry.exposition import ProcessMetrics, Source, page
from cotenant.telemetry.gauges import EngineGauges, GaugePage, ModelGauges
from cotenant.telemetry.gpu_metrics import GpuMetrics, open_nvml
from cotenant.telemetry.logs import Logger
from cotenant.telemetry.metrics import Metrics
from cotenant.telemetry.slow_store import SlowWriter
from cotenant.telemetry.triton_metrics import TritonMetrics, TritonPage, as_named

_LOG = Logger("engine")


class MetricsOfEngine:
    """Made before the engine, whose observers it provides; `watch` it afterwards."""

    def __init__(self, facts: Mapping[str, str], *, triton: bool = False) -> None:
        """`facts`: see `facts_of`; `triton`: whether there are Triton's names too."""
        self._facts = facts
        nvml = open_nvml() if facts.get("device_kind") == "cuda" else None
        self._gpus = [GpuMetrics(nvml, triton=triton)] if nvml is not None else []
        self._metrics = Metrics()
        self._triton = TritonMetrics() if triton else None
        self._process = ProcessMetrics()
        self._engine: Engine | None = None

    @property
    def observers(self) -> Sequence[Observer]:
        """What the engine has to tell."""
        return [self._metrics] if self._triton is None else [self._metrics, self._triton]

    def refused(self, model: str, reason: str) -> None:
        """Count what a front end refused before the engine saw it; "" for the model: for its key."""
        if model:
            self._metrics.refused(model, reason)
        else:
            self._metrics.denied(reason)

    def watch(self, engine: Engine) -> None:
        """The engine whose metrics these are."""
        self._engine = engine
        self._metrics.solo = engine.scheduler.view.predictor.prior
        if self._triton is not None:
            models = engine.models
            self._triton.version_of = lambda model: models[model].versions[-1] if model in models else "1"

    async def render(self, accept: str = "") -> tuple[bytes, str]:
        """The page and its content type, for a client that accepts `accept`. Called on the engine's loop,
        which the writing of the page does not hold up."""
        engine = self._engine
        assert engine is not None, "watch() first"
        engine.catch_up()
        return await asyncio.to_thread(self._write, gauges_of(engine), accept)

    def _write(self, gauges: EngineGauges, accept: str) -> tuple[bytes, str]:
        sources: list[Source] = [
            self._metrics.tally,
            GaugePage(gauges, self._facts),
            self._process,
            *self._gpus,
        ]
        if self._triton is None:
            return page(sources, accept)
        body, content_type = page([*sources, TritonPage(self._triton, gauges)], accept)
        return as_named(body), content_type


class Observing:
    """What a host does with what its engine tells: metrics, and explanations of slow requests on disk. Made
    before the engine; `watch` it afterwards."""

    def __init__(self, prepared: Prepared, policy: str, slow_path: Path | None) -> None:
        """`slow_path`: where explanations are kept, if anywhere."""
        triton = prepared.scenario.server.triton_metrics
        self.metrics = MetricsOfEngine(facts_of(prepared, policy), triton=triton)
        self._slow = SlowWriter(slow_path, _complain) if slow_path else None
        self.told_slow = [self._slow.put] if self._slow else []
        """For `make_engine`."""

    def close(self) -> None:
        """Write what is left."""
        if self._slow is not None:
            self._slow.close()


def _complain(message: str) -> None:
    _LOG.warning("slow_requests.not_kept", message)


def facts_of(prepared: Prepared, policy: str) -> Mapping[str, str]:
    """What does not change while a server runs."""
    device = prepared.device
    return {
        "version": __version__,
        "policy": policy,
        "device": device.name,
        "device_kind": device.kind,
        "fingerprint": device.digest,
    }


def gauges_of(engine: Engine) -> EngineGauges:
    """The engine as it is now. Called on its loop."""
    view = engine.scheduler.view
    running: dict[str, tuple[int, int]] = {}
    for flight in view.flights.values():
        runs, requests = running.get(flight.dispatch.variant.model, (0, 0))
        counted = (runs + 1, requests + len(flight.dispatch.requests))
        running[flight.dispatch.variant.model] = counted
    models = {
        name: _of_model(engine, name, running.get(name, (0, 0)), view.specs.get(name))
        for name in engine.states
    }
    return EngineGauges(
        models=models,
        lanes=len(view.lanes),
        lanes_usable=sum(lane.usable for lane in view.lanes),
        lanes_busy=sum(bool(lane.flights) for lane in view.lanes),
        suspended=len(view.suspended),
        unanswered=engine.n_unanswered,
        accepting=engine.accepting,
        predictor_version=view.predictor.version,
    )


def _of_model(engine: Engine, name: str, running: tuple[int, int], spec: ModelSpec | None) -> ModelGauges:
    queue = engine.scheduler.view.queues.get(name)
    return ModelGauges(
        ready=engine.states[name] == READY,
        waiting=0 if queue is None else len(queue),
        waiting_rows=0 if queue is None else queue.rows,
        running=running[0],
        running_requests=running[1],
        slo_level=None if spec is None else spec.slo_percentile,
        slo_s=None if spec is None or spec.slo_ns is None else spec.slo_ns / NS_PER_S,
    )
