"""Routes of the V2 model repository extension: index, and, where allowed, load and unload.

Only models of the server's own configuration and repository can be loaded. Parameters that bring a model or
its configuration along (`config`, `file:...`) are refused: accepting them lets any client run code.
"""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cotenant.domain import model_of, version_of
from cotenant.engine_client import EngineClient
from cotenant.serve.bodies import json_response, read_json, refuse_web_pages
from cotenant.serve.errors import BadRequest
from cotenant.serve.settings import ServeConfig


class IndexRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of an index request."""

    ready: bool = False


class ControlRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of a load or unload request."""

    parameters: dict[str, Any] | None = None


_INDEX = msgspec.json.Decoder(IndexRequest)
_CONTROL = msgspec.json.Decoder(ControlRequest)


class RepositoryRoutes:
    """The routes under `/v2/repository`."""

    def __init__(self, client: EngineClient, config: ServeConfig) -> None:
        self._client = client
        self._allowed = config.allow_model_control
        self._repository = config.repository

    def routes(self) -> list[Route]:
        """The routes."""
        return [
            Route("/v2/repository/index", self.index, methods=["POST"]),
            Route("/v2/repository/models/{model}/load", self.load, methods=["POST"]),
            Route("/v2/repository/models/{model}/unload", self.unload, methods=["POST"]),
        ]

    async def index(self, request: Request) -> Response:
        """Every model that could be loaded with its state; with `{"ready": true}` only those that are."""
        wanted: IndexRequest = await read_json(request, _INDEX, IndexRequest())
        models = self._client.metadata()
        entries = []
        for status in self._client.status():
            if wanted.ready and status.state != "READY":
                continue
            entry = {"name": model_of(status.name), "state": status.state, "reason": status.reason}
            if "@" in status.name:
                entry["version"] = version_of(status.name)
            elif status.name in models:
                entry["version"] = models[status.name].versions[-1]
            entries.append(entry)
        return json_response(entries)

    async def load(self, request: Request) -> Response:
        """Load a model, or load it anew; answers when it is loaded."""
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
        refuse_web_pages(request, "model control")
        control: ControlRequest = await read_json(request, _CONTROL, ControlRequest())
        for parameter, value in (control.parameters or {}).items():
            if parameter == "config" or parameter.startswith("file:"):
                raise BadRequest(
                    400,
                    f"parameters.{parameter:.40}: refused; only models of the server's configuration load",
                )
            # no model depends on another: with or without its dependents is the same
            if parameter != "unload_dependents" or not isinstance(value, bool):
                raise BadRequest(400, f"parameters.{parameter:.100}: unknown parameter")
        name: str = request.path_params["model"]
        known = self._repository or any(status.name == name for status in self._client.status())
        if not known or "@" in name:
            raise BadRequest(404, f"unknown model '{name:.100}'")
        return name

    def _done(self, what: str, name: str, error: str | None) -> Response:
        if error is not None and error.startswith("unknown model"):
            raise BadRequest(404, error)
        if error is not None:
            raise BadRequest(400, f"model '{name}' did not {what}: {error}")
        return json_response({})
