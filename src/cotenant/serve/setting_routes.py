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
        traced = ("/v2/trace/setting", "/v2/models/{model}/trace/setting")
        return [
            Route("/v2/logging", self.log_settings, methods=["GET"]),
            Route("/v2/logging", self.change_log_settings, methods=["POST"]),
            *(Route(path, self.trace_settings, methods=["GET"]) for path in traced),
            *(Route(path, self.change_trace_settings, methods=["POST"]) for path in traced),
        ]

    async def log_settings(self, _: Request) -> Response:
        """What is logged."""
        return json_response(self._log.get())

    async def change_log_settings(self, request: Request) -> Response:
        """Change what is logged; answers with all settings."""
        refuse_web_pages(request, "the log")
        self._log.update(await read_json(request, _OBJECT, {}))
        return json_response(self._log.get())

    async def trace_settings(self, request: Request) -> Response:
        """Tracing is off."""
        self._check_model(request)
        return json_response(TRACE_OFF)

    async def change_trace_settings(self, request: Request) -> Response:
        """Leave tracing off; answers with all settings. null leaves a setting to the server."""
        self._check_model(request)
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
        return json_response(TRACE_OFF)

    def _check_model(self, request: Request) -> None:
        if "model" in request.path_params:
            find_model(self._client, request.path_params["model"], None)
