"""The clients against a real server on an engine in memory: results, deadlines, refusals, connections."""

from __future__ import annotations

import asyncio
import http.server
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import pytest
from serving import Server

import cotenant
from cotenant.client import AsyncClient, Client
from cotenant.domain import NS_PER_MS, ModelMetadata, ModelSpec, OutcomeKind, TensorSpec

X = np.arange(32, dtype=np.float32).reshape(2, 16)


def spec(name: str, datatype: str, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape, axes=(None,) * len(shape))


KINDS = ("BOOL", "UINT8", "INT16", "UINT64", "INT64", "FP16", "BF16", "FP32", "FP64", "BYTES")
EVERY = ModelMetadata(
    name="every kind",
    platform="test",
    versions=("1", "2"),
    inputs=tuple(spec(kind.lower(), kind, 2, 2) for kind in KINDS),
    outputs=tuple(spec(f"{kind.lower()}_out", kind, 2, 2) for kind in KINDS),
    batched=False,
    spec=ModelSpec(name="every kind", slo_ns=None),
)


class Sync:
    """The synchronous client with the face of the asynchronous one, so that both pass the same tests."""

    def __init__(self, url: str, **options: Any) -> None:
        self.client = Client(url, **options)

    async def infer(self, *arguments: Any, **options: Any) -> Any:
        return await asyncio.to_thread(lambda: self.client.infer(*arguments, **options))

    async def get(self, path: str) -> Any:
        return await asyncio.to_thread(self.client.get, path)

    async def ready(self) -> bool:
        return await asyncio.to_thread(self.client.ready)

    async def close(self) -> None:
        self.client.close()


