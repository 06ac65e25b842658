"""Limits on connections: how many, how large their headers, how slow their clients."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest
from serving import Server, echo_request

from cotenant.serve.connections import MAX_PIPELINED
from cotenant.serve.http import ServeConfig
from cotenant.serve.settings import FrontDoor

Serve = Callable[..., Server]
BODY = json.dumps(echo_request()).encode()
INFER = b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: x\r\n"
WHOLE = INFER + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
QUICK = FrontDoor(header_timeout_s=0.05, body_timeout_s=0.05)


@contextmanager
def connected(server: Server) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        yield connection


def until_closed(connection: socket.socket) -> bytes:
    """Everything that is sent until the server closes."""
    found = b""
    try:
        while part := connection.recv(65536):
            found += part
    except ConnectionResetError:
        pass
    return found


def is_closed(connection: socket.socket) -> bool:
    connection.settimeout(0.05)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False


def limited(serve: Serve, **limits: object) -> Server:
    return serve(ServeConfig(door=FrontDoor(**limits)))  # type: ignore[arg-type]


# --- how large --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"h%d: x\r\n" % i for i in range(101)) + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nh: " + b"a" * 33_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nh: " + b"a" * 1_000_000, 431),
        (b"GET / HTTP/1.1\r\n" + b"h: x\r\n" * 100_000, 431),
        (b"GET /" + b"a" * 1_000_000, 431),
        (INFER + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"x" * 1_000_000, 400),
        (INFER + b"Transfer-Encoding: chunked\r\n\r\n0\r\nt: " + b"x" * 1_000_000, 400),
        (INFER + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (INFER + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx", 400),
        (INFER + b"Content-Length: -1\r\n\r\n", 400),
        (b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ],
)
def test_what_is_too_large_or_no_http_is_refused_and_disturbs_nobody(
    server: Server, request_: bytes, status: int
) -> None:
    with connected(server) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(request_)
        answer = until_closed(connection)
    # a client that is still sending may see the connection reset before it sees the answer
    if answer or len(request_) < 100_000:
        assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:200]
        assert "error" in json.loads(answer.partition(b"\r\n\r\n")[2])
    assert server.infer().status == 200


def test_small_chunks_many_headers_and_keep_alive_are_fine(server: Server) -> None:
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"
    headers = b"".join(b"h%d: x\r\n" % i for i in range(90))
    with connected(server) as connection:
        for _ in range(3):
            connection.sendall(INFER + headers + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_pipelined_requests_are_answered_in_order_up_to_a_limit(server: Server) -> None:
    with connected(server) as connection:
        connection.sendall(LIVE * MAX_PIPELINED)
        found = b""
        while found.count(b"HTTP/1.1 200") < MAX_PIPELINED:
            found += connection.recv(65536)
    with connected(server) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(LIVE * 100_000)
        assert until_closed(connection).count(b"HTTP/1.1 200") <= 2 * MAX_PIPELINED
    assert server.infer().status == 200


def test_an_upgrade_is_not_made(server: Server) -> None:
    with connected(server) as connection:
        connection.sendall(LIVE[:-2] + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


# --- how slow ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"G", INFER, b"\r\n", LIVE[:-1]])
def test_headers_that_stop_coming_end_the_connection(serve: Serve, sent: bytes) -> None:
    server = serve(ServeConfig(door=QUICK))
    with connected(server) as connection:
        connection.sendall(sent)
        assert until_closed(connection).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("after_answer", [b"G", b"\r\n", INFER])
def test_so_do_those_of_a_second_request(serve: Serve, after_answer: bytes) -> None:
    server = serve(ServeConfig(door=QUICK))
    with connected(server) as connection:
        connection.sendall(LIVE)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(after_answer)
        assert until_closed(connection).startswith(b"HTTP/1.1 408")
    if after_answer.strip():
        with connected(server) as connection:
            connection.sendall(LIVE + after_answer)
            answer = until_closed(connection)
            assert answer.count(b"HTTP/1.1 200") == 1
            assert answer.count(b"HTTP/1.1 408") == 1


@pytest.mark.parametrize("path", [b"/v2/models/echo/infer", b"/v2/repository/index", b"/nope"])
def test_a_body_that_stops_coming_ends_the_connection_on_any_route(serve: Serve, path: bytes) -> None:
    server = serve(ServeConfig(door=QUICK, body_timeout_s=60))
    with connected(server) as connection:
        connection.sendall(b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        assert b"HTTP/1.1 4" in until_closed(connection)
    assert server.infer().status == 200


def test_a_client_that_reads_nothing_is_let_go(serve: Serve) -> None:
    server = serve(ServeConfig(door=QUICK))
    with connected(server) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(0.2)
        try:
            while True:
                connection.sendall(LIVE * 50)
        except (TimeoutError, BrokenPipeError, ConnectionResetError):
            pass
        connection.settimeout(10)
        until_closed(connection)
    assert server.infer().status == 200


def test_slow_clients_hold_up_nobody_else(serve: Serve) -> None:
    server = limited(serve, header_timeout_s=0.3)
    with ExitStack() as stack:
        slow = [stack.enter_context(connected(server)) for _ in range(200)]
        for connection in slow:
            connection.sendall(INFER)
        assert server.infer().status == 200
        for connection in slow:
            assert until_closed(connection).startswith(b"HTTP/1.1 408")
    assert server.infer().status == 200


# --- how many ---------------------------------------------------------------------------------------------


def test_at_the_limit_a_busy_server_says_so_and_an_idle_connection_makes_room(serve: Serve) -> None:
    server = limited(serve, max_connections=2)
    with ExitStack() as stack:
        first, second = (stack.enter_context(connected(server)) for _ in range(2))
        for n_waiting, connection in enumerate((first, second), 1):
            server.link.hang_next = True
            connection.sendall(WHOLE)
            server.until(lambda n=n_waiting: server.link.n_waiting == n)  # type: ignore[misc]
        with connected(server) as third:
            answer = until_closed(third)
            assert answer.startswith(b"HTTP/1.1 503")
            assert b"retry-after: 1" in answer
        server.on_loop(server.link.release)
        for connection in (first, second):
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        with connected(server) as fourth:
            fourth.sendall(WHOLE)
            assert fourth.recv(65536).startswith(b"HTTP/1.1 200")
            closed = [connection for connection in (first, second) if is_closed(connection)]
            assert len(closed) == 1


def test_an_idle_connection_is_closed_when_its_time_is_over(serve: Serve) -> None:
    server = limited(serve, keep_alive_s=1)
    with connected(server) as connection:
        connection.sendall(LIVE)
        assert until_closed(connection).startswith(b"HTTP/1.1 200")


def test_clients_that_go_at_once_leave_no_trace(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    server = serve()
    for n in range(200):
        with connected(server) as connection:
            if n % 2:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(WHOLE * (1 + n % 3) if n % 4 else LIVE * 3)
    assert server.infer().status == 200
    server.stop()
    assert [record.getMessage() for record in caplog.records] == []
