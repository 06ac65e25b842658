"""Front ends and an engine over real sockets and shared memory: what one sees when the other fails."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from remote import ARENA_BYTES, Rig, ask, call, floats, rig, until

from cotenant import wire
from cotenant.channel import Channel
from cotenant.domain import OutcomeKind
from cotenant.engine_client import Absence, Call, EngineDownError, Reply
from cotenant.handshake import Hello, connected, exchange
from cotenant.shm import Arena

LARGE = 100_000
"""Floats that travel through shared memory."""


def run(test: Callable[[Rig], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), rig() as made:
            await test(made)

    uvloop.run(main())


def test_tensors_small_and_large_come_back_as_they_went() -> None:
    async def test(made: Rig) -> None:
        _, client = await made.front()
        for n in (1, 4000, 5000, LARGE):
            array = np.random.default_rng(n).random((2, n)).astype(np.float32)
            reply = await ask(client, array)
            assert reply.outcome.kind is OutcomeKind.OK
            assert reply.outputs is not None
            assert np.array_equal(reply.outputs["output"], array)
        words = np.array([b"\xff" * 50] * 2000, object)
        reply = await ask(client, words, "words")
        assert reply.outputs is not None
        assert reply.outputs["output"].tolist() == words.tolist()

    run(test)


def test_slots_come_back_when_answers_have_been_read_and_not_before() -> None:
    async def test(made: Rig) -> None:
        _, client = await made.front()
        (front,) = made.server.fronts
        replies = [await ask(client, floats(LARGE, value)) for value in range(5)]
        made.echo.calls.clear()
        assert front.arena.n_leased == 5
        kept = [reply.outputs["output"][:, 1:] for reply in replies if reply.outputs is not None]
        del replies
        assert front.arena.n_leased == 5
        assert [array[0, 0] for array in kept] == [0, 1, 2, 3, 4]
        kept.clear()
        await ask(client, floats(3))
        assert front.arena.n_leased == 0

    run(test)


def test_a_call_that_finds_no_memory_is_refused_and_the_next_one_is_not() -> None:
    async def test(made: Rig) -> None:
        _, client = await made.front()
        fits = ARENA_BYTES // 4 // 4
        held = []
        for _ in range(4):
            made.echo.hang_next = True
            held.append(asyncio.create_task(ask(client, floats(fits - 16))))
            await until(lambda: made.echo.n_waiting == len(held))
        refused = await ask(client, floats(fits))
        assert refused.outcome.kind is OutcomeKind.REJECTED
        assert refused.outcome.reason.startswith("not available")
        assert (await ask(client, floats(10))).outcome.kind is OutcomeKind.OK
        made.echo.release()
        ended = [(await task).outcome.kind for task in held]
        assert set(ended) <= {OutcomeKind.OK, OutcomeKind.FAILED}
        made.echo.calls.clear()
        held.clear()
        gc.collect()
        await until(lambda: next(iter(made.server.fronts)).arena.n_leased == 0)  # they are large
        assert (await ask(client, floats(fits))).outcome.kind is OutcomeKind.OK

    run(test)


def test_a_front_end_that_hangs_up_leaves_neither_calls_nor_memory() -> None:
    async def test(made: Rig) -> None:
        _, steady = await made.front()
        gc.collect()
        before = n_mapped()
        assert before == 4  # its own arena and a window on the other's, at both ends
        for _ in range(5):
            _, client = await made.front()
            made.echo.hang_next = True
            waiting = asyncio.create_task(ask(client, floats(LARGE)))
            await until(lambda: made.echo.n_waiting == 1)
            await made.hang_up()
            assert (await waiting).outcome.kind is OutcomeKind.CANCELLED
            await until(lambda: made.echo.n_waiting == 0)
        made.echo.calls.clear()
        del client, waiting
        await until(lambda: gc.collect() >= 0 and n_mapped() == before)
        assert len(made.server.fronts) == 1
        assert made.server.calls == set()
        assert (await ask(steady, floats(3))).outcome.kind is OutcomeKind.OK

    run(test)


def n_mapped() -> int:
    """Arenas that are mapped into this process."""
    return Path("/proc/self/maps").read_text().count("memfd:cotenant-tensors")


def test_when_the_engine_is_lost_whoever_waits_is_told_and_the_models_stay_known() -> None:
    async def test(made: Rig) -> None:
        link, client = await made.front()
        made.echo.hang_next = True
        waiting = asyncio.create_task(ask(client, floats(LARGE)))
        await until(lambda: made.echo.n_waiting == 1)
        made.echo.hang_next = True
        lost = asyncio.Event()
        link.on_state = lambda: lost.set() if link.absence() is not None else None
        next(iter(made.server.fronts)).channel.fail("as if killed")
        reply = await waiting
        assert reply.outcome.kind is OutcomeKind.CANCELLED
        assert reply.outcome.reason.startswith("not available")
        assert reply.outputs is None
        assert lost.is_set()
        assert set(client.metadata()) == {"wide", "words"}
        await until(lambda: link.absence() is None)  # the socket is still there: it has met it again
        made.echo.hang_next = False
        assert (await ask(client, floats(LARGE))).outcome.kind is OutcomeKind.OK

    run(test)


def test_questions_are_answered_by_the_engine_or_there_is_none() -> None:
    async def test(made: Rig) -> None:
        _, client = await made.front()
        asked = call(client, floats(3))
        await client.infer(asked)
        assert (await client.explain(asked.id)) == {"request_id": asked.id, "model": "wide", "rows": 1}
        assert await client.explain("nobody's") is None
        assert [entry.success[0] for entry in await client.statistics()] == [1, 0]
        assert await client.unload("wide") is None
        assert await client.unload("wide") == "not loaded"
        assert await client.load("stranger") == "no such model"
        made.server.tell()
        await until(lambda: "wide" not in client.metadata())
        assert await client.load("wide") is None
        made.server.link = None
        with pytest.raises(EngineDownError):
            await client.statistics()

    run(test)


def test_a_change_keeps_what_is_known_of_the_other_models() -> None:
    async def test(made: Rig) -> None:
        _, client = await made.front()
        before = dict(client.metadata())
        assert await client.unload("wide") is None
        made.server.tell()
        await until(lambda: set(client.metadata()) == {"words"})
        assert client.metadata()["words"] is before["words"]

    run(test)


def test_before_there_is_an_engine_calls_are_refused_with_the_reason() -> None:
    async def test(made: Rig) -> None:
        link, client = await made.front()
        made.server.link = None
        made.server.starting("the engine is starting: loading wide (0 of 2)")
        await until(lambda: link.absence() is not None)
        link.absent(Absence(reason="the engine was ended by SIGKILL", retry_after_ms=5000))
        made.server.starting("the engine is starting: loading words (1 of 2)")
        await until(lambda: "loading words" in (link.absence() or Absence(reason="")).reason)
        absence = client.absence()
        assert absence is not None
        assert "SIGKILL" in absence.reason
        assert absence.retry_after_ms == 5000
        refused = await ask(client, floats(3))
        assert refused.outcome.kind is OutcomeKind.REJECTED
        assert "loading words" in refused.outcome.reason
        made.server.serve(made.echo)
        await until(lambda: link.absence() is None)

    run(test)


def test_a_call_that_does_not_fit_its_model_harms_nobody() -> None:
    async def test(made: Rig) -> None:
        _, client = await made.front()
        now = client.now()
        for wrong in (
            {"rows": 2},
            {"rows": 0},
            {"rows": -1},
            {"axes": (("seq", 3),)},
            {"arrived_at": now + 10**12},
            {"arrived_at": -(2**62)},
            {"slo_ns": -1},
            {"priority": -5},
            {"answer_ns": 2**62},
        ):
            reply = await ask(client, floats(3), **wrong)
            assert reply.outcome.kind is OutcomeKind.FAILED, wrong
        for array in (np.zeros((1, 3), np.float64), np.zeros(3, np.float32), np.zeros((1, 0), np.float32)):
            assert (await ask(client, array, rows=1)).outcome.kind is OutcomeKind.FAILED
        assert made.echo.calls == []
        assert (await ask(client, floats(3))).outcome.kind is OutcomeKind.OK

    run(test)


def test_ids_differ_between_processes_and_a_repeated_one_costs_its_sender_the_connection() -> None:
    async def test(made: Rig) -> None:
        link, client = await made.front()
        _, other = await made.front()
        made.echo.hang_next = True
        first = call(client, floats(3))
        waiting = asyncio.create_task(client.infer(first))
        await until(lambda: made.echo.n_waiting == 1)
        again = await other.infer(first)
        assert again.outcome.kind is OutcomeKind.CANCELLED
        made.echo.release()
        assert (await waiting).outcome.kind is OutcomeKind.OK
        assert link.n_lost == 0
        assert f"-{os.getpid():x}-" in first.id

    run(test)


def test_an_answer_that_cannot_be_sent_is_a_failure_and_leaves_no_slot() -> None:
    async def test(made: Rig) -> None:
        _, client = await made.front()
        (front,) = made.server.fronts
        outcome = (await ask(client, floats(3))).outcome
        odd: list[Any] = [
            {"x": np.zeros(LARGE, complex)},
            {f"x{i}": np.zeros(16_000, np.uint8) for i in range(1200)} | {"large": np.zeros(LARGE)},
            {"x": np.zeros(ARENA_BYTES + 1, np.uint8)},
        ]
        for n, outputs in enumerate(odd):

            def submit(asked: Call, reply: Callable[[Reply], None], outputs: Any = outputs) -> None:
                request = structs.replace(outcome.request, id=asked.id)
                reply(Reply(outcome=structs.replace(outcome, request=request), outputs=outputs))

            made.echo.submit = submit  # type: ignore[method-assign]
            reply = await ask(client, floats(3))
            assert reply.outcome.kind is OutcomeKind.FAILED, n
            assert reply.outcome.reason.startswith("execution failed")
            assert front.arena.n_leased == 0

    run(test)


# --- whoever else comes to the sockets ----------------------------------------------------------------


class Stranger:
    """Someone at the engine's socket who has said hello and may now send anything."""

    def __init__(self) -> None:
        self.arena = Arena(ARENA_BYTES)
        self.took: list[Any] = []
        self.lost = asyncio.Event()
        self.channel = Channel(wire.FromEngine, self.took.append, lambda why: self.lost.set())

    async def meet(self, path: Path) -> None:
        sock = connected(path)
        await exchange(sock, self.arena, lambda slot: None)
        loop = asyncio.get_running_loop()
        self.transport, _ = await loop.create_unix_connection(lambda: self.channel, sock=sock)


NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.integers(-2, 300)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=5) | st.binary(max_size=70),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=8,
)
SLOTS = st.none() | st.tuples(NUMBERS, NUMBERS, NUMBERS)
PART = st.tuples(
    st.sampled_from(["input", "other"]),
    st.sampled_from(["float32", "object", "uint8", "nonsense"]),
    st.lists(NUMBERS, max_size=3),
    st.binary(max_size=70) | st.tuples(NUMBERS, NUMBERS),
)
CALL = st.tuples(
    st.text(max_size=4), st.sampled_from(["wide", "words", "none"]), st.just({}), NUMBERS,
    st.lists(st.tuples(st.text(max_size=3), NUMBERS), max_size=2), NUMBERS, st.none() | NUMBERS, NUMBERS,
    NUMBERS,
)  # fmt: skip
FROM_STRANGERS = st.one_of(
    st.tuples(st.just("Submit"), CALL, st.lists(PART, max_size=3), SLOTS),
    st.tuples(st.just("Cancel"), st.text(max_size=4)),
    st.tuples(st.just("Release"), st.lists(SLOTS, max_size=3)),
    st.tuples(st.just("Ask"), NUMBERS, st.sampled_from(["explain", "statistics", "x"]), st.text(max_size=4)),
    VALUES,
).map(msgspec.msgpack.encode) | st.binary(max_size=60)


