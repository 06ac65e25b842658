"""TLS and mutual TLS."""

from __future__ import annotations

import os
import ssl
import stat
from pathlib import Path


def server_context(cert: Path, key: Path, client_ca: Path | None) -> ssl.SSLContext:
    """A server's context: TLS 1.2 or newer; with `client_ca` every client must have a certificate that one of
    its authorities signed. Raises ValueError with what is wrong with which file."""
    check_private(key, "the private key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for path in (cert, key, *([client_ca] if client_ca else [])):
        if not path.is_file():
            raise ValueError(f"there is no file {path}")
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except (ssl.SSLError, OSError, ValueError) as error:
        raise ValueError(f"{cert} and {key} are no certificate and its key: {_reason(error)}") from None
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except (ssl.SSLError, OSError) as error:
            raise ValueError(f"{client_ca} holds no certificates: {_reason(error)}") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def check_private(path: Path, what: str) -> None:
    """Raises ValueError when everybody on the machine can read or write the file, or it is not there."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise ValueError(f"{path}: {what} cannot be read: {error.strerror}") from None
    if mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
        raise ValueError(
            f"{path}: {what} can be read or changed by others (mode {stat.S_IMODE(mode):04o}); "
            f"chmod 600 {path}"
        )


def _no_password() -> str:
    raise ValueError("the key has a password; use one without")


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
