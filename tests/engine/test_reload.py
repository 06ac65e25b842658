"""A configuration read anew: what changes, what does not, and that nothing fails meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scaled_models import write_model

from cotenant import zoo
from cotenant.assemble import make_engine, prepare
from cotenant.catalogue import Places, places
from cotenant.clock import MonotonicClock
from cotenant.config import load_scenario
from cotenant.domain import NS_PER_MS, OutcomeKind
from cotenant.engine import Engine
from cotenant.engine_client import Call, EngineClient, Reply
from cotenant.experiment.replaying import replay_log
from cotenant.local_link import LocalLink
from cotenant.reload import Reloader

HEAD = '[server]\nallow_code = true\n[device]\nkind = "cpu"\nlanes = 1\n'
STAYS = '[[model]]\nname = "stays"\nsource = "zoo:echo"\nslo_ms = 1000\nmax_batch = 2\n'
MOVES = '[[model]]\nname = "moves"\nsource = "zoo:echo"\nslo_ms = 500\nmax_batch = 4\n'
MODULE = """
import numpy as np
import cotenant

@cotenant.model(slo_ms=1000, max_batch=4, example=np.zeros((1, 16), np.float32))
def scaled(input):
    return {"output": FACTOR * input}
"""
OWN = '[[model]]\nname = "own"\nsource = "own:scaled"\n'


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Places:
    return places(tmp_path_factory.mktemp("store"))


class Rig:
    """A started engine on a configuration file that can be rewritten."""

    def __init__(self, path: Path, engine: Engine, reloader: Reloader, told: list[str]) -> None:
        self.path, self.engine, self.reloader, self.told = path, engine, reloader, told
        self.client = EngineClient(LocalLink(engine, MonotonicClock()))

    async def reload(self, text: str) -> Any:
        self.path.write_text(HEAD + text)
        return await self.reloader.reload()

    async def ask(self, model: str, value: float = 1.0, rows: int = 1) -> Reply:
        call = Call(
            id=self.client.new_id(), model=model, inputs={"input": np.full((rows, 16), value, np.float32)},
            rows=rows, axes=(), arrived_at=self.client.now(),
        )  # fmt: skip
        return await asyncio.wait_for(self.client.infer(call), 20)

    def states(self) -> dict[str, str]:
        return {status.name: status.state for status in self.client.status()}

    def slo_ms(self, model: str) -> float:
        return self.client.metadata()[model].spec.slo_ns / NS_PER_MS


@pytest.fixture
def run(tmp_path: Path, where: Places) -> Callable[..., None]:
    """`run(text, use)` starts an engine on the configuration and awaits `use(rig)`."""

    def start(text: str, use: Callable[[Rig], Awaitable[None]], log_path: Path | None = None) -> None:
        path = tmp_path / "server.toml"
        path.write_text(HEAD + text)
        prepared = prepare(load_scenario(path), where)

        async def main() -> None:
            engine = make_engine(prepared, log_path=log_path)
            engine.start()
            told: list[str] = []
            try:
                await use(Rig(path, engine, Reloader(engine, prepared, told.append), told))
            finally:
                engine.close_log()

        try:
            asyncio.run(main())
        finally:
            prepared.executor.close()

    return start


def test_another_slo_and_class_hold_at_once_and_nothing_is_loaded(run: Any) -> None:
    async def use(rig: Rig) -> None:
        learned = rig.engine.scheduler.view.predictor.version
        changes = await rig.reload(STAYS + MOVES.replace("500", "250") + 'class = "protected"\n')
        assert (changes.respecified, changes.added, changes.replaced) == (["moves"], [], [])
        assert (rig.slo_ms("moves"), rig.slo_ms("stays")) == (250, 1000)
        request = (await rig.ask("moves")).outcome.request
        assert request.deadline_at - request.arrived_at == 250 * NS_PER_MS
        assert request.job_class.name == "PROTECTED"
        assert rig.engine.scheduler.view.predictor.version >= learned

    run(STAYS + MOVES, use)


def test_a_new_model_is_loaded_and_one_that_is_gone_is_forgotten(run: Any) -> None:
    async def use(rig: Rig) -> None:
        await rig.reload(STAYS + MOVES)
        assert rig.states() == {"stays": "READY", "moves": "READY"}
        assert (await rig.ask("moves")).outcome.kind is OutcomeKind.OK
        await rig.reload(MOVES)
        assert rig.states() == {"moves": "READY"}
        assert (await rig.ask("moves")).outcome.kind is OutcomeKind.OK
        assert (await rig.ask("stays")).outcome.reason.startswith("not available")

    run(STAYS, use)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (STAYS + "slo_ms = [", "not valid TOML"),
        (STAYS.replace("slo_ms", "slo_mss"), "did you mean 'slo_ms'"),
        (STAYS + MOVES.replace("zoo:echo", "nowhere.onnx"), "there is no file"),
        (STAYS + OWN.replace("scaled", "absent"), "own:absent"),
        ("", "needs at least one model"),
    ],
)
def test_a_file_that_cannot_be_used_changes_nothing_and_is_said(run: Any, text: str, message: str) -> None:
    async def use(rig: Rig) -> None:
        assert await rig.reload(text) is None
        assert rig.states() == {"stays": "READY"}
        assert rig.slo_ms("stays") == 1000
        assert message in rig.told[-1]
        assert "nothing was changed" in rig.told[-1]
        assert (await rig.ask("stays")).outcome.kind is OutcomeKind.OK
        assert (await rig.reload(STAYS + MOVES)).added == ["moves"]

    run(STAYS, use)


def test_what_takes_a_restart_is_said(run: Any) -> None:
    async def use(rig: Rig) -> None:
        rig.path.write_text(HEAD.replace("lanes = 1", "lanes = 2") + STAYS)
        changes = await rig.reloader.reload()
        assert changes.restart == ["device"]
        assert any("[device] takes a restart" in line for line in rig.told)
        assert len(rig.engine.scheduler.view.lanes) == 1

    run(STAYS, use)


def test_a_file_with_the_same_shapes_is_swapped_while_the_old_one_serves(run: Any, tmp_path: Path) -> None:
    async def use(rig: Rig) -> None:
        (tmp_path / "own.py").write_text(MODULE.replace("FACTOR", "5"))
        going = True
        seen: list[float] = []

        async def load() -> None:
            while going:
                for reply in await asyncio.gather(*(rig.ask("own", rows=rows) for rows in (1, 2, 4))):
                    assert reply.outcome.kind is OutcomeKind.OK, reply.outcome
                    seen.append(float(reply.outputs["output"][0, 0]))

        loading = asyncio.create_task(load())
        changes = await rig.reload(STAYS + OWN)
        going = False
        await loading
        assert (changes.replaced, changes.drained) == (["own"], [])
        assert set(seen) <= {3.0, 5.0}
        assert (await rig.ask("own")).outputs["output"][0, 0] == 5.0
        assert (await rig.reload(STAYS + OWN)).replaced == []

    (tmp_path / "own.py").write_text(MODULE.replace("FACTOR", "3"))
    run(STAYS + OWN, use)


def test_a_smaller_batch_waits_until_what_was_admitted_is_answered(run: Any) -> None:
    async def use(rig: Rig) -> None:
        asked = [asyncio.create_task(rig.ask("moves", rows=4)) for _ in range(20)]
        await asyncio.sleep(0)
        changes = await rig.reload(STAYS + MOVES.replace("max_batch = 4", "max_batch = 2"))
        assert (changes.drained, changes.replaced) == (["moves"], [])
        assert {reply.outcome.kind for reply in await asyncio.gather(*asked)} == {OutcomeKind.OK}
        assert rig.client.metadata()["moves"].spec.max_batch == 2
        assert (await rig.ask("moves", rows=2)).outcome.kind is OutcomeKind.OK
        late = await rig.ask("moves", rows=4)  # made for the model before
        assert late.outcome.reason == "not available: model has changed"

    run(STAYS + MOVES, use)


def test_a_model_that_failed_is_tried_again_and_one_that_was_unloaded_is_not(
    run: Any, tmp_path: Path, where: Places
) -> None:
    broken = MOVES.replace("zoo:echo", "late.onnx")

    async def use(rig: Rig) -> None:
        assert rig.states()["moves"] == "UNAVAILABLE"
        (tmp_path / "late.onnx").write_bytes(zoo.ensure("echo", where.cache / "zoo").read_bytes())
        assert await rig.client.unload("stays") is None
        changes = await rig.reload(STAYS + broken)
        assert changes.added == ["moves"]
        assert rig.states() == {"stays": "UNAVAILABLE", "moves": "READY"}

    run(STAYS + broken, use)


def test_a_model_that_cannot_be_loaded_after_all_leaves_the_old_one_serving(run: Any, tmp_path: Path) -> None:
    async def use(rig: Rig) -> None:
        (tmp_path / "own.py").write_text(
            MODULE.replace("FACTOR * input", "(1 // (4 - len(input)) + 9) * input")
        )
        await rig.reload(STAYS + OWN)
        assert any("own was not loaded" in line and "ZeroDivisionError" in line for line in rig.told)
        assert (await rig.ask("own")).outputs["output"][0, 0] == 3.0
        (tmp_path / "own.py").write_text(MODULE.replace("FACTOR", "7"))
        await rig.reload(STAYS + OWN)
        assert (await rig.ask("own")).outputs["output"][0, 0] == 7.0

    (tmp_path / "own.py").write_text(MODULE.replace("FACTOR", "3"))
    run(STAYS + OWN, use)


def test_requests_for_reloads_are_done_one_after_the_other(run: Any) -> None:
    async def use(rig: Rig) -> None:
        rig.path.write_text(HEAD + STAYS + MOVES)
        rig.reloader.request()
        await asyncio.sleep(0)
        rig.path.write_text(HEAD + STAYS + MOVES.replace("500", "300"))
        rig.reloader.request()
        rig.reloader.request()
        await rig.reloader._task
        assert rig.slo_ms("moves") == 300

    run(STAYS, use)


def test_a_reload_sets_nothing_up_that_has_not_changed(run: Any, tmp_path: Path) -> None:
    async def use(rig: Rig) -> None:
        before = (tmp_path / "made").read_text()
        assert (await rig.reload(STAYS.replace("1000", "900") + OWN)).respecified == ["stays"]
        assert (tmp_path / "made").read_text() == before
        assert (await rig.ask("own")).outputs["output"][0, 0] == 3.0

    (tmp_path / "own.py").write_text(
        """
