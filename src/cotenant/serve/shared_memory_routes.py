"""Routes of the shared memory extensions: register, unregister and list regions.

Regions of system shared memory where the server allows them. Regions of CUDA memory never: a handle that a
client sends would be opened on its word, and could not be kept from being freed while it is read. There are
none to list or to unregister, then, and clients that unregister all of them before they begin are content.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cotenant.serve.bodies import json_response, read_json, refuse_web_pages
from cotenant.serve.errors import BadRequest
from cotenant.serve.shared_memory import MOST_BYTES, TURNED_OFF, Regions

Size = Annotated[int, msgspec.Meta(ge=0, le=MOST_BYTES)]


class RegisterRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of a register request."""

    key: str
    byte_size: Annotated[int, msgspec.Meta(ge=1, le=MOST_BYTES)]
    offset: Size = 0


_REGISTER = msgspec.json.Decoder(RegisterRequest)
NO_CUDA = (
    "this server takes no tensors in CUDA shared memory; send them in the body or in system shared memory"
)


class SharedMemoryRoutes:
    """The routes under `/v2/systemsharedmemory` and `/v2/cudasharedmemory`."""

    def __init__(self, regions: Regions | None) -> None:
        """`regions`: None where shared memory is turned off."""
        self._regions = regions

    def routes(self) -> list[Route]:
        """The routes."""
        found = []
        for kind, status, register, unregister in (
            ("system", self.status, self.register, self.unregister),
            ("cuda", self.no_status, self.no_register, self.no_unregister),
        ):
            top = f"/v2/{kind}sharedmemory"
            found += [
                Route(f"{top}/status", status, methods=["GET"]),
                Route(f"{top}/region/{{region}}/status", status, methods=["GET"]),
                Route(f"{top}/region/{{region}}/register", register, methods=["POST"]),
                Route(f"{top}/unregister", unregister, methods=["POST"]),
                Route(f"{top}/region/{{region}}/unregister", unregister, methods=["POST"]),
            ]
        return found

    async def status(self, request: Request) -> Response:
        """The registered regions, or one."""
        return json_response(self._allowed().status(request.path_params.get("region")))

    async def register(self, request: Request) -> Response:
        """Register a region."""
        regions = self._allowed()
        refuse_web_pages(request, "shared memory")
        asked: RegisterRequest | None = await read_json(request, _REGISTER, None)
        if asked is None:
            raise BadRequest(400, "body: is empty; expected an object with key, offset and byte_size")
        regions.register(request.path_params["region"], asked.key, asked.offset, asked.byte_size)
        return json_response({})

    async def unregister(self, request: Request) -> Response:
        """Unregister a region, or all."""
        regions = self._allowed()
        refuse_web_pages(request, "shared memory")
        regions.unregister(request.path_params.get("region"))
        return json_response({})

    def _allowed(self) -> Regions:
        if self._regions is None:
            raise BadRequest(403, TURNED_OFF)
        return self._regions

    async def no_status(self, request: Request) -> Response:
        """There are no CUDA regions."""
        if "region" in request.path_params:
            raise BadRequest(400, NO_CUDA)
        return json_response([])

    async def no_register(self, _: Request) -> Response:
        """A CUDA region is refused."""
        raise BadRequest(400, NO_CUDA)

    async def no_unregister(self, _: Request) -> Response:
        """There is nothing to unregister."""
        return json_response({})
