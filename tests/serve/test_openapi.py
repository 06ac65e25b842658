"""The OpenAPI document covers every page and is the one that is committed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from serving import Server
from starlette.routing import Route

from cotenant.engine_client import EngineClient
from cotenant.serve.http import ServeConfig, make_app
from cotenant.serve.oip import InferRequest, InputTensor, WantedTensor
from cotenant.serve.openapi import document
from cotenant.testing import EchoLink

COMMITTED = Path(__file__).resolve().parents[2] / "docs" / "openapi.json"
IN_TEXT = {("get", "/"), ("get", "/metrics")}
"""Pages that answer with text."""


class Page:
    def render(self) -> tuple[bytes, str]:
        return b"", "text/plain"


def test_it_covers_every_route_and_nothing_else() -> None:
    app = make_app(EngineClient(EchoLink()), Page(), ServeConfig())
    routed = {
        (method.lower(), route.path)
        for route in app.rest.routes
        if isinstance(route, Route)
        for method in (route.methods or ()) - {"HEAD"}
    }
    described = {(method, path) for path, found in document()["paths"].items() for method in found}
    assert described == routed - IN_TEXT


def test_its_references_lead_somewhere_and_ids_are_unique() -> None:
    found = document()
    names = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(found)))
    assert names <= set(found["components"]["schemas"])
    ids = [operation["operationId"] for path in found["paths"].values() for operation in path.values()]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("struct", [InferRequest, InputTensor, WantedTensor])
def test_requests_are_described_as_they_are_decoded(struct: type[msgspec.Struct]) -> None:
    schema = document()["components"]["schemas"][struct.__name__]
    fields = msgspec.structs.fields(struct)
    assert set(schema["properties"]) == {field.name for field in fields}
    assert set(schema["required"]) == {field.name for field in fields if field.required}


def test_every_operation_says_how_it_fails() -> None:
    for path in document()["paths"].values():
        for operation in path.values():
            answers: dict[str, Any] = operation["responses"]
            assert "200" in answers
            schema = answers["default"]["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/Error"}


def test_the_committed_document_is_current() -> None:
    assert json.loads(COMMITTED.read_text()) == json.loads(json.dumps(document())), (
        "run python -m cotenant.serve.openapi > docs/openapi.json"
    )


def test_the_server_hands_it_out(server: Server) -> None:
    assert server.get("/v2/openapi.json").json == json.loads(json.dumps(document()))
