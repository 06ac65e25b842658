"""The one gate in front of every route and method of every protocol: who asks, may they, is there room.

A protocol reads the credentials its own way and asks before it reads a body: `check(credentials, roles)` says
who asks or why not; then `enter(principal, model, ...)` takes one request off the tenant's rate and a place
for an inference, which `Ticket.leave` gives back; `meter(principal)` is for what is no inference. A refusal
is a value that each protocol maps to its own codes.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from enum import StrEnum

from msgspec import Struct

from cotenant.domain import NS_PER_MS, Outcome, OutcomeKind
from cotenant.serve.dataplane import advised_ms
from cotenant.serve.keys import ANYONE, KeyRing, Principal, Role, Tenant
from cotenant.serve.quota import TenantUse
from cotenant.serve.settings import FrontDoor
from cotenant.serve.shedding import Throttle

MIB = 1 << 20
BUSY_RETRY_MS = 1000.0
"""What a refusal for want of room advises."""
LONGEST_RETRY_MS = 60_000.0


class Denial(StrEnum):
    """Why a request was refused; the value is the `reason` clients and metrics see."""

    UNAUTHENTICATED = "no valid key"
    FORBIDDEN = "not allowed"
    QUOTA = "quota"
    OVERLOADED = "overloaded"


class Refusal(Struct, frozen=True):
    """A refused request; the message holds nothing of the server's inside."""

    denial: Denial
    message: str
    retry_after_ms: float | None = None


NO_KEY = Refusal(
    Denial.UNAUTHENTICATED, "this server needs a key: send Authorization: Bearer KEY or X-API-Key: KEY"
)
WRONG_KEY = Refusal(Denial.UNAUTHENTICATED, "the key is not valid here")
UNDECLARED = Refusal(Denial.FORBIDDEN, "nobody may use this: no role has been declared for it")


class Ticket:
    """A place taken by one inference; `leave` gives it back, once."""

    __slots__ = ("_gate", "_model", "_n_bytes", "_throttle", "_use", "outcome")

    def __init__(
        self, gate: Gate, model: str, use: TenantUse, throttle: Throttle | None, n_bytes: int
    ) -> None:
        self._gate = gate
        self._model = model
        self._use = use
        self._throttle = throttle
        self._n_bytes = n_bytes
        self.outcome: Outcome | None = None
        """The engine's verdict; set it before leaving, if there was one."""

    def grow(self, n_bytes: int) -> Refusal | None:
        """The body turned out to be so many bytes longer than was known on entering."""
        refusal = self._gate.room_for(n_bytes)
        if refusal is None:
            self._n_bytes += n_bytes
            self._gate.n_bytes += n_bytes
        return refusal

    def leave(self) -> None:
        """Give the place back."""
        self._gate.n_bytes -= self._n_bytes
        self._gate.in_flight[self._model] -= 1
        self._use.n_in_flight -= 1
        outcome = self.outcome
        if outcome is None or self._throttle is None:
            return
        if outcome.kind is OutcomeKind.REJECTED and outcome.predicted_at is not None:
            self._throttle.refused(advised_ms(outcome))


