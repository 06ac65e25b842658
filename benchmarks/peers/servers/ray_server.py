"""Ray Serve: an application per model, replicas that share the cores, dynamic batching.

Started by `python ray_server.py PORT FOLDER`; the rest is in the environment.
"""

import os
import signal
import sys
import threading
from pathlib import Path

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE))

CORES = int(os.environ["PEERS_CORES"])
BATCH = int(os.environ["PEERS_BATCH"])
NAMES = ("cnn", "encoder", "recommender")
WAIT_S = 0.001
STORE_BYTES = 200 << 20


@serve.deployment(max_ongoing_requests=200)
class Echo:
    async def __call__(self, request: Request) -> list[float]:
        return await request.json()


@serve.deployment(
    num_replicas=CORES,
    max_ongoing_requests=2 * BATCH,
    ray_actor_options={
        "num_cpus": 1 / (len(NAMES) + 1),
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}},
    },
)
class Mixed:
    """A model by name; a request's body is its tensors."""

    def __init__(self, name: str) -> None:
        from mixed_models import Model

        self.model = Model(name)

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT_S)
    async def answer(self, requests: list[bytes]) -> list[bytes]:
        return self.model.answer(requests)

    async def __call__(self, request: Request) -> Response:
        return Response(await self.answer(await request.body()), media_type="application/octet-stream")


def main() -> None:
    port, folder = int(sys.argv[1]), sys.argv[2]
    stop = threading.Event()
    ray.init(
        num_cpus=CORES, include_dashboard=False, object_store_memory=STORE_BYTES, log_to_driver=False,
        _temp_dir=folder, _node_ip_address="127.0.0.1",
    )  # fmt: skip
    try:
        serve.start(
            http_options={"host": "127.0.0.1", "port": port},
            logging_config={"enable_access_log": False},
        )
        if os.environ["PEERS_APP"] == "echo":
            serve.run(Echo.bind(), name="echo", route_prefix="/echo")
        else:
            for name in NAMES:
                serve.run(Mixed.bind(name), name=name, route_prefix=f"/{name}")
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        stop.wait()
        serve.shutdown()
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
