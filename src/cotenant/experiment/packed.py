"""Text files that may be packed with Zstandard (`NAME.zst` beside `NAME`).

`zstandard` does it; on machines that have only pyarrow (images for GPUs often do), that does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

LEVEL = 19
PIECE = 1 << 16
LARGEST = 1 << 30
"""Most bytes that a packed file may unpack to."""


def read_text(path: Path) -> str:
    """The text of `path`, or of `path` + `.zst`. Raises FileNotFoundError naming `path`, ValueError when it
    cannot be unpacked."""
    packed = path if path.suffix == ".zst" else path.with_name(path.name + ".zst")
    if path.suffix != ".zst" and path.is_file():
        return path.read_text()
    if not packed.is_file():
        raise FileNotFoundError(f"there is neither {path} nor {packed.name} beside it")
    try:
        return unpack(packed.read_bytes()).decode()
    except (OSError, RuntimeError, UnicodeDecodeError) as error:
        raise ValueError(f"{packed}: cannot be unpacked ({error})") from error


def write_packed(path: Path, text: str) -> Path:
    """Write `path` + `.zst`; returns what was written."""
    target = path.with_name(path.name + ".zst")
    target.write_bytes(pack(text.encode()))
    return target


def pack(body: bytes) -> bytes:
    """Packed at the highest usual level. Raises RuntimeError where no library can."""
    zstandard, pyarrow = _libraries()
    if zstandard is not None:
        packed: bytes = zstandard.ZstdCompressor(level=LEVEL).compress(body)
    else:
        packed = pyarrow.Codec("zstd", compression_level=LEVEL).compress(body, asbytes=True)
    return packed


def unpack(body: bytes) -> bytes:
    """The inverse of `pack`; never more than `LARGEST` bytes. Raises OSError or RuntimeError."""
    zstandard, pyarrow = _libraries()
    if zstandard is not None:
        try:
            return b"".join(_pieces(zstandard.ZstdDecompressor().decompressobj(), body))
        except zstandard.ZstdError as error:
            raise RuntimeError(str(error)) from error
    found: bytes = pyarrow.CompressedInputStream(pyarrow.BufferReader(body), "zstd").read(LARGEST + 1)
    if len(found) > LARGEST:
        raise RuntimeError(f"it unpacks to more than {LARGEST} bytes")
    return found


def _pieces(unpacker: Any, body: bytes) -> Iterator[bytes]:
    n = 0
    for at in range(0, len(body), PIECE):
        piece = unpacker.decompress(body[at : at + PIECE])
        n += len(piece)
        if n > LARGEST:
            raise RuntimeError(f"it unpacks to more than {LARGEST} bytes")
        yield piece
    if body and not unpacker.eof:
        raise RuntimeError("it ends too soon")


def _libraries() -> tuple[Any, Any]:
    try:
        import zstandard

        return zstandard, None
    except ImportError:
        pass
    try:
        import pyarrow

        return None, pyarrow
    except ImportError:
        raise RuntimeError("neither zstandard nor pyarrow is installed") from None
