"""Programs (models' kernels at their batches) and the state of a device that runs them, as flat arrays.

`State.advance` lets time go on; a copy of a state advances to the same instants, so whoever wants to know
what will happen copies and looks. See `engine_kernels.py` for the law.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from cotenant.domain import NS_PER_S, Variant
from cotenant.simulate.twin import engine_kernels as ek
from cotenant.simulate.twin.kernels import Array, Kernels, clocks_alone
from cotenant.simulate.twin.specs import CLOCK_SLOPE, LEAST_CLOCK, DeviceSpec

LAW_VERSION = 1
"""Of everything that decides how long runs take: measurements of another version are not used."""
MOST_SEGMENTS = 16
FOREVER = ek.FOREVER


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """What makes runs of the same kernels differ."""

    run_sigma: float = 0.01
    """Standard deviation of the log of a run's own pace."""
    kernel_sigma: float = 0.02
    """The same of each kernel's."""
    drift: float = 0.0
    """How far (log) the pace of the whole device wanders off and back ..."""
    drift_s: float = 30.0
    """... in about so many seconds."""
    stall_chance: float = 0.0
    """Chance that a run stalls once ..."""
    stall_ms: float = 2.0
    """... for about so long."""


SILENT = Noise(run_sigma=0.0, kernel_sigma=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """How co-running kernels disturb each other, beyond what their SMs and bandwidth say."""

    cache: float = 0.21
    """How much longer memory time takes beside others that use the whole bandwidth, for the cache that they
    take: 0.0021 per % of L2 use (iGniter, TPDS 2023, V100)."""
    neighbour_gap_ns: float = 400.0
    """How much longer the gap between kernels gets per further stream at work (ns). An assumption, of the
    order of what iGniter measured for few neighbours."""


@dataclass(frozen=True, slots=True)
class Program:
    """Rows [first, end) of the table of kernels, and the row before which each segment ends."""

    index: int
    first: int
    ends: tuple[int, ...]
    solo_ns: float
    """Span alone without noise: kernels and the gaps between them."""
    segment_ns: tuple[float, ...]
    """The same of each segment; gaps count to what follows them."""

    def row(self, first: int, end: int) -> list[int]:
        """A stream that begins segments [first, end): its N_INTS whole numbers, the run's number left 0."""
        row = [0] * ek.N_INTS
        row[ek.PHASE], row[ek.PROGRAM], row[ek.STALLS_AT] = ek.GAP, self.index, -1
        row[ek.POS] = self.first if first == 0 else self.ends[first - 1]
        row[ek.SEGMENT], row[ek.NEXT], row[ek.END] = first, self.ends[first], self.ends[end - 1]
        return row


class Programs:
    """Everything that a device can run, as one table. Raises ValueError for kernels of another device."""

    def __init__(self, spec: DeviceSpec, law: Law | None = None) -> None:
        self.spec, self.law = spec, law or Law()
        self.of: dict[Variant, Program] = {}
        self._sources: dict[Variant, tuple[Kernels, int]] = {}
        self._rows: list[Array] = []
        self._n_rows = 0
        self._built: tuple[Array, np.ndarray[tuple[int, int], np.dtype[np.int64]]] | None = None

    def add(self, variant: Variant, kernels: Kernels, n_segments: int = 1) -> Program:
        """Make a variant runnable, in `n_segments` parts of about equal time."""
        if variant in self.of:
            raise ValueError(f"{variant.label} is there already")
        if kernels.n_sms != self.spec.n_sms:
            raise ValueError(f"{variant.label}: its kernels are of a device with {kernels.n_sms} SMs")
        if not 1 <= n_segments <= min(MOST_SEGMENTS, len(kernels)):
            raise ValueError(f"{variant.label}: {n_segments} segments of {len(kernels)} kernels")
        rows = np.zeros((len(kernels), ek.N_COLUMNS))
        rows[:, ek.KIND], rows[:, ek.LOADS] = kernels.kind, kernels.loads
        rows[:, ek.WAVE_NS], rows[:, ek.SPAN_NS] = kernels.wave_ns, kernels.duration_ns
        rows[:, ek.BANDWIDTH], rows[:, ek.MEMORY_TIME] = kernels.bandwidth, kernels.memory_time
        rows[:, ek.WATTS], rows[:, ek.CLOCK_ALONE] = kernels.watts, clocks_alone(kernels, self.spec)
        rows[:, ek.FULL] = np.minimum(kernels.loads, self.spec.n_sms)
        spans = kernels.duration_ns + self.spec.launch_gap_ns
        spans[0] -= self.spec.launch_gap_ns
        cuts = segment_cuts(spans, n_segments)
        sums = np.concatenate([[0.0], np.cumsum(spans)])
        program = Program(
            index=len(self.of),
            first=self._n_rows,
            ends=tuple(self._n_rows + cut for cut in cuts),
            solo_ns=float(sums[-1]),
            segment_ns=tuple(np.diff(sums[[0, *cuts]]).tolist()),
        )
        self.of[variant] = program
        self._sources[variant] = kernels, n_segments
        self._rows.append(rows)
        self._n_rows += len(kernels)
        self._built = None
        return program

    def only(self, variants: Iterable[Variant]) -> Programs:
        """The same device with these variants alone."""
        own = Programs(self.spec, self.law)
        for variant in variants:
            own.add(variant, *self._sources[variant])
        return own

    def tables(self) -> tuple[Array, np.ndarray[tuple[int, int], np.dtype[np.int64]]]:
        """(n_kernels x N_COLUMNS, n_programs x MOST_SEGMENTS) as `engine_kernels` wants them."""
        if self._built is None:
            ends = np.full((max(1, len(self.of)), MOST_SEGMENTS), -1, np.int64)
            for program in self.of.values():
                ends[program.index, : len(program.ends)] = program.ends
            rows = np.concatenate(self._rows) if self._rows else np.zeros((0, ek.N_COLUMNS))
            self._built = rows, ends
        return self._built

    def settings(self, noise: Noise, seed: int) -> Array:
        """The device's numbers as `engine_kernels` wants them."""
        values = np.zeros(ek.N_SETTINGS)
        values[ek.SMS], values[ek.LAUNCH_GAP] = self.spec.n_sms, self.spec.launch_gap_ns
        values[ek.NEIGHBOUR_GAP], values[ek.CACHE] = self.law.neighbour_gap_ns, self.law.cache
        values[ek.IDLE_W], values[ek.MEMORY_W] = self.spec.idle_w, self.spec.memory_w
        values[ek.CAP_W], values[ek.SLOPE], values[ek.LEAST_CLOCK] = self.spec.cap_w, CLOCK_SLOPE, LEAST_CLOCK
        values[ek.KERNEL_SIGMA] = noise.kernel_sigma
        values[ek.DRIFT], values[ek.DRIFT_NS] = noise.drift, noise.drift_s * NS_PER_S
        values[ek.DRIFT_PHASE] = 2.0 * ek.gaussian(seed, 0, 0)
        return values


def segment_cuts(spans: Array, n_segments: int) -> list[int]:
    """After which of the kernels each segment ends: about equal time, at least one kernel in each."""
    sums, cuts, n = np.cumsum(spans), list[int](), len(spans)
    for part in range(1, n_segments):
        cut = 1 + int(np.abs(sums - sums[-1] * part / n_segments).argmin())
        least = cuts[-1] + 1 if cuts else 1
        cuts.append(min(max(cut, least), n - (n_segments - part)))
    return [*cuts, n]


@dataclass(slots=True)
class State:
    """What runs on a device, and how far it is. Streams are numbered from 0. `seed` and `noise` make spans
    differ from run to run, in the same way in every copy."""

    programs: Programs
    seed: int
    noise: Noise
    i: np.ndarray[tuple[int, int], np.dtype[np.int64]]
    f: Array
    totals: Array
    marks: Array
    settings: Array = field(repr=False)

    @classmethod
    def idle(cls, programs: Programs, n_streams: int, noise: Noise, seed: int, at: int = 0) -> State:
        """A device without work at the instant `at`."""
        totals = np.zeros(ek.N_TOTALS)
        totals[ek.NOW] = at
        return cls(
            programs=programs,
            seed=seed,
            noise=noise,
            i=np.zeros((n_streams, ek.N_INTS), np.int64),
            f=np.zeros((n_streams, ek.N_FLOATS)),
            totals=totals,
            marks=np.zeros((n_streams, MOST_SEGMENTS)),
            settings=programs.settings(noise, seed),
        )

    def copy(self) -> State:
        """An independent copy."""
        return replace(
            self, i=self.i.copy(), f=self.f.copy(), totals=self.totals.copy(), marks=self.marks.copy()
        )

    def silenced(self) -> State:
        """A copy in which kernels that have not begun take their expected time."""
        still = self.copy()
        still.f[:, ek.PACE], still.f[:, ek.STALL] = 1.0, 0.0
        still.i[:, ek.SERIAL], still.i[:, ek.STALLS_AT] = 0, -1
        still.noise = replace(self.noise, run_sigma=0.0, kernel_sigma=0.0, stall_chance=0.0)
        still.settings = self.settings.copy()
        still.settings[ek.KERNEL_SIGMA] = 0.0
        return still

    @property
    def now(self) -> float:
        """The instant (ns) that it has reached."""
        return float(self.totals[ek.NOW])

    @property
    def sm_ns(self) -> float:
        """SM x ns in use so far."""
        return float(self.totals[ek.SM_NS])

    @property
    def moved_ns(self) -> float:
        """Time at full memory bandwidth that all traffic so far amounts to (ns)."""
        return float(self.totals[ek.MOVED_NS])

    def busy(self, stream: int) -> bool:
        """Whether a run is on the stream."""
        return bool(self.i[stream, ek.PHASE] != ek.IDLE)

    def begin(
        self, stream: int, program: Program, serial: int, first: int, end: int, after_ns: float
    ) -> None:
        """Begin segments [first, end) of a program on an idle stream, its first kernel `after_ns` from now.
        `serial` numbers the run: its noise depends on that."""
        assert not self.busy(stream)
        i, f = self.i[stream], self.f[stream]
        ek.begin(self.i, self.f, stream, np.array(program.row(first, end), np.int64), after_ns)
        i[ek.SERIAL] = serial
        noise = self.noise
        if noise.run_sigma > 0.0:
            f[ek.PACE] = np.exp(noise.run_sigma * ek.gaussian(self.seed, serial, -1))
        if noise.stall_chance > 0.0:
            chance, size = (_uniform(self.seed, serial, n) for n in (-2, -3))
            if chance < noise.stall_chance:
                n_kernels = int(i[ek.END] - i[ek.POS])
                i[ek.STALLS_AT] = i[ek.POS] + 1 + int(size * n_kernels)
                f[ek.STALL] = noise.stall_ms * 1e6 * (0.5 + size)

    def stop_at_boundary(self, stream: int) -> None:
        """End the run on the stream at its next boundary."""
        self.i[stream, ek.END] = min(self.i[stream, ek.NEXT], self.i[stream, ek.END])

    def drop(self, stream: int) -> None:
        """Take the run off the stream at once."""
        self.i[stream, ek.PHASE] = ek.IDLE
        self.f[stream] = 0.0
        table, _ = self.programs.tables()
        ek.give_out(self.i, self.f, self.settings, table)
        ek.give_engines(self.i, self.f, table)

    def advance(self, until: float = FOREVER, at_boundaries: bool = False) -> int:
        """Go on until `until` or the end of a run: see `engine_kernels.advance`."""
        table, ends = self.programs.tables()
        return int(
            ek.advance(
                self.i, self.f, self.totals, self.marks, table, ends, self.settings, self.seed, until,
                at_boundaries,
            )
        )  # fmt: skip

    def passed(self, stream: int, first: int) -> tuple[float, ...]:
        """Instants of the boundaries that the run on the stream, begun at segment `first`, has passed."""
        return tuple(self.marks[stream, first : self.i[stream, ek.SEGMENT]].tolist())

    def segment(self, stream: int) -> int:
        """The segment that the run on the stream is in, or would go on with."""
        return int(self.i[stream, ek.SEGMENT])


def _uniform(seed: int, serial: int, n: int) -> float:
    """In [0, 1)."""
    rng = np.random.default_rng([seed & (2**63 - 1), serial, n + 16])
    return float(rng.random())
