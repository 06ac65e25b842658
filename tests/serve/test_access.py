"""The gate in front of every HTTP route: keys, roles, tenants, limits; what is not declared is refused."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from serving import Server, echo_request
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from cotenant.domain import JobClass
from cotenant.engine_client import EngineClient
from cotenant.serve.access import ACCESS, HEALTH, template
from cotenant.serve.gate import Gate
from cotenant.serve.http import App, ServeConfig, make_app
from cotenant.serve.keys import EVERY_ROLE, Key, KeyRing, Principal, Role, Tenant
from cotenant.serve.settings import FrontDoor
from cotenant.telemetry.metrics import Metrics
from cotenant.testing import EchoLink

Serve = Callable[..., Server]
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "get")


class Page:
    async def render(self, accept: str) -> tuple[bytes, str]:
        return b"up 1\n", "text/plain"


def text_of(role: Role | str, tenant: str = "shop") -> str:
    return f"ctk_{role}{tenant}_secret"


def key(
    *roles: Role,
    tenant: str = "shop",
    job_class: JobClass = JobClass.PROTECTED,
    expires_s: float | None = None,
) -> Key:
    name = f"{roles[0] if len(roles) == 1 else 'all'}{tenant}"
    principal = Principal(tenant=tenant, key_id=name, roles=frozenset(roles), job_class=job_class)
    digest = hashlib.sha256(f"ctk_{name}_secret".encode()).digest()
    return Key(id=name, sha256=digest, principal=principal, expires_s=expires_s)


def ring(*more: Key, tenants: tuple[Tenant, ...] = ()) -> KeyRing:
    keys = [key(role) for role in Role] + [key(*Role)]
    return KeyRing([*keys, *more], [Tenant(name="shop"), *tenants])


def bearer(role: Role | str, tenant: str = "shop") -> dict[str, str]:
    return {"Authorization": f"Bearer {text_of(role, tenant)}"}


# --- every route and method -------------------------------------------------------------------------------


def application(keys: KeyRing | None, door: FrontDoor | None = None, *extra: BaseRoute) -> App:
    config = ServeConfig(allow_model_control=True, shared_memory=True, door=door or FrontDoor())
    link = EchoLink()
    app = make_app(EngineClient(link), Page(), config, Gate(keys, config.door, link.now))
    app.rest.router.routes.extend(extra)
    return app


def call(
    app: App, method: str, path: str, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, Any]]:
    """(status, decoded body) of one request straight to the application."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
        "state": {},
    }
    asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], json.loads(body) if body[:1] == b"{" else {}


def concrete(path: str) -> str:
    return template(path).replace("{}", "echo", 1).replace("{}", "1")


def every_route() -> Iterator[str]:
    """Every path that is served: Starlette's, and those that `App` takes itself."""
    yield from (route.path for route in application(None).rest.routes if isinstance(route, Route))
    yield from ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer", "/nope")


@pytest.mark.parametrize("path", sorted(set(every_route())))
def test_no_method_of_any_route_answers_without_a_key_or_with_a_wrong_one(path: str) -> None:
    app = application(ring(), FrontDoor(open_health=False))
    for method in METHODS:
        assert call(app, method, concrete(path))[0] == 401, method
        for wrong in ("ctk_infershop_guess", "ctk_nobody_secret", "", "x" * 10_000, "ctk_"):
            assert call(app, method, concrete(path), {"X-API-Key": wrong})[0] == 401, (method, wrong)
        assert call(app, method, concrete(path), {"Authorization": "Basic abc"})[0] == 401, method


@pytest.mark.parametrize("path", sorted(set(every_route()) - {"/nope"}))
def test_every_method_of_every_route_takes_only_its_roles(path: str) -> None:
    app = application(ring(), FrontDoor(open_health=False))
    served = [method for method in METHODS if (method, template(path)) in ACCESS]
    assert served, f"no role is declared for {path}: add it to ACCESS"
    for method in served:
        allowed = ACCESS[method, template(path)]
        for role in Role:
            status, body = call(app, method, concrete(path), bearer(role))
            assert (status == 403) == (role not in allowed), (method, role, status, body)
            assert status != 401


@pytest.mark.parametrize("keys", [None, ring()], ids=["open", "with keys"])
def test_a_route_that_nobody_declared_is_refused_to_everybody(keys: KeyRing | None) -> None:
    async def secret(_: Request) -> Response:
        return PlainTextResponse("secret")

    door = Route("/v2/side/door", secret, methods=["GET", "POST"])
    for extra in (door, Mount("/v2/side", routes=[Route("/door", secret, methods=["GET", "POST"])])):
        app = application(keys, None, extra)
        for method in ("GET", "HEAD", "POST"):
            status, body = call(app, method, "/v2/side/door", bearer("all"))
            assert status == 403
            assert "secret" not in str(body)