class Gate:
    """Decides from credentials, roles and counts alone; never blocks. Not thread-safe: one event loop."""

    def __init__(self, keys: KeyRing | None, door: FrontDoor, now: Callable[[], int]) -> None:
        """Without `keys` everybody is `ANYONE`, who may do everything."""
        self._keys = keys
        self._door = door
        self._now = now
        self._throttles: dict[tuple[str, int], Throttle] = {}
        self._uses: dict[str, TenantUse] = {}
        self._free = TenantUse(Tenant(name=""), now())
        self.in_flight: dict[str, int] = {}
        """Inferences under way by model."""
        self.n_bytes = 0
        """Bytes of bodies under way."""
        self.on_refused: Callable[[str, str], None] | None = None
        """Told (model, reason) of every inference refused by `enter`."""
        self.on_denied: Callable[[str], None] | None = None
        """Told the reason of every request refused by `check`."""
        if keys is not None:
            self.replace_keys(keys)

    @property
    def has_keys(self) -> bool:
        """Whether credentials are asked for."""
        return self._keys is not None

    def replace_keys(self, keys: KeyRing) -> None:
        """Other keys and limits from now on; what is in flight stays counted."""
        now = self._now()
        for name, tenant in keys.tenants.items():
            if name in self._uses:
                self._uses[name].limit(tenant, now)
            else:
                self._uses[name] = TenantUse(tenant, now)
        self._keys = keys

    # --- who ------------------------------------------------------------------------------------------------

    def check(self, presented: bytes | None, roles: frozenset[Role] | None) -> Principal | Refusal:
        """Who asks with these credentials, if a key with any of `roles` may do what is asked. None: nobody
        has declared who may."""
        found = self._check(presented, roles)
        if isinstance(found, Refusal) and self.on_denied is not None:
            self.on_denied(found.denial.value)
        return found

    def _check(self, presented: bytes | None, roles: frozenset[Role] | None) -> Principal | Refusal:
        if self._keys is None:
            return ANYONE if roles is not None else UNDECLARED
        if presented is None:
            return NO_KEY
        principal = self._keys.find(presented)
        if principal is None:
            return WRONG_KEY
        if roles is None:
            return UNDECLARED
        if principal.roles.isdisjoint(roles):
            needed = " or ".join(sorted(roles))
            return Refusal(Denial.FORBIDDEN, f"the key may not do this: it needs the role {needed}")
        return principal

    def stamp(self, principal: Principal, request_id: str) -> str:
        """The request id, made such that only its tenant (and admins) can ask about it later."""
        if self._keys is None:
            return request_id
        return f"{request_id}-{self._keys.tag(principal.tenant, request_id)}"

    def owns(self, principal: Principal, request_id: str) -> bool:
        """Whether the principal may ask about a request."""
        if self._keys is None or Role.ADMIN in principal.roles:
            return True
        plain, _, tag = request_id.rpartition("-")
        return hmac.compare_digest(tag.encode(), self._keys.tag(principal.tenant, plain).encode())

    # --- room -----------------------------------------------------------------------------------------------

    def meter(self, principal: Principal) -> Refusal | None:
        """Take one request off the tenant's rate."""
        use = self._uses.get(principal.tenant)
        if use is None or use.bucket is None:
            return None
        wait_ns = use.bucket.take(self._now())
        if not wait_ns:
            return None
        message = f"tenant '{principal.tenant}' is above its rate of requests"
        return Refusal(Denial.QUOTA, message, min(LONGEST_RETRY_MS, wait_ns / NS_PER_MS))

    def enter(
        self, principal: Principal, model: str, budget_ns: int | None, n_bytes: int
    ) -> Ticket | Refusal:
        """Take a place for one inference of a loaded model. `budget_ns`: what the client asked for so far;
        `n_bytes`: size of the body as far as it is known."""
        found = self._enter(principal, model, budget_ns, n_bytes)
        if isinstance(found, Refusal) and self.on_refused is not None:
            self.on_refused(model, found.denial.value)
        return found

    def _enter(
        self, principal: Principal, model: str, budget_ns: int | None, n_bytes: int
    ) -> Ticket | Refusal:
        refusal = self.meter(principal) or self.room_for(n_bytes)
        if refusal is not None:
            return refusal
        use = self._uses.get(principal.tenant, self._free)
        if use.max_in_flight is not None and use.n_in_flight >= use.max_in_flight:
            message = f"tenant '{principal.tenant}' has {use.max_in_flight} requests in flight already"
            return Refusal(Denial.QUOTA, message, BUSY_RETRY_MS)
        n = self.in_flight.get(model, 0)
        if n >= self._door.max_in_flight:
            message = f"model '{model}' has {n} requests in flight already"
            return Refusal(Denial.OVERLOADED, message, BUSY_RETRY_MS)
        throttle = None
        if self._door.shed:
            throttle = self._throttle(model, budget_ns)
            if not throttle.passes(self._now()):
                message = f"model '{model}' is offered more than it can answer in time"
                advice = throttle.retry_after_ms or BUSY_RETRY_MS
                return Refusal(Denial.OVERLOADED, message, min(LONGEST_RETRY_MS, advice))
        self.in_flight[model] = n + 1
        self.n_bytes += n_bytes
        use.n_in_flight += 1
        return Ticket(self, model, use, throttle, n_bytes)

    def room_for(self, n_bytes: int) -> Refusal | None:
        """Whether bodies may take so many bytes more."""
        if self.n_bytes + n_bytes <= self._door.max_buffered_mib * MIB:
            return None
        return Refusal(Denial.OVERLOADED, "too many bytes of requests are in flight already", BUSY_RETRY_MS)

    def _throttle(self, model: str, budget_ns: int | None) -> Throttle:
        kind = (model, 0 if budget_ns is None else budget_ns.bit_length())
        throttle = self._throttles.get(kind)
        if throttle is None:
            throttle = self._throttles[kind] = Throttle(self._now())
        return throttle
