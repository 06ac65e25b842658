"""The file of API keys: TOML with `[[tenant]]` and `[[key]]` tables, read whole, only ever appended to."""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

from cotenant.domain import JobClass
from cotenant.serve.keys import Key, KeyRing, Principal, Role, Tenant, new_key
from cotenant.serve.tls import check_private
from cotenant.toml_checks import ConfigError, TomlChecks

CLASSES = {job_class.name.lower(): job_class for job_class in JobClass}
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
SHA256 = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class _TenantTable:
    name: str = ""
    requests_per_s: float | None = None
    burst: int = 0
    max_in_flight: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """What a new key is for. Limits go to a tenant that the file does not know yet; None or 0: no limit."""

    tenant: str
    roles: tuple[Role, ...]
    job_class: JobClass = JobClass.PROTECTED
    expires: date | None = None
    requests_per_s: float | None = None
    burst: int = 0
    max_in_flight: int = 0


def load_keys(path: Path) -> KeyRing:
    """Read the file. Raises ConfigError, also when others than its owner can read it."""
    try:
        check_private(path, "the file of keys")
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from None
    return _Reader(path).ring(raw)


class _Reader(TomlChecks):
    def ring(self, raw: dict[str, Any]) -> KeyRing:
        self._known(raw, ("tenant", "key"), "the file")
        tenants = [self._tenant(entry, i) for i, entry in enumerate(self._list(raw, "tenant"))]
        names = [tenant.name for tenant in tenants]
        for name in names:
            self._check(names.count(name) == 1, f"[[tenant]] {name!r}", "is named twice")
        keys = [self._key(entry, i, names) for i, entry in enumerate(self._list(raw, "key"))]
        ids = [key.id for key in keys]
        for key_id in ids:
            self._check(ids.count(key_id) == 1, f"[[key]] {key_id!r}", "stands there twice")
        self._check(bool(keys), "[[key]]", "has no key: make one with cotenant key new")
        return KeyRing(keys, tenants)

    def _tenant(self, raw: Any, index: int) -> Tenant:
        where = f"[[tenant]] {index + 1}"
        table = self._table(_TenantTable, raw, where)
        self._check(bool(NAME.match(table.name)), f"{where} name", "must be letters, digits, '.', '_', '-'")
        per_s = table.requests_per_s
        where = f"[[tenant]] {table.name!r}"
        self._check(per_s is None or per_s > 0, f"{where} requests_per_s", "must be greater than 0")
        self._check(table.burst >= 0, f"{where} burst", "must be 1 or more (0: a second's worth)")
        self._check(not table.burst or per_s is not None, f"{where} burst", "needs requests_per_s")
        self._check(table.max_in_flight >= 0, f"{where} max_in_flight", "must be 1 or more (0: no limit)")
        burst = table.burst or max(1, int(per_s or 1))
        return Tenant(
            name=table.name,
            requests_per_s=per_s,
            burst=burst,
            max_in_flight=table.max_in_flight or None,
        )

    def _key(self, raw: Any, index: int, tenants: list[str]) -> Key:
        where = f"[[key]] {index + 1}"
        self._check(isinstance(raw, dict), where, "must be a table")
        self._known(raw, ("id", "sha256", "roles", "tenant", "class", "expires"), where)
        for name in ("id", "sha256", "tenant"):
            self._check(isinstance(raw.get(name), str), f"{where} {name}", "must be a text")
        self._check(bool(NAME.match(raw["id"])), f"{where} id", "must be letters and digits")
        digest = raw["sha256"].lower()
        self._check(bool(SHA256.match(digest)), f"{where} sha256", "must be 64 hexadecimal digits")
        self._nearest(raw["tenant"], tenants, f"{where}: no [[tenant]] is named")
        roles = raw.get("roles")
        self._check(isinstance(roles, list) and roles, f"{where} roles", "must be a list of roles")
        wanted = [Role(self._choice(role, tuple(Role), f"{where} roles")) for role in roles or ()]
        job_class = CLASSES[self._choice(raw.get("class", "protected"), tuple(CLASSES), f"{where} class")]
        return Key(
            id=raw["id"],
            sha256=bytes.fromhex(digest),
            principal=Principal(
                tenant=raw["tenant"], key_id=raw["id"], roles=frozenset(wanted), job_class=job_class
            ),
            expires_s=self._expiry(raw.get("expires"), where),
        )

    def _expiry(self, value: Any, where: str) -> float | None:
        if value is None:
            return None
        if type(value) is date:
            value = datetime.combine(value, time(), UTC)
        self._check(isinstance(value, datetime), f"{where} expires", "must be a date, 2027-01-31")
        return float((value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp())


# --- a new key --------------------------------------------------------------------------------------------


def add_key(path: Path | None, wanted: NewKey) -> tuple[str, str]:
    """Make a key and, with `path`, append it to the file, which is made (mode 0600) if it is not there.
    Returns the key's text, which is kept nowhere, and the tables that were or are to be appended. Raises
    ConfigError."""
    if not NAME.match(wanted.tenant):
        raise ConfigError(f"tenant {wanted.tenant!r}: must be letters, digits, '.', '_', '-'")
    known = path is not None and path.exists() and wanted.tenant in load_keys(path).tenants
    limits = wanted.requests_per_s is not None or wanted.burst or wanted.max_in_flight
    if known and limits:
        raise ConfigError(f"{path}: tenant {wanted.tenant!r} is there already: change its limits in the file")
    text, key_id, digest = new_key()
    tables = ("" if known else _tenant_table(wanted)) + _key_table(wanted, key_id, digest)
    if path is not None:
        _append(path, tables)
        load_keys(path)
    return text, tables


def _tenant_table(wanted: NewKey) -> str:
    lines = ["", "[[tenant]]", f'name = "{wanted.tenant}"']
    if wanted.requests_per_s is not None:
        lines.append(f"requests_per_s = {wanted.requests_per_s}")
    if wanted.burst:
        lines.append(f"burst = {wanted.burst}")
    if wanted.max_in_flight:
        lines.append(f"max_in_flight = {wanted.max_in_flight}")
    return "\n".join(lines) + "\n"


def _key_table(wanted: NewKey, key_id: str, digest: str) -> str:
    roles = ", ".join(f'"{role}"' for role in wanted.roles)
    lines = ["", "[[key]]", f'id = "{key_id}"', f'sha256 = "{digest}"', f"roles = [{roles}]"]
    lines.append(f'tenant = "{wanted.tenant}"')
    if wanted.job_class is not JobClass.PROTECTED:
        lines.append(f'class = "{wanted.job_class.name.lower()}"')
    if wanted.expires is not None:
        lines.append(f"expires = {wanted.expires.isoformat()}")
    return "\n".join(lines) + "\n"


def _append(path: Path, tables: str) -> None:
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with os.fdopen(file, "a", encoding="utf-8") as stream:
            stream.write(tables)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
