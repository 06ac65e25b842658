"""Runs the gRPC front end on the running event loop: binds, serves, drains."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from grpc import aio

from cotenant.engine_client import EngineClient
from cotenant.serve.grpc.service import Service
from cotenant.serve.grpc.settings import GrpcConfig
from cotenant.serve.server import DRAIN_LIMIT_S, bind
from cotenant.serve.settings import ServeConfig

IDENTITY_ONLY = 1
"""The set of compression algorithms (a bit each) that holds none."""


@asynccontextmanager
async def serving_grpc(
    client: EngineClient,
    config: ServeConfig,
    host: str,
    port: int,
    *,
    grpc_config: GrpcConfig | None = None,
    drain_limit_s: float = DRAIN_LIMIT_S,
) -> AsyncIterator[int]:
    """Serve inside the `async with`; yields the port, which is one that is free when `port` is 0. On leaving,
    no more calls are taken, and those in flight may finish, at most `drain_limit_s` seconds, after which they
    are cancelled. Raises OSError when the address cannot be had."""
    server = aio.server(options=_options(config))
    server.add_generic_rpc_handlers((Service(client, config, grpc_config or GrpcConfig()),))
    address = _address(host, port)
    try:
        bound_port: int = server.add_insecure_port(address)
    except RuntimeError:
        raise OSError(f"cannot listen on {host}:{port} for gRPC") from None
    await server.start()
    try:
        yield bound_port
    finally:
        await server.stop(drain_limit_s)


def _options(config: ServeConfig) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", config.max_body_bytes),
        ("grpc.max_send_message_length", config.max_body_bytes),
        # a second server on the same port is a mistake, not a way to share the load
        ("grpc.so_reuseport", 0),
        # a small compressed message is inflated whole before its size is looked at
        ("grpc.compression_enabled_algorithms_bitset", IDENTITY_ONLY),
    ]


def _address(host: str, port: int) -> str:
    """The address in numbers, after a look whether it can be had: grpc's own error does not say why not.
    Raises OSError."""
    with bind(host, port) as probe:
        number = probe.getsockname()[0]
    return f"[{number}]:{port}" if ":" in number else f"{number}:{port}"
