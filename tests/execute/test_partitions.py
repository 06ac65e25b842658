"""SM partitions, against a driver that answers as CUDA's bindings do for a device of 132 SMs."""

from __future__ import annotations

from enum import Enum
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from cotenant.execute.torch.partitions import make_ladder, open_ladder  # noqa: E402

pytestmark = pytest.mark.torch


class Result(Enum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_NOT_SUPPORTED = 801


class FakeDriver:
    """The calls that a ladder makes; SMs are counted from 0, and split from the front in steps of 8."""

    CUresult = Result
    CUdevResourceType = SimpleNamespace(CU_DEV_RESOURCE_TYPE_SM=1)
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    CUgreenCtxCreate_flags = SimpleNamespace(CU_GREEN_CTX_DEFAULT_STREAM=1)

    def __init__(self, n_sms: int = 132, *, refuses: bool = False) -> None:
        self.n_sms, self.refuses = n_sms, refuses
        self.streams: list[range] = []

    @staticmethod
    def _resource(sms: range) -> Any:
        return SimpleNamespace(sm=SimpleNamespace(smCount=len(sms), smCoscheduledAlignment=8), sms=sms)

    def cuDeviceGet(self, ordinal: int) -> tuple[Result, int]:  # noqa: N802
        return Result.CUDA_SUCCESS, ordinal

    def cuDeviceGetDevResource(self, device: int, kind: int) -> tuple[Result, Any]:  # noqa: N802
        status = Result.CUDA_ERROR_NOT_SUPPORTED if self.refuses else Result.CUDA_SUCCESS
        return status, self._resource(range(self.n_sms))

    def cuDevSmResourceSplitByCount(  # noqa: N802
        self, n: int, whole: Any, flags: int, each: int
    ) -> tuple[Result, list[Any], int, Any]:
        size = -(-each // 8) * 8
        n = min(n, len(whole.sms) // size)
        groups = [self._resource(whole.sms[i * size : (i + 1) * size]) for i in range(n)]
        return Result.CUDA_SUCCESS, groups, n, self._resource(whole.sms[n * size :])

    def cuDevResourceGenerateDesc(self, resources: list[Any], n: int) -> tuple[Result, Any]:  # noqa: N802
        return Result.CUDA_SUCCESS, resources[0]

    def cuGreenCtxCreate(self, description: Any, device: int, flags: int) -> tuple[Result, Any]:  # noqa: N802
        return Result.CUDA_SUCCESS, description

    def cuGreenCtxStreamCreate(  # noqa: N802
        self, context: Any, flags: int, priority: int
    ) -> tuple[Result, int]:
        self.streams.append(context.sms)
        return Result.CUDA_SUCCESS, len(self.streams)


def sms_of(driver: FakeDriver, ladder: Any, share: float, lane: int) -> range:
    return driver.streams[ladder.stream(share, lane) - 1]


def test_lanes_get_quarters_and_halves_that_do_not_overlap() -> None:
    driver = FakeDriver()
    ladder = make_ladder(driver, 0)
    assert ladder.shares == (0.25, 0.5, 0.75, 1.0)
    quarters = [set(sms_of(driver, ladder, 0.25, lane)) for lane in range(4)]
    halves = [set(sms_of(driver, ladder, 0.5, lane)) for lane in range(2)]
    assert len(set.union(*quarters)) == sum(map(len, quarters)) == 4 * 32
    assert not halves[0] & halves[1]
    assert ladder.sms(0.5, 0) == 64
    assert ladder.sms(1.0, 0) == 132


def test_three_quarters_complement_lane_0_on_its_quarter() -> None:
    driver = FakeDriver()
    ladder = make_ladder(driver, 0)
    quarter, rest = sms_of(driver, ladder, 0.25, 0), sms_of(driver, ladder, 0.75, 1)
    assert sorted([*quarter, *rest]) == list(range(132))


def test_lanes_beyond_the_groups_share_them_in_turn() -> None:
    driver = FakeDriver()
    ladder = make_ladder(driver, 0)
    assert sms_of(driver, ladder, 0.25, 5) == sms_of(driver, ladder, 0.25, 1)


def test_a_device_too_small_for_quarters_still_has_what_fits() -> None:
    ladder = make_ladder(FakeDriver(n_sms=24), 0)
    assert ladder.shares == (0.5, 1.0)


def test_a_driver_that_refuses_is_named() -> None:
    with pytest.raises(RuntimeError, match="NOT_SUPPORTED"):
        make_ladder(FakeDriver(refuses=True), 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_bindings_or_a_device_there_is_no_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cotenant.execute.torch.partitions.bindings", lambda: None)
    assert open_ladder(torch.device("cuda:0")) == (None, "cuda-bindings is not installed")


def test_a_driver_that_makes_fewer_groups_than_asked_gives_no_ladder_and_says_so() -> None:
    driver = FakeDriver()
    fewer = driver.cuDevSmResourceSplitByCount
    driver.cuDevSmResourceSplitByCount = lambda n, *more: fewer(min(n, 1), *more)  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="4 groups of 32 of 132 SMs: the driver made 1"):
        make_ladder(driver, 0)


def test_a_driver_that_reports_a_finer_alignment_still_gets_groups_it_can_make() -> None:
    driver = FakeDriver()
    whole = driver._resource(range(132))
    whole.sm.smCoscheduledAlignment = 2
    driver.cuDeviceGetDevResource = lambda *more: (Result.CUDA_SUCCESS, whole)  # type: ignore[method-assign]
    assert make_ladder(driver, 0).sms(0.5, 0) == 64
