"""gRPC calls through the real scheduler, on a device that runs nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
import pytest
from grpc import StatusCode, aio
from grpc_serving import mirror, parameter, vector

from cotenant.clock import MonotonicClock
from cotenant.domain import NS_PER_MS, Observation, Outcome, OutcomeKind
from cotenant.engine import Engine, LoopTimers
from cotenant.engine_client import EngineClient
from cotenant.execute.fake import FakeExecutor, FakeScript
from cotenant.local_link import LocalLink
from cotenant.ports import LaneInfo
from cotenant.predict.solo import SoloPredictor
from cotenant.schedule.policies import make_policy
from cotenant.schedule.scheduler import Scheduler
from cotenant.serve.grpc import inference_pb2 as pb
from cotenant.serve.grpc.server import serving_grpc
from cotenant.serve.settings import ServeConfig
from cotenant.testing import NoLoad, TableProfiles

RUN_MS = 100.0
MODEL = mirror("m", vector("FP32"))
SPECS = {"m": MODEL.spec}


class Seen:
    """An `Observer` that keeps how requests ended."""

    def __init__(self) -> None:
        self.kinds: list[OutcomeKind] = []

    def settled(self, outcome: Outcome) -> None:
        self.kinds.append(outcome.kind)

    def observed(self, observation: Observation) -> None:
        """Nobody learns here."""

    def decided(self, spent_ns: int, at: int) -> None:
        """Nobody counts here."""


@dataclass
class Rig:
    """An engine with one lane, a client of its gRPC server, and how requests ended."""

    engine: Engine
    channel: aio.Channel
    kinds: list[OutcomeKind]

    def ask(
        self, value: float = 1.0, timeout_s: float | None = None, **parameters: int
    ) -> aio.UnaryUnaryCall:
        request = pb.ModelInferRequest(
            model_name="m",
            inputs=[pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1])],
            raw_input_contents=[np.array([value], np.float32).tobytes()],
            parameters={name: parameter(given) for name, given in parameters.items()},
        )
        method = self.channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        return method(request, timeout=timeout_s)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.002)


@asynccontextmanager
async def serving(fails: bool) -> AsyncIterator[Rig]:
    clock = MonotonicClock()
    profiles = TableProfiles(SPECS, {"m": RUN_MS})
    predictor = SoloPredictor(profiles)
    lanes = [LaneInfo(index=0, units=(0,), depth=0)]
    script = FakeScript(
        durations=lambda _: int(RUN_MS * NS_PER_MS),
        raises=lambda _: "raised: secret at /srv/x.py" if fails else None,
        outputs=lambda _, inputs: [{"out_x": tensors["x"]} for tensors in inputs],
    )
    scheduler = Scheduler(
        policy=make_policy("deferred_edf"),
        predictor=predictor,
        load=NoLoad(),
        lanes=lanes,
        specs=[MODEL.spec],
    )
    seen = Seen()
    engine = Engine(
        scheduler=scheduler,
        executor=FakeExecutor(lanes, LoopTimers(clock), script),
        learner=predictor,
        clock=clock,
        metadata={"m": MODEL},
        observers=[seen],
    )
    engine.start()
    client = EngineClient(LocalLink(engine, clock))
    async with (
        serving_grpc(client, ServeConfig(), "127.0.0.1", 0, drain_limit_s=2) as port,
        aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield Rig(engine, channel, seen.kinds)
    engine.stop()


def run(use: Callable[[Rig], Awaitable[None]], *, fails: bool = False) -> None:
    async def main() -> None:
        async with serving(fails) as rig:
            await use(rig)

    asyncio.run(main())


async def refused(call: aio.UnaryUnaryCall) -> aio.AioRpcError:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return caught.value


def test_calls_are_queued_and_each_gets_its_own_answer() -> None:
    async def use(rig: Rig) -> None:
        answers = await asyncio.gather(*(rig.ask(value) for value in (1.0, 2.0, 3.0)))
        found = [np.frombuffer(answer.raw_output_contents[0], np.float32)[0] for answer in answers]
        assert found == [1.0, 2.0, 3.0]
        assert rig.kinds == [OutcomeKind.OK] * 3

    run(use)


def test_a_deadline_that_cannot_be_met_is_refused_with_the_predicted_time() -> None:
    async def use(rig: Rig) -> None:
        for call in (rig.ask(timeout=5_000), rig.ask(timeout_s=0.05)):
            error = await refused(call)
            assert error.code() is StatusCode.RESOURCE_EXHAUSTED
            trailing = dict(error.trailing_metadata())
            assert trailing["x-cotenant-outcome"] == "rejected"
            assert float(trailing["predicted-ms"]) >= RUN_MS
            assert float(trailing["retry-after-ms"]) > 0
        assert await rig.ask(timeout_s=20)

    run(use)


def test_cancelling_a_call_gives_its_place_in_the_queue_back() -> None:
    async def use(rig: Rig) -> None:
        calls = [rig.ask(), rig.ask(), rig.ask()]
        await rig.until(lambda: rig.engine.n_unanswered == 3)
        last = rig.ask()
        await rig.until(lambda: len(rig.kinds) + rig.engine.n_unanswered == 4)
        last.cancel()
        await rig.until(lambda: OutcomeKind.CANCELLED in rig.kinds)
        await asyncio.gather(*calls)
        assert sorted(rig.kinds) == sorted([OutcomeKind.CANCELLED, *[OutcomeKind.OK] * 3])

    run(use)


def test_a_run_that_fails_says_so_and_not_why() -> None:
    async def use(rig: Rig) -> None:
        error = await refused(rig.ask())
        assert error.code() is StatusCode.INTERNAL
        assert "execution failed" in error.details()
        assert "secret" not in error.details()

    run(use, fails=True)


def test_what_was_admitted_is_answered_while_the_server_drains() -> None:
    async def use(rig: Rig) -> None:
        admitted = rig.ask(7.0)
        await rig.until(lambda: rig.engine.n_unanswered == 1)
        draining = asyncio.create_task(rig.engine.drain(20))
        await rig.until(lambda: not rig.engine.accepting)
        error = await refused(rig.ask())
        assert error.code() is StatusCode.UNAVAILABLE
        assert np.frombuffer((await admitted).raw_output_contents[0], np.float32)[0] == 7.0
        await draining

    run(use)
