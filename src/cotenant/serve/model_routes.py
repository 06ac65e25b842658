"""GET routes that describe the server and its models: health, metadata, config, statistics, explain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cotenant.domain import NS_PER_MS, ModelMetadata, TensorSpec, model_of
from cotenant.engine_client import EngineClient, ModelStatistics
from cotenant.serve.bodies import json_response
from cotenant.serve.dataplane import find_model, versions_of
from cotenant.serve.errors import BadRequest
from cotenant.serve.settings import ServeConfig

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "logging",
    "model_configuration",
    "schedule_policy",
    "statistics",
)
"""V2 extensions that every server supports, up to what it refuses by name."""


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
        allowed = {
            "model_repository": self._config.allow_model_control,
            "system_shared_memory": self._config.shared_memory,
        }
        return json_response(
            {
                "name": self._config.name,
                "version": self._config.version,
                "extensions": [*EXTENSIONS, *(name for name, allow in allowed.items() if allow)],
            }
        )

    async def live(self, _: Request) -> Response:
        """200 as long as the process answers."""
        return json_response({"live": True})

    async def ready(self, _: Request) -> Response:
        """200 when requests are taken and a model is there to answer them, unless none is expected. One that
        is being loaded, or failed to load, does not make the others unreachable."""
        states = {status.state for status in self._client.status()}
        ready = self._client.accepting() and ("READY" in states or "LOADING" not in states)
        return json_response({"ready": ready}, 200 if ready else 503)

    async def models(self, _: Request) -> Response:
        """Names of the loaded models."""
        return json_response({"models": sorted(set(map(model_of, self._client.metadata())))})

    async def model(self, request: Request) -> Response:
        """Model metadata."""
        metadata = self._find(request)
        return json_response(
            {
                "name": model_of(metadata.name),
                "versions": self._versions(metadata),
                "platform": metadata.platform,
                "inputs": [_tensor(spec) for spec in metadata.inputs],
                "outputs": [_tensor(spec) for spec in metadata.outputs],
                "parameters": _facts(metadata),
            }
        )

    async def model_ready(self, request: Request) -> Response:
        """200 when the model can be asked; else 503, or 404 when unknown."""
        metadata = self._find(request)
        for status in self._client.status():
            if status.name == metadata.name and status.state != "READY":
                name = model_of(metadata.name)
                raise BadRequest(503, f"not available: model '{name}' is {status.state.lower()}")
        return json_response({"name": model_of(metadata.name), "ready": True})

    async def model_config(self, request: Request) -> Response:
        """The model's configuration in the form of Triton's ModelConfig."""
        metadata = self._find(request)
        return json_response(triton_config(metadata, self._versions(metadata)))

    async def model_statistics(self, request: Request) -> Response:
        """Statistics of one version of a model, or of all its versions."""
        metadata = self._find(request)
        if "version" in request.path_params or "@" not in metadata.name:
            return self._statistics({metadata.name: metadata})
        name, models = model_of(metadata.name), self._client.metadata()
        return self._statistics({found: models[found] for found in models if model_of(found) == name})

    def _versions(self, metadata: ModelMetadata) -> Sequence[str]:
        if "@" not in metadata.name:
            return metadata.versions
        return versions_of(self._client.metadata(), model_of(metadata.name))

    async def all_statistics(self, _: Request) -> Response:
        """Statistics of every loaded model."""
        return self._statistics(self._client.metadata())

    def _statistics(self, models: Any) -> Response:
        found = [
            triton_statistics(statistics, models[statistics.name])
            for statistics in self._client.statistics()
            if statistics.name in models
        ]
        return json_response({"model_stats": found})

    async def explain(self, request: Request) -> Response:
        """What is remembered of a recent request."""
        request_id = request.path_params["request_id"]
        found = self._client.explain(request_id)
        if found is None:
            raise BadRequest(
                404,
                f"nothing is remembered of request '{request_id:.100}'; "
                "give the x-request-id of a recent answer",
            )
        return json_response(found)


async def _post_only(_: Request) -> Response:
    raise BadRequest(404, "no such page")  # POST never comes here: App takes it


def _tensor(spec: TensorSpec) -> dict[str, object]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}


def _input_facts(spec: TensorSpec) -> dict[str, object]:
    """Names of an input's axes, and the range of its integers where the model states one."""
    bounded = spec.low is not None and spec.high is not None
    return {"axes": spec.axes, "range": (spec.low, spec.high) if bounded else None}


