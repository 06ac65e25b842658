"""What the server and its models are, in the words of V2: every protocol says the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cotenant.domain import NS_PER_MS, ModelMetadata, TensorSpec, model_of
from cotenant.engine_client import EngineClient, ModelStatistics
from cotenant.serve.dataplane import UNAVAILABLE, versions_of
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


def server_metadata(config: ServeConfig) -> dict[str, object]:
    """Name, version and extensions of the server."""
    allowed = {
        "model_repository": config.allow_model_control,
        "system_shared_memory": config.shared_memory,
    }
    return {
        "name": config.name,
        "version": config.version,
        "extensions": [*EXTENSIONS, *(name for name, allow in allowed.items() if allow)],
    }


def server_ready(client: EngineClient) -> bool:
    """Whether requests are taken and a model is there to answer them, unless none is expected. One that is
    being loaded, or failed to load, does not make the others unreachable; and a server that has once been
    ready stays so as long as it takes requests."""
    states = {status.state for status in client.status()}
    expected = "READY" in states or "LOADING" not in states
    client.was_ready = client.accepting() and (client.was_ready or expected)
    return client.was_ready


def check_ready(client: EngineClient, metadata: ModelMetadata) -> None:
    """Raises BadRequest (503) unless the model can be asked."""
    for status in client.status():
        if status.name == metadata.name and status.state != "READY":
            name = model_of(metadata.name)
            raise BadRequest(503, f"{UNAVAILABLE}: model '{name}' is {status.state.lower()}")


def versions_served(client: EngineClient, metadata: ModelMetadata) -> Sequence[str]:
    """Every version of the model that is loaded."""
    if "@" not in metadata.name:
        return metadata.versions
    return versions_of(client.metadata(), model_of(metadata.name))


def asked_for(
    client: EngineClient, metadata: ModelMetadata, version: str | None
) -> Mapping[str, ModelMetadata]:
    """The version of a model that was found, or with no `version` asked for all its versions."""
    if version is not None or "@" not in metadata.name:
        return {metadata.name: metadata}
    name, models = model_of(metadata.name), client.metadata()
    return {found: models[found] for found in models if model_of(found) == name}


def model_metadata(client: EngineClient, metadata: ModelMetadata) -> dict[str, object]:
    """V2's metadata of a model, and in `parameters` what else a client may want to know."""
    return {
        "name": model_of(metadata.name),
        "versions": versions_served(client, metadata),
        "platform": metadata.platform,
        "inputs": [_tensor(spec) for spec in metadata.inputs],
        "outputs": [_tensor(spec) for spec in metadata.outputs],
        "parameters": _facts(metadata),
    }


async def model_statistics(
    client: EngineClient, models: Mapping[str, ModelMetadata]
) -> list[dict[str, object]]:
    """`model_stats` of these models. Raises EngineDownError."""
    return [
        triton_statistics(statistics, models[statistics.name])
        for statistics in await client.statistics()
        if statistics.name in models
    ]


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


def triton_config(client: EngineClient, metadata: ModelMetadata) -> dict[str, object]:
    """Triton's ModelConfig of a model, as perf_analyzer and tritonclient read it: without the batch
    dimension, which `max_batch_size` stands for (0: the model has none). Its versions are those that are
    served, whatever policy chose them."""
    versions = versions_served(client, metadata)

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
