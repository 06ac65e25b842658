"""What is learned outlives the server: copied in time, kept whole, restored to the same predictions."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from learned_runs import SOLO_MS, answers, observations, predictor

from cotenant.clock import VirtualClock
from cotenant.domain import NS_PER_S, Observation
from cotenant.learned import restore
from cotenant.predict.fluid import FluidPredictor
from cotenant.predict.solo import DECAY_STEP_NS
from cotenant.simulate.driver import VirtualTimers
from cotenant.telemetry.checkpoint import Checkpointer
from cotenant.telemetry.state_file import HEAD_BYTES, StateFile

DAY_NS = 24 * 3600 * NS_PER_S
UP_FOR = 3 * DAY_NS
"""For how long the machine was up before anything was learned (ns)."""
NOON_S = 1_800_000_000.0
"""Some wall time (s)."""


@pytest.fixture
def file(tmp_path: Path) -> StateFile:
    return StateFile(tmp_path / "learned" / "mine.state", "this-device")


@pytest.fixture(scope="module")
def learned() -> tuple[FluidPredictor, int]:
    """A predictor that has learned, and the instant of the last thing."""
    found = predictor()
    return found, observations(found, 400, at=UP_FOR)[-1].ended_at


# --- the state -------------------------------------------------------------------------------------------


def test_what_is_restored_predicts_exactly_what_was_predicted(learned: tuple[FluidPredictor, int]) -> None:
    original, at = learned
    copy = predictor()
    assert answers(copy, at) != answers(original, at)
    copy.restore(original.state())
    assert answers(copy, at) == answers(original, at)
    assert copy.version == original.version


def test_what_is_restored_learns_on_as_the_original_does(learned: tuple[FluidPredictor, int]) -> None:
    twins = [predictor(), predictor()]
    twins[0].restore(learned[0].state())
    twins[1].restore(twins[0].state())
    for twin in twins:
        last_at = observations(twin, 50, at=learned[1], seed=2)[-1].ended_at
    assert answers(twins[0], last_at) == answers(twins[1], last_at)


def test_a_restored_state_leaves_nothing_of_what_was_learned_before_it() -> None:
    fresh, other = predictor().state(), predictor()
    at = observations(other, 100)[-1].ended_at
    other.restore(fresh)
    assert answers(other, at) == answers(predictor(), at)


def test_a_copy_stays_as_it_was_while_learning_goes_on() -> None:
    growing = predictor()
    observations(growing, 60)
    encode, state = growing.copied(), growing.state()
    observations(growing, 60, at=60 * NS_PER_S, seed=2)
    assert encode() == state != growing.state()


def test_a_state_that_cannot_be_used_changes_nothing(learned: tuple[FluidPredictor, int]) -> None:
    state, other = learned[0].state(), predictor(SOLO_MS | {"a": 11.0})
    at = observations(other, 30, at=UP_FOR)[-1].ended_at
    before = other.state()
    for body, why in ((state, "other measured features"), (state[:-9], "cannot be read"), (b"", "cannot")):
        with pytest.raises(ValueError, match=why):
            other.restore(body)
    assert other.state() == before
    assert len(answers(other, at)) > 0


# --- instants of another boot -----------------------------------------------------------------------------


@pytest.mark.parametrize("gone_s", [0.0, 3.0, 60.0, 36_000.0])
@pytest.mark.parametrize("now", [20 * NS_PER_S, UP_FOR + 40_000 * NS_PER_S])
def test_after_a_restart_as_much_is_forgotten_as_time_has_gone_by(
    learned: tuple[FluidPredictor, int], file: StateFile, gone_s: float, now: int
) -> None:
    """Whether the monotonic clock went on (`now` is later) or began anew with a boot (`now` is small)."""
    original, at = learned
    file.write(learned_at=at, wall_s=NOON_S, state=original.state())
    copy = predictor()
    assert restore(copy, file, now, NOON_S + gone_s).age_s == gone_s
    then = at + int(gone_s * NS_PER_S)
    off = (now - then) % DECAY_STEP_NS  # instants are moved by whole steps
    moved = now - then - off + (DECAY_STEP_NS if off > DECAY_STEP_NS // 2 else 0)
    assert abs(moved - (now - then)) <= DECAY_STEP_NS // 2
    assert answers(copy, then + moved) == answers(original, then)


def test_a_wall_clock_that_was_put_back_counts_as_no_time(
    learned: tuple[FluidPredictor, int], file: StateFile
) -> None:
    original, at = learned
    file.write(learned_at=at, wall_s=NOON_S, state=original.state())
    copy = predictor()
    assert restore(copy, file, at, NOON_S - 5_000.0).age_s == 0.0
    assert answers(copy, at) == answers(original, at)


# --- the file ---------------------------------------------------------------------------------------------


def test_the_state_before_is_kept_and_used_when_the_newest_is_damaged(file: StateFile) -> None:
    states = []
    growing = predictor()
    for n in range(3):
        at = observations(growing, 20, at=n * NS_PER_S, seed=n)[-1].ended_at
        states.append(growing.state())
        file.write(learned_at=at, wall_s=NOON_S + at / NS_PER_S, state=states[-1])
    assert [file.read(path).state for path in (file.path, file.before)] == states[:0:-1]
    damage(file.path, HEAD_BYTES + 1000)
    copy = predictor()
    found = restore(copy, StateFile(file.path, "this-device"), at, NOON_S + at / NS_PER_S)
    assert copy.state() == states[1]
    assert found.path == file.before
    [line, end] = found.lines()
    assert line == f"not used: {file.path} is damaged: its checksum does not fit"
    assert str(file.before) in end


def damage(path: Path, place: int) -> None:
    body = bytearray(path.read_bytes())
    body[place] ^= 1
    path.write_bytes(body)


def spoil_with(body: bytes) -> Callable[[StateFile], object]:
    return lambda file: file.path.write_bytes(body)


def cut(file: StateFile) -> None:
    file.path.write_bytes(file.path.read_bytes()[:-100])


def of_another_device(file: StateFile) -> None:
    other = StateFile(file.path, "another-device")
    other.newest_is_good = False
    other.write(learned_at=0, wall_s=NOON_S, state=predictor().state())


def of_other_models(file: StateFile) -> None:
    file.newest_is_good = False
    file.write(learned_at=0, wall_s=NOON_S, state=predictor(SOLO_MS | {"b": 4.0}).state())


def a_folder(file: StateFile) -> None:
    file.path.unlink()
    file.path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (spoil_with(b""), "no learned state"),
        (spoil_with(b"hello, this is no state"), "no learned state"),
        (cut, "checksum"),
        (lambda file: damage(file.path, HEAD_BYTES - 1), "checksum"),
        (of_another_device, "device another-device, this is this-device"),
        (of_other_models, "other measured features"),
        (a_folder, "directory"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line_that_names_it(
    file: StateFile, spoil: Callable[[StateFile], object], why: str
) -> None:
    growing = predictor()
    observations(growing, 20)
    good = growing.state()
    file.write(learned_at=0, wall_s=NOON_S, state=good)
    file.write(learned_at=0, wall_s=NOON_S, state=predictor().state())
    spoil(file)
    copy = predictor()
    found = restore(copy, file, 0, NOON_S)
    assert copy.state() == good
    [line] = found.refused
    assert str(file.path) in line
    assert why in line
    assert "\n" not in line


def test_when_nothing_fits_learning_begins_anew_and_it_is_said(file: StateFile) -> None:
    of_other_models(file)
    file.path.replace(file.before)
    of_another_device(file)
    copy = predictor()
    found = restore(copy, file, 0, NOON_S)
    assert copy.state() == predictor().state()
    assert found.path is None
    assert len(found.refused) == 2
    assert found.lines()[-1] == "no learned state can be used: learning begins anew"


def test_with_no_file_there_is_nothing_to_say(file: StateFile) -> None:
    assert restore(predictor(), file, 0, NOON_S).lines() == []


def test_a_damaged_newest_never_pushes_out_the_good_one_before(file: StateFile) -> None:
    good = predictor().state()
    file.write(learned_at=0, wall_s=NOON_S, state=good)
    file.write(learned_at=0, wall_s=NOON_S, state=good)
    damage(file.path, HEAD_BYTES)
    again = StateFile(file.path, "this-device")
    restore(predictor(), again, 0, NOON_S)
    again.write(learned_at=1, wall_s=NOON_S, state=good)
    assert again.read(again.before).learned_at == 0
    again.write(learned_at=2, wall_s=NOON_S, state=good)
    assert [again.read(path).learned_at for path in (again.path, again.before)] == [2, 1]


@contextmanager
def files_no_larger_than(n_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_what_was_kept_and_no_litter(file: StateFile) -> None:
    for learned_at in (1, 2):
        file.write(learned_at=learned_at, wall_s=NOON_S, state=bytes(10_000))
    with files_no_larger_than(4000), pytest.raises(OSError):
        file.write(learned_at=3, wall_s=NOON_S, state=bytes(10_000))
    assert [file.read(path).learned_at for path in (file.path, file.before)] == [2, 1]
    assert sorted(file.path.parent.iterdir()) == [file.path, file.before]
    file.write(learned_at=4, wall_s=NOON_S, state=bytes(10_000))
    assert file.read(file.path).learned_at == 4


# --- when it is copied ------------------------------------------------------------------------------------


class Server:
    """A predictor that learns in virtual time, and a checkpointer that is told of it."""

    def __init__(self, file: StateFile, complain: Callable[[str], None] = lambda message: None) -> None:
        self.clock = VirtualClock()
        self.timers = VirtualTimers(self.clock)
        self.predictor = predictor()
        self.copied_at: list[int] = []
        self.n_at_copy: list[int] = []
        self.keeper = Checkpointer(self, file, self.timers, complain=complain)
        self.n_learned = 0

    def copied(self) -> Callable[[], bytes]:
        self.copied_at.append(self.clock.now())
        self.n_at_copy.append(self.n_learned)
        return self.predictor.copied()

    def restore(self, state: bytes, moved_ns: int = 0) -> None:
        self.predictor.restore(state, moved_ns)

    def wait_until(self, at: int) -> None:
        while self.timers.next_at() <= at:
            self.clock.advance_to(self.timers.next_at())
            self.timers.run_next()
        self.clock.advance_to(at)

    def observe(self, n: int, every_ns: int) -> None:
        for one in SOME[:n]:
            self.wait_until(self.clock.now() + every_ns)
            self.predictor.learn(one)
            self.n_learned += 1
            self.keeper.observed(one)


def some_observations() -> list[Observation]:
    return observations(predictor(), 500)


SOME = some_observations()


def test_at_every_instant_the_last_copy_is_young_enough_however_fast_is_learned(file: StateFile) -> None:
    for every_ns in (100_000, 3_000_000, 40_000_000, 700_000_000):
        server = Server(file)
        server.observe(300, every_ns)
        server.wait_until(server.clock.now() + 2 * NS_PER_S)
        server.keeper.close()
        assert server.n_at_copy[-1] == 300  # with nothing more to learn, the last is kept too
        learned_at = [every_ns * (k + 1) for k in range(300)]
        before = 0
        for copied_at, n in zip(server.copied_at, server.n_at_copy, strict=True):
            assert n - before <= 100
            assert copied_at - learned_at[before] <= NS_PER_S // 2
            before = n


def test_nothing_is_copied_while_nothing_is_learned(file: StateFile) -> None:
    server = Server(file)
    server.observe(1, NS_PER_S)
    server.wait_until(100 * NS_PER_S)
    server.keeper.close()
    assert server.copied_at == [NS_PER_S + NS_PER_S // 2]


def test_what_was_learned_last_is_kept_at_the_end_and_predicts_the_same(file: StateFile) -> None:
    server = Server(file)
    server.observe(130, 1_000_000)
    server.keeper.close()
    server.keeper.close()
    at = server.clock.now()
    copy = predictor()
    copy.restore(file.read(file.path).state)
    assert answers(copy, at) == answers(server.predictor, at)
    counts = server.keeper.counts
    assert counts.n_written + counts.n_skipped == len(server.copied_at) == 2
    assert counts.n_failed == 0


def test_a_disk_that_refuses_is_counted_and_told_once_and_learning_goes_on(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("not a folder")
    told: list[str] = []
    path = tmp_path / "taken" / "mine.state"
    server = Server(StateFile(path, "this-device"), told.append)
    server.observe(500, 100_000)
    server.keeper.close()
    counts = server.keeper.counts
    assert counts.n_written == 0
    assert counts.n_failed + counts.n_skipped == len(server.copied_at)
    assert counts.n_failed > 0
    [line] = told
    assert str(path) in line
    assert server.predictor.version == 500
