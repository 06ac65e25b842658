"""Who may do what over HTTP: every method and path with the roles that may use it; the check of a request.

Deny by default: what does not stand in `ACCESS` is refused, to whoever asks, even where a route exists.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from functools import lru_cache
from typing import Any

from starlette.routing import BaseRoute, Match, Route

from cotenant.domain import OutcomeKind
from cotenant.serve.dataplane import Answer, error_answer
from cotenant.serve.errors import BadRequest
from cotenant.serve.gate import Denial, Gate, Refusal
from cotenant.serve.keys import EVERY_ROLE, Principal, Role

Scope = MutableMapping[str, Any]

PRINCIPAL = "cotenant.principal"
"""Where a request's scope holds who asks."""

_READERS = frozenset({Role.INFER, Role.ADMIN})
_WATCHERS = EVERY_ROLE
_ADMINS = frozenset({Role.ADMIN})
INFER = frozenset({Role.INFER})
HEALTH = frozenset({("GET", "/v2/health/live"), ("GET", "/v2/health/ready")})
"""What may be left open to everybody."""

_OF_MODEL: Mapping[tuple[str, str], frozenset[Role]] = {
    ("GET", ""): _READERS,
    ("GET", "/ready"): EVERY_ROLE,
    ("GET", "/config"): _READERS,
    ("GET", "/stats"): _WATCHERS,
    ("POST", "/infer"): INFER,
    ("GET", "/trace/setting"): _ADMINS,
    ("POST", "/trace/setting"): _ADMINS,
}
_MEMORIES = ("/v2/systemsharedmemory", "/v2/cudasharedmemory")
_OF_MEMORY = (
    ("GET", "/status"),
    ("GET", "/region/{}/status"),
    ("POST", "/region/{}/register"),
    ("POST", "/region/{}/unregister"),
    ("POST", "/unregister"),
)
_MODELS = ("/v2/models/{}", "/v2/models/{}/versions/{}")

ACCESS: Mapping[tuple[str, str], frozenset[Role]] = {
    ("GET", "/"): EVERY_ROLE,
    ("GET", "/v2"): EVERY_ROLE,
    ("GET", "/v2/"): EVERY_ROLE,
    **dict.fromkeys(HEALTH, EVERY_ROLE),
    ("GET", "/metrics"): frozenset({Role.METRICS}),
    ("GET", "/v2/openapi.json"): EVERY_ROLE,
    ("GET", "/v2/models"): _READERS,
    ("GET", "/v2/models/stats"): _WATCHERS,
    **{(method, model + path): roles for model in _MODELS for (method, path), roles in _OF_MODEL.items()},
    ("GET", "/v2/requests/{}"): _READERS,
    ("POST", "/v2/repository/index"): _READERS,
    ("POST", "/v2/repository/models/{}/load"): _ADMINS,
    ("POST", "/v2/repository/models/{}/unload"): _ADMINS,
    ("GET", "/v2/trace/setting"): _ADMINS,
    ("POST", "/v2/trace/setting"): _ADMINS,
    ("GET", "/v2/logging"): _ADMINS,
    ("POST", "/v2/logging"): _ADMINS,
    **{(method, memory + path): _ADMINS for memory in _MEMORIES for method, path in _OF_MEMORY},
}
"""(method, path with `{}` for each parameter) -> the roles any of which may use it. HEAD goes with GET. Paths
of protocol extensions stand here whether they are served or not."""

STATUS: Mapping[Denial, int] = {
    Denial.UNAUTHENTICATED: 401,
    Denial.FORBIDDEN: 403,
    Denial.QUOTA: 429,
    Denial.OVERLOADED: 429,
}
_PARAMETER = re.compile(r"\{[^}]*\}")


def template(path: str) -> str:
    """A route's path with `{}` for each of its parameters."""
    return _PARAMETER.sub("{}", path)


