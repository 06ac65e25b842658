"""Frames and the tensors in them."""

from __future__ import annotations

import os
import struct
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotenant import wire
from cotenant.channel import MAX_FRAME_BYTES, Channel, FrameError
from cotenant.shm import Arena, ArenaFullError, Slot, Window

SIZE = 1 << 20


def carried(tensors: dict[str, Any], arena: Arena) -> tuple[dict[str, Any], list[Slot]]:
    """The tensors after their way through a frame; slots that were handed back once nobody held them."""
    freed: list[Slot] = []
    window = Window(os.dup(arena.fd), arena.n_bytes, freed.append)
    frame = msgspec.msgpack.encode(wire.pack(tensors, arena))
    parts, slot = msgspec.msgpack.decode(frame, type=tuple[wire.Parts, Slot | None])
    return dict(wire.unpack(parts, slot, window)), freed


def tensors_of(n: int) -> dict[str, Any]:
    """One tensor of every type, of `n` elements."""
    found = {name: np.arange(n).astype(dtype) for name, dtype in wire.DTYPES.items() if dtype.kind != "O"}
    text = np.empty(n, object)
    text[:] = [b"\xff" * (i % 7) for i in range(n)]
    return {**found, "text": text}


@pytest.mark.parametrize("n", [0, 1, 6, 9000])
def test_every_type_arrives_as_it_was_sent(n: int) -> None:
    arena = Arena(SIZE)
    sent = {name: array.reshape(-1, 1) for name, array in tensors_of(n).items()}
    got, freed = carried(sent, arena)
    assert list(got) == list(sent)
    for name, array in sent.items():
        assert got[name].dtype == array.dtype
        assert got[name].shape == array.shape
        assert got[name].flags.c_contiguous
        assert got[name].flags.aligned
        assert np.array_equal(got[name], array)
    got.clear()
    assert arena.n_leased == len(freed)


def test_parts_of_a_larger_array_and_text_arrive_whole() -> None:
    arena = Arena(SIZE)
    whole = np.arange(200 * 200, dtype=np.float32).reshape(200, 200)
    text = np.array(["ä", "b"], object)
    got, _ = carried({"part": whole[:, 10:190:3], "text": text}, arena)
    assert np.array_equal(got["part"], whole[:, 10:190:3])
    assert got["text"].tolist() == ["ä".encode(), b"b"]


def test_what_does_not_fit_and_what_cannot_travel_is_told_and_leases_nothing() -> None:
    arena = Arena(SIZE)
    with pytest.raises(ArenaFullError):
        wire.pack({"x": np.zeros(SIZE + 1, np.uint8)}, arena)
    with pytest.raises(TypeError, match="complex"):
        wire.pack({"large": np.zeros(SIZE // 2, np.uint8), "x": np.zeros(3, complex)}, arena)
    assert arena.n_leased == 0


NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.integers(-64, 200_000)
PLACES = st.binary(max_size=64) | st.tuples(NUMBERS, NUMBERS)
PARTS = st.lists(
    st.builds(
        wire.Part,
        name=st.sampled_from(["a", "b", "c"]),
        dtype=st.sampled_from([*wire.DTYPES, "complex128", ""]),
        shape=st.lists(NUMBERS | st.integers(0, 8), max_size=4).map(tuple) | st.just((1,) * 40),
        place=PLACES,
    ),
    max_size=4,
)


@settings(max_examples=400, deadline=None)
@given(PARTS, st.none() | st.builds(Slot, offset=NUMBERS, length=NUMBERS, epoch=st.integers(0, 3)))
def test_no_claim_about_tensors_reads_beyond_what_there_is(parts: list[wire.Part], slot: Slot | None) -> None:
    arena = Arena(SIZE)
    try:
        window = Window(os.dup(arena.fd), arena.n_bytes, lambda freed: None)
        found = wire.unpack(parts, slot, window)
    except FrameError:
        return
    finally:
        arena.close()
    for part in parts:
        array = found[part.name]
        assert array.shape == part.shape
        assert len(array.tobytes()) == array.nbytes


# --- frames -----------------------------------------------------------------------------------------------


class Wire:
    """A transport that keeps what is written, and what a channel makes of what is fed to it."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.took: list[Any] = []
        self.why: list[str] = []
        self.channel = Channel(wire.FromFront, self.took.append, self.why.append)
        self.channel.connection_made(self)  # type: ignore[arg-type]

    def set_write_buffer_limits(self, high: int) -> None: ...

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def abort(self) -> None:
        self.channel.connection_lost(None)


FRAMES = [
    wire.Cancel("a"),
    wire.Release((Slot(0, 64, 1), Slot(64, 5, 2))),
    wire.Ask(1, "explain", "x" * 3000),
    wire.Ask(2, "metrics"),
]


@given(st.lists(st.sampled_from(FRAMES), max_size=6), st.lists(st.integers(0, 9000), max_size=8))
def test_frames_arrive_whole_and_in_order_however_they_are_cut(frames: list[Any], cuts: list[int]) -> None:
    sender, receiver = Wire(), Wire()
    for frame in frames:
        sender.channel.send(frame)
    stream = b"".join(sender.written)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    for begin, end in pairwise(edges):
        if end > begin:
            receiver.channel.data_received(stream[begin:end])
    assert receiver.took == frames
    assert receiver.why == []


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=80), max_size=5))
def test_garbage_ends_the_connection_or_waits_for_more_and_nothing_else(pieces: list[bytes]) -> None:
    receiver = Wire()
    for piece in pieces:
        if receiver.channel.open:
            receiver.channel.data_received(piece)
    assert len(receiver.why) <= 1
    assert all(isinstance(frame, wire.FromFront) for frame in receiver.took)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode(["Nothing", 1]),
        msgspec.msgpack.encode(["Cancel", 1]),
        msgspec.msgpack.encode(["Ask", 1]),
        b"\x92\xa6Cancel\xa1\xff",
        b"\x91" * 100_000,
    ],
    ids=["empty", "no msgpack", "unknown", "wrong type", "cut short", "no UTF-8", "deep"],
)
def test_a_frame_that_is_none_ends_the_connection(payload: bytes) -> None:
    receiver = Wire()
    receiver.channel.data_received(struct.pack("<I", len(payload)) + payload)
    assert len(receiver.why) == 1
    assert not receiver.channel.open


def test_a_frame_that_is_too_long_is_refused_before_it_comes() -> None:
    receiver = Wire()
    receiver.channel.data_received(struct.pack("<I", MAX_FRAME_BYTES + 1))
    assert "longer" in receiver.why[0]
    with pytest.raises(FrameError, match="longer"):
        receiver.channel.send(wire.Cancel("x" * MAX_FRAME_BYTES))
