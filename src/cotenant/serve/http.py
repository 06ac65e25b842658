"""The HTTP application: infer requests go straight to `InferRoute`, everything else through Starlette; all of
them through the gate first."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from cotenant.engine_client import EngineClient, EngineDownError
from cotenant.serve.access import INFER, PRINCIPAL, Access
from cotenant.serve.dataplane import UNAVAILABLE, Answer, error_answer
from cotenant.serve.errors import BadRequest
from cotenant.serve.gate import Gate
from cotenant.serve.infer_route import InferRoute, OnSent, Receive, Scope, Send, send_answer
from cotenant.serve.log_settings import LogSettings
from cotenant.serve.model_routes import ModelRoutes
from cotenant.serve.openapi import document
from cotenant.serve.repository_routes import RepositoryRoutes
from cotenant.serve.setting_routes import SettingRoutes
from cotenant.serve.settings import ServeConfig
from cotenant.serve.shared_memory import Regions, regions_of
from cotenant.serve.shared_memory_routes import SharedMemoryRoutes

__all__ = ["App", "MetricsPage", "ServeConfig", "make_app"]

GREETING = """{name} {version}: models that share a device and keep their deadlines.
GET /v2  GET /v2/models  POST /v2/models/MODEL/infer  GET /v2/requests/ID  GET /metrics
GET /v2/openapi.json describes every page.
"""


Page = tuple[bytes, str]


class MetricsPage(Protocol):
    """What `GET /metrics` shows."""

    async def render(self, accept: str) -> Page:
        """The page and its content type, for a client that sends `accept` as its Accept header. Raises
        EngineDownError."""
        ...


class App:
    """The ASGI application."""

    def __init__(self, infer: InferRoute, rest: Starlette, client: EngineClient, access: Access) -> None:
        self.rest = rest
        self._infer = infer
        self._access = access
        self._now = client.now
        self._new_id = client.new_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; the arrival of an infer request is stamped here, its headers just parsed."""
        if scope["type"] != "http":
            raise ValueError(f"this server does not speak {scope['type']}")
        if scope["method"] == "POST":
            arrived_at = self._now()
            match scope["path"].split("/"):
                case ["", "v2", "models", model, "infer"]:
                    return await self._inference(scope, receive, send, model, None, arrived_at)
                case ["", "v2", "models", model, "versions", version, "infer"]:
                    return await self._inference(scope, receive, send, model, version, arrived_at)
        principal = self._access.admit_page(scope)
        if isinstance(principal, Answer):
            return await send_answer(send, principal, self._new_id())
        scope[PRINCIPAL] = principal
        return await self.rest(scope, receive, send)

    async def _inference(
        self, scope: Scope, receive: Receive, send: Send, model: str, version: str | None, arrived_at: int
    ) -> None:
        principal = self._access.admit(scope, INFER)
        if isinstance(principal, Answer):
            return await send_answer(send, principal, self._new_id())
        return await self._infer(scope, receive, send, model, version, arrived_at, principal)


def make_app(
    client: EngineClient,
    metrics: MetricsPage | None,
    config: ServeConfig,
    gate: Gate | None = None,
    on_sent: OnSent | None = None,
    regions: Regions | None = None,
) -> App:
    """The HTTP front end of one engine; without `metrics`, `/metrics` is unknown; without `gate` it is open
    to whoever reaches it. Other protocols of the same front end share its gate. `on_sent` is told how long
    answering took. `regions`: shared memory that another protocol has a part in; by default its own."""
    regions = regions or regions_of(config)
    gate = gate or Gate(None, config.door, client.now)
    routes = [
        Route("/", _greeting(config), methods=["GET"]),
        *ModelRoutes(client, config).routes(),
        *RepositoryRoutes(client, config).routes(),
        *SharedMemoryRoutes(regions).routes(),
        Route("/v2/openapi.json", _openapi(config), methods=["GET"]),
        *SettingRoutes(client, LogSettings(logging.getLogger("cotenant"))).routes(),
        *_metrics_routes(metrics),
    ]
    rest = Starlette(
        routes=routes,
        exception_handlers={
            HTTPException: _http_error,
            BadRequest: _bad_request,
            EngineDownError: _engine_down,
            ClientDisconnect: _client_gone,
            Exception: _internal_error,
        },
    )
    rest.router.redirect_slashes = False
    access = Access(gate, rest.router.routes, open_health=config.door.open_health, any_host=config.door.open)
    return App(InferRoute(client, config, gate, on_sent, regions), rest, client, access)


def _greeting(config: ServeConfig) -> Callable[[Request], Awaitable[Response]]:
    text = GREETING.format(name=config.name, version=config.version)

    async def greeting(_: Request) -> Response:
        return PlainTextResponse(text)

    return greeting


def _openapi(config: ServeConfig) -> Callable[[Request], Awaitable[Response]]:
    text = orjson.dumps(document(config.version))

    async def page(_: Request) -> Response:
        return Response(text, media_type="application/json")

    return page


def _metrics_routes(metrics: MetricsPage | None) -> Sequence[Route]:
    if metrics is None:
        return ()

    async def page(request: Request) -> Response:
        body, content_type = await metrics.render(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    return (Route("/metrics", page, methods=["GET"]),)


def _error(status: int, message: str, extra: dict[str, str] | None = None) -> Response:
    answer = error_answer(status, message)
    headers = {name.decode(): value.decode() for name, value in answer.headers}
    return Response(answer.body, status, headers | (extra or {}))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    allowed = dict(error.headers or {})
    if error.status_code == 405:
        message = f"{request.method} is not allowed here; expected {allowed.get('Allow', 'another method')}"
    elif error.status_code == 404:
        message = "no such page; GET /v2 describes the server, GET /v2/models its models"
    else:
        message = error.detail
    return _error(error.status_code, message, allowed)


async def _bad_request(_: Request, error: Exception) -> Response:
    assert isinstance(error, BadRequest)
    return _error(error.status, error.message)


async def _client_gone(_: Request, __: Exception) -> Response:
    return _error(499, "the client has gone")  # nobody reads it; but it is no error of the server either


async def _engine_down(_: Request, error: Exception) -> Response:
    return _error(503, f"{UNAVAILABLE}: {error}")


async def _internal_error(_: Request, __: Exception) -> Response:
    return _error(500, "internal error")
