"""Schemas of the OpenAPI document: of requests as they are decoded, of answers as they are made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from cotenant.serve.oip import OF_INPUT, OF_OUTPUT, OF_REQUEST
from cotenant.serve.repository_routes import ControlRequest, IndexRequest
from cotenant.serve.setting_routes import TRACE_OFF
from cotenant.serve.shared_memory_routes import RegisterRequest
from cotenant.serve.tensors import DTYPES

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
TRUTH: Schema = {"type": "boolean"}


def ref(name: str) -> Schema:
    """A reference to one of `schemas()`."""
    return {"$ref": f"#/components/schemas/{name}"}


def listed(items: Schema) -> Schema:
    """A list of these."""
    return {"type": "array", "items": items}


def maybe(schema: Schema) -> Schema:
    """This or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def record(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """An object with these members and no others."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


def schemas() -> dict[str, Schema]:
    """Every schema that the document refers to, by name."""
    return {**_requests(), **_answers(), **_statistics()}


def _requests() -> dict[str, Schema]:
    types = [ControlRequest, IndexRequest, RegisterRequest]
    _, found = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    made: dict[str, Schema] = dict(found)
    made["ControlRequest"]["properties"]["parameters"] = maybe(record({}, {"unload_dependents": TRUTH}))
    made["InputTensor"] = record(
        {"name": TEXT, "shape": listed({"type": "integer"}), "datatype": {"enum": list(DTYPES)}},
        {"data": {"type": "array"}, "parameters": _parameters(OF_INPUT)},
    )
    made["WantedTensor"] = record({"name": TEXT}, {"parameters": _parameters(OF_OUTPUT)})
    made["InferRequest"] = record(
        {"inputs": listed(ref("InputTensor"))},
        {
            "id": maybe(TEXT),
            "model_name": maybe(TEXT),
            "parameters": _parameters(OF_REQUEST),
            "outputs": maybe(listed(ref("WantedTensor"))),
        },
    )
    return made


def _parameters(known: tuple[str, ...]) -> Schema:
    """An object of these V2 parameters."""
    kinds: dict[str, Schema] = {
        "timeout": {"type": "integer", "minimum": 1, "description": "Budget in microseconds."},
        "priority": {"type": "integer", "minimum": 0, "maximum": 2**31},
        "classification": COUNT,
        "binary_data_size": COUNT,
        "shared_memory_region": TEXT,
        "shared_memory_offset": COUNT,
        "shared_memory_byte_size": COUNT,
    }
    return maybe(record({}, {name: kinds.get(name, TRUTH) for name in known}))


def _answers() -> dict[str, Schema]:
    tensor = record({"name": TEXT, "datatype": {"enum": list(DTYPES)}, "shape": listed({"type": "integer"})})
    output = record(
        {"name": TEXT, "datatype": {"enum": list(DTYPES)}, "shape": listed(COUNT)},
        {"data": listed({}), "parameters": {"type": "object"}},
    )
    return {
        "Error": {
            **record(
                {"error": TEXT},
                {"reason": TEXT, "predicted_ms": maybe(NUMBER), "retry_after_ms": maybe(NUMBER)},
            ),
            "description": "What was wrong. Refusals say why, when the request could have been answered, and "
            "after how long to ask again.",
        },
        "InferResponse": record(
            {"model_name": TEXT, "model_version": TEXT, "outputs": listed(output)}, {"id": TEXT}
        ),
        "Server": record({"name": TEXT, "version": TEXT, "extensions": listed(TEXT)}),
        "Live": record({"live": TRUTH}),
        "Ready": record({"ready": TRUTH}, {"name": TEXT, "reason": TEXT}),
        "Models": record({"models": listed(TEXT)}),
        "Model": record(
            {
                "name": TEXT,
                "versions": listed(TEXT),
                "platform": TEXT,
                "inputs": listed(tensor),
                "outputs": listed(tensor),
                "parameters": {"type": "object"},
            }
        ),
        "ModelConfig": {"type": "object", "description": "Triton's ModelConfig.", "required": ["name"]},
        "Index": listed(
            record(
                {"name": TEXT, "state": {"enum": ["READY", "LOADING", "UNAVAILABLE"]}, "reason": TEXT},
                {"version": TEXT},
            )
        ),
        "Nothing": {"type": "object", "maxProperties": 0},
        "Explanation": {"type": "object", "description": "What became of a request; times in milliseconds."},
        "Regions": listed(record({"name": TEXT, "key": TEXT, "offset": COUNT, "byte_size": COUNT})),
        "CudaRegions": {**listed({}), "maxItems": 0},
        "LogSettings": record(
            {},
            {
                **dict.fromkeys(("log_info", "log_warning", "log_error"), TRUTH),
                "log_verbose_level": {"enum": [0, 1]},
                "log_file": {"const": ""},
                "log_format": {"const": "default"},
            },
        ),
        "TraceSettings": record({}, {name: {"enum": [off, None]} for name, off in TRACE_OFF.items()}),
    }


def _statistics() -> dict[str, Schema]:
    span = record({"count": COUNT, "ns": COUNT})
    computing = ("compute_input", "compute_infer", "compute_output")
    spans = ("success", "fail", "queue", *computing, "cache_hit", "cache_miss")
    one = record(
        {
            "name": TEXT,
            "version": TEXT,
            "last_inference": COUNT,
            "inference_count": COUNT,
            "execution_count": COUNT,
            "inference_stats": record(dict.fromkeys(spans, span)),
            "batch_stats": listed(record({"batch_size": COUNT, **dict.fromkeys(computing, span)})),
            "memory_usage": listed(record({"type": TEXT, "id": COUNT, "byte_size": COUNT})),
        }
    )
    return {"Statistics": record({"model_stats": listed(one)})}