@pytest.fixture(params=[Sync, AsyncClient], ids=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`ask(url, use, **options)` runs `use(client)`, closes the client and returns what came of it."""

    def run(url: str, use: Callable[[Any], Awaitable[Any]], **options: Any) -> Any:
        async def main() -> Any:
            client = request.param(url, **options)
            try:
                return await use(client)
            finally:
                await client.close()

        return asyncio.run(main())

    return run


def url_of(server: Server) -> str:
    return f"http://127.0.0.1:{server.port}"


def test_arrays_go_and_come_in_binary(serve: Any, ask: Any) -> None:
    server = serve()
    found = ask(url_of(server), lambda c: c.infer("echo", {"input": X}))
    np.testing.assert_array_equal(found["output"], X)
    assert found["output"].dtype == np.float32
    assert (list(found), found.late) == (["output"], False)
    assert found.latency_ms > 0
    assert found.request_id == server.link.calls[-1].id
    assert server.link.calls[-1].slo_ns is None


def test_every_datatype_comes_back_as_it_went(serve: Any, ask: Any) -> None:
    import ml_dtypes

    given = {
        "bool": np.array([[True, False], [False, True]]),
        "uint8": np.array([[0, 255], [1, 2]], np.uint8),
        "int16": np.array([[-1, 2], [3, 4]], ">i2"),
        "uint64": np.array([[2**64 - 1, 0], [1, 2]], np.uint64),
        "int64": np.array([[-(2**63), 2], [3, 4]]),
        "fp16": np.array([[0.5, np.inf], [3, 4]], np.float16),
        "bf16": np.array([[0.5, 2], [3, 4]], ml_dtypes.bfloat16),
        "fp32": np.array([[0.5, np.nan], [3, 4]], np.float32).T,
        "fp64": np.array([[0.1, 2], [3, 4]]),
        "bytes": np.array([["é", ""], ["b", "c"]]),
    }
    found = ask(url_of(serve(None, EVERY)), lambda c: c.infer("every kind", given, version="2"))
    for name, array in given.items():
        if name == "bytes":
            assert found["bytes_out"].tolist() == [["é".encode(), b""], [b"b", b"c"]]
        else:
            np.testing.assert_array_equal(found[f"{name}_out"], array)
            assert found[f"{name}_out"].dtype == array.dtype.newbyteorder("=")


def test_only_the_outputs_that_are_wanted_come(serve: Any, ask: Any) -> None:
    given = {kind.lower(): np.zeros((2, 2), "?") for kind in ("BOOL",)}
    server = serve(
        None,
        ModelMetadata(
            name="m", platform="t", versions=("1",), batched=False, spec=ModelSpec(name="m", slo_ns=None),
            inputs=(spec("bool", "BOOL", 2, 2),), outputs=(spec("y", "BOOL", 2, 2),),
        ),
    )  # fmt: skip
    assert list(ask(url_of(server), lambda c: c.infer("m", given, outputs=["y"]))) == ["y"]
    with pytest.raises(cotenant.InvalidRequest, match="no such output"):
        ask(url_of(server), lambda c: c.infer("m", given, outputs=["z"]))


# --- deadlines -----------------------------------------------------------------------------------------


def test_what_is_left_of_the_budget_goes_along(serve: Any, ask: Any) -> None:
    server = serve()
    ask(url_of(server), lambda c: c.infer("echo", {"input": X}, deadline_ms=500, priority=1))
    call = server.link.calls[-1]
    assert 0 < call.slo_ns <= 500 * NS_PER_MS
    assert call.priority == 1


def test_a_late_answer_is_a_result_that_says_so(serve: Any, ask: Any) -> None:
    server = serve()
    server.link.next_outcome = OutcomeKind.LATE
    assert ask(url_of(server), lambda c: c.infer("echo", {"input": X})).late


def test_an_answer_that_comes_late_is_late_whatever_the_server_thinks(serve: Any, ask: Any) -> None:
    server = serve()
    server.link.hang_next = True

    async def use(client: Any) -> Any:
        asked = asyncio.create_task(client.infer("echo", {"input": X}, deadline_ms=30))
        await asyncio.sleep(0.1)
        await asyncio.to_thread(server.on_loop, server.link.release)
        return await asked

    assert ask(url_of(server), use).late


@pytest.mark.parametrize("deadline_ms", [0, -1, float("inf"), float("nan")])
def test_a_deadline_that_is_none_is_refused(serve: Any, ask: Any, deadline_ms: float) -> None:
    with pytest.raises(ValueError, match="expected milliseconds above 0"):
        ask(url_of(serve()), lambda c: c.infer("echo", {"input": X}, deadline_ms=deadline_ms))


# --- refusals ------------------------------------------------------------------------------------------


def test_a_rejection_says_when_it_could_have_been_served(serve: Any, ask: Any) -> None:
    server = serve()
    server.link.next_outcome = OutcomeKind.REJECTED
    server.link.next_reason = "deadline infeasible"
    server.link.next_predicted_ns = 80 * NS_PER_MS
    with pytest.raises(cotenant.Rejected) as caught:
        ask(url_of(server), lambda c: c.infer("echo", {"input": X}, deadline_ms=50))
    left_ms = server.link.calls[-1].slo_ns / NS_PER_MS  # of the budget, when it was sent
    assert caught.value.predicted_ms == 80
    assert caught.value.retry_after_ms == pytest.approx(80 - left_ms, abs=0.01)
    assert (caught.value.status, caught.value.reason) == (429, "deadline infeasible")
    assert caught.value.request_id == server.link.calls[-1].id


@pytest.mark.parametrize(
    ("kind", "reason", "error"),
    [
        (OutcomeKind.EXPIRED, "deadline passed", cotenant.Expired),
        (OutcomeKind.FAILED, "execution failed", cotenant.Failed),
        (OutcomeKind.CANCELLED, "cancelled", cotenant.Cancelled),
        (OutcomeKind.REJECTED, "not available: draining", cotenant.Unavailable),
    ],
)
def test_every_other_end_has_its_own_exception(
    serve: Any, ask: Any, kind: OutcomeKind, reason: str, error: type[cotenant.ServerError]
) -> None:
    server = serve()
    server.link.next_outcome, server.link.next_reason = kind, reason
    with pytest.raises(error, match=reason) as caught:
        ask(url_of(server), lambda c: c.infer("echo", {"input": X}))
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        ("absent", {"input": X}, "unknown model"),
        ("echo", {"input": X.astype(np.float64)}, "datatype is 'FP64'; expected 'FP32'"),
        ("echo", {"x": X}, "no such input"),
        ("a/b?c", {"input": X}, "unknown model 'a/b\\?c'|no such page"),
    ],
)
def test_a_request_that_cannot_be_taken_is_invalid(
    serve: Any, ask: Any, model: str, inputs: Any, message: str
) -> None:
    with pytest.raises(cotenant.InvalidRequest, match=message):
        ask(url_of(serve()), lambda c: c.infer(model, inputs))


def test_what_is_no_tensor_is_refused_before_it_is_sent(serve: Any, ask: Any) -> None:
    for value in (np.zeros(2, complex), [object()]):
        with pytest.raises(ValueError, match="input 'input'"):
            ask(url_of(serve()), lambda c, value=value: c.infer("echo", {"input": value}))


# --- asking again --------------------------------------------------------------------------------------


def test_a_refusal_is_asked_again_only_if_wanted_and_if_the_deadline_allows(serve: Any, ask: Any) -> None:
    server = serve()

    def refuse(predicted_ms: int) -> None:
        server.link.next_outcome = OutcomeKind.REJECTED
        server.link.next_predicted_ns = predicted_ms * NS_PER_MS

    for deadline_ms, predicted_ms, retry, n_calls in (
        (5000, 5010, False, 1), (5000, 5010, True, 2), (500, 1500, True, 1),
    ):  # fmt: skip
        server.link.calls.clear()
        refuse(predicted_ms)
        again = {"deadline_ms": deadline_ms, "retry": retry}
        use = lambda c, again=again: c.infer("echo", {"input": X}, **again)  # noqa: E731
        if n_calls == 2:
            np.testing.assert_array_equal(ask(url_of(server), use)["output"], X)
            first, second = (call.slo_ns for call in server.link.calls)
            assert second < first - 9 * NS_PER_MS
        else:
            with pytest.raises(cotenant.Rejected):
                ask(url_of(server), use)
        assert len(server.link.calls) == n_calls


# --- connections ---------------------------------------------------------------------------------------


class Recorder(http.server.BaseHTTPRequestHandler):
    """Echoes nothing: counts connections and closes each after `limit` answers, with or without saying so."""

    protocol_version = "HTTP/1.1"
    n_connections = 0
    limit = 1_000_000
    announce = True

    def setup(self) -> None:
        super().setup()
        type(self).n_connections += 1
        self.n_answered = 0

    def do_GET(self) -> None:
        self.n_answered += 1
        body = json.dumps({"headers": dict(self.headers)}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        if self.n_answered >= self.limit:
            self.close_connection = True
            if self.announce:
                self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def recorder() -> Iterator[Any]:
    class Own(Recorder):
        pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Own)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    server.handler = Own
    yield server
    server.shutdown()
    server.server_close()


async def several(client: Any, n: int = 4) -> Any:
    return [await client.get("/") for _ in range(n)][-1]


def test_a_header_cannot_smuggle_another(recorder: Any, ask: Any) -> None:
    url = f"http://127.0.0.1:{recorder.server_port}"
    with pytest.raises(ValueError, match="'x' holds a line break"):
        ask(url, several, headers={"x": "a\r\nhost: elsewhere"})
    with pytest.raises(ValueError, match="is no path"):
        ask(url, lambda client: client.get("/ HTTP/1.1\r\nhost: elsewhere"))


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"what?\r\n\r\n", "the answer is not HTTP"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\ncut", "closed the connection"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", None),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", None),
    ],
    ids=["no HTTP", "cut short", "informational", "chunked"],
)
def test_whatever_comes_is_an_answer_or_unavailable(ask: Any, answer: bytes, error: str | None) -> None:
    def talk() -> None:
        peer, _ = listener.accept()
        with peer:
            peer.recv(65536)
            peer.sendall(answer)

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        thread = threading.Thread(target=talk)
        thread.start()
        use = lambda client: client.get("/")  # noqa: E731
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        if error is None:
            assert ask(url, use) == {}
        else:
            with pytest.raises(cotenant.Unavailable, match=error):
                ask(url, use)
        thread.join()


def test_connections_are_reused_and_headers_go_along(recorder: Any, ask: Any) -> None:
    url = f"http://127.0.0.1:{recorder.server_port}"
    found = ask(url, several, headers={"authorization": "Bearer secret"})
    assert recorder.handler.n_connections == 1
    assert {name.lower(): value for name, value in found["headers"].items()}[
        "authorization"
    ] == "Bearer secret"


@pytest.mark.parametrize("announce", [True, False])
def test_a_connection_that_the_server_closed_is_replaced(recorder: Any, ask: Any, announce: bool) -> None:
    recorder.handler.limit, recorder.handler.announce = 2, announce
    ask(f"http://127.0.0.1:{recorder.server_port}", several)
    assert recorder.handler.n_connections == 2


def test_nobody_there_is_unavailable(ask: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(cotenant.Unavailable, match="cannot be asked"):
            ask(url, lambda c: c.infer("echo", {"input": X}))
        assert ask(url, lambda c: c.ready()) is False


def test_no_answer_in_time_is_unavailable(serve: Any, ask: Any) -> None:
    server = serve()
    server.link.hang_next = True
    with pytest.raises(cotenant.Unavailable, match=r"no answer within 0\.05 s"):
        ask(url_of(server), lambda c: c.infer("echo", {"input": X}), timeout_s=0.05)
    server.until(lambda: bool(server.link.cancelled))


def test_many_requests_at_once_each_get_their_own_answer(serve: Any, ask: Any) -> None:
    async def use(client: Any) -> list[Any]:
        rows = [np.full((1, 16), n, np.float32) for n in range(40)]
        return await asyncio.gather(*(client.infer("echo", {"input": row}) for row in rows))

    found = ask(url_of(serve()), use)
    assert [result["output"][0, 0] for result in found] == list(range(40))


def test_the_asynchronous_client_keeps_to_its_number_of_connections(recorder: Any) -> None:
    async def main() -> None:
        url = f"http://127.0.0.1:{recorder.server_port}"
        async with AsyncClient(url, max_connections=3) as client:
            await asyncio.gather(*(client.get("/") for _ in range(30)))

    asyncio.run(main())
    assert recorder.handler.n_connections <= 3


def test_cancelling_the_task_cancels_the_request(serve: Any) -> None:
    server = serve()
    server.link.hang_next = True

    async def main() -> None:
        async with AsyncClient(url_of(server)) as client:
            asked = asyncio.create_task(client.infer("echo", {"input": X}))
            await asyncio.to_thread(server.until, lambda: server.link.n_waiting == 1)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            await asyncio.to_thread(server.until, lambda: bool(server.link.cancelled))
            np.testing.assert_array_equal((await client.infer("echo", {"input": X}))["output"], X)

    asyncio.run(main())


def test_clients_are_context_managers_and_say_whether_the_server_is_ready(serve: Any) -> None:
    server = serve()
    with Client(url_of(server)) as client:
        assert client.ready()
        assert client.get("/v2/models") == {"models": ["echo"]}
        server.link.draining = True
        assert not client.ready()


@pytest.mark.parametrize("url", ["ftp://x", "http://", ""])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="not an address"):
        Client(url)


# --- weight --------------------------------------------------------------------------------------------


def test_a_client_imports_neither_the_server_nor_a_runtime() -> None:
    code = (
        "import sys, cotenant; cotenant.Client; cotenant.AsyncClient; cotenant.Rejected; "
        "heavy = ['numba', 'onnx', 'onnxruntime', 'torch', 'uvicorn', 'starlette', 'msgspec']; "
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_and_the_function_share_the_name_serve() -> None:
    import cotenant.serve.settings as settings

    assert settings.ServeConfig().name == "cotenant"
    assert callable(cotenant.serve)
    with pytest.raises(TypeError, match=r"decorate it with cotenant\.model"):
        cotenant.serve(len)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = cotenant.nothing
    assert {"model", "serve", "Client"} <= set(dir(cotenant))
