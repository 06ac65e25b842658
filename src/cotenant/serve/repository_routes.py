"""Routes of the V2 model repository extension: index, and, where allowed, load and unload.

Only models of the server's own configuration can be loaded. Parameters that bring a model or its
configuration along (`config`, `file:...`) are refused: accepting them lets any client run code.
"""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cotenant.engine_client import EngineClient
from cotenant.redact import without_paths
from cotenant.serve.errors import BadRequest
from cotenant.serve.model_routes import json_response
from cotenant.serve.oip import decode_json
from cotenant.serve.settings import ServeConfig

MAX_BODY_BYTES = 64 * 1024


class IndexRequest(msgspec.Struct):
    """Body of an index request."""

    ready: bool = False


class ControlRequest(msgspec.Struct):
    """Body of a load or unload request."""

    parameters: dict[str, Any] | None = None


_INDEX = msgspec.json.Decoder(IndexRequest)
_CONTROL = msgspec.json.Decoder(ControlRequest)


class RepositoryRoutes:
    """The routes under `/v2/repository`."""

    def __init__(self, client: EngineClient, config: ServeConfig) -> None:
        self._client = client
        self._allowed = config.allow_model_control

    def routes(self) -> list[Route]:
        """The routes."""
        return [
            Route("/v2/repository/index", self.index, methods=["POST"]),
            Route("/v2/repository/models/{model}/load", self.load, methods=["POST"]),
            Route("/v2/repository/models/{model}/unload", self.unload, methods=["POST"]),
        ]

    async def index(self, request: Request) -> Response:
        """Every configured model with its state; with `{"ready": true}` only those that are loaded."""
        wanted: IndexRequest = await _decode(request, _INDEX, IndexRequest())
        models = self._client.metadata()
        entries = []
        for status in self._client.status():
            if wanted.ready and status.state != "READY":
                continue
            entry = {"name": status.name, "state": status.state, "reason": without_paths(status.reason)}
            if status.name in models:
                entry["version"] = models[status.name].versions[-1]
            entries.append(entry)
        return json_response(entries)

    async def load(self, request: Request) -> Response:
        """Load a configured model; answers when it is loaded."""
        name = await self._controlled(request)
        return self._done("load", name, await self._client.load(name))

    async def unload(self, request: Request) -> Response:
        """Unload a model; answers when it is unloaded."""
        name = await self._controlled(request)
        return self._done("unload", name, await self._client.unload(name))

    async def _controlled(self, request: Request) -> str:
        """The model's name, after every check."""
        if not self._allowed:
            raise BadRequest(
                403,
                "loading and unloading models is turned off on this server; allow_model_control = true "
                "under [server] in its config turns it on",
            )
        if "origin" in request.headers:
            raise BadRequest(403, "model control is not open to web pages (the request has an Origin header)")
        control: ControlRequest = await _decode(request, _CONTROL, ControlRequest())
        for parameter in control.parameters or {}:
            if parameter == "config" or parameter.startswith("file:"):
                raise BadRequest(
                    400,
                    f"parameters.{parameter:.40}: refused; only models of the server's configuration load",
                )
        name: str = request.path_params["model"]
        if all(status.name != name for status in self._client.status()):
            raise BadRequest(404, f"unknown model '{name:.100}'")
        return name

    def _done(self, what: str, name: str, error: str | None) -> Response:
        if error is not None:
            raise BadRequest(400, f"model '{name}' did not {what}: {without_paths(error)}")
        return json_response({})


async def _decode(request: Request, decoder: msgspec.json.Decoder[Any], empty: Any) -> Any:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise BadRequest(413, f"the body is larger than the limit of {MAX_BODY_BYTES} bytes")
    return decode_json(decoder, bytes(body)) if body else empty
