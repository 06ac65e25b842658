"""The load meter: rate, burstiness and mix of every model, and how often a freed lane is refilled, online.

Rates are exponentially weighted counts with a time constant of 5 s, corrected for the short start. Burstiness
is the coefficient of variation of the gaps. Deterministic in the calls; nothing is sampled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cotenant.domain import NS_PER_MS, NS_PER_S, LoadEstimate, ModelLoad, Request

TIME_CONSTANT_S = 5.0
REFILL_WINDOW_NS = NS_PER_MS
"""A lane taken again within this time of being freed counts as refilled at once (ns)."""
STALE_NS = 200 * NS_PER_MS
STALE_ARRIVALS = 128


@dataclass(slots=True)
class _Meter:
    """Decayed counts of one model."""

    first_at: int
    last_at: int
    weight: float = 0.0
    gap: float = 0.0
    gap_squared: float = 0.0
    n: int = 0


class OnlineLoadMeter:
    """Implements the `LoadMeter` port."""

    def __init__(self) -> None:
        self._meters: dict[str, _Meter] = {}
        self._busy = 0.0
        self._busy_now = 0.0
        self._busy_at = 0
        self._n_busy = 0
        self._freed_at: int | None = None
        self._refill = 0.0
        self._cached: LoadEstimate | None = None
        self._cached_at = 0
        self._n_since = 0

    def arrived(self, request: Request) -> None:
        at = request.arrived_at
        self._n_since += 1
        meter = self._meters.get(request.model)
        if meter is None:
            self._meters[request.model] = _Meter(at, at, weight=float(request.rows), n=1)
            return
        gap_s = max(0, at - meter.last_at) / NS_PER_S
        meter.weight = meter.weight * math.exp(-gap_s / TIME_CONSTANT_S) + request.rows
        meter.n += 1
        share = max(0.05, 1.0 / meter.n)
        meter.gap += share * (gap_s - meter.gap)
        meter.gap_squared += share * (gap_s * gap_s - meter.gap_squared)
        meter.last_at = max(at, meter.last_at)

    def lanes_busy(self, n_busy: int, n_lanes: int, at: int) -> None:
        self._advance(at)
        if n_busy < self._n_busy:
            if self._freed_at is not None:
                self._refill += 0.05 * (0.0 - self._refill)
            self._freed_at = at
        elif n_busy > self._n_busy and self._freed_at is not None:
            at_once = at - self._freed_at <= REFILL_WINDOW_NS
            self._refill += 0.05 * (float(at_once) - self._refill)
            self._freed_at = None
        self._n_busy = n_busy
        self._busy_now = n_busy / n_lanes

    def estimate(self, at: int) -> LoadEstimate:
        fresh = self._cached is not None and at - self._cached_at < STALE_NS
        if self._cached is not None and fresh and self._n_since < STALE_ARRIVALS:
            return self._cached
        self._advance(at)
        rates = {name: self._rate(meter, at) for name, meter in self._meters.items()}
        total = sum(rates.values()) or 1.0
        models = {
            name: ModelLoad(rate_per_s=rate, cv=_cv(self._meters[name]), mix=rate / total)
            for name, rate in rates.items()
        }
        self._cached = LoadEstimate(models=models, refill=self._refill, busy=self._busy)
        self._cached_at, self._n_since = at, 0
        return self._cached

    def _advance(self, at: int) -> None:
        span_s = max(0, at - self._busy_at) / NS_PER_S
        keep = math.exp(-span_s / TIME_CONSTANT_S)
        self._busy = keep * self._busy + (1.0 - keep) * self._busy_now
        self._busy_at = max(at, self._busy_at)

    @staticmethod
    def _rate(meter: _Meter, at: int) -> float:
        """Rows per second; the weight of a window that has only begun is corrected for its length."""
        since_s = max(0, at - meter.last_at) / NS_PER_S
        age_s = max(0.5, (at - meter.first_at) / NS_PER_S)
        window_s = TIME_CONSTANT_S * (1.0 - math.exp(-age_s / TIME_CONSTANT_S))
        return meter.weight * math.exp(-since_s / TIME_CONSTANT_S) / window_s


def _cv(meter: _Meter) -> float:
    variance = meter.gap_squared - meter.gap**2
    return math.sqrt(max(0.0, variance)) / meter.gap if meter.gap > 0 else 1.0
