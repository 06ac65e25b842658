"""The OpenAPI document of the HTTP interface: `GET /v2/openapi.json`, and for `docs/openapi.json`

python -m cotenant.serve.openapi > docs/openapi.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from cotenant import __version__
from cotenant.serve.openapi_schemas import COUNT, NUMBER, TEXT, Schema, ref, schemas

JSON = "application/json"
BINARY = "application/octet-stream"
EXAMPLE = {
    "inputs": [{"name": "input", "shape": [1, 16], "datatype": "FP32", "data": [0.5] * 16}],
    "outputs": [{"name": "output", "parameters": {"classification": 2}}],
}
"""A request to the zoo's `echo`."""
VERSION_PATHS = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path."""

    path: str
    summary: str
    answer: str
    """Name of the answer's schema."""
    method: str = "get"
    body: str | None = None
    """Name of the schema of the request's body."""
    needs_body: bool = False
    errors: tuple[int, ...] = ()
    headers: Mapping[str, Schema] = field(default_factory=dict)
    """Headers of the request that are read."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Other answers, by status."""


def document(version: str = __version__) -> dict[str, Any]:
    """The document."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations():
        paths.setdefault(operation.path, {})[operation.method] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "cotenant",
            "version": version,
            "summary": "V2 inference protocol with extensions",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": schemas()},
    }


def operations() -> Iterator[Operation]:
    """Every operation but `/` and `/metrics`, which answer with text."""
    yield Operation(path="/v2", summary="Describe the server", answer="Server")
    yield Operation(path="/v2/", summary="Describe the server", answer="Server")
    yield Operation(path="/v2/openapi.json", summary="This document", answer="Explanation")
    yield Operation(path="/v2/health/live", summary="Whether the server answers", answer="Live")
    yield Operation(
        path="/v2/health/ready",
        summary="Whether requests are taken",
        answer="Ready",
        more={"503": _answer("It drains, has no engine, or waits for its first model.", ref("Ready"))},
    )
    yield Operation(path="/v2/models", summary="Names of the loaded models", answer="Models")
    yield Operation(
        path="/v2/models/stats", summary="Statistics of all models", answer="Statistics", errors=(503,)
    )
    yield Operation(
        path="/v2/requests/{request_id}",
        summary="What became of a recent request",
        answer="Explanation",
        errors=(404, 503),
    )
    yield from _of_models()
    yield from _of_repository()
    yield from _of_shared_memory()
    yield from _of_settings()


def _of_models() -> Iterator[Operation]:
    for path in VERSION_PATHS:
        pages = (
            ("", "Describe a model", "Model"),
            ("/ready", "Whether a model can be asked", "Ready"),
            ("/config", "A model's configuration", "ModelConfig"),
            ("/stats", "Statistics of a model", "Statistics"),
        )
        for end, summary, answer in pages:
            yield Operation(path=path + end, summary=summary, answer=answer, errors=(404, 503))
        yield Operation(
            method="post",
            path=f"{path}/infer",
            summary="Ask a model",
            answer="InferResponse",
            body="InferRequest",
            needs_body=True,
            errors=(400, 404, 408, 413, 415, 429, 499, 500, 503, 504),
            headers={
                "Inference-Header-Content-Length": COUNT,
                "Content-Encoding": {"enum": ["identity", "gzip", "deflate"]},
                "x-slo-ms": {**NUMBER, "exclusiveMinimum": 0},
                "x-request-timeout-seconds": {**NUMBER, "exclusiveMinimum": 0},
            },
        )


def _of_repository() -> Iterator[Operation]:
    yield Operation(
        method="post",
        path="/v2/repository/index",
        summary="List the models that could be loaded",
        answer="Index",
        body="IndexRequest",
        errors=(400, 413, 415),
    )
    for action in ("load", "unload"):
        yield Operation(
            method="post",
            path=f"/v2/repository/models/{{model}}/{action}",
            summary=f"{action.capitalize()} a model",
            answer="Nothing",
            body="ControlRequest",
            errors=(400, 403, 404, 413, 415, 503),
        )


def _of_shared_memory() -> Iterator[Operation]:
    for kind, regions in (("system", "Regions"), ("cuda", "CudaRegions")):
        top = f"/v2/{kind}sharedmemory"
        for path in (top, f"{top}/region/{{region}}"):
            yield Operation(
                path=f"{path}/status", summary="Registered regions", answer=regions, errors=(400, 403)
            )
            yield Operation(
                method="post",
                path=f"{path}/unregister",
                summary="Unregister regions",
                answer="Nothing",
                errors=(403,),
            )
        yield Operation(
            method="post",
            path=f"{top}/region/{{region}}/register",
            summary="Register a region" if kind == "system" else "Refused: there are no CUDA regions",
            answer="Nothing",
            body="RegisterRequest" if kind == "system" else None,
            needs_body=kind == "system",
            errors=(400, 403, 413, 415),
        )


def _of_settings() -> Iterator[Operation]:
    for path, answer, errors in (
        ("/v2/logging", "LogSettings", ()),
        ("/v2/trace/setting", "TraceSettings", ()),
        ("/v2/models/{model}/trace/setting", "TraceSettings", (404, 503)),
    ):
        what = "log" if answer == "LogSettings" else "trace"
        yield Operation(path=path, summary=f"Show the {what} settings", answer=answer, errors=errors)
        yield Operation(
            method="post",
            path=path,
            summary=f"Change the {what} settings",
            answer=answer,
            body=answer,
            errors=(400, 403, 413, 415, *errors),
        )


# --- in the form of OpenAPI -------------------------------------------------------------------------


def _described(operation: Operation) -> dict[str, Any]:
    segments = [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {**TEXT, "minLength": 1}}
        for name in segments
    ]
    parameters += [
        {"name": name, "in": "header", "required": False, "schema": schema}
        for name, schema in operation.headers.items()
    ]
    found: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": _id(operation),
        "parameters": parameters,
        "responses": _responses(operation),
    }
    if operation.body is not None:
        content = {JSON: {"schema": ref(operation.body)}}
        if operation.body == "InferRequest":
            content[JSON]["example"] = EXAMPLE
            content[BINARY] = {"schema": {}}
        found["requestBody"] = {"required": operation.needs_body, "content": content}
    return found


def _responses(operation: Operation) -> dict[str, Any]:
    ok = _answer("It is done.", ref(operation.answer))
    if operation.answer == "InferResponse":
        ok["description"] = "The outputs; JSON, or JSON followed by binary tensors."
        ok["content"][BINARY] = {"schema": {}}
        ok["headers"] = {
            "x-request-id": {"schema": TEXT, "required": True},
            "inference-header-content-length": {"schema": COUNT},
            "x-cotenant-outcome": {"schema": {"const": "late"}},
        }
    errors = {str(status): _answer(_phrase(status), ref("Error")) for status in operation.errors}
    other = _answer("Any other error.", ref("Error"))
    return {"200": ok, **errors, **operation.more, "default": other}


def _answer(description: str, schema: Schema) -> dict[str, Any]:
    return {"description": description, "content": {JSON: {"schema": schema}}}


def _phrase(status: int) -> str:
    return "Client closed request" if status == 499 else HTTPStatus(status).phrase


def _id(operation: Operation) -> str:
    words = [word.strip("{}") for word in operation.path.replace(".", "/").split("/")]
    return "_".join([operation.method, *(word or "root" for word in words[1:])])


if __name__ == "__main__":
    sys.stdout.write(json.dumps(document(), indent=1) + "\n")
