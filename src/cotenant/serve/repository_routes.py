"""Routes of the V2 model repository extension: index, and, where allowed, load and unload."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cotenant.engine_client import EngineClient
from cotenant.serve.bodies import json_response, read_json
from cotenant.serve.repository import check_allowed, check_control, check_done, repository_index
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
        self._config = config

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
        return json_response(repository_index(self._client, ready_only=wanted.ready))

    async def load(self, request: Request) -> Response:
        """Load a model, or load it anew; answers when it is loaded."""
        name = await self._controlled(request)
        check_done("load", name, await self._client.load(name))
        return json_response({})

    async def unload(self, request: Request) -> Response:
        """Unload a model; answers when it is unloaded."""
        name = await self._controlled(request)
        check_done("unload", name, await self._client.unload(name))
        return json_response({})

    async def _controlled(self, request: Request) -> str:
        """The model's name, after every check."""
        check_allowed(self._config, from_web="origin" in request.headers)
        control: ControlRequest = await read_json(request, _CONTROL, ControlRequest())
        name: str = request.path_params["model"]
        check_control(self._client, self._config, name, control.parameters or {})
        return name
