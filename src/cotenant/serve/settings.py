"""Settings of the front end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cotenant import __version__
from cotenant.serve.json_limits import MAX_ELEMENTS


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontDoor:
    """Who may come in, and how much of the server one may take: keys of the `[server]` table."""

    keys_file: str = ""
    """File of API keys (see `cotenant key new`), relative to the config's folder; without one the server is
    open, on this machine only."""
    open: bool = False
    """Whether a server without keys may listen on an address that other machines can reach."""
    open_health: bool = True
    """Whether `/v2/health/live` and `/v2/health/ready` need no key."""
    tls_cert: str = ""
    """Certificate chain (PEM), relative to the config's folder; with it the server speaks only TLS."""
    tls_key: str = ""
    """Private key (PEM) of `tls_cert`."""
    tls_client_ca: str = ""
    """Authorities (PEM) that must have signed every client's certificate (mTLS)."""
    max_connections: int = 4096
    """Most connections at a time; at the limit an idle one is closed for a new one, else that gets 503."""
    max_headers: int = 100
    """Most headers of a request; more is answered with 431."""
    max_header_kib: int = 32
    """Most bytes of a request's headers, KiB; more is answered with 431."""
    max_url_bytes: int = 8192
    """Longest request target, bytes; more is answered with 414."""
    header_timeout_s: float = 15.0
    """Seconds within which a request's headers must have arrived; then 408."""
    body_timeout_s: float = 30.0
    """Seconds within which the body must have arrived (then 408), and a client take some of its answer."""
    keep_alive_s: int = 75
    """Seconds that an idle connection is kept."""
    max_in_flight: int = 4096
    """Most inferences of one model at a time; more are answered with 429."""
    max_buffered_mib: int = 1024
    """Most bytes of request bodies at a time, MiB; more are answered with 429."""
    max_elements: int = MAX_ELEMENTS
    """Most elements of a request's JSON and strings (strings and lists count 16-fold, for what each costs);
    more is answered with 413. Numbers in binary are not counted."""
    shed: bool = True
    """Whether requests of a kind that the engine keeps refusing are refused before their bodies are read."""


def complaints(door: FrontDoor) -> Iterator[tuple[str, str]]:
    """What does not make sense: (key, what is wrong)."""
    for key in ("max_connections", "max_headers", "max_header_kib", "max_url_bytes", "max_in_flight"):
        if getattr(door, key) < 1:
            yield key, "must be 1 or more"
    for key in ("max_buffered_mib", "max_elements"):
        if getattr(door, key) < 1:
            yield key, "must be 1 or more"
    for key in ("header_timeout_s", "body_timeout_s", "keep_alive_s"):
        if getattr(door, key) <= 0:
            yield key, "must be greater than 0"
    if bool(door.tls_cert) != bool(door.tls_key):
        yield "tls_cert" if door.tls_cert else "tls_key", "needs the other of tls_cert and tls_key"
    if door.tls_client_ca and not door.tls_cert:
        yield "tls_client_ca", "needs tls_cert and tls_key"
    if door.open and door.keys_file:
        yield "open", "does not go with keys_file: leave one of the two out"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """Settings of the HTTP front end."""

    name: str = "cotenant"
    """Server name in `GET /v2`."""
    version: str = __version__
    """Server version in `GET /v2`."""
    max_body_bytes: int = 64 * 1024 * 1024
    """Largest request body, in bytes, compressed or not; more is answered with 413."""
    large_json_bytes: int = 64 * 1024
    """JSON longer than this, in bytes, is decoded and encoded off the event loop."""
    large_bytes: int = 16 * 1024
    """Bodies longer than this, in bytes, are compressed and decompressed off the event loop."""
    compress_from_bytes: int = 1024
    """Answers at least so long, in bytes, are compressed where the client takes it."""
    n_json_threads: int = 2
    """Threads for large bodies."""
    body_timeout_s: float = 30.0
    """Longest wait for the rest of a request body, in seconds; then 408."""
    watch_after_ms: float = 5.0
    """Waiting time, in milliseconds, after which an infer request is watched for its client's going."""
    allow_model_control: bool = False
    """Whether clients may load and unload models."""
    access_log: bool = False
    """Whether every answered request is logged."""
    log_format: str = "text"
    """Of the log of a further front-end process: `text` or `json`."""
    log_level: str = "info"
    """What is less is not logged there."""
    door: FrontDoor = FrontDoor()
    """Limits, and who may come in."""
    repository: bool = False
    """Whether there may be more models to load than the engine's status lists: a repository's."""
    shared_memory: bool = False
    """Whether clients on this machine may hand tensors over in system shared memory."""
