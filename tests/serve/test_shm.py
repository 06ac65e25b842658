"""Memory that two processes share: leases, views, and what the other end may say of them."""

from __future__ import annotations

import gc
import mmap
import os
import threading
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotenant.shm import ALIGNMENT, Arena, ArenaFullError, Slot, SlotError, Window

SIZE = 1 << 16


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena(SIZE)
    yield made
    made.close()


def window_on(arena: Arena, freed: list[Slot] | None = None) -> Window:
    return Window(os.dup(arena.fd), arena.n_bytes, (freed if freed is not None else []).append)


def test_what_one_end_writes_the_other_reads(arena: Arena) -> None:
    slot = arena.lease(100)
    arena.bytes[slot.offset : slot.offset + 100] = range(100)
    assert window_on(arena).open(slot).tolist() == list(range(100))


def test_a_slot_is_handed_back_when_the_last_array_on_it_has_gone(arena: Arena) -> None:
    freed: list[Slot] = []
    window, slot = window_on(arena, freed), arena.lease(64)
    root = window.open(slot)
    matrix = np.ndarray((4, 4), np.float32, root)
    row = matrix[1]
    del root, matrix
    assert freed == []
    assert window.n_open == 1
    other = threading.Thread(target=lambda kept=[row]: kept.clear())
    del row
    other.start()
    other.join()
    gc.collect()
    assert freed == [slot]
    assert window.n_open == 0


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 40) | st.integers(1, SIZE), max_size=60))
def test_leases_never_overlap_and_everything_comes_back(choices: list[int]) -> None:
    arena = Arena(SIZE)
    leased: list[Slot] = []
    try:
        for choice in choices:
            if choice <= 40 and leased:
                arena.release(leased.pop(choice % len(leased)))
                continue
            try:
                leased.append(arena.lease(choice + 1))
            except ArenaFullError:
                continue
            taken = sorted((slot.offset, slot.offset + slot.length) for slot in leased)
            assert all(end <= begin for (_, end), (begin, _) in pairwise(taken))
            assert taken[-1][1] <= SIZE
            assert all(slot.offset % ALIGNMENT == 0 for slot in leased)
        for slot in leased:
            arena.release(slot)
        assert arena.n_leased == 0
        assert arena.lease(SIZE).offset == 0
    finally:
        arena.close()


def test_a_slot_is_taken_back_once_and_under_its_own_epoch_only(arena: Arena) -> None:
    first = arena.lease(64)
    arena.release(first)
    second = arena.lease(64)
    assert second.offset == first.offset
    for wrong in (first, Slot(second.offset, 128, second.epoch), Slot(64, 64, second.epoch), Slot(-1, 0, 0)):
        with pytest.raises(SlotError):
            arena.release(wrong)
    arena.release(second)
    with pytest.raises(SlotError):
        arena.release(second)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
def test_no_slot_outside_of_the_arena_can_be_opened(offset: int, length: int) -> None:
    arena = Arena(SIZE)
    try:
        window = window_on(arena)
        inside = offset >= 0 and length > 0 and offset + length <= SIZE and offset % ALIGNMENT == 0
        if inside:
            assert window.open(Slot(offset, length, 1)).nbytes == length
        else:
            with pytest.raises(SlotError):
                window.open(Slot(offset, length, 1))
    finally:
        arena.close()


def test_an_arena_that_could_be_cut_short_under_its_reader_is_refused(tmp_path: object) -> None:
    loose = os.memfd_create("loose", os.MFD_ALLOW_SEALING)
    os.ftruncate(loose, SIZE)
    with pytest.raises(SlotError, match="sealed"):
        Window(loose, SIZE, lambda slot: None)
    pipe, other = os.pipe()
    os.close(other)
    with pytest.raises(SlotError, match="sealed"):
        Window(pipe, SIZE, lambda slot: None)


def test_an_arena_of_another_size_than_was_said_is_refused(arena: Arena) -> None:
    for said in (0, -1, SIZE - 1, SIZE + 1, 2**60):
        with pytest.raises(SlotError):
            Window(os.dup(arena.fd), said, lambda slot: None)


def test_the_reader_can_neither_resize_nor_write(arena: Arena) -> None:
    slot = arena.lease(64)
    view = window_on(arena).open(slot)
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1
    with pytest.raises(OSError):
        os.ftruncate(arena.fd, 0)
    with pytest.raises(OSError):
        mmap.mmap(arena.fd, SIZE)
