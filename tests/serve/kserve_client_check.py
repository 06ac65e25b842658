"""Asks a server through KServe's own client: `python kserve_client_check.py HOST:PORT`.

Runs in an environment that has kserve and nothing of cotenant. The server must serve `echo` (FP32 [-1, 16]).
Ends with `all checks passed`, or with a traceback.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

VALUES = np.arange(32, dtype=np.float32).reshape(2, 16) / 7


def asked(*, binary: bool, **more: Any) -> InferRequest:
    tensor = InferInput("input", [2, 16], "FP32")
    tensor.set_data_from_numpy(VALUES, binary_data=binary)
    return InferRequest("echo", [tensor], **more)


async def check(url: str) -> None:
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=1))
    assert await client.is_server_live(url)
    assert await client.is_server_ready(url)
    assert await client.is_model_ready(url, "echo")
    outputs = [RequestedOutput("output", {"binary_data": True})]
    for binary in (False, True):
        for more in ({}, {"request_outputs": outputs, "parameters": {"priority": 1, "timeout": 900_000}}):
            response = await client.infer(
                url, asked(binary=binary, request_id="mine", **more), model_name="echo"
            )
            assert (response.model_name, response.id) == ("echo", "mine")
            assert np.array_equal(response.outputs[0].as_numpy().reshape(2, 16), VALUES)


if __name__ == "__main__":
    asyncio.run(check(f"http://{sys.argv[1]}"))
    print("all checks passed")