def _facts(metadata: ModelMetadata) -> dict[str, object]:
    """What a load generator wants to know besides V2's metadata; times in ms."""
    spec = metadata.spec
    return {
        "slo_ms": None if spec.slo_ns is None else spec.slo_ns / NS_PER_MS,
        "solo_ms": None if metadata.solo_ns is None else metadata.solo_ns / NS_PER_MS,
        "class": spec.job_class.name.lower(),
        "max_batch": spec.max_batch,
        "buckets": dict(spec.axis_buckets),
        "inputs": {tensor.name: _input_facts(tensor) for tensor in metadata.inputs},
    }


def triton_config(metadata: ModelMetadata, versions: Sequence[str]) -> dict[str, object]:
    """Triton's ModelConfig of a model, as perf_analyzer and tritonclient read it: without the batch
    dimension, which `max_batch_size` stands for (0: the model has none). `versions`: those that are served,
    whatever policy chose them."""

    def tensor(spec: TensorSpec) -> dict[str, object]:
        kind = "STRING" if spec.datatype == "BYTES" else spec.datatype
        dims = spec.shape[1:] if metadata.batched else spec.shape
        return {"name": spec.name, "data_type": f"TYPE_{kind}", "dims": dims}

    config: dict[str, object] = {
        "name": model_of(metadata.name),
        "platform": metadata.platform,
        "backend": metadata.platform.partition("_")[0],
        "version_policy": {"specific": {"versions": [int(version) for version in versions]}},
        "max_batch_size": metadata.spec.max_batch if metadata.batched else 0,
        "input": [tensor(spec) for spec in metadata.inputs],
        "output": [tensor(spec) for spec in metadata.outputs],
        "instance_group": [],
        "parameters": {},
    }
    if metadata.batched:
        config["dynamic_batching"] = {
            "preferred_batch_size": metadata.spec.row_buckets,
            "max_queue_delay_microseconds": 0,
            "preserve_ordering": False,
            "priority_levels": 3,
            "default_priority_level": int(metadata.spec.job_class),
        }
    return config


def triton_statistics(statistics: ModelStatistics, metadata: ModelMetadata) -> dict[str, object]:
    """One entry of `model_stats`. Inputs and outputs are handed over inside the compute time, so
    `compute_input` and `compute_output` are zero spans."""

    def span(pair: tuple[int, int]) -> dict[str, int]:
        return {"count": pair[0], "ns": pair[1]}

    none = (0, 0)
    instant = (statistics.compute[0], 0)
    held = metadata.memory_bytes
    return {
        "name": model_of(statistics.name),
        "version": metadata.versions[-1],
        "last_inference": statistics.last_inference_ms,
        "inference_count": statistics.inference_count,
        "execution_count": statistics.execution_count,
        "inference_stats": {
            "success": span(statistics.success),
            "fail": span(statistics.fail),
            "queue": span(statistics.queue),
            "compute_input": span(instant),
            "compute_infer": span(statistics.compute),
            "compute_output": span(instant),
            "cache_hit": span(none),
            "cache_miss": span(none),
        },
        "batch_stats": [
            {
                "batch_size": rows,
                "compute_input": span((count, 0)),
                "compute_infer": span((count, total_ns)),
                "compute_output": span((count, 0)),
            }
            for rows, count, total_ns in statistics.batches
        ],
        "memory_usage": [] if held is None else [{"type": "CPU", "id": 0, "byte_size": held}],
    }
