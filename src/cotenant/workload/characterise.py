"""The load meter: rate, burstiness and mix of every model, and how lanes are taken and refilled, online.

Rates are exponentially weighted counts with a time constant of 5 s, corrected for the short start. Burstiness
is the coefficient of variation of the gaps. How lanes are used is two weighted times, in which lanes were
idle and busy, and three counts: lanes freed, taken again at once, taken later. Deterministic in the calls;
nothing is sampled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cotenant.domain import NS_PER_MS, NS_PER_S, LoadEstimate, ModelLoad, Request, Variant
from cotenant.workload.lane_use import LaneMeter

TIME_CONSTANT_S = 5.0
REFILL_WINDOW_NS = NS_PER_MS
"""A lane taken again within this time of being freed counts as refilled at once (ns)."""
STALE_NS = 200 * NS_PER_MS
STALE_ARRIVALS = 128
MIX_MEMORY = 0.98
"""Weight that the mix of dispatches keeps at each further one."""
LEAST_IN_MIX = 0.02
"""Share below which a variant is left out of the mix."""
LEAST_KEPT = LEAST_IN_MIX / 10
"""Weight below which a variant is forgotten."""
SMALLEST_UNIT = 1e-100


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
        self._mix: dict[Variant, float] = {}
        """Weights of variants in units of `_unit`, which shrinks instead of all of them."""
        self._unit = 1.0
        self._lane_use = LaneMeter()
        self._busy = 0.0
        self._busy_now = 0.0
        self._busy_at = 0
        self._n_busy = 0
        self._n_lanes = 1
        self._idle_s = 0.0
        self._used_s = 0.0
        self._n_freed = 0.0
        self._n_taken = 0.0
        self._freed_at: int | None = None
        self._refill = 0.0
        self._cached: LoadEstimate | None = None
        """The estimate but for the lanes."""
        self._cached_at = 0
        self._now: LoadEstimate | None = None
        """The whole estimate, None where a lane was taken or freed since."""
        self._now_at = 0
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

    def dispatched(self, variant: Variant, lane: int, at: int) -> None:
        self._now = None
        if lane >= 0:
            self._lane_use.taken(lane, at)
        self._unit *= MIX_MEMORY
        if self._unit < SMALLEST_UNIT:
            self._mix = {known: weight * self._unit for known, weight in self._mix.items()}
            self._unit = 1.0
        weight = self._mix.get(variant, 0.0)
        if weight * self._unit < LEAST_KEPT:
            weight = 0.0
        self._mix[variant] = weight + (1.0 - MIX_MEMORY) / self._unit

    def freed(self, lane: int, at: int) -> None:
        self._now = None
        if lane >= 0:
            self._lane_use.freed(lane, at)

    def lanes_busy(self, n_busy: int, n_lanes: int, at: int) -> None:
        if n_busy == self._n_busy and n_lanes == self._n_lanes and at == self._busy_at:
            return
        self._advance(at)
        self._n_lanes = n_lanes
        self._n_freed += max(0, self._n_busy - n_busy)
        if n_busy < self._n_busy:
            if self._freed_at is not None:
                self._refill += 0.05 * (0.0 - self._refill)
            self._freed_at = at
        elif n_busy > self._n_busy and self._freed_at is not None:
            at_once = at - self._freed_at <= REFILL_WINDOW_NS
            self._refill += 0.05 * (float(at_once) - self._refill)
            self._freed_at = None
            self._n_taken += n_busy - self._n_busy - at_once
        elif n_busy > self._n_busy:
            self._n_taken += n_busy - self._n_busy
        self._n_busy = n_busy
        self._busy_now = n_busy / n_lanes

    def estimate(self, at: int) -> LoadEstimate:
        if self._now is not None and at == self._now_at and self._n_since < STALE_ARRIVALS:
            return self._now
        cached = self._cached
        if cached is None or at - self._cached_at >= STALE_NS or self._n_since >= STALE_ARRIVALS:
            cached = self._cached = self._renewed(at)
            self._cached_at, self._n_since = at, 0
        lanes = self._lane_use.estimate(at)
        self._now = LoadEstimate(
            models=cached.models,
            refill=cached.refill,
            busy=cached.busy,
            fill_per_s=cached.fill_per_s,
            span_ns=cached.span_ns,
            variants=cached.variants,
            lanes=lanes,
        )
        self._now_at = at
        return self._now

    def _renewed(self, at: int) -> LoadEstimate:
        self._advance(at)
        rates = {name: self._rate(meter, at) for name, meter in self._meters.items()}
        total = sum(rates.values()) or 1.0
        models = {
            name: ModelLoad(rate_per_s=rate, cv=_cv(self._meters[name]), mix=rate / total)
            for name, rate in rates.items()
        }
        return LoadEstimate(
            models=models,
            refill=self._refill,
            busy=self._busy,
            fill_per_s=self._n_taken / self._idle_s if self._idle_s > 0 else 0.0,
            span_ns=NS_PER_S * self._used_s / self._n_freed if self._n_freed > 0 else 0.0,
            variants=self._variants(),
        )

    def _advance(self, at: int) -> None:
        span_s = max(0, at - self._busy_at) / NS_PER_S
        keep = math.exp(-span_s / TIME_CONSTANT_S)
        self._busy = keep * self._busy + (1.0 - keep) * self._busy_now
        self._idle_s = keep * self._idle_s + span_s * max(0, self._n_lanes - self._n_busy)
        self._used_s = keep * self._used_s + span_s * self._n_busy
        self._n_freed *= keep
        self._n_taken *= keep
        self._busy_at = max(at, self._busy_at)

    def _variants(self) -> tuple[tuple[Variant, float], ...]:
        mix = {variant: weight * self._unit for variant, weight in self._mix.items()}
        self._mix, self._unit = {v: w for v, w in mix.items() if w >= LEAST_KEPT}, 1.0
        total = sum(self._mix.values())
        kept = [(v, w) for v, w in self._mix.items() if w >= LEAST_IN_MIX * total]
        kept.sort(key=lambda pair: (-pair[1], pair[0].label))
        whole = sum(weight for _, weight in kept)
        return tuple((variant, weight / whole) for variant, weight in kept)

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
