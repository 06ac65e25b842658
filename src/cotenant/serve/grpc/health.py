"""`grpc.health.v1.Health` from the engine's own state: for the server ("" or the inference service) and for
each model that could be loaded by its name: it serves when one of its versions does."""

from __future__ import annotations

import asyncio
from typing import Any

from grpc import StatusCode
from grpc_health.v1 import health_pb2

from cotenant.domain import model_of
from cotenant.engine_client import EngineClient
from cotenant.serve.describe import server_ready

HEALTH = "grpc.health.v1.Health"
INFERENCE = "inference.GRPCInferenceService"
_Status = health_pb2.HealthCheckResponse.ServingStatus
SERVING: int = _Status.SERVING
NOT_SERVING: int = _Status.NOT_SERVING
SERVICE_UNKNOWN: int = _Status.SERVICE_UNKNOWN


class Health:
    """Answers health checks."""

    def __init__(self, client: EngineClient, watch_s: float) -> None:
        """`watch_s`: how often a watch looks whether something has changed (s)."""
        self._client = client
        self._watch_s = watch_s

    def status(self, service: str) -> int:
        """SERVING, NOT_SERVING or SERVICE_UNKNOWN."""
        if service in ("", INFERENCE):
            return SERVING if server_ready(self._client) else NOT_SERVING
        states = {model.state for model in self._client.status() if model_of(model.name) == service}
        if not states:
            return SERVICE_UNKNOWN
        return SERVING if "READY" in states and self._client.accepting() else NOT_SERVING

    async def check(self, request: Any, context: Any) -> Any:
        """Check: the status now."""
        status = self.status(request.service)
        if status == SERVICE_UNKNOWN:
            await context.abort(StatusCode.NOT_FOUND, "unknown service")
        return health_pb2.HealthCheckResponse(status=status)

    async def list(self, _: Any, __: Any) -> Any:
        """List: the status of everything there is."""
        names = ["", INFERENCE, *{model_of(model.name): None for model in self._client.status()}]
        return health_pb2.HealthListResponse(
            statuses={name: health_pb2.HealthCheckResponse(status=self.status(name)) for name in names}
        )

    async def watch(self, request: Any, context: Any) -> None:
        """Watch: the status now and whenever it has changed, until the client has had enough."""
        told: int | None = None
        while True:
            status = self.status(request.service)
            if status != told:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                told = status
            await asyncio.sleep(self._watch_s)
