"""How far the twin is from what others measured when work shares a GPU.

    python experiments/twin_check.py [--jobs BASE] [--json FILE]

Four groups: kernels that fill SMs or bandwidth, side by side; several copies of one model; what batching
gains; and steady pairs of inference jobs by how busy each keeps the SMs alone (KACE, SoCC 2024; `--jobs`
takes its data set in the form of docs/datasets.md and computes the measured column anew). The twin runs
without noise. Nothing in it was fitted to these figures; where it is off, it says by how much.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from cotenant.domain import Variant
from cotenant.experiment.datasets import read_dataset
from cotenant.simulate.twin.device import LAW_VERSION, SILENT, Program, Programs, State
from cotenant.simulate.twin.kernels import COMPUTE, MEMORY, Kernels, at_batch, kernels, read_traces
from cotenant.simulate.twin.specs import H100, L4, V100, DeviceSpec
from cotenant.simulate.twin.zoo import analytic

TRACES = Path(__file__).resolve().parents[1] / "examples" / "kernels" / "v100_forward.csv"
TRACED = ("mobilenetv2", "resnet50", "resnet101", "transformer", "efficientnet", "bert")
LASTS_NS = 2e9
"""Of a steady run."""
BUSY = 0.6
"""SM share from which a job counts as busy."""
KACE = {
    "idle beside idle": 1.96,
    "idle beside busy": 1.38,
    "busy beside idle": 1.43,
    "busy beside busy": 1.74,
}
"""Median slowdown of inference jobs, first beside second, in the data set that `--jobs` takes. Among the idle
ones is whisper, slowed down 6 to 11 times by any neighbour: more than sharing a device explains."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A figure that was published, and the twin's."""

    group: str
    what: str
    published: str
    value: float | None
    """To compare with; None where only a direction was published."""
    twin: float
    source: str

    @property
    def off(self) -> float | None:
        """Relative distance of the twin."""
        return None if self.value is None else self.twin / self.value - 1.0


# --- running ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Steady:
    """Of runs back to back on one stream each: mean spans over those alone, runs per second, SM share."""

    slowdown: list[float]
    per_s: list[float]
    busy: float


def steady(of: Sequence[Kernels], spec: DeviceSpec) -> Steady:
    """Every stream runs its kernels again and again."""
    programs = Programs(spec)
    made = [programs.add(Variant(f"m{k}", 1), one) for k, one in enumerate(of)]
    state = State.idle(programs, len(of), SILENT, seed=0)
    began = [0.0] * len(of)
    spans: list[list[float]] = [[] for _ in of]

    def begin(stream: int, program: Program) -> None:
        began[stream] = state.now
        state.begin(stream, program, 0, 0, 1, spec.launch_gap_ns)

    for stream, program in enumerate(made):
        begin(stream, program)
    while state.now < LASTS_NS or min(map(len, spans)) < 5:
        stream = state.advance()
        spans[stream].append(state.now - began[stream])
        begin(stream, made[stream])
    alone = [program.solo_ns + spec.launch_gap_ns for program in made]
    return Steady(
        [float(np.mean(s)) / a for s, a in zip(spans, alone, strict=True)],
        [len(s) / state.now * 1e9 for s in spans],
        state.sm_ns / spec.n_sms / state.now,
    )


def at_once(of: Sequence[Kernels], spec: DeviceSpec) -> float:
    """Time of one run each, one after the other, over the time of all at once."""
    programs = Programs(spec)
    made = [programs.add(Variant(f"m{k}", 1), one) for k, one in enumerate(of)]
    state = State.idle(programs, len(of), SILENT, seed=0)
    for stream, program in enumerate(made):
        state.begin(stream, program, 0, 0, 1, 0.0)
    last = 0.0
    while state.advance() >= 0:
        last = state.now
    return sum(program.solo_ns for program in made) / last


def uniform(bound: int, sms: float, span_us: float, n: int, spec: DeviceSpec) -> Kernels:
    """`n` equal kernels."""
    return kernels(np.full(n, bound), np.full(n, sms), np.full(n, 1e3 * span_us), spec)


# --- the groups -------------------------------------------------------------------------------------


