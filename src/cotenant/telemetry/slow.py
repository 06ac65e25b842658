"""Which requests are slow, and which of them are looked into: a bounded number per second."""

from __future__ import annotations

from dataclasses import dataclass

from cotenant.domain import NS_PER_S, Outcome, OutcomeKind

TAIL = 0.99
"""Of a model's answered requests the share (0..1) that is not slow."""
STEP = 0.05
"""By which share of itself the bound moves up with a slow request; down by `(1 - TAIL)` of it otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowConfig:
    """How many slow requests are looked into. Each way in which requests of a model end has a budget of its
    own: refusals in a burst do not crowd out the one failure."""

    per_s: float = 1.0
    """Requests per second, model and outcome that are looked into ..."""
    burst: int = 5
    """... so many of them at once ..."""
    total_per_s: float = 10.0
    """... and of all models and outcomes together, per second ..."""
    total_burst: int = 50
    """... and at once."""


class Allowance:
    """A token bucket: `per_s` a second, `burst` at once."""

    __slots__ = ("_at", "_burst", "_left", "_per_ns")

    def __init__(self, per_s: float, burst: int, at: int) -> None:
        self._per_ns, self._burst = per_s / NS_PER_S, float(burst)
        self._left, self._at = float(burst), at

    def take(self, at: int) -> bool:
        """Whether there is one left at `at` (ns); takes it."""
        if at > self._at:
            self._left = min(self._burst, self._left + (at - self._at) * self._per_ns)
            self._at = at
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class SlowSampler:
    """Told every outcome. Slow is what got no answer in time, and of a model's answers those that took longer
    than all but 1 - `TAIL`: a quantile by stochastic approximation in log time (Robbins, Monro 1951)."""

    def __init__(self, config: SlowConfig | None = None) -> None:
        self._config = config or SlowConfig()
        self._bound_ns: dict[str, float] = {}
        self._allowances: dict[tuple[str, OutcomeKind], Allowance] = {}
        self._total: Allowance | None = None

    def takes(self, outcome: Outcome) -> bool:
        """Whether the request is slow and there is an allowance left to look into it."""
        kind = outcome.kind
        if kind is OutcomeKind.OK and not self._in_tail(outcome):
            return False
        key = (outcome.request.model, kind)
        config, at = self._config, outcome.ended_at
        own = self._allowances.get(key)
        if own is None:
            own = self._allowances[key] = Allowance(config.per_s, config.burst, at)
        if self._total is None:
            self._total = Allowance(config.total_per_s, config.total_burst, at)
        return own.take(at) and self._total.take(at)

    def _in_tail(self, outcome: Outcome) -> bool:
        model, span = outcome.request.model, outcome.ended_at - outcome.request.arrived_at
        bound = self._bound_ns.get(model)
        if bound is None:
            self._bound_ns[model] = 2.0 * span
            return False
        if span > bound:
            self._bound_ns[model] = bound * (1.0 + STEP * TAIL)
            return True
        self._bound_ns[model] = bound * (1.0 - STEP * (1.0 - TAIL))
        return False
