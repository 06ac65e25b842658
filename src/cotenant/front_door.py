"""The front door of a server as its configuration says: keys read, TLS set up, and never open by accident."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cotenant.config import ServerConfig
from cotenant.engine_client import EngineClient
from cotenant.keys_file import load_keys
from cotenant.serve.gate import Gate
from cotenant.serve.keys import KeyRing
from cotenant.serve.settings import FrontDoor
from cotenant.serve.tls import server_context
from cotenant.toml_checks import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """What the files hold (PEM)."""

    cert: bytes
    key: bytes
    client_ca: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """Who may come in, and over what."""

    keys: KeyRing | None
    tls: ssl.SSLContext | None
    tls_files: TlsFiles | None = None
    """The same for who sets up TLS by itself."""

    @property
    def scheme(self) -> str:
        """`http` or `https`."""
        return "http" if self.tls is None else "https"


def open_door(settings: FrontDoor, config: Path, host: str) -> Door:
    """Read the keys and certificates of a server that is to listen on `host`; `config` is the file whose
    `[server]` table `settings` are, beside which relative paths begin. Every front-end process does so.
    Raises ConfigError, also when other machines could reach it without a key and nobody said that they
    may."""
    folder = config.parent
    keys = load_keys(folder / settings.keys_file) if settings.keys_file else None
    if keys is None and not is_loopback(host):
        _check_exposed(settings, config, host)
    if not settings.tls_cert:
        return Door(keys=keys, tls=None)
    cert, key = folder / settings.tls_cert, folder / settings.tls_key
    ca = folder / settings.tls_client_ca if settings.tls_client_ca else None
    try:
        tls = server_context(cert, key, ca)
        files = TlsFiles(
            cert=cert.read_bytes(), key=key.read_bytes(), client_ca=ca.read_bytes() if ca else None
        )
    except (ValueError, OSError) as error:
        raise ConfigError(f"{config}: [server] TLS: {error}") from None
    return Door(keys=keys, tls=tls, tls_files=files)


def gate_of(door: Door, settings: FrontDoor, client: EngineClient) -> Gate:
    """The gate of a front end, which all its protocols share; what it refuses is counted by the engine."""
    gate = Gate(door.keys, settings, client.now)
    gate.on_refused, gate.on_denied = client.refused, partial(client.refused, "")
    return gate


def _check_exposed(settings: FrontDoor, config: Path, host: str) -> None:
    where = f"{config}: " if config.is_file() else ""
    if not settings.open:
        raise ConfigError(
            f"{where}on {host} everybody who reaches this machine could use the server. Make keys "
            "(cotenant key new --role infer --tenant NAME --file keys.toml), set keys_file under [server], "
            "or set open = true there to serve everybody, or listen on 127.0.0.1"
        )
    if isinstance(settings, ServerConfig) and settings.allow_model_control:
        raise ConfigError(
            f"{where}[server] allow_model_control lets everybody who reaches {host} load and "
            "unload models; it needs keys_file there, with a key of the role admin"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on `host`, a name or an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return False
    return all(ipaddress.ip_address(entry[4][0]).is_loopback for entry in found)
