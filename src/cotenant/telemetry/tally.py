"""Counters, histograms and summaries that cost a fraction of a microsecond, exported by `prometheus_client`.

How this works. Its own metric objects take a lock and look at every bucket: 20 us per request on the thread
that decides. Here a child is plain numbers, changed by one thread; the library is handed families of them
when somebody scrapes: on any thread, since a reader sees each number as it was a moment ago.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Generic, TypeVar

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

Exemplify = Callable[[str, float, int], Exemplar]
"""From a request's id, its value and the instant (ns)."""


class Count:
    """A sum that only grows; as a gauge, a value."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Add to it."""
        self.value += amount

    def add_to(self, family: Any, values: Sequence[str], exemplar: Exemplify | None = None) -> None:
        """Export it with these values of labels."""
        family.add_metric(values, self.value)


class Spread:
    """How many values fell into each bucket (upper bounds inclusive), and their sum; of each bucket the last
    value that came with an example: (request id, value, instant in ns)."""

    __slots__ = ("bounds", "counts", "examples", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self.examples: list[tuple[str, float, int] | None] = [None] * len(self.counts)

    def observe(self, value: float) -> None:
        """Take in a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def observe_of(self, value: float, request_id: str, at: int) -> None:
        """Take in a value of a request, at an instant (ns)."""
        index = bisect_left(self.bounds, value)
        self.counts[index] += 1
        self.total += value
        self.examples[index] = (request_id, value, at)

    def add_to(self, family: Any, values: Sequence[str], exemplar: Exemplify | None = None) -> None:
        """Export it with these values of labels; `exemplar` makes exemplars of examples."""
        ends = [*map(floatToGoString, self.bounds), "+Inf"]
        sums = list(map(float, accumulate(list(self.counts))))
        if exemplar is None or not any(self.examples):
            family.add_metric(values, list(zip(ends, sums, strict=True)), self.total)
            return
        shown = [None if example is None else exemplar(*example) for example in self.examples]
        family.add_metric(values, list(zip(ends, sums, shown, strict=True)), self.total)


class Mean:
    """How many values there were, and their sum."""

    __slots__ = ("n", "total")

    def __init__(self) -> None:
        self.n, self.total = 0, 0.0

    def observe(self, value: float) -> None:
        """Take in a value."""
        self.n += 1
        self.total += value

    def add_to(self, family: Any, values: Sequence[str], exemplar: Exemplify | None = None) -> None:
        """Export it with these values of labels."""
        family.add_metric(values, self.n, self.total)


Child = TypeVar("Child", Count, Spread, Mean)


class Family(Generic[Child]):
    """Children of one metric by the values of its labels; without labels there is one from the start."""

    def __init__(
        self, labels: tuple[str, ...], make: Callable[[], Child], export: Callable[[], Metric]
    ) -> None:
        self._labels, self._export = labels, export
        self._make: Callable[[], Child] = make
        self._children: dict[tuple[str, ...], Child] = {}
        if not labels:
            self.labels()

    def labels(self, *values: str) -> Child:
        """The child with these values. Hold on to it where it is used often."""
        child = self._children.get(values)
        if child is None:
            assert len(values) == len(self._labels), f"expected values of {self._labels}, got {values}"
            child = self._children[values] = self._make()
        return child

    def collect(self, exemplar: Exemplify | None = None) -> Metric:
        """As the library exports it."""
        family = self._export()
        for values, child in list(self._children.items()):
            child.add_to(family, values, exemplar)
        return family


class Tally:
    """Families in the order in which they were made."""

    def __init__(self) -> None:
        self._families: list[Family[Count] | Family[Spread] | Family[Mean]] = []

    def counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Family[Count]:
        """A counter; `_total` is added to its name."""
        family = Family(labels, Count, lambda: CounterMetricFamily(name, text, labels=labels))
        self._families.append(family)
        return family

    def histogram(
        self, name: str, text: str, labels: tuple[str, ...], bounds: Sequence[float]
    ) -> Family[Spread]:
        """A histogram with these upper bounds, ascending, and infinity."""
        family = Family(
            labels, lambda: Spread(bounds), lambda: HistogramMetricFamily(name, text, labels=labels)
        )
        self._families.append(family)
        return family

    def gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Family[Count]:
        """A value that goes up and down: set `value` of its children."""
        family = Family(labels, Count, lambda: GaugeMetricFamily(name, text, labels=labels))
        self._families.append(family)
        return family

    def summary(self, name: str, text: str) -> Family[Mean]:
        """Number and sum of values, without labels."""
        family = Family((), Mean, lambda: SummaryMetricFamily(name, text))
        self._families.append(family)
        return family

    def collect(self, exemplar: Exemplify | None = None) -> Iterator[Metric]:
        """Every family, as it is now; with exemplars where they are wanted."""
        for family in self._families:
            yield family.collect(exemplar)
