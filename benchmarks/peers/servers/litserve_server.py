"""LitServe: one endpoint per model, one worker per core, dynamic batching, the fast queue.

Started by `python litserve_server.py PORT`; the rest is in the environment.
"""

import base64
import os
import sys
from pathlib import Path
from typing import Any

import litserve

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

CORES = int(os.environ["PEERS_CORES"])
WAIT_S = 0.001


class Echo(litserve.LitAPI):
    """As the batching page of the documentation has it."""

    def setup(self, device: str) -> None:
        """Nothing to load."""

    def decode_request(self, request: dict[str, Any]) -> Any:
        return request["input"]

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def predict(self, x: list[Any]) -> list[Any]:
        return x

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def encode_response(self, output: Any) -> dict[str, Any]:
        return {"output": output}


class Mixed(Echo):
    """A model by name; tensors travel as base64."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(**options)
        self.name = name

    def setup(self, device: str) -> None:
        from mixed_models import Model

        self.model = Model(self.name)

    def decode_request(self, request: dict[str, Any]) -> bytes:
        return base64.b64decode(request["input"])

    def predict(self, x: list[bytes]) -> list[bytes]:
        return self.model.answer(x)

    def encode_response(self, output: bytes) -> dict[str, str]:
        return {"output": base64.b64encode(output).decode()}


def main() -> None:
    if os.environ["PEERS_APP"] == "echo":
        server = litserve.LitServer(
            Echo(max_batch_size=64, batch_timeout=WAIT_S), accelerator="cpu", fast_queue=True
        )
    else:
        batch = int(os.environ["PEERS_BATCH"])
        apis = [
            Mixed(name, max_batch_size=batch, batch_timeout=WAIT_S, api_path=f"/{name}")
            for name in ("cnn", "encoder", "recommender")
        ]
        server = litserve.LitServer(apis, accelerator="cpu", workers_per_device=CORES, fast_queue=True)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, generate_client_file=False,
        log_level="warning",
    )  # fmt: skip


if __name__ == "__main__":
    main()
