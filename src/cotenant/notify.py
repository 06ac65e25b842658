"""Tells the service manager (systemd, `Type=notify`) how the server is. Does nothing where nobody listens."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

from cotenant.clock import MonotonicClock

READY = "READY=1"
STOPPING = "STOPPING=1"


def notify(state: str) -> None:
    """Send `state` to the socket that the service manager named in NOTIFY_SOCKET (sd_notify(3)). An address
    that begins with @ is in the abstract namespace. Raises nothing: a server is not stopped by this."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)


def reloading() -> str:
    """The state of a server that reads its configuration anew, until it says READY again."""
    return f"RELOADING=1\nMONOTONIC_USEC={MonotonicClock.now() // 1000}"