@pytest.mark.parametrize(
    "path", ["/v2/models/echo/infer/", "//v2/models/echo/infer", "/V2/models/echo/infer"]
)
def test_other_spellings_of_a_path_lead_nowhere(path: str) -> None:
    app = application(ring())
    assert call(app, "POST", path)[0] == 401
    assert call(app, "POST", path, bearer(Role.INFER))[0] == 404


def test_health_is_open_unless_the_config_says_otherwise() -> None:
    for open_health, status in ((True, 200), (False, 401)):
        app = application(ring(), FrontDoor(open_health=open_health))
        for _, path in HEALTH:
            assert call(app, "GET", path)[0] == status
            assert call(app, "HEAD", path)[0] == status
            assert call(app, "POST", path)[0] == 401
    assert call(application(ring()), "GET", "/v2/models/echo/ready")[0] == 401


def test_only_http_is_spoken() -> None:
    with pytest.raises(ValueError, match="websocket"):
        asyncio.run(application(None)({"type": "websocket"}, None, None))  # type: ignore[arg-type]


# --- keys -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        bearer(Role.INFER),
        {"X-API-Key": text_of(Role.INFER)},
        {"authorization": "bearer  " + text_of(Role.INFER)},
    ],
)
def test_a_key_goes_in_either_header(serve: Serve, headers: dict[str, str]) -> None:
    server = serve(keys=ring())
    assert server.infer(headers=headers).status == 200
    refused = server.infer()
    assert refused.status == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert refused.headers["x-request-id"]


def test_denials_are_counted_by_reason(serve: Serve) -> None:
    server, metrics = serve(keys=ring()), Metrics()
    server.gate.on_denied, server.gate.on_refused = metrics.denied, metrics.refused
    server.infer()
    server.infer(headers={"X-API-Key": "ctk_guess_guess"})
    server.infer(headers=bearer(Role.METRICS))
    page = metrics.render()[0].decode()
    assert 'cotenant_denied_total{reason="no valid key"} 2.0' in page
    assert 'cotenant_denied_total{reason="not allowed"} 1.0' in page


def test_two_keys_are_one_too_many() -> None:
    headers = bearer(Role.INFER) | {"X-API-Key": text_of(Role.INFER)}
    assert call(application(ring()), "GET", "/v2", headers)[0] == 401


def test_an_expired_key_is_nobodys() -> None:
    keys = ring(key(Role.INFER, tenant="old", expires_s=1.0), key(Role.INFER, tenant="new", expires_s=4e9))
    app = application(keys)
    assert call(app, "GET", "/v2", bearer(Role.INFER, "old"))[0] == 401
    assert call(app, "GET", "/v2", bearer(Role.INFER, "new"))[0] == 200


def test_keys_can_be_replaced_while_serving(serve: Serve) -> None:
    server = serve(keys=ring())
    assert server.infer(headers=bearer(Role.INFER, "new")).status == 401
    server.on_loop(lambda: server.gate.replace_keys(KeyRing([key(Role.INFER, tenant="new")], [])))
    assert server.infer(headers=bearer(Role.INFER, "new")).status == 200
    assert server.infer(headers=bearer(Role.INFER)).status == 401


def test_refusals_come_before_the_body_is_read(serve: Serve) -> None:
    server = serve(keys=ring())
    answer = server.ask("POST", "/v2/models/echo/infer", b"", {"Content-Length": "1000000"})
    assert answer.status == 401


def test_a_tenant_cannot_ask_about_the_requests_of_another(serve: Serve) -> None:
    other = key(Role.INFER, tenant="other")
    server = serve(keys=ring(other, tenants=(Tenant(name="other"),)))
    request_id = server.infer(headers=bearer(Role.INFER)).headers["x-request-id"]
    path = f"/v2/requests/{request_id}"
    assert server.ask("GET", path, headers=bearer(Role.INFER)).status == 200
    assert server.ask("GET", path, headers=bearer(Role.ADMIN)).status == 200
    assert server.ask("GET", path, headers=bearer(Role.INFER, "other")).status == 404
    guessed = request_id.rpartition("-")[0]
    assert server.ask("GET", f"/v2/requests/{guessed}", headers=bearer(Role.INFER, "other")).status == 404


@pytest.mark.parametrize(("asked", "given"), [(0, 2), (1, 2), (2, 2), (3, 3), (9, 9)])
def test_no_request_rises_above_the_class_of_its_key(serve: Serve, asked: int, given: int) -> None:
    capped = key(Role.INFER, tenant="low", job_class=JobClass.STANDARD)
    server = serve(keys=ring(capped, tenants=(Tenant(name="low"),)))
    body = echo_request(parameters={"priority": asked})
    assert server.infer(body, bearer(Role.INFER, "low")).status == 200
    assert server.link.calls[-1].priority == given
    assert server.infer(body, bearer(Role.INFER)).status == 200
    assert server.link.calls[-1].priority == asked


# --- quotas -----------------------------------------------------------------------------------------------


