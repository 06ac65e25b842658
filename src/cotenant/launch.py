"""What a child process is told to be, as bytes: configurations are read once, by the process that the
operator has started, and an edited file does not change what a crash brings back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from cotenant.config import Scenario
from cotenant.serve.settings import ServeConfig

T = TypeVar("T", bound=Struct)


class EngineSettings(Struct, frozen=True, kw_only=True):
    """What an engine process serves, and where it keeps things. `record`: base of recordings, None for the
    store's; `arena_bytes`: the most memory that answers on their way to one front end may take."""

    scenario: Scenario
    policy: str
    record: Path | None
    record_mb: float
    store: Path | None
    arena_bytes: int


class FrontSettings(Struct, frozen=True, kw_only=True):
    """What a front-end process serves. `engine`: path of the socket; `arena_bytes`: the most memory that
    tensors on their way to the engine may take; `config`: the file beside which paths of `serve.door` begin;
    `host`: the address that is listened on."""

    engine: Path
    models: tuple[str, ...]
    arena_bytes: int
    serve: ServeConfig
    config: Path
    host: str


def encode(settings: Struct) -> bytes:
    """Settings as bytes."""
    return msgspec.msgpack.encode(settings, enc_hook=_plain)


def decode(settings: bytes, kind: type[T]) -> T:
    """Settings from bytes. Raises msgspec.ValidationError."""
    return msgspec.msgpack.decode(settings, type=kind, dec_hook=_path)


def _plain(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value)} in settings")


def _path(kind: type, value: Any) -> Path:
    if kind is Path:
        return Path(value)
    raise NotImplementedError(f"{kind} in settings")
