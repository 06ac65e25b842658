"""Server reflection, v1 and v1alpha: clients without stubs (grpcurl) learn the services and their messages.

Both versions have the same messages under different package names, so one servicer answers both.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from google.protobuf import descriptor_pb2, json_format
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection import ReflectionServicer

from cotenant.serve.grpc import inference_pb2 as pb
from cotenant.serve.grpc.health import HEALTH, INFERENCE

REFLECTION = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")


class Reflection:
    """Answers questions about this server's services."""

    def __init__(self) -> None:
        pool = DescriptorPool()
        for module in (pb, health_pb2, reflection_pb2):
            pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
        pool.AddSerializedFile(_version_1().SerializeToString())
        self._servicer = ReflectionServicer((INFERENCE, HEALTH, *REFLECTION), pool)

    async def info(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """ServerReflectionInfo, of either version."""
        async for request in requests:
            for answer in self._servicer.ServerReflectionInfo(iter((request,)), context):
                yield answer


def _version_1() -> descriptor_pb2.FileDescriptorProto:
    """The file of version 1, which the library does not have: version v1alpha by another name."""
    alpha = descriptor_pb2.FileDescriptorProto.FromString(reflection_pb2.DESCRIPTOR.serialized_pb)
    text = json_format.MessageToJson(alpha).replace("v1alpha", "v1")
    return json_format.Parse(text, descriptor_pb2.FileDescriptorProto())
