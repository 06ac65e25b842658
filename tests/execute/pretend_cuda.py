"""A CUDA device in plain Python, for the logic around it: streams, events, graphs, on a thread of its own.

What is put on a stream runs later, in the order of the stream, and otherwise in an order drawn at random: a
wait that is missing shows as a wrong answer. Graphs record the operators of their capture and run them again;
two of one pool at once are a fault. As torch does, it refuses to write to inference tensors outside of
inference mode, to measure events that have not passed, to run anything on a stream that captures, and the
handle of a pool whose last graph is gone.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

NS_PER_STEP = 1_000


class Device:
    """Runs what is on the streams. `now`: of the device's clock, in steps."""

    def __init__(self, seed: int) -> None:
        self.now = 0
        self.n_events = 0
        self.held = threading.Event()  # set: runs; cleared: the device hangs
        self.held.set()
        self.pools: dict[int, int] = {}
        self.busy: set[int] = set()
        self.faults: list[str] = []
        self._rng = random.Random(seed)
        self._streams: list[Stream] = []
        self._change = threading.Condition()
        self._over = False
        self.local = threading.local()
        self.copy = torch.Tensor.copy_
        self.thread = threading.Thread(target=self._loop, daemon=True)
        self.thread.start()

    def stream(self) -> Stream:
        made = Stream(self)
        with self._change:
            self._streams.append(made)
        return made

    @property
    def current(self) -> Stream | None:
        """The calling thread's stream; None: the default one, which runs at once."""
        return getattr(self.local, "stream", None)

    def put(self, stream: Stream, ready: Callable[[], bool], do: Callable[[], None]) -> None:
        if stream.capturing:
            raise RuntimeError("operation not permitted when stream is capturing")
        with self._change:
            stream.line.append((ready, do))
            self._change.notify_all()

    def wait(self, until: Callable[[], bool]) -> None:
        with self._change:
            assert self._change.wait_for(until, 30.0)

    def close(self) -> None:
        self._over = True
        self.held.set()
        with self._change:
            self._change.notify_all()

    def _loop(self) -> None:
        slow, patience = None, 0
        with torch.inference_mode():
            while not self._over:
                self.held.wait()
                with self._change:
                    able = [s for s in self._streams if s.line and s.line[0][0]()]
                    if not able:
                        self._change.wait(0.05)
                        continue
                    if self._rng.random() < 0.1:  # from now on another stream is slow
                        slow, patience = self._rng.choice(self._streams), 3
                    rest = [stream for stream in able if stream is not slow]
                    if not rest and patience:
                        patience -= 1
                        self._change.wait(0.002)
                        continue
                    _, do = self._rng.choice(rest or able).line.popleft()
                    self.now += 1
                    do()
                    self._change.notify_all()


