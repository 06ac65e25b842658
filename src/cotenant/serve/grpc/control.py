"""Every method that does not infer: health, description, model repository, and what this server refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

import orjson
from google.protobuf import json_format
from google.protobuf.message import Message

from cotenant.engine_client import EngineClient
from cotenant.serve.dataplane import find_model
from cotenant.serve.describe import (
    asked_for,
    check_ready,
    model_metadata,
    model_statistics,
    server_metadata,
    server_ready,
    triton_config,
)
from cotenant.serve.errors import BadRequest
from cotenant.serve.grpc import inference_pb2 as pb
from cotenant.serve.grpc.shared_memory import Method, SharedMemoryRpcs
from cotenant.serve.repository import check_allowed, check_control, check_done, repository_index
from cotenant.serve.settings import ServeConfig
from cotenant.serve.shared_memory import Regions

M = TypeVar("M", bound=Message)
REFUSED: Mapping[str, tuple[type[Message], str]] = {
    "CudaSharedMemoryRegister": (
        pb.CudaSharedMemoryRegisterRequest,
        "CUDA shared memory is not supported by this server; send tensors in the request",
    ),
    "TraceSetting": (pb.TraceSettingRequest, "trace settings are not supported over gRPC"),
    "LogSettings": (pb.LogSettingsRequest, "log settings are not supported over gRPC"),
}
"""Methods of the protocol that this server knows and refuses: what they take, and why not."""


class ControlRpcs:
    """The methods by name."""

    def __init__(self, client: EngineClient, config: ServeConfig, regions: Regions | None) -> None:
        self._client = client
        self._config = config
        self.methods: Mapping[str, tuple[type[Message], Method]] = {
            "ServerLive": (pb.ServerLiveRequest, self.server_live),
            "ServerReady": (pb.ServerReadyRequest, self.server_ready),
            "ModelReady": (pb.ModelReadyRequest, self.model_ready),
            "ServerMetadata": (pb.ServerMetadataRequest, self.server_metadata),
            "ModelMetadata": (pb.ModelMetadataRequest, self.model_metadata),
            "ModelConfig": (pb.ModelConfigRequest, self.model_config),
            "ModelStatistics": (pb.ModelStatisticsRequest, self.model_statistics),
            "RepositoryIndex": (pb.RepositoryIndexRequest, self.repository_index),
            "RepositoryModelLoad": (pb.RepositoryModelLoadRequest, self.load),
            "RepositoryModelUnload": (pb.RepositoryModelUnloadRequest, self.unload),
            **SharedMemoryRpcs(regions).methods,
            **{name: (request, _refuse(why)) for name, (request, why) in REFUSED.items()},
        }
        """Method -> (the message that it takes, what answers it)."""

    # --- health -----------------------------------------------------------------------------------

    async def server_live(self, _: Any, __: bool) -> Message:
        """True as long as the process answers."""
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, _: Any, __: bool) -> Message:
        """Whether requests are taken and no configured model is still loading."""
        return pb.ServerReadyResponse(ready=server_ready(self._client))

    async def model_ready(self, asked: pb.ModelReadyRequest, _: bool) -> Message:
        """Whether the model can be asked; one that is not there cannot, which is an answer and no error."""
        try:
            check_ready(self._client, find_model(self._client, asked.name, asked.version or None))
        except BadRequest:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    # --- description ------------------------------------------------------------------------------

    async def server_metadata(self, _: Any, __: bool) -> Message:
        """Name, version and extensions."""
        return _filled(pb.ServerMetadataResponse(), server_metadata(self._config))

    async def model_metadata(self, asked: pb.ModelMetadataRequest, _: bool) -> Message:
        """Model metadata; `properties` holds as JSON what HTTP calls `parameters`."""
        found = model_metadata(self._client, find_model(self._client, asked.name, asked.version or None))
        facts = found.pop("parameters")
        assert isinstance(facts, dict)
        found["properties"] = {name: orjson.dumps(value).decode() for name, value in facts.items()}
        return _filled(pb.ModelMetadataResponse(), found)

    async def model_config(self, asked: pb.ModelConfigRequest, _: bool) -> Message:
        """The model's configuration in the form of Triton's ModelConfig."""
        config = triton_config(self._client, find_model(self._client, asked.name, asked.version or None))
        return _filled(pb.ModelConfigResponse(), {"config": config})

    async def model_statistics(self, asked: pb.ModelStatisticsRequest, _: bool) -> Message:
        """Statistics of one version of a model, of all its versions, or of all models."""
        models = self._client.metadata()
        if asked.name:
            metadata = find_model(self._client, asked.name, asked.version or None)
            models = asked_for(self._client, metadata, asked.version or None)
        found = await model_statistics(self._client, models)
        return _filled(pb.ModelStatisticsResponse(), {"model_stats": found})

    # --- model repository -------------------------------------------------------------------------

    async def repository_index(self, asked: pb.RepositoryIndexRequest, _: bool) -> Message:
        """Every model that could be loaded with its state."""
        found = repository_index(self._client, ready_only=asked.ready)
        return _filled(pb.RepositoryIndexResponse(), {"models": found})

    async def load(self, asked: pb.RepositoryModelLoadRequest, from_web: bool) -> Message:
        """Load a model, or load it anew; answers when it is loaded."""
        check_allowed(self._config, from_web=from_web)
        check_control(self._client, self._config, asked.model_name, _parameters(asked.parameters))
        check_done("load", asked.model_name, await self._client.load(asked.model_name))
        return pb.RepositoryModelLoadResponse()

    async def unload(self, asked: pb.RepositoryModelUnloadRequest, from_web: bool) -> Message:
        """Unload a model; answers when it is unloaded."""
        check_allowed(self._config, from_web=from_web)
        check_control(self._client, self._config, asked.model_name, _parameters(asked.parameters))
        check_done("unload", asked.model_name, await self._client.unload(asked.model_name))
        return pb.RepositoryModelUnloadResponse()


def _parameters(found: Mapping[str, pb.ModelRepositoryParameter]) -> dict[str, object]:
    """Parameters as JSON would give them."""
    return {
        name: getattr(parameter, parameter.WhichOneof("parameter_choice") or "", None)
        for name, parameter in found.items()
    }


def _filled(message: M, value: Mapping[str, object]) -> M:
    """The message with the members of the JSON object that V2 over HTTP answers with."""
    json_format.Parse(orjson.dumps(value), message)
    return message


def _refuse(why: str) -> Method:
    async def refuse(_: Any, __: bool) -> NoReturn:
        raise BadRequest(501, why)

    return refuse
