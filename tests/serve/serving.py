"""A real uvicorn server in a thread, on an engine in memory, and a plain HTTP client."""

from __future__ import annotations

import asyncio
import http.client
import json
import queue
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import uvloop

from cotenant.engine_client import EngineClient
from cotenant.serve.gate import Gate
from cotenant.serve.http import MetricsPage, ServeConfig, make_app
from cotenant.serve.keys import KeyRing
from cotenant.serve.server import serve_http
from cotenant.testing import EchoLink


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return self.json["error"]


class Server:
    """`serve_http` in a thread of its own."""

    def __init__(
        self,
        link: EchoLink,
        config: ServeConfig,
        metrics: MetricsPage | None = None,
        *,
        keys: KeyRing | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.link = link
        self.port = 0
        self.gate = Gate(keys, config.door, link.now)
        self.app = make_app(EngineClient(link), metrics, config, self.gate)
        self._config = config
        self._tls = tls
        self._ready: queue.Queue[int] = queue.Queue()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._main()), daemon=True)

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.shutdown = asyncio.Event()
        await serve_http(
            self.app,
            "127.0.0.1",
            0,
            self._ready.put,
            self.shutdown,
            drain_limit_s=2,
            door=self._config.door,
            tls=self._tls,
        )

    def start(self) -> None:
        self._thread.start()
        self.port = self._ready.get(timeout=10)

    def begin_shutdown(self) -> None:
        self.loop.call_soon_threadsafe(self.shutdown.set)

    def stop(self) -> None:
        """Answer what hangs and shut down, unless a test already has."""
        if self._thread.is_alive():
            self.on_loop(self.link.release)
            self.begin_shutdown()
            self.join()

    def join(self) -> None:
        self._thread.join(timeout=10)
        assert not self._thread.is_alive()

    def on_loop(self, function: Callable[[], Any]) -> Any:
        """Run `function` on the server's event loop and return its result."""
        done: queue.Queue[Any] = queue.Queue()
        self.loop.call_soon_threadsafe(lambda: done.put(function()))
        return done.get(timeout=10)

    def in_background(self, ask: Callable[[], Answer]) -> Callable[[], Answer]:
        """Begin to ask in a thread; the function that is returned waits for the answer."""
        done: queue.Queue[Answer] = queue.Queue()
        threading.Thread(target=lambda: done.put(ask()), daemon=True).start()
        return lambda: done.get(timeout=10)

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds, looked at on every turn of the server's event loop."""
        done = threading.Event()

        def look() -> None:
            if condition():
                done.set()
            else:
                self.loop.call_later(0.002, look)

        self.loop.call_soon_threadsafe(look)
        assert done.wait(10)

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """One request on a connection of its own. A body that is not bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            if body is not None and not isinstance(body, bytes) and not hasattr(body, "__next__"):
                body = json.dumps(body).encode()
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        finally:
            connection.close()

    def get(self, path: str) -> Answer:
        return self.ask("GET", path)

    def infer(self, body: Any = None, headers: dict[str, str] | None = None, model: str = "echo") -> Answer:
        return self.ask(
            "POST", f"/v2/models/{model}/infer", echo_request() if body is None else body, headers
        )


def echo_request(rows: int = 1, **members: Any) -> dict[str, Any]:
    """A valid request to `echo`."""
    tensor = {"name": "input", "shape": [rows, 16], "datatype": "FP32", "data": [0.5] * 16 * rows}
    return {"inputs": [tensor], **members}