class Stream:
    """Also stands for an `ExternalStream`."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.line: deque[tuple[Callable[[], bool], Callable[[], None]]] = deque()
        self.capturing = False

    def wait_event(self, event: Event) -> None:
        mark = event.mark
        if mark is not None:
            self.device.put(self, lambda: mark.passed_at is not None, lambda: None)

    def wait_stream(self, other: Stream | None) -> None:
        if other is not None:
            event = Event(self.device)
            event.record(other)
            self.wait_event(event)

    def synchronize(self) -> None:
        if self.capturing:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.device.wait(lambda: not self.line)


class Event:
    def __init__(self, device: Device) -> None:
        self.device, self.mark = device, None
        device.n_events += 1

    def record(self, stream: Stream) -> None:
        mark = self.mark = SimpleNamespace(passed_at=None)

        def passed() -> None:
            mark.passed_at = self.device.now

        self.device.put(stream, lambda: True, passed)

    def query(self) -> bool:
        return self.mark is None or self.mark.passed_at is not None

    def synchronize(self) -> None:
        self.device.wait(self.query)

    def elapsed_time(self, later: Event) -> float:
        if self.mark.passed_at is None or later.mark.passed_at is None:
            raise RuntimeError("device not ready")
        return float((later.mark.passed_at - self.mark.passed_at) * NS_PER_STEP / 1e6)


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out


class Graph:
    def __init__(self, device: Device) -> None:
        self.device = device
        self.pool: int | None = None

    def capture_begin(self, pool: Any, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local"
        stream = self.device.current
        assert stream is not None, "graphs must be captured on a non-default stream"
        if self.device.pools.get(pool) == 0:
            raise RuntimeError("use_count > 0 INTERNAL ASSERT FAILED")
        if stream.line:
            raise RuntimeError("something runs on the stream that should capture")
        self.pool, stream.capturing = pool, True
        self.device.pools[pool] = self.device.pools.get(pool, 0) + 1
        self._recorder = _Recorder()
        self._recorder.__enter__()

    def capture_end(self) -> None:
        self._recorder.__exit__(None, None, None)
        assert self.device.current is not None
        self.device.current.capturing = False
        self.calls = self._recorder.calls

    def replay(self) -> None:
        assert self.device.current is not None
        self.device.put(self.device.current, lambda: True, self._begin)
        self.device.put(self.device.current, lambda: True, self._run)

    def _begin(self) -> None:
        assert self.pool is not None
        if self.pool in self.device.busy:
            self.device.faults.append("two graphs of a pool run at once")
        self.device.busy.add(self.pool)

    def _run(self) -> None:
        assert self.pool is not None
        self.device.busy.discard(self.pool)
        for func, args, kwargs, out in self.calls:
            if isinstance(out, torch.Tensor) and _is_view(out, args):
                continue
            again = func(*args, **kwargs)
            if isinstance(out, torch.Tensor) and again is not out and not func._schema.is_mutable:
                self.device.copy(out, again)

    def __del__(self) -> None:
        if self.pool is not None:
            self.device.pools[self.pool] -= 1


def _is_view(out: torch.Tensor, args: Any) -> bool:
    at = out.untyped_storage().data_ptr()
    tensors = [a for a in args if isinstance(a, torch.Tensor)]
    return any(a is not out and a.untyped_storage().data_ptr() == at for a in tensors)


@contextmanager
def pretended(patch: pytest.MonkeyPatch, seed: int) -> Iterator[Device]:
    """Replace what the CUDA executor uses of `torch.cuda`; tensors stay on the CPU."""
    device = Device(seed)

    @contextmanager
    def within(stream: Stream) -> Iterator[None]:
        before = device.current
        device.local.stream = stream
        try:
            yield
        finally:
            device.local.stream = before

    def set_stream(stream: Stream) -> None:
        device.local.stream = stream

    pools = iter(range(1, 1000))
    stands_in = {
        "CUDAGraph": lambda: Graph(device), "Event": lambda enable_timing=False: Event(device),
        "ExternalStream": lambda handle, device: handle, "stream": within, "set_stream": set_stream,
        "current_stream": lambda of=None: device.current, "set_device": lambda which: None,
        "graph_pool_handle": lambda: next(pools),
    }  # fmt: skip
    for name, value in stands_in.items():
        patch.setattr(torch.cuda, name, value)
    for module in ("cuda", "device_clock"):
        patch.setattr(
            f"cotenant.execute.torch.{module}.new_stream", lambda which, priority=0: device.stream()
        )
    patch.setattr(
        "cotenant.execute.torch.captures.pinned", lambda shape, dtype: torch.empty(shape, dtype=dtype)
    )

    def copy_later(self: Any, source: Any, non_blocking: bool = False) -> Any:
        stream = device.current
        if stream is None or stream.capturing:
            return device.copy(self, source)
        if self.is_inference() and not torch.is_inference_mode_enabled():
            raise RuntimeError("Inplace update to inference tensor outside InferenceMode is not allowed")
        device.put(stream, lambda: True, lambda: device.copy(self, source))
        return self

    clone = torch.Tensor.clone

    def clone_later(self: Any, **more: Any) -> Any:
        stream = device.current
        if stream is None or stream.capturing:
            return clone(self, **more)
        made = torch.full_like(self, -7)
        device.put(stream, lambda: True, lambda: device.copy(made, self))
        return made

    patch.setattr(torch.Tensor, "copy_", copy_later)
    patch.setattr(torch.Tensor, "clone", clone_later)
    patch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
    try:
        yield device
    finally:
        device.close()
