"""GET routes that describe the server and its models: health, metadata, config, statistics, explain."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cotenant.domain import ModelMetadata, model_of
from cotenant.engine_client import EngineClient
from cotenant.serve.bodies import json_response
from cotenant.serve.dataplane import find_model
from cotenant.serve.describe import (
    asked_for,
    check_ready,
    model_metadata,
    model_statistics,
    server_metadata,
    server_ready,
    triton_config,
)
from cotenant.serve.errors import BadRequest
from cotenant.serve.settings import ServeConfig
from cotenant.telemetry.explanation import FORGOTTEN, UNKNOWN


class ModelRoutes:
    """The read-only routes."""

    def __init__(self, client: EngineClient, config: ServeConfig) -> None:
        self._client = client
        self._config = config

    def routes(self) -> list[Route]:
        """The routes. `infer` stands here only so that other methods on it get a 405."""
        routes = [
            Route("/v2", self.server, methods=["GET"]),
            Route("/v2/", self.server, methods=["GET"]),
            Route("/v2/health/live", self.live, methods=["GET"]),
            Route("/v2/health/ready", self.ready, methods=["GET"]),
            Route("/v2/models", self.models, methods=["GET"]),
            Route("/v2/models/stats", self.all_statistics, methods=["GET"]),
            Route("/v2/requests/{request_id}", self.explain, methods=["GET"]),
        ]
        for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            routes += [
                Route(path, self.model, methods=["GET"]),
                Route(f"{path}/ready", self.model_ready, methods=["GET"]),
                Route(f"{path}/config", self.model_config, methods=["GET"]),
                Route(f"{path}/stats", self.model_statistics, methods=["GET"]),
                Route(f"{path}/infer", _post_only, methods=["POST"]),
            ]
        return routes

    def _find(self, request: Request) -> ModelMetadata:
        return find_model(self._client, request.path_params["model"], request.path_params.get("version"))

    async def server(self, _: Request) -> Response:
        """Server metadata."""
        return json_response(server_metadata(self._config))

    async def live(self, _: Request) -> Response:
        """200 as long as the process answers."""
        return json_response({"live": True})

    async def ready(self, _: Request) -> Response:
        """200 when requests are taken and models are there to answer them (`describe.server_ready`)."""
        absence = self._client.absence()
        if absence is not None:
            return json_response({"ready": False, "reason": absence.reason}, 503)
        ready = server_ready(self._client)
        return json_response({"ready": ready}, 200 if ready else 503)

    async def models(self, _: Request) -> Response:
        """Names of the loaded models."""
        return json_response({"models": sorted(set(map(model_of, self._client.metadata())))})

    async def model(self, request: Request) -> Response:
        """Model metadata."""
        return json_response(model_metadata(self._client, self._find(request)))

    async def model_ready(self, request: Request) -> Response:
        """200 when the model can be asked; else 503, or 404 when unknown."""
        metadata = self._find(request)
        check_ready(self._client, metadata)
        return json_response({"name": model_of(metadata.name), "ready": True})

    async def model_config(self, request: Request) -> Response:
        """The model's configuration in the form of Triton's ModelConfig."""
        return json_response(triton_config(self._client, self._find(request)))

    async def model_statistics(self, request: Request) -> Response:
        """Statistics of one version of a model, or of all its versions."""
        metadata = self._find(request)
        return await self._statistics(asked_for(self._client, metadata, request.path_params.get("version")))

    async def all_statistics(self, _: Request) -> Response:
        """Statistics of every loaded model."""
        return await self._statistics(self._client.metadata())

    async def _statistics(self, models: Mapping[str, ModelMetadata]) -> Response:
        return json_response({"model_stats": await model_statistics(self._client, models)})

    async def explain(self, request: Request) -> Response:
        """What is remembered of a recent request; 404, saying why, when nothing is."""
        request_id = request.path_params["request_id"]
        found = await self._client.explain(request_id)
        if found is None or found.get("state") in (UNKNOWN, FORGOTTEN):
            why = (found or {}).get("sentence") or (
                f"nothing is remembered of request '{request_id:.100}'; "
                "give the x-request-id of a recent answer"
            )
            raise BadRequest(404, why)
        return json_response(found)


async def _post_only(_: Request) -> Response:
    raise BadRequest(404, "no such page")  # POST never comes here: App takes it
