"""Runs the gRPC front end on the running event loop: binds, serves, drains."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

import grpc
from grpc import aio

from cotenant.engine_client import EngineClient
from cotenant.serve.gate import Gate
from cotenant.serve.grpc.service import Service
from cotenant.serve.grpc.settings import GrpcConfig
from cotenant.serve.server import DRAIN_LIMIT_S, bind
from cotenant.serve.settings import ServeConfig
from cotenant.serve.shared_memory import Regions, regions_of


@asynccontextmanager
async def serving_grpc(
    client: EngineClient,
    config: ServeConfig,
    host: str,
    port: int,
    *,
    grpc_config: GrpcConfig | None = None,
    regions: Regions | None = None,
    drain_limit_s: float = DRAIN_LIMIT_S,
    gate: Gate | None = None,
    tls: TlsFiles | None = None,
) -> AsyncIterator[int]:
    """Serve inside the `async with`; yields the port, which is one that is free when `port` is 0. On leaving,
    no more calls are taken, and those in flight may finish, at most `drain_limit_s` seconds, after which they
    are cancelled. `regions`: shared memory that another protocol has a part in; by default its own. Without
    `gate` it is open to whoever reaches it; with `tls` it speaks nothing else. Raises OSError when the
    address cannot be had."""
    regions = regions or regions_of(config)
    grpc_config = grpc_config or GrpcConfig()
    server = aio.server(options=_options(config, grpc_config))
    server.add_generic_rpc_handlers((Service(client, config, grpc_config, gate, regions),))
    address = _address(host, port)
    try:
        bound_port: int = (
            server.add_insecure_port(address)
            if tls is None
            else server.add_secure_port(address, _credentials(tls))
        )
    except RuntimeError:
        raise OSError(f"cannot listen on {host}:{port} for gRPC") from None
    await server.start()
    try:
        yield bound_port
    finally:
        await server.stop(drain_limit_s)


class TlsFiles(Protocol):
    """A certificate chain, its key, and the authorities of clients, if they must have certificates (PEM)."""

    @property
    def cert(self) -> bytes: ...
    @property
    def key(self) -> bytes: ...
    @property
    def client_ca(self) -> bytes | None: ...


def _credentials(tls: TlsFiles) -> Any:
    return grpc.ssl_server_credentials(
        [(tls.key, tls.cert)],
        root_certificates=tls.client_ca,
        require_client_auth=tls.client_ca is not None,
    )


def _options(config: ServeConfig, grpc_config: GrpcConfig) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", config.max_body_bytes),
        ("grpc.max_send_message_length", config.max_body_bytes),
        # a second server on the same port is a mistake, not a way to share the load
        ("grpc.so_reuseport", 0),
        ("grpc.keepalive_time_ms", int(grpc_config.ask_silent_after_s * 1000)),
        ("grpc.keepalive_timeout_ms", int(grpc_config.ask_silent_for_s * 1000)),
        ("grpc.max_concurrent_streams", grpc_config.max_calls_per_connection),
    ]


def _address(host: str, port: int) -> str:
    """The address in numbers, after a look whether it can be had: grpc's own error does not say why not.
    Raises OSError."""
    with bind(host, port) as probe:
        number = probe.getsockname()[0]
    return f"[{number}]:{port}" if ":" in number else f"{number}:{port}"
