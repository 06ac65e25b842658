"""What the routes that are no inference share: small JSON bodies in, JSON answers out, no web pages."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson
from starlette.requests import Request
from starlette.responses import Response

from cotenant.serve.compression import content_coding
from cotenant.serve.errors import BadRequest
from cotenant.serve.oip import decode_json

MAX_BODY_BYTES = 64 * 1024


def json_response(value: object, status: int = 200) -> Response:
    """A JSON response."""
    return Response(orjson.dumps(value), status, media_type="application/json")


async def read_json(request: Request, decoder: msgspec.json.Decoder[Any], empty: Any) -> Any:
    """The body, decoded; `empty` when there is none. Raises BadRequest (400, 413, 415)."""
    if content_coding(request.headers.get("content-encoding", "").encode("latin-1")) is not None:
        raise BadRequest(415, "header Content-Encoding: this route takes bodies as they are only")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise BadRequest(413, f"the body is larger than the limit of {MAX_BODY_BYTES} bytes")
    return decode_json(decoder, bytes(body)) if body else empty


def refuse_web_pages(request: Request, what: str) -> None:
    """Raise a BadRequest (403) for a request that a browser sends on behalf of a page."""
    if "origin" in request.headers:
        raise BadRequest(403, f"{what} is not open to web pages (the request has an Origin header)")
