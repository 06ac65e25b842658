"""The servers of the comparison: how each is started, what it is sent, where its answer is.

Why each is set up as it is: README.md beside this file.
"""

from __future__ import annotations

import base64
import json
import socket
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from mixed_inputs import INPUTS, MAX_BATCH
from settings import FLOATS, HERE, ROOT

SCRIPTS = HERE / "servers"
V2_TYPES = {"uint8": "UINT8", "int64": "INT64", "float32": "FP32"}
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a server is to run. `app` is `echo` or `mixed`; `folder` is its own; `slo_ms` per model."""

    app: str
    python: Path
    folder: Path
    cores: int
    slo_ms: Mapping[str, float]

    def variables(self) -> dict[str, str]:
        """What the scripts in `servers/` read."""
        return {
            "PEERS_APP": self.app,
            "PEERS_CORES": str(self.cores),
            "PEERS_BATCH": str(MAX_BATCH),
            "PEERS_SLO_MS": json.dumps(dict(self.slo_ms)),
        }


@dataclass(frozen=True, kw_only=True)
class Post:
    """One request: where to, and what."""

    path: str
    body: bytes
    headers: Mapping[str, str]


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server(ABC):
    """One server of the comparison. The echo is JSON in the server's own form."""

    name: str
    package: str
    """Whose version is quoted."""
    takes_deadlines = False
    """Whether requests carry the budget that is left."""

    @abstractmethod
    def command(self, place: Place, port: int) -> list[str]:
        """What serves `place.app` on the port; may write files into `place.folder`."""

    def environment(self, place: Place) -> dict[str, str]:
        """Variables besides `place.variables()`."""
        return {}

    def echo(self) -> Post:
        """The echo's request."""
        return Post(path="/echo", body=json.dumps(FLOATS).encode(), headers=JSON)

    def echoed(self, body: bytes) -> Any:
        """The floats in the echo's answer."""
        return json.loads(body)

    @abstractmethod
    def ask(self, model: str, request: bytes) -> Post:
        """A request of the mix."""

    @abstractmethod
    def answered(self, body: bytes, headers: Mapping[str, str]) -> bytes:
        """The model's answer in a response."""


class Cotenant(Server):
    """V2 with its binary extension; the budget that is left goes into `x-slo-ms`."""

    name = package = "cotenant"
    takes_deadlines = True
    _LENGTH = "Inference-Header-Content-Length"

    def command(self, place: Place, port: int) -> list[str]:
        config = ROOT / "benchmarks" / "peers_echo" / "cotenant_echo.toml"
        if place.app == "mixed":
            config = place.folder / "cotenant_mixed.toml"
            tables = [
                f'\n[[model]]\nname = "{model}"\nsource = "mixed_models:{model}"\n'
                f"slo_ms = {place.slo_ms[model]:.3f}\nmax_batch = {MAX_BATCH}\n"
                for model in INPUTS
            ]
            config.write_text("[server]\nallow_code = true\n" + "".join(tables))
        store = str(place.folder / "store")
        serve = ["-m", "cotenant", "serve", str(config), "--http-port", str(port), "--store", store]
        return [str(place.python), *serve]

    def environment(self, place: Place) -> dict[str, str]:
        return {"PYTHONPATH": f"{ROOT / 'src'}:{HERE}"}

    def echo(self) -> Post:
        tensor = {"name": "input", "shape": [1, 16], "datatype": "FP32", "data": FLOATS}
        return Post(
            path="/v2/models/echo/infer", body=json.dumps({"inputs": [tensor]}).encode(), headers=JSON
        )

    def echoed(self, body: bytes) -> Any:
        return json.loads(body)["outputs"][0]["data"]

    def ask(self, model: str, request: bytes) -> Post:
        inputs = [
            {
                "name": spec.name,
                "shape": [1, *spec.shape],
                "datatype": V2_TYPES[spec.dtype],
                "parameters": {"binary_data_size": spec.n_bytes},
            }
            for spec in INPUTS[model]
        ]
        head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
        return Post(
            path=f"/v2/models/{model}/infer",
            body=head + request,
            headers={self._LENGTH: str(len(head)), "Content-Type": "application/octet-stream"},
        )

    def answered(self, body: bytes, headers: Mapping[str, str]) -> bytes:
        return body[int(headers[self._LENGTH.lower()]) :]


class Mosec(Server):
    """MessagePack, which Mosec's mixin reads."""

    name = package = "mosec"

    def command(self, place: Place, port: int) -> list[str]:
        options = ["--address", "127.0.0.1", "--port", str(port), "--log-level", "error"]
        return [str(place.python), str(SCRIPTS / "mosec_server.py"), *options]

    def echo(self) -> Post:
        return Post(path="/inference", body=json.dumps(FLOATS).encode(), headers=JSON)

    def ask(self, model: str, request: bytes) -> Post:
        headers = {"Content-Type": "application/msgpack"}
        return Post(path=f"/{model}", body=msgspec.msgpack.encode(request), headers=headers)

    def answered(self, body: bytes, headers: Mapping[str, str]) -> bytes:
        return msgspec.msgpack.decode(body, type=bytes)


