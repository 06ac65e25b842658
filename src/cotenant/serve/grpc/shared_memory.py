"""The methods of the shared memory extensions, on the regions that HTTP has a part in too.

There are no regions of CUDA memory: none to list or to unregister, and clients that unregister all of them
before they begin are content.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from google.protobuf.message import Message

from cotenant.serve.errors import BadRequest
from cotenant.serve.grpc import inference_pb2 as pb
from cotenant.serve.shared_memory import MOST_BYTES, TURNED_OFF, Regions

Method = Callable[[Any, bool], Awaitable[Message]]
"""Answers a message; told whether the call has an Origin, so that a browser sends it on behalf of a page."""


class SharedMemoryRpcs:
    """The methods by name."""

    def __init__(self, regions: Regions | None) -> None:
        """`regions`: None where shared memory is turned off."""
        self._regions = regions
        self.methods: Mapping[str, tuple[type[Message], Method]] = {
            "SystemSharedMemoryStatus": (pb.SystemSharedMemoryStatusRequest, self.status),
            "SystemSharedMemoryRegister": (pb.SystemSharedMemoryRegisterRequest, self.register),
            "SystemSharedMemoryUnregister": (pb.SystemSharedMemoryUnregisterRequest, self.unregister),
            "CudaSharedMemoryStatus": (pb.CudaSharedMemoryStatusRequest, self.no_status),
            "CudaSharedMemoryUnregister": (pb.CudaSharedMemoryUnregisterRequest, self.no_unregister),
        }
        """Method -> (the message that it takes, what answers it)."""

    async def status(self, asked: pb.SystemSharedMemoryStatusRequest, _: bool) -> Message:
        """The registered regions, or one."""
        answer = pb.SystemSharedMemoryStatusResponse()
        for region in self._allowed(from_web=False).status(asked.name or None):
            told = answer.regions[str(region["name"])]
            for name, value in region.items():
                setattr(told, name, value)
        return answer

    async def register(self, asked: pb.SystemSharedMemoryRegisterRequest, from_web: bool) -> Message:
        """Register a region."""
        regions = self._allowed(from_web=from_web)
        if asked.byte_size < 1:
            raise BadRequest(400, "byte_size: expected a number of bytes above 0")
        if max(asked.byte_size, asked.offset) > MOST_BYTES:
            raise BadRequest(400, f"offset and byte_size: expected no more than {MOST_BYTES}")
        regions.register(asked.name, asked.key, asked.offset, asked.byte_size)
        return pb.SystemSharedMemoryRegisterResponse()

    async def unregister(self, asked: pb.SystemSharedMemoryUnregisterRequest, from_web: bool) -> Message:
        """Unregister a region, or all."""
        self._allowed(from_web=from_web).unregister(asked.name or None)
        return pb.SystemSharedMemoryUnregisterResponse()

    async def no_status(self, asked: pb.CudaSharedMemoryStatusRequest, _: bool) -> Message:
        """There are no CUDA regions."""
        if asked.name:
            raise BadRequest(400, f"CUDA shared memory region '{asked.name:.100}' is not registered")
        return pb.CudaSharedMemoryStatusResponse()

    async def no_unregister(self, _: Any, __: bool) -> Message:
        """There is nothing to unregister."""
        return pb.CudaSharedMemoryUnregisterResponse()

    def _allowed(self, *, from_web: bool) -> Regions:
        if self._regions is None:
            raise BadRequest(403, TURNED_OFF)
        if from_web:
            raise BadRequest(403, "shared memory is not open to web pages (the call has an Origin)")
        return self._regions