def test_a_tenant_above_its_rate_gets_429_and_others_do_not(serve: Serve) -> None:
    slow = Tenant(name="slow", requests_per_s=0.01, burst=2)
    server = serve(keys=ring(key(Role.INFER, tenant="slow"), tenants=(slow,)))
    statuses = [server.infer(headers=bearer(Role.INFER, "slow")).status for _ in range(3)]
    assert statuses == [200, 200, 429]
    refused = server.infer(headers=bearer(Role.INFER, "slow"))
    assert refused.json["reason"] == "quota"
    assert refused.headers["x-cotenant-outcome"] == "rejected"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert server.ask("GET", "/v2", headers=bearer(Role.INFER, "slow")).status == 429
    assert server.infer(headers=bearer(Role.INFER)).status == 200
    assert len(server.link.calls) == 3


def test_a_tenant_has_only_so_many_requests_in_flight(serve: Serve) -> None:
    narrow = Tenant(name="narrow", max_in_flight=1)
    server = serve(keys=ring(key(Role.INFER, tenant="narrow"), tenants=(narrow,)))
    with hanging(server, bearer(Role.INFER, "narrow")):
        refused = server.infer(headers=bearer(Role.INFER, "narrow"))
        assert (refused.status, refused.json["reason"]) == (429, "quota")
        assert server.infer(headers=bearer(Role.INFER)).status == 200
    assert server.infer(headers=bearer(Role.INFER, "narrow")).status == 200


def test_a_model_has_only_so_many_requests_in_flight(serve: Serve) -> None:
    server = serve(ServeConfig(door=FrontDoor(max_in_flight=1)))
    metrics = Metrics()
    server.gate.on_refused = metrics.refused
    with hanging(server):
        refused = server.infer()
        assert (refused.status, refused.json["reason"]) == (429, "overloaded")
        assert refused.headers["server-timing"].startswith("total;dur=")
    assert server.infer().status == 200
    counted = 'cotenant_requests_total{model="echo",outcome="rejected",reason="overloaded"} 1.0'
    assert counted in metrics.render()[0].decode()
    assert server.gate.in_flight == {"echo": 0}


@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_have_only_so_much_room_together(serve: Serve, chunked: bool) -> None:
    server = serve(ServeConfig(door=FrontDoor(max_buffered_mib=1)))
    body = b" " * (2 << 20)
    refused = server.infer(iter([body]) if chunked else body)
    assert (refused.status, refused.json["reason"]) == (429, "overloaded")
    assert server.infer().status == 200
    assert server.gate.n_bytes == 0


def test_whatever_ends_a_request_its_place_is_given_back(serve: Serve) -> None:
    server = serve()
    for body in (b"{", echo_request(parameters={"timeout": -1}), b" " * (65 << 20)):
        assert server.infer(body).status in (400, 413)
    server.link.draining = True
    assert server.infer().status == 503
    server.link.draining = False
    assert server.infer().status == 200
    assert (server.gate.in_flight, server.gate.n_bytes) == ({"echo": 0}, 0)


class hanging:  # noqa: N801 - used like a function
    """While it lasts one request waits in the engine."""

    def __init__(self, server: Server, headers: dict[str, str] | None = None) -> None:
        self._server = server
        self._headers = headers or {}

    def __enter__(self) -> None:
        import http.client

        self._server.link.hang_next = True
        self._connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=10)
        body = json.dumps(echo_request())
        self._connection.request("POST", "/v2/models/echo/infer", body, self._headers)
        self._server.until(lambda: self._server.link.n_waiting == 1)

    def __exit__(self, *_: object) -> None:
        self._server.on_loop(self._server.link.release)
        assert self._connection.getresponse().status == 200
        self._connection.close()


# --- web pages --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "127.0.0.1:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "app.localhost:80"}, 200),
        ({"Host": "inference"}, 200),
        ({}, 200),
        ({"Host": "evil.example:8000"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "localhost", "Origin": "http://localhost"}, 200),
        ({"Host": "localhost", "Origin": "http://evil.example"}, 403),
        ({"Host": "localhost", "Origin": "null"}, 403),
    ],
)
def test_an_open_server_answers_no_web_page_of_another_site(headers: dict[str, str], status: int) -> None:
    app = application(None)
    assert call(app, "GET", "/v2", headers)[0] == status
    assert (call(app, "POST", "/v2/models/echo/infer", headers)[0] == 403) == (status == 403)


def test_a_server_opened_on_purpose_answers_to_any_name_and_one_with_keys_asks_for_the_key() -> None:
    headers = {"Host": "models.example.com"}
    assert call(application(None, FrontDoor(open=True)), "GET", "/v2", headers)[0] == 200
    assert call(application(ring()), "GET", "/v2", headers | bearer(Role.INFER))[0] == 200


def test_a_server_without_keys_gives_everybody_every_role() -> None:
    for (method, path), roles in ACCESS.items():
        assert roles <= EVERY_ROLE
        assert call(application(None), method, concrete(path))[0] not in (401, 403)
