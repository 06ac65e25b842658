"""Fixtures: real servers on an engine in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from grpc_serving import GrpcServer
from serving import Server

from cotenant.serve.grpc.settings import GrpcConfig
from cotenant.serve.http import MetricsPage, ServeConfig
from cotenant.testing import EchoLink


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Starts servers and stops them afterwards: `serve(config, *models, metrics=..., keys=..., tls=...)`."""
    servers: list[Server] = []

    def start(
        config: ServeConfig | None = None,
        *models: Any,
        metrics: MetricsPage | None = None,
        **more: Any,
    ) -> Server:
        server = Server(EchoLink(*models), config or ServeConfig(), metrics, **more)
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One server for the tests of a module that leave it as it was."""
    shared = Server(EchoLink(), ServeConfig(max_body_bytes=1 << 20))
    shared.start()
    yield shared
    shared.stop()


@pytest.fixture
def serve_grpc() -> Iterator[Callable[..., GrpcServer]]:
    """Starts gRPC servers and stops them afterwards: `serve_grpc(config, *models, grpc_config=...)`."""
    servers: list[GrpcServer] = []

    def start(
        config: ServeConfig | None = None, *models: Any, grpc_config: GrpcConfig | None = None
    ) -> GrpcServer:
        server = GrpcServer(EchoLink(*models), config or ServeConfig(), grpc_config)
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def grpc_server() -> Iterator[GrpcServer]:
    """One gRPC server for the tests of a module that leave it as it was."""
    shared = GrpcServer(EchoLink(), ServeConfig(max_body_bytes=1 << 20))
    shared.start()
    yield shared
    shared.stop()