def kernels_beside_each_other() -> Iterator[Case]:
    """Speed-up over one after the other."""
    source = "Elvinger et al., SoCC 2025, artefact inter_sm/thread_block_scheduler (H100)"
    group, n = "kernels side by side (speed-up over one after the other)", H100.n_sms
    half = uniform(COMPUTE, n / 2, 500, 10, H100)
    full = uniform(COMPUTE, n, 500, 10, H100)
    yield Case(
        group=group, what="two that each need half of the thread slots", published="2 x", value=2.0,
        twin=at_once([half, half], H100), source=source,
    )  # fmt: skip
    yield Case(
        group=group, what="two that each need all", published="1 x (serialised)", value=1.0,
        twin=at_once([full, full], H100), source=source,
    )  # fmt: skip
    moving = uniform(MEMORY, V100.n_sms / 2, 500, 10, V100)
    computing = uniform(COMPUTE, V100.n_sms / 2, 500, 10, V100)
    streams = "Orion, EuroSys 2024: the rule by which it pairs kernels"
    yield Case(
        group=group, what="two memory-bound ones on half of the SMs each", published="little", value=None,
        twin=at_once([moving, moving], V100), source=streams,
    )  # fmt: skip
    yield Case(
        group=group, what="memory-bound beside compute-bound, half of the SMs each", published="large",
        value=None, twin=at_once([moving, computing], V100), source=streams,
    )  # fmt: skip


def copies_of_a_model() -> Iterator[Case]:
    """Throughput of several copies over that of one."""
    group = "copies of one model (throughput over one copy)"
    source = "sglang-omni, Higgs-TTS-4B, MPS: SM active 20 % alone, 79 % with five (H200)"
    quiet = next(one for one in _by_busy() if one.busy >= 0.2)
    alone, five = quiet.alone, steady([quiet.kernels] * 5, V100)
    yield Case(
        group=group, what=f"five, SM active {alone.busy:.0%} alone ({quiet.name})", published="3.6 x",
        value=3.6, twin=sum(five.per_s) / alone.per_s[0], source=source,
    )  # fmt: skip
    yield Case(
        group=group, what="SM active with these five", published="79 %", value=0.79, twin=five.busy,
        source=source,
    )  # fmt: skip
    full = next(one for one in _by_busy() if one.busy >= 0.83)
    two = steady([full.kernels] * 2, V100)
    yield Case(
        group=group, what=f"two, SM active {full.busy:.0%} alone ({full.name})", published="modest",
        value=None, twin=sum(two.per_s) / full.alone.per_s[0],
        source="sglang-omni, Qwen3-4B text: SM active 83 % alone (H200)",
    )  # fmt: skip


def batching() -> Iterator[Case]:
    """Rows per second at batch 8 over batch 1."""
    group = "batching (rows per second at batch 8 over batch 1)"
    source = "Zhao & Georgantas, MAIoT 2025 (L4, TensorRT)"
    for name, published, value in (
        ("resnet50", "over 3 x", 3.0),
        ("bert_base", "1.27 x (RoBERTa-base)", 1.265),
    ):
        model = analytic(name)
        sizes = {axis: values[0] for axis, values in model.axes.items()}
        one, eight = (float(model.at(rows, sizes, L4).duration_ns.sum()) for rows in (1, 8))
        yield Case(
            group=group, what=f"zoo:{name}", published=published, value=value, twin=8 * one / eight,
            source=source,
        )  # fmt: skip
    for rows in (1, 4, 16):
        gains = []
        for a in TRACED:
            for b in TRACED:
                pair = [at_batch(read_traces(TRACES, name), rows, V100) for name in (a, b)]
                # runs of equal length, so that the gain is not that of the shorter one
                times = [max(1, round(_span(pair[1 - k]) / _span(pair[k]))) for k in (0, 1)]
                gains.append(at_once([_again(pair[k], times[k]) for k in (0, 1)], V100))
        yield Case(
            group="pairs of traced models at once (speed-up over one after the other, geometric mean)",
            what=f"batch {rows}", published="small batches gain, large ones hardly", value=None,
            twin=_mean(gains), source="Higgs-TTS, Qwen3-4B, MOSS-TTS above; rule of thumb",
        )  # fmt: skip


