"""How much memory models take on a device, whether one more fits, and giving memory back to the host.

What a model will take is not known before it is loaded. Its files are what it takes at least; once it has
been loaded and run, what the process grew by is what it really takes, which is remembered for the next time.
"""

from __future__ import annotations

import ctypes
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cotenant.execute.lanes import LaneThread

MIB = 1 << 20
STATM = Path("/proc/self/statm")


def resident_bytes() -> int | None:
    """Memory that this process holds; None where the system does not say."""
    try:
        return int(STATM.read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return None


def give_back() -> None:
    """Return freed memory to the system, where the C library (glibc) would keep it. Takes milliseconds, in
    which who allocates may have to wait."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class HostMemory:
    """Gives memory back from a thread that has the priority of its maker. The thread that loads models has
    the lowest: it could be kept from its core while it holds the allocator's lock, and with it everybody
    who allocates."""

    def __init__(self, cores: frozenset[int]) -> None:
        self._thread: LaneThread[threading.Event] = LaneThread(
            "cotenant-memory", cores, lambda _, done: _give_back(done), niceness=0
        )
        self._thread.start()

    def give_back(self) -> None:
        """Returns when it is done."""
        done = threading.Event()
        self._thread.put(done)
        done.wait()

    def in_use(self) -> int | None:
        """Memory that this process holds and needs (bytes); None where the system does not say."""
        self.give_back()
        return resident_bytes()

    def stop(self) -> None:
        """Nothing is given back any more; returns at once."""
        self._thread.stop()


def _give_back(done: threading.Event) -> None:
    try:
        give_back()
    finally:
        done.set()


class MemoryBudget:
    """What the loaded models take, in bytes, against a limit. Not thread-safe: models load one by one."""

    def __init__(self, limit: int | None, in_use: Callable[[], int | None]) -> None:
        """Without a `limit` everything fits. `in_use`: memory of the device that this process needs."""
        self._limit = limit
        self._in_use = in_use
        self._held: dict[str, int] = {}
        self._measured: dict[str, int] = {}

    def held(self, name: str) -> int | None:
        """What a loaded model takes; None when it is not loaded."""
        return self._held.get(name)

    @contextmanager
    def loading(self, name: str, at_least: int) -> Iterator[None]:
        """Around the loading of a model whose files have `at_least` so many bytes: before, raises ValueError
        when it would not fit beside what is loaded (one of the same name included, which serves until then);
        after, notes by how much the process has grown."""
        need = max(at_least, self._measured.get(name, 0))
        self._check(need)
        before = self._in_use()
        yield
        after = self._in_use()
        grown = 0 if before is None or after is None else after - before
        if name not in self._held:  # loaded anew, it grows by the difference only
            self._measured[name] = max(at_least, grown)
        self._held[name] = max(need, self._measured.get(name, 0))

    def unloaded(self, name: str) -> None:
        """The model takes nothing any more."""
        self._held.pop(name, None)

    def _check(self, need: int) -> None:
        if self._limit is None:
            return
        left = self._limit - sum(self._held.values())
        if need > left:
            raise ValueError(
                f"it needs about {_mib(need)} MiB of memory, but {_mib(max(0, left))} of the "
                f"{_mib(self._limit)} MiB that [device] memory_mib allows are left; unload a model first"
            )


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / MIB:.1f}"
