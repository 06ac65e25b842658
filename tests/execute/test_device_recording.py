"""The device recording: nothing that was measured is lost, and no phase takes the time of those after it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "experiments" / "gpu"))

import dataset  # noqa: E402
import record  # noqa: E402
from driver import Driver  # noqa: E402

from cotenant.clock import VirtualClock  # noqa: E402
from cotenant.domain import NS_PER_S, Completion, Variant  # noqa: E402

pytestmark = pytest.mark.torch


class Counters:
    def facts(self) -> dict[str, Any]:
        return {}


def session(out: Path, clock: VirtualClock) -> record.Session:
    executor: Any = SimpleNamespace(attach=lambda sink: None, take_results=lambda number: None)
    counters: Any = Counters()
    return record.Session(
        executor=executor, driver=Driver(executor, clock), recorded=dataset.Recorded({}, counters),
        ends_at=100 * NS_PER_S, cuda=False, out=out,
    )  # fmt: skip


def test_a_phase_that_overruns_shortens_the_later_ones_and_not_the_end(tmp_path: Path) -> None:
    clock = VirtualClock()
    made = session(tmp_path, clock)
    given: dict[str, float] = {}

    def takes(name: str, factor: float) -> None:
        def do(seconds: float) -> None:
            given[name] = seconds
            clock.advance_to(clock.now() + int(factor * seconds * NS_PER_S))

        made.phase(name, name, do)

    for name in record.PLAN:
        takes(name, 2.0 if name == "correct" else 1.0)
    assert given["reference"] == pytest.approx(100 * record.PLAN["reference"] / sum(record.PLAN.values()))
    assert given["policies"] < 100 * record.PLAN["policies"]
    assert clock.now() <= 100 * NS_PER_S + 1000


def test_a_phase_that_fails_is_noted_and_the_next_one_begins(tmp_path: Path) -> None:
    made = session(tmp_path, VirtualClock())

    def fails(seconds: float) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    made.phase("noise", "noise", fails)
    made.phase("corun", "co-runs", lambda seconds: {"some": 1})
    written = json.loads((tmp_path / "facts.json").read_text())
    assert "illegal memory access" in written["failed"]["noise"]
    assert written["corun"] == {"some": 1}
    with pytest.raises(RuntimeError):
        made.phase("solo", "solo", fails)


def test_what_is_left_of_a_failed_phase_does_not_disturb_the_next(tmp_path: Path) -> None:
    driver = session(tmp_path, VirtualClock()).driver
    variant = Variant("m", 1)

    def end(number: int, error: str | None = None) -> Completion:
        return Completion(dispatch_id=number, lane=0, started_at=0, ended_at=1, error=error)

    driver._under_way = {1: (0, variant, 0, 0, 1, 1.0), 2: (1, variant, 0, 0, 2, 1.0)}
    driver._events.put(end(1, "boom"))
    driver._events.put(end(2))
    driver.settle()
    assert not driver._under_way
    driver._events.put(end(2))  # late
    driver._under_way = {3: (0, variant, 0, 0, 3, 1.0)}
    driver._events.put(end(3))
    assert driver.next().dispatch_id == 3


def test_without_a_library_that_packs_tables_are_written_plain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(path: Path, text: str) -> Path:
        raise RuntimeError("neither zstandard nor pyarrow is installed")

    (tmp_path / "corun.coruns.csv.zst").write_bytes(b"of an earlier recording")
    monkeypatch.setattr(dataset, "write_packed", cannot)
    dataset._csv(tmp_path / "corun.coruns.csv", [{"run": 1}], packed=True)
    assert (tmp_path / "corun.coruns.csv").read_text() == "run\n1\n"
    assert not (tmp_path / "corun.coruns.csv.zst").exists()


def test_the_summary_of_a_recording_that_was_cut_short_says_what_is_missing(tmp_path: Path) -> None:
    summary = pytest.importorskip("summary")
    facts = {"device": {"name": "x"}, "dispatches": 0, "dry_run": True, "failed": {"pairs": "it broke"}}
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    page = summary.page(tmp_path)
    assert "**failed** pairs: it broke" in page
    assert "Not recorded" in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dry-run", "--minutes", "0"], "--minutes 0: expected more than 0"),
        (["--dry-run", "--out", str(ROOT / "data" / "x")], "does not write under data/"),
        (["--dry-run", "--out", "/proc/nowhere"], "results cannot be written there"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_measured(arguments: list[str], said: str) -> None:
    command = [sys.executable, str(ROOT / "experiments" / "gpu" / "record.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert said in done.stderr
