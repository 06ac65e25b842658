"""Asks a server through KServe's own gRPC client: `python kserve_grpc_check.py HOST:PORT`.

Runs in an environment that has kserve and nothing of cotenant. The server must serve `echo` (FP32 [-1, 16],
`max_batch` 8) and `strings` (BYTES [-1]), whose outputs are their inputs. Ends with `all checks passed`, or
with a traceback.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest
from kserve.errors import InvalidInput

VALUES = np.arange(32, dtype=np.float32).reshape(2, 16) / 7
WORDS = np.array([b"", "grün".encode(), b"x" * 1000], np.object_)


def asked(values: Any, model: str, name: str, datatype: str, *, binary: bool, **more: Any) -> InferRequest:
    tensor = InferInput(name, list(values.shape), datatype)
    tensor.set_data_from_numpy(values, binary_data=binary)
    return InferRequest(model, [tensor], **more)


async def check(url: str) -> None:
    async with InferenceGRPCClient(url) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("echo")
        assert not await client.is_model_ready("nope")
        for binary in (False, True):
            for more in ({}, {"parameters": {"priority": 1, "timeout": 900_000}}):
                request = asked(VALUES, "echo", "input", "FP32", binary=binary, request_id="mine", **more)
                response = await client.infer(request, timeout=10)
                assert (response.model_name, response.id) == ("echo", "mine")
                assert np.array_equal(response.outputs[0].as_numpy().reshape(2, 16), VALUES)
            words = await client.infer(asked(WORDS, "strings", "x", "BYTES", binary=binary))
            assert words.outputs[0].as_numpy().tolist() == WORDS.tolist()
        refused = ""
        try:
            await client.infer(asked(np.zeros((9, 16), np.float32), "echo", "input", "FP32", binary=True))
        except (grpc.RpcError, InvalidInput) as error:
            refused = str(error)
        assert "at most 8" in refused


if __name__ == "__main__":
    asyncio.run(check(sys.argv[1]))
    print("all checks passed")
