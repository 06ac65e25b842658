"""Settings of the front end."""

from __future__ import annotations

from dataclasses import dataclass

from cotenant import __version__


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
    repository: bool = False
    """Whether there may be more models to load than the engine's status lists: a repository's."""
    shared_memory: bool = False
    """Whether clients on this machine may hand tensors over in system shared memory."""
