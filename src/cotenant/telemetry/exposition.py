"""Pages of metrics: Prometheus' text, or OpenMetrics with exemplars where the client accepts it.

May run on any thread: to write a large page takes tens of milliseconds, which whoever decides does not have.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from prometheus_client import PlatformCollector, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.samples import Exemplar, Timestamp

from cotenant.clock import MonotonicClock, wall_time_s
from cotenant.domain import NS_PER_S
from cotenant.telemetry.tally import Exemplify

OPENMETRICS = "application/openmetrics-text"
LONGEST_ID = 70
"""Characters of an id that are shown: OpenMetrics allows 128 for all labels of an exemplar."""
TRACED = re.compile(r"-([0-9a-f]{32})(?:-[0-9a-f]{16})?\Z")
"""The id of a traced request ends with the id of its trace."""


class Source(Protocol):
    """Metrics to show."""

    def collect(self, exemplar: Exemplify | None = None) -> Iterable[Metric]:
        """Every family; `exemplar` is given where exemplars can be shown."""
        ...


class _All:
    """What the library's encoders take for a registry."""

    def __init__(self, sources: Sequence[Source], exemplar: Exemplify | None) -> None:
        self._sources, self._exemplar = sources, exemplar

    def collect(self) -> Iterator[Metric]:
        """Called once by an encoder."""
        for source in self._sources:
            yield from source.collect(self._exemplar)


def page(sources: Sequence[Source], accept: str = "") -> tuple[bytes, str]:
    """The page of some sources and its content type, for a client that accepts `accept`."""
    encoder, content_type = choose_encoder(accept)
    opened = content_type.startswith(OPENMETRICS)
    return encoder(_All(sources, _exemplars() if opened else None)), content_type


def _exemplars() -> Exemplify:
    """Exemplars with the wall-clock time of each."""
    offset_s = wall_time_s() - MonotonicClock.now() / NS_PER_S

    def exemplar(request_id: str, value: float, at: int) -> Exemplar:
        traced = TRACED.search(request_id)
        labels = {"trace_id": traced[1]} if traced else {}
        labels["request_id"] = request_id[:LONGEST_ID]
        return Exemplar(labels, value, Timestamp(offset_s + at / NS_PER_S, 0))

    return exemplar


class ProcessMetrics:
    """CPU time, memory, open files and start of this process, and its interpreter."""

    def __init__(self) -> None:
        self._collectors = (ProcessCollector(registry=None), PlatformCollector(registry=None))

    def collect(self, exemplar: Exemplify | None = None) -> Iterator[Metric]:
        """Read from the system, now."""
        for collector in self._collectors:
            yield from collector.collect()