def denied(refusal: Refusal) -> Answer:
    """The HTTP answer to a refused request."""
    status = STATUS[refusal.denial]
    if status != 429:
        answer = error_answer(status, refusal.message)
        if status == 401:
            answer.headers.append((b"www-authenticate", b"Bearer"))
        return answer
    return error_answer(
        status,
        f"request rejected: {refusal.message}",
        reason=refusal.denial.value,
        retry_after_ms=refusal.retry_after_ms,
        outcome=OutcomeKind.REJECTED,
    )


class Access:
    """Checks requests before anything of them is acted on."""

    def __init__(self, gate: Gate, routes: Sequence[BaseRoute], *, open_health: bool, any_host: bool) -> None:
        """`routes`: the list that requests are dispatched by, as it is now and later. `any_host`: whether an
        open server answers to every host name (see `_misled`)."""
        self._gate = gate
        self._routes = routes
        self._open_health = open_health
        self._any_host = any_host

    def admit(self, scope: Scope, roles: frozenset[Role] | None) -> Principal | Answer:
        """Who asks, or the answer that refuses."""
        try:
            presented, host, origin = read_credentials(scope["headers"])
        except BadRequest as error:
            return denied(Refusal(Denial.UNAUTHENTICATED, error.message))
        if not self._gate.has_keys:
            misled = self._misled(host, origin)
            if misled is not None:
                return error_answer(403, misled)
        found = self._gate.check(presented, roles)
        return denied(found) if isinstance(found, Refusal) else found

    def admit_page(self, scope: Scope) -> Principal | Answer | None:
        """Who asks for anything but an inference, or the answer that refuses; None: it is open to all."""
        method, path = self._declared(scope)
        if self._open_health and (method, path) in HEALTH:
            return None
        # what no route serves is nobody's secret: any valid key may learn that it is not there
        roles = EVERY_ROLE if path is None else ACCESS.get((method, path))
        found = self.admit(scope, roles)
        if isinstance(found, Answer):
            return found
        refusal = self._gate.meter(found)
        if refusal is not None:
            return denied(refusal)
        if path == "/v2/requests/{}" and not self._gate.owns(found, scope["path"].rpartition("/")[2]):
            return error_answer(404, "nothing is remembered of this request")
        return found

    def _declared(self, scope: Scope) -> tuple[str, str | None]:
        """The request's method and the path of the route that will be dispatched to; None when none takes
        both. What is no plain route has no path that could have been declared."""
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        for route in self._routes:
            if route.matches(scope)[0] is Match.FULL:
                return method, template(route.path) if isinstance(route, Route) else ""
        return method, None

    def _misled(self, host: bytes, origin: bytes) -> str | None:
        """Why this looks like a web page's request to a server that trusts whoever reaches it: a page of
        another origin, or one whose domain was pointed at this machine (DNS rebinding)."""
        if origin and origin.partition(b"://")[2] != host:
            return "a web page of another origin may not use this server (Origin header); give it keys"
        if self._any_host or _is_own_name(host):
            return None
        return (
            "this server has no keys and answers only to an address or a name of this machine (Host header); "
            "use keys_file, or open = true, under [server]"
        )


def read_credentials(headers: Iterable[tuple[bytes, bytes]]) -> tuple[bytes | None, bytes, bytes]:
    """(the key presented, Host, Origin). Raises BadRequest (401) when keys are given twice."""
    presented: bytes | None = None
    host = origin = b""
    for name, value in headers:
        if name == b"host":
            host = value
        elif name == b"origin":
            origin = value
        elif name == b"x-api-key" or name == b"authorization":
            if presented is not None:
                raise BadRequest(401, "two keys were given: send one")
            if name == b"authorization":
                scheme, _, value = value.partition(b" ")
                if scheme.lower() != b"bearer":
                    raise BadRequest(401, "header Authorization: expected Bearer KEY")
            presented = value.strip()
    return presented, host, origin


@lru_cache(64)
def _is_own_name(host: bytes) -> bool:
    """Whether no other site's domain can be meant: an address, `localhost`, or a name without dots."""
    if b"." not in host and not host.startswith(b"["):
        return True
    text = host.decode("latin-1")
    name = text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0]
    if name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
