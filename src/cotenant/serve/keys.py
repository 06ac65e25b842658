"""API keys: who may do what, and for which tenant.

A key is `ctk_ID_SECRET`: a public id, and 32 random bytes. Only the SHA-256 of the whole text is kept; with
256 bits of entropy a salt or a slow hash would protect nothing more.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Mapping
from enum import StrEnum

from msgspec import Struct

from cotenant.clock import wall_time_s
from cotenant.domain import JobClass

PREFIX = "ctk"
LONGEST_KEY = 128
"""Longest text (bytes) that is looked at as a key."""
_NOBODY = bytes(32)
"""Compared with when the id is unknown, so that an unknown id costs what a wrong secret does."""
_TAG_BYTES = 8


class Role(StrEnum):
    """What a key may be used for. No role holds another."""

    INFER = "infer"
    ADMIN = "admin"
    METRICS = "metrics"


EVERY_ROLE = frozenset(Role)


class Principal(Struct, frozen=True, kw_only=True):
    """Who asks. `job_class` is the highest class that its requests may have."""

    tenant: str
    key_id: str = ""
    roles: frozenset[Role] = EVERY_ROLE
    job_class: JobClass = JobClass.PROTECTED


ANYONE = Principal(tenant="")
"""Whoever reaches a server without keys."""


class Key(Struct, frozen=True, kw_only=True):
    """One key as it is kept. `expires_s`: seconds since the epoch from which on it is refused."""

    id: str
    sha256: bytes
    principal: Principal
    expires_s: float | None = None


class Tenant(Struct, frozen=True, kw_only=True):
    """What a tenant may ask for; None: no limit. `burst` is how many requests may come at once."""

    name: str
    requests_per_s: float | None = None
    burst: int = 1
    max_in_flight: int | None = None


class KeyRing:
    """The keys of a server. Immutable: a changed file makes a new one."""

    def __init__(self, keys: Iterable[Key], tenants: Iterable[Tenant]) -> None:
        self._keys = {key.id.encode(): key for key in keys}
        self.tenants: Mapping[str, Tenant] = {tenant.name: tenant for tenant in tenants}
        kept = hashlib.sha256()
        for key_id in sorted(self._keys):
            kept.update(self._keys[key_id].sha256)
        self._secret = kept.digest()

    def find(self, presented: bytes) -> Principal | None:
        """Whose key this is; None when it is nobody's or has expired. Takes the same time for any wrong
        key."""
        if len(presented) > LONGEST_KEY:
            return None
        prefix, _, rest = presented.partition(b"_")
        key = self._keys.get(rest.partition(b"_")[0]) if prefix == PREFIX.encode() else None
        digest = hashlib.sha256(presented).digest()
        right = hmac.compare_digest(digest, _NOBODY if key is None else key.sha256)
        if key is None or not right:
            return None
        if key.expires_s is not None and wall_time_s() >= key.expires_s:
            return None
        return key.principal

    def tag(self, tenant: str, text: str) -> str:
        """A short proof, in hex, that `text` belongs to the tenant; only holders of the key file's digests
        can make one. Every front end with the same file makes the same."""
        message = f"{tenant}\0{text}".encode()
        return hashlib.blake2b(message, digest_size=_TAG_BYTES, key=self._secret).hexdigest()


def new_key() -> tuple[str, str, str]:
    """A fresh key: (its text, shown once; its id; the SHA-256 to keep, in hex)."""
    key_id = secrets.token_hex(5)
    text = f"{PREFIX}_{key_id}_{secrets.token_urlsafe(32)}"
    return text, key_id, hashlib.sha256(text.encode()).hexdigest()
