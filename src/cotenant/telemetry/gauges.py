"""What the engine is like at an instant: queues, runs, lanes and models, as gauges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from msgspec import Struct
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric

from cotenant.telemetry.tally import Exemplify


class ModelGauges(Struct, frozen=True, kw_only=True):
    """Of one configured model. `slo_level`: the level that its upper bound is held to; `slo_s`: its SLO."""

    ready: bool
    waiting: int = 0
    waiting_rows: int = 0
    running: int = 0
    running_requests: int = 0
    slo_level: float | None = None
    slo_s: float | None = None


class EngineGauges(Struct, frozen=True, kw_only=True):
    """Of the whole engine. `unanswered`: calls that wait or run."""

    models: Mapping[str, ModelGauges]
    lanes: int
    lanes_usable: int
    lanes_busy: int
    suspended: int
    unanswered: int
    accepting: bool
    predictor_version: int


class GaugePage:
    """Shows one set of gauges, and facts that do not change."""

    def __init__(self, gauges: EngineGauges, facts: Mapping[str, str]) -> None:
        self._gauges, self._facts = gauges, facts

    def collect(self, exemplar: Exemplify | None = None) -> Iterator[Metric]:
        """Every family."""
        yield InfoMetricFamily("cotenant_server", "Version, policy and device.", dict(self._facts))
        yield from self._of_engine()
        yield from self._of_models()

    def _of_engine(self) -> Iterator[Metric]:
        now = self._gauges
        rows = (
            ("cotenant_requests_unanswered", "Requests that wait or run.", now.unanswered),
            ("cotenant_accepting", "1 while requests are taken, 0 while draining.", int(now.accepting)),
            ("cotenant_lanes", "Lanes that the policy may use.", now.lanes),
            ("cotenant_lanes_usable", "Lanes that are not lost.", now.lanes_usable),
            ("cotenant_lanes_busy", "Lanes with something on them.", now.lanes_busy),
            ("cotenant_suspended_batches", "Batches stopped at a boundary.", now.suspended),
            ("cotenant_predictor_version", "Grows with all that is learned.", now.predictor_version),
        )
        for name, text, value in rows:
            yield GaugeMetricFamily(name, text, value)

    def _of_models(self) -> Iterator[Metric]:
        def family(name: str, text: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(name, text, labels=["model"])

        ready = family("cotenant_model_ready", "1 when the model can be asked.")
        waiting = family("cotenant_queue_requests", "Requests that wait.")
        rows = family("cotenant_queue_rows", "Rows of the requests that wait.")
        running = family("cotenant_runs_in_flight", "Dispatches that run or are staged.")
        inside = family("cotenant_requests_in_flight", "Requests in them.")
        level = family("cotenant_prediction_target", "Share of runs that its upper bound should cover.")
        slo = family("cotenant_slo_seconds", "Arrival to answer that the model promises.")
        for name, model in self._gauges.models.items():
            ready.add_metric([name], int(model.ready))
            waiting.add_metric([name], model.waiting)
            rows.add_metric([name], model.waiting_rows)
            running.add_metric([name], model.running)
            inside.add_metric([name], model.running_requests)
            if model.slo_level is not None:
                level.add_metric([name], model.slo_level)
            if model.slo_s is not None:
                slo.add_metric([name], model.slo_s)
        yield from (ready, waiting, rows, running, inside, level, slo)
