"""What the server and its models are, in the words of V2: every protocol says the same."""

from __future__ import annotations

from collections.abc import Mapping

from cotenant.domain import NS_PER_MS, ModelMetadata, TensorSpec
from cotenant.engine_client import EngineClient, ModelStatistics
from cotenant.serve.dataplane import UNAVAILABLE
from cotenant.serve.errors import BadRequest
from cotenant.serve.settings import ServeConfig

EXTENSIONS = (
    "binary_tensor_data",
    "model_configuration",
    "statistics",
    "schedule_policy",
)
"""V2 extensions that are supported in full, up to what `oip.UNSUPPORTED` refuses."""


def server_metadata(config: ServeConfig) -> dict[str, object]:
    """Name, version and extensions of the server."""
    control = ("model_repository",) if config.allow_model_control else ()
    return {"name": config.name, "version": config.version, "extensions": [*EXTENSIONS, *control]}


def server_ready(client: EngineClient) -> bool:
    """Whether requests are taken and no configured model is still loading. A model that failed to load does
    not make the others unreachable, nor does one that is loaded later: a server that has once been ready
    stays so as long as it takes requests."""
    loading = any(status.state == "LOADING" for status in client.status())
    client.was_ready = client.accepting() and (client.was_ready or not loading)
    return client.was_ready


def check_ready(client: EngineClient, metadata: ModelMetadata) -> None:
    """Raises BadRequest (503) unless the model can be asked."""
    for status in client.status():
        if status.name == metadata.name and status.state != "READY":
            raise BadRequest(503, f"{UNAVAILABLE}: model '{metadata.name}' is {status.state.lower()}")


def model_metadata(metadata: ModelMetadata) -> dict[str, object]:
    """V2's metadata of a model, and in `parameters` what else a client may want to know."""
    return {
        "name": metadata.name,
        "versions": metadata.versions,
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


def triton_config(metadata: ModelMetadata) -> dict[str, object]:
    """Triton's ModelConfig of a model, as perf_analyzer and tritonclient read it: without the batch
    dimension, which `max_batch_size` stands for (0: the model has none)."""

    def tensor(spec: TensorSpec) -> dict[str, object]:
        kind = "STRING" if spec.datatype == "BYTES" else spec.datatype
        dims = spec.shape[1:] if metadata.batched else spec.shape
        return {"name": spec.name, "data_type": f"TYPE_{kind}", "dims": dims}

    config: dict[str, object] = {
        "name": metadata.name,
        "platform": metadata.platform,
        "backend": metadata.platform.partition("_")[0],
        "version_policy": {"latest": {"num_versions": 1}},
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
    return {
        "name": statistics.name,
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
        "memory_usage": [],
    }
