"""How front end and engine meet: a Unix socket that only this user can reach, and two arenas changed hands.

The socket lies in a fresh folder that nobody else may enter. Whoever connects to it, and whoever answers,
must run as the same user; the system says who they are, not they themselves. Then each sends one `Hello`
with the descriptor of its arena beside it, and from then on a `Channel` carries frames.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from cotenant import __version__
from cotenant.shm import Arena, SlotError, Window
from cotenant.shm import Slot as Slot

FORMAT = 1
"""Of the frames; changes with them."""
MAX_HELLO_BYTES = 1024
MAX_DESCRIPTORS = 4
"""More than one is refused, and closed."""
BACKLOG = 128
_LENGTH = struct.Struct("<I")
_CREDENTIALS = struct.Struct("3i")


class HandshakeError(OSError):
    """The other end is not who it should be, or does not speak as we do."""


class Hello(Struct, frozen=True):
    """The first words of each end. `n_bytes`: size of the arena whose descriptor comes along."""

    n_bytes: int
    format: int = FORMAT
    version: str = __version__


_HELLO = msgspec.msgpack.Decoder(Hello)


@contextmanager
def listening() -> Iterator[tuple[socket.socket, Path]]:
    """A socket that listens, and its path; both are gone afterwards. Raises OSError."""
    folder = Path(tempfile.mkdtemp(prefix="cotenant-"))  # mode 0700
    path = folder / "engine"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(BACKLOG)
        listener.setblocking(False)
        yield listener, path
    finally:
        listener.close()
        shutil.rmtree(folder, ignore_errors=True)


def connected(path: Path) -> socket.socket:
    """A connection to the socket; it waits there until it is accepted. Raises OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


def check_peer(connection: socket.socket) -> None:
    """Raises HandshakeError unless the other end runs as the same user."""
    size = _CREDENTIALS.size
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    _, user, _ = _CREDENTIALS.unpack(found)
    if user != os.geteuid():
        raise HandshakeError(f"the other end runs as user {user}, this as {os.geteuid()}")


async def exchange(connection: socket.socket, arena: Arena, on_free: Callable[[Slot], None]) -> Window:
    """Say hello and wait for the other's: the window on its arena. Waits as long as it takes. Raises
    HandshakeError, other OSErrors."""
    check_peer(connection)
    words = msgspec.msgpack.encode(Hello(n_bytes=arena.n_bytes))
    socket.send_fds(connection, [_LENGTH.pack(len(words)) + words], [arena.fd])
    words, descriptors = await _received(connection)
    try:
        hello = _HELLO.decode(words)
        if (hello.format, hello.version) != (FORMAT, __version__):
            raise HandshakeError(f"the other end is of version {hello.version}, this of {__version__}")
        if len(descriptors) != 1:
            raise HandshakeError(f"{len(descriptors)} descriptors came with the hello, expected one")
        return Window(descriptors.pop(), hello.n_bytes, on_free)
    except (msgspec.MsgspecError, SlotError, ValueError) as error:
        raise HandshakeError(f"no hello of ours: {error}") from None
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


async def _received(connection: socket.socket) -> tuple[bytes, list[int]]:
    """The first frame and the descriptors beside it, and not a byte more. Raises HandshakeError."""
    await _readable(connection)
    flags = socket.MSG_CMSG_CLOEXEC
    head, descriptors, seen, _ = socket.recv_fds(connection, _LENGTH.size, MAX_DESCRIPTORS, flags)
    try:
        if seen & socket.MSG_CTRUNC:
            raise HandshakeError("too many descriptors came with the hello")
        head += await _exactly(connection, _LENGTH.size - len(head))
        (length,) = _LENGTH.unpack(head)
        if length > MAX_HELLO_BYTES:
            raise HandshakeError(f"a hello of {length} bytes is longer than {MAX_HELLO_BYTES}")
        return await _exactly(connection, length), list(descriptors)
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise


async def _exactly(connection: socket.socket, n_bytes: int) -> bytes:
    found = b""
    while len(found) < n_bytes:
        piece = await asyncio.get_running_loop().sock_recv(connection, n_bytes - len(found))
        if not piece:
            raise HandshakeError("the other end hung up before it had said hello")
        found += piece
    return found


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(connection, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(connection)