@settings(max_examples=120, deadline=None)
@given(st.lists(FROM_STRANGERS, min_size=1, max_size=4), st.booleans())
def test_nothing_a_front_end_sends_harms_the_engine_or_another_front_end(
    payloads: list[bytes], cut: bool
) -> None:
    async def test(made: Rig) -> None:
        _, client = await made.front()
        stranger = Stranger()
        await stranger.meet(made.path)
        data = b"".join(struct.pack("<I", len(payload)) + payload for payload in payloads)
        stranger.transport.write(data[: len(data) // 2] if cut else data)
        stranger.transport.write_eof()
        await stranger.lost.wait()
        assert (await ask(client, floats(LARGE))).outcome.kind is OutcomeKind.OK
        assert len(made.server.fronts) == 1

    run(test)


FROM_ENGINES = st.one_of(
    st.tuples(st.just("Answer"), VALUES, st.none() | st.lists(PART, max_size=2), SLOTS),
    st.tuples(st.just("Release"), st.lists(SLOTS, max_size=3)),
    st.tuples(st.just("State"), VALUES, VALUES, VALUES),
    st.tuples(st.just("Told"), NUMBERS, st.just([]), st.binary(max_size=4)),
    VALUES,
).map(msgspec.msgpack.encode) | st.binary(max_size=60)


@settings(max_examples=80, deadline=None)
@given(st.lists(FROM_ENGINES, min_size=1, max_size=4))
def test_nothing_an_engine_sends_leaves_a_call_without_an_answer(payloads: list[bytes]) -> None:
    async def test(made: Rig) -> None:
        _, client = await made.front()
        (front,) = made.server.fronts
        made.echo.hang_next = True
        waiting = asyncio.create_task(ask(client, floats(LARGE)))
        await until(lambda: made.echo.n_waiting == 1)
        for payload in payloads:
            front.channel._transport.write(struct.pack("<I", len(payload)) + payload)  # type: ignore[union-attr]
        front.channel.close()
        assert (await waiting).outcome.kind is OutcomeKind.CANCELLED
        await until(client.accepting)
        assert (await ask(client, floats(LARGE))).outcome.kind is OutcomeKind.OK

    run(test)


async def hung_up(sock: socket.socket) -> None:
    """Wait until the other end has."""
    with sock, suppress(ConnectionResetError):
        while await asyncio.get_running_loop().sock_recv(sock, 4096):
            pass


@pytest.mark.parametrize("words", [b"", b"\x00\x00", b"\xff\xff\xff\xff", b"\x05\x00\x00\x00junk!"])
def test_whoever_does_not_say_hello_is_not_let_in(words: bytes) -> None:
    async def test(made: Rig) -> None:
        sock = connected(made.path)
        await asyncio.get_running_loop().sock_sendall(sock, words)
        sock.shutdown(socket.SHUT_WR)
        await hung_up(sock)
        assert made.server.fronts == set()
        assert (await ask((await made.front())[1], floats(3))).outcome.kind is OutcomeKind.OK

    run(test)


def test_descriptors_that_are_no_arena_or_too_many_are_closed_and_refused() -> None:
    async def test(made: Rig) -> None:
        hello = msgspec.msgpack.encode(Hello(n_bytes=4096))
        n_before = len(os.listdir("/proc/self/fd"))
        for n in (0, 1, 2, 9):
            pipes = [os.pipe() for _ in range(n)]
            sock = connected(made.path)
            socket.send_fds(sock, [struct.pack("<I", len(hello)) + hello], [pipe[0] for pipe in pipes])
            for end in (end for pipe in pipes for end in pipe):
                os.close(end)
            await hung_up(sock)
        assert made.server.fronts == set()
        await until(lambda: len(os.listdir("/proc/self/fd")) <= n_before)  # others may be closed meanwhile

    run(test)


def test_only_this_user_can_reach_the_socket() -> None:
    async def test(made: Rig) -> None:
        assert made.path.stat().st_mode & 0o777 == 0o600
        assert made.path.parent.stat().st_mode & 0o777 == 0o700

    run(test)
