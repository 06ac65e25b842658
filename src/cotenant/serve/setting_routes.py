"""Routes of the logging and trace extensions. What this server cannot honour is refused by name.

Severities of the log are switched on and off. Traces in Triton's form are never written, so they are off, and
to switch them off is all that can be done.
"""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cotenant.engine_client import EngineClient
from cotenant.serve.bodies import json_response, read_json, refuse_web_pages
from cotenant.serve.dataplane import find_model
from cotenant.serve.errors import BadRequest
from cotenant.serve.log_settings import LogSettings

TRACE_OFF = {
    "trace_level": ["OFF"],
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_file": "",
    "trace_mode": "triton",
}
"""The trace settings of every model."""

_OBJECT = msgspec.json.Decoder(dict[str, Any])


class SettingRoutes:
    """The routes `/v2/logging` and `.../trace/setting`."""

    def __init__(self, client: EngineClient, log: LogSettings) -> None:
        self._client = client
        self._log = log

    def routes(self) -> list[Route]:
        """The routes."""
        both = ["GET", "POST"]
        return [
            Route("/v2/logging", self.log_settings, methods=both),
            Route("/v2/trace/setting", self.trace_settings, methods=both),
            Route("/v2/models/{model}/trace/setting", self.trace_settings, methods=both),
        ]

    async def log_settings(self, request: Request) -> Response:
        """What is logged; POST changes it first."""
        if request.method == "POST":
            refuse_web_pages(request, "the log")
            self._log.update(await read_json(request, _OBJECT, {}))
        return json_response(self._log.get())

    async def trace_settings(self, request: Request) -> Response:
        """Tracing is off, and POST may say so. null leaves a setting to the server."""
        if "model" in request.path_params:
            find_model(self._client, request.path_params["model"], None)
        if request.method == "POST":
            await self._check_trace(request)
        return json_response(TRACE_OFF)

    async def _check_trace(self, request: Request) -> None:
        refuse_web_pages(request, "tracing")
        for name, value in (await read_json(request, _OBJECT, {})).items():
            if name not in TRACE_OFF:
                raise BadRequest(400, f"{name:.100}: unknown trace setting; known: {', '.join(TRACE_OFF)}")
            if value is not None and value != TRACE_OFF[name] and [value] != TRACE_OFF[name]:
                raise BadRequest(
                    400,
                    f"{name}: this server writes no trace files, so trace_level is OFF and nothing else can "
                    "be set; GET /v2/requests/ID tells what became of a request",
                )