def pairs_of_jobs(measured: dict[str, float]) -> Iterator[Case]:
    """Steady slowdown by how busy the SMs are alone."""
    found: dict[str, list[float]] = {key: [] for key in measured}
    models = _by_busy()
    for k, a in enumerate(models):
        for b in models[k:]:
            if max(_span(a.kernels), _span(b.kernels)) > 8 * min(_span(a.kernels), _span(b.kernels)):
                continue  # KACE's jobs have spans within about 8 of each other
            slower = steady([a.kernels, b.kernels], V100).slowdown
            found[_pair(a.busy, b.busy)].append(slower[0])
            found[_pair(b.busy, a.busy)].append(slower[1])
    for key, value in measured.items():
        yield Case(
            group="steady pairs (slowdown of the first, median)", what=key,
            published=f"{value:.2f} x", value=value, twin=_mean(found[key]),
            source="KACE, SoCC 2024 (V100, MPS): inference jobs",
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Known:
    name: str
    kernels: Kernels
    alone: Steady

    @property
    def busy(self) -> float:
        return self.alone.busy


def _by_busy() -> list[_Known]:
    """The traced models at several batches, the idlest first."""
    if not _MODELS:
        for name in TRACED:
            for rows in (1, 2, 4, 8, 16):
                one = at_batch(read_traces(TRACES, name), rows, V100)
                _MODELS.append(_Known(f"{name}[{rows}]", one, steady([one], V100)))
        _MODELS.sort(key=lambda one: one.busy)
    return _MODELS


_MODELS: list[_Known] = []


def _pair(own: float, other: float) -> str:
    return " beside ".join("busy" if busy >= BUSY else "idle" for busy in (own, other))


def _span(of: Kernels) -> float:
    return float(of.duration_ns.sum() + len(of) * V100.launch_gap_ns)


def _again(of: Kernels, times: int) -> Kernels:
    return Kernels(
        kind=np.tile(of.kind, times), loads=np.tile(of.loads, times), wave_ns=np.tile(of.wave_ns, times),
        bandwidth=np.tile(of.bandwidth, times), memory_time=np.tile(of.memory_time, times),
        watts=np.tile(of.watts, times), n_sms=of.n_sms,
    )  # fmt: skip


def _mean(values: Sequence[float]) -> float:
    return math.exp(float(np.mean(np.log(values))))


def measured_pairs(base: Path) -> dict[str, float]:
    """Median slowdowns of KACE's inference pairs, by how busy the two are."""
    dataset = read_dataset(base)
    at = dataset.features.resources.index("sm_busy")
    found: dict[str, list[float]] = {key: [] for key in KACE}
    for rows in dataset.runs.values():
        if len(rows) == 2 and all(row.variant.model.endswith("-inf") for row in rows):
            known = [dataset.features.of(row.variant, row.share) for row in rows]
            for k in (0, 1):
                slower = max(1.0, rows[k].end_ms * 1e6 / known[k].solo_ns)
                found[_pair(known[k].demand[at], known[1 - k].demand[at])].append(slower)
    return {key: round(float(np.median(values)), 2) for key, values in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=Path, metavar="BASE")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    measured = KACE if options.jobs is None else measured_pairs(options.jobs)
    cases = [
        *kernels_beside_each_other(), *copies_of_a_model(), *batching(), *pairs_of_jobs(measured)
    ]  # fmt: skip
    table = Table("what", "published", "twin", "off", title="The twin against published measurements")
    group = ""
    for case in cases:
        if case.group != group:
            group = case.group
            table.add_section()
            table.add_row(f"[bold]{group}")
        off = "" if case.off is None else f"{case.off:+.0%}"
        table.add_row(case.what, case.published, f"{case.twin:.2f}", off)
    Console().print(table)
    if options.json is not None:
        rows = [{**asdict(case), "twin": round(case.twin, 4), "off": case.off} for case in cases]
        told = {"command": "python experiments/twin_check.py", "law": LAW_VERSION, "cases": rows}
        options.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