import numpy as np
import cotenant

@cotenant.model(slo_ms=1000, max_batch=4, example=np.zeros((1, 16), np.float32))
class scaled:
    def setup(self):
        with open(__file__.replace("own.py", "made"), "a") as file:
            file.write("x")

    def predict(self, input):
        return {"output": 3 * input}
"""
    )
    run(STAYS + OWN, use)


def test_a_log_of_a_run_with_reloads_replays_to_the_same_actions(run: Any, tmp_path: Path) -> None:
    async def use(rig: Rig) -> None:
        for slo in (400, 300, 200):
            asked = [asyncio.create_task(rig.ask("moves")) for _ in range(8)]
            await rig.reload(STAYS + MOVES.replace("500", str(slo)))
            await asyncio.gather(*asked)
        await rig.reload(MOVES.replace("max_batch = 4", "max_batch = 8"))
        await rig.ask("moves", rows=8)

    run(STAYS + MOVES, use, tmp_path / "events.log")
    n_events, _, mismatch = replay_log(tmp_path / "events.log")
    assert mismatch is None
    assert n_events > 10


LABELS = 'labels = "names.txt"\n'


def labels(rig: Rig) -> tuple[str, ...]:
    return rig.client.metadata()["moves"].outputs[0].labels


def test_other_labels_are_told_without_a_gap(run: Any, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("apple\n")

    async def use(rig: Rig) -> None:
        assert labels(rig) == ()
        changes = await rig.reload(STAYS + MOVES + LABELS)
        assert (changes.replaced, changes.drained) == (["moves"], [])
        assert labels(rig) == ("apple",)
        names.write_text("pear\n")
        assert (await rig.reload(STAYS + MOVES + LABELS)).replaced == ["moves"]
        assert labels(rig) == ("pear",)
        names.unlink()
        assert await rig.reload(STAYS + MOVES + LABELS) is None
        assert "names.txt cannot be read" in rig.told[-1]
        assert labels(rig) == ("pear",)

    run(STAYS + MOVES, use)


REPOSITORY = '[repository]\npath = "models"\n'


def test_models_of_a_repository_stay_and_its_table_takes_a_restart(run: Any, tmp_path: Path) -> None:
    write_model(tmp_path / "models", "scaled", 1, 2.0)

    async def use(rig: Rig) -> None:
        assert rig.states() == {"stays": "READY", "scaled@1": "READY"}
        changes = await rig.reload(REPOSITORY + "poll_s = 3\n" + MOVES)
        assert (changes.added, changes.removed, changes.restart) == (["moves"], ["stays"], ["repository"])
        assert rig.states() == {"moves": "READY", "scaled@1": "READY"}
        assert await rig.reload(REPOSITORY + MOVES.replace("moves", "scaled")) is None
        assert "is also a model of the repository" in rig.told[-1]
        assert rig.states() == {"moves": "READY", "scaled@1": "READY"}

    run(REPOSITORY + STAYS, use)