class LitServe(Server):
    """JSON with base64."""

    name = package = "litserve"

    def command(self, place: Place, port: int) -> list[str]:
        return [str(place.python), str(SCRIPTS / "litserve_server.py"), str(port)]

    def echo(self) -> Post:
        return Post(path="/predict", body=json.dumps({"input": FLOATS}).encode(), headers=JSON)

    def echoed(self, body: bytes) -> Any:
        return json.loads(body)["output"]

    def ask(self, model: str, request: bytes) -> Post:
        body = json.dumps({"input": base64.b64encode(request).decode()}).encode()
        return Post(path=f"/{model}", body=body, headers=JSON)

    def answered(self, body: bytes, headers: Mapping[str, str]) -> bytes:
        return base64.b64decode(json.loads(body)["output"])


class Ray(Server):
    """A request's body as it is, which a deployment reads from Starlette's Request."""

    name = "ray"
    package = "ray"

    def command(self, place: Place, port: int) -> list[str]:
        return [str(place.python), str(SCRIPTS / "ray_server.py"), str(port), str(place.folder)]

    def environment(self, place: Place) -> dict[str, str]:
        return {
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
        }

    def ask(self, model: str, request: bytes) -> Post:
        return Post(path=f"/{model}", body=request, headers={"Content-Type": "application/octet-stream"})

    def answered(self, body: bytes, headers: Mapping[str, str]) -> bytes:
        return body


class BentoML(Server):
    """JSON with base64, in a list of one."""

    name = package = "bentoml"

    def command(self, place: Place, port: int) -> list[str]:
        service = f"bentoml_server:{place.app.capitalize()}"
        where = ["--working-dir", str(SCRIPTS), "--host", "127.0.0.1", "--port", str(port)]
        return [str(place.python), "-m", "bentoml", "serve", service, *where]

    def environment(self, place: Place) -> dict[str, str]:
        return {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(place.folder), "OMP_NUM_THREADS": "1"}

    def echo(self) -> Post:
        return Post(path="/echo", body=json.dumps({"input": FLOATS}).encode(), headers=JSON)

    def ask(self, model: str, request: bytes) -> Post:
        body = json.dumps({"inputs": [base64.b64encode(request).decode()]}).encode()
        return Post(path=f"/{model}", body=body, headers=JSON)

    def answered(self, body: bytes, headers: Mapping[str, str]) -> bytes:
        return base64.b64decode(json.loads(body)[0])


class MLServer(Server):
    """V2 in JSON; the mix with its base64 content type."""

    name = package = "mlserver"

    def command(self, place: Place, port: int) -> list[str]:
        models = ["echo"] if place.app == "echo" else list(INPUTS)
        server = {
            "host": "127.0.0.1", "http_port": port, "grpc_port": free_port(), "metrics_port": free_port(),
            "debug": False, "parallel_workers": place.cores, "environments_dir": str(place.folder / "envs"),
            "metrics_dir": str(place.folder / "metrics"),
        }  # fmt: skip
        (place.folder / "metrics").mkdir(exist_ok=True)
        (place.folder / "settings.json").write_text(json.dumps(server))
        for model in models:
            (place.folder / model).mkdir(exist_ok=True)
            table = {
                "name": model, "implementation": f"mlserver_runtime.{place.app.capitalize()}",
                "max_batch_size": MAX_BATCH, "max_batch_time": 0.001,
            }  # fmt: skip
            (place.folder / model / "model-settings.json").write_text(json.dumps(table))
        return [str(place.python.parent / "mlserver"), "start", str(place.folder)]

    def environment(self, place: Place) -> dict[str, str]:
        return {"PYTHONPATH": str(SCRIPTS), "OMP_NUM_THREADS": "1"}

    def echo(self) -> Post:
        tensor = {"name": "input", "shape": [1, 16], "datatype": "FP32", "data": FLOATS}
        return Post(
            path="/v2/models/echo/infer", body=json.dumps({"inputs": [tensor]}).encode(), headers=JSON
        )

    def echoed(self, body: bytes) -> Any:
        return json.loads(body)["outputs"][0]["data"]

    def ask(self, model: str, request: bytes) -> Post:
        tensor = {
            "name": "input", "shape": [1, 1], "datatype": "BYTES",
            "parameters": {"content_type": "base64"}, "data": [base64.b64encode(request).decode()],
        }  # fmt: skip
        body = json.dumps({"inputs": [tensor]}).encode()
        return Post(path=f"/v2/models/{model}/infer", body=body, headers=JSON)

    def answered(self, body: bytes, headers: Mapping[str, str]) -> bytes:
        return base64.b64decode(json.loads(body)["outputs"][0]["data"][0])


SERVERS: dict[str, Server] = {
    server.name: server for server in (Cotenant(), Mosec(), LitServe(), Ray(), BentoML(), MLServer())
}
"""By name, in the order in which they are shown."""
