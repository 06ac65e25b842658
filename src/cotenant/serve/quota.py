"""What one tenant may use: a rate with bursts, and how much at a time."""

from __future__ import annotations

from cotenant.domain import NS_PER_S
from cotenant.serve.keys import Tenant


class TokenBucket:
    """At most `burst` requests at once and `per_s` requests/s in the long run."""

    def __init__(self, per_s: float, burst: int, now: int) -> None:
        self._ns_per_token = NS_PER_S / per_s
        self._burst = burst
        self._tokens = float(burst)
        self._at = now

    def take(self, now: int) -> float:
        """Take one token: 0, or, when there is none, the span (ns) until there will be one."""
        self._tokens = min(self._burst, self._tokens + max(0, now - self._at) / self._ns_per_token)
        self._at = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) * self._ns_per_token


class TenantUse:
    """What a tenant uses now, in this process."""

    __slots__ = ("bucket", "max_in_flight", "n_in_flight")

    def __init__(self, tenant: Tenant, now: int) -> None:
        per_s = tenant.requests_per_s
        self.bucket = None if per_s is None else TokenBucket(per_s, tenant.burst, now)
        self.max_in_flight = tenant.max_in_flight
        self.n_in_flight = 0

    def limit(self, tenant: Tenant, now: int) -> None:
        """Other limits from now on; what is in flight stays counted."""
        fresh = TenantUse(tenant, now)
        self.bucket, self.max_in_flight = fresh.bucket, fresh.max_in_flight
