"""The device compiled: kernels of several streams advance from event to event.

How this works. A stream runs the kernels of its dispatch in order; from the end of one to the arrival of
the next there is a gap. What arrives wants SMs for its blocks ("loads", in SMs; one load takes the kernel's
wave span). SMs are given out in order of arrival: a kernel whose loads are not all placed takes every SM
that comes free, and none behind it gets one before its last load is placed. Nothing that runs is
interrupted. So a kernel holds at most two groups of SMs, each with the time left of its wave: the older, and
what it got later. When a group ends, its SMs are given out anew, to the kernel itself if it still has loads.
A kernel that has another full round of loads waiting has its groups joined to one (mean time left): its
blocks are spread evenly by then. One group then runs its whole rounds in one step.

While it runs, a kernel takes longer by its stretch

    (1 - t) x max(1, clock_alone / clock) + t x (max(1, B) + cache x sum over others of their bandwidth)

with t the share of its time that goes with the bandwidth, B the bandwidth wanted in all (each kernel's share
alone, times the part of its SMs that it holds), and the clocks that the power of all that runs leaves. Copies
wait for one another, one engine per direction, and disturb nothing else.

Nothing here is random: the noise of a kernel is a function of (seed, run, kernel), so copies of a state
agree. `reference.py` says the same slowly.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

IDLE, GAP, LINE, RUN, COPY_LINE, COPY = range(6)
"""Phases of a stream: without work, between kernels, waiting for SMs, on SMs, waiting for its copy engine,
copying."""
PHASE, POS, END, NEXT, SEGMENT, PROGRAM, ORDER, SERIAL, STALLS_AT = range(9)
N_INTS = 9
"""Whole numbers of a stream: its phase, kernel it is at, kernel before which it stops, kernel before which
the next boundary lies, segment it is in, row of `ends`, order of arrival, number of the run, kernel before
which it stalls (-1: none)."""
(
    SMS_OLD, LEFT_OLD, SMS_NEW, LEFT_NEW, WAITING, WAVE, STRETCH, HELD, USED, DRAWN, MEMORY, CLOCK, PACE,
    STALL,
) = range(14)  # fmt: skip
N_FLOATS = 14
"""Of a stream: SMs and time left (ns at full speed) of both groups, FOREVER of a group that there is not;
loads not placed (of a copy in line: its span), span of a wave with this run's noise, stretch; SMs held,
bandwidth and power that go with them, memory time and clock alone of the kernel on them (0 off SMs, where the
stretch is 1); the run's own factor, span of its stall (ns). In a gap or a copy LEFT_OLD is what is left of
that."""
KIND, LOADS, WAVE_NS, BANDWIDTH, MEMORY_TIME, WATTS, CLOCK_ALONE, FULL, SPAN_NS = range(9)
N_COLUMNS = 9
"""Columns of the table of kernels; FULL: SMs at full speed, SPAN_NS: span alone."""
(
    SMS, LAUNCH_GAP, NEIGHBOUR_GAP, CACHE, IDLE_W, MEMORY_W, CAP_W, SLOPE, LEAST_CLOCK, KERNEL_SIGMA,
    DRIFT, DRIFT_NS, DRIFT_PHASE,
) = range(13)  # fmt: skip
N_SETTINGS = 13
NOW, SM_NS, MOVED_NS, ARRIVALS = range(4)
N_TOTALS = 4
"""Of the device: the instant (ns), SM x ns in use so far, ns at full memory bandwidth so far, kernels that
have arrived."""
COMPUTE_LIKE = 3
"""Kinds below it run on SMs."""
EPS = 1e-7
FOREVER = 1e30
"""So long that what passes meanwhile does not count: FOREVER - x is FOREVER for any x up to a day (ns)."""

Array = np.ndarray[Any, Any]
_compiled = njit(cache=True, error_model="numpy", _nrt=False)
"""For what only reads and writes arrays that it is given: without counting references to them (atomically, at
every use in every kernel), it is four times faster."""
_GOLDEN, _MIX_A, _MIX_B = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


@_compiled
def _mixed(value: np.uint64) -> np.uint64:
    """SplitMix64's finaliser."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(_MIX_A)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(_MIX_B)
    return value ^ (value >> np.uint64(31))


@_compiled
def gaussian(seed: int, serial: int, n: int) -> float:
    """About standard normal (a sum of four uniform numbers, so within 3.5): a function of its arguments."""
    value = _mixed(np.uint64(seed) * np.uint64(_GOLDEN) + np.uint64(serial))
    value = _mixed(value + np.uint64(n) * np.uint64(_GOLDEN))
    total = 0.0
    for part in range(4):
        total += float((value >> np.uint64(16 * part)) & np.uint64(0xFFFF))
    return (total / 65535.0 - 2.0) * 1.7320508075688772


@_compiled
def begin(i: Array, f: Array, s: int, run: Array, after_ns: float) -> None:
    """Put a run on an idle stream, its first kernel `after_ns` from now. `run`: N_INTS, all about it."""
    for n in range(N_INTS):
        i[s, n] = run[n]
    for n in range(N_FLOATS):
        f[s, n] = 0.0
    f[s, LEFT_OLD], f[s, LEFT_NEW], f[s, STRETCH], f[s, PACE] = after_ns, FOREVER, 1.0, 1.0


@_compiled
def _noise(serial: int, pos: int, pace: float, now: float, settings: Array, seed: int) -> float:
    """Factor on the span of a kernel that arrives now."""
    factor = pace
    if settings[KERNEL_SIGMA] > 0.0:
        factor *= math.exp(settings[KERNEL_SIGMA] * gaussian(seed, serial, pos))
    if settings[DRIFT] > 0.0:
        turn = 2.0 * math.pi * now / settings[DRIFT_NS] + settings[DRIFT_PHASE]
        factor *= math.exp(settings[DRIFT] * (0.7 * math.sin(turn) + 0.3 * math.sin(2.3 * turn)))
    return factor


@_compiled
def _book(f: Array, s: int) -> None:
    """Let the only group of a kernel run as many whole rounds as there are loads for."""
    rounds = math.floor(f[s, WAITING] / f[s, SMS_OLD] + EPS)
    if rounds > 0.0:
        f[s, LEFT_OLD] += rounds * f[s, WAVE]
        f[s, WAITING] = max(0.0, f[s, WAITING] - rounds * f[s, SMS_OLD])


@_compiled
def _hold(i: Array, f: Array, s: int, table: Array) -> None:
    """What goes with the SMs that a kernel holds now."""
    k, held = i[s, POS], f[s, SMS_OLD] + f[s, SMS_NEW]
    f[s, HELD] = held
    f[s, USED] = table[k, BANDWIDTH] * held / table[k, FULL]
    f[s, DRAWN] = held * table[k, WATTS]


@_compiled
def _start(i: Array, f: Array, s: int, free: float, table: Array) -> float:
    """Give a kernel without SMs as many of the free ones as it can use. Returns what is left of them."""
    k, got = i[s, POS], min(f[s, WAITING], free)
    f[s, SMS_OLD], f[s, LEFT_OLD] = got, f[s, WAVE]
    f[s, WAITING] -= got
    if f[s, WAITING] > 0.0:
        _book(f, s)
    i[s, PHASE] = RUN
    f[s, MEMORY], f[s, CLOCK] = table[k, MEMORY_TIME], table[k, CLOCK_ALONE]
    _hold(i, f, s, table)
    return free - f[s, HELD]


@_compiled
def _widen(i: Array, f: Array, s: int, free: float, table: Array) -> float:
    """Give a kernel that holds SMs as many of the free ones as it can use besides. Returns what is left."""
    if f[s, SMS_NEW] == 0.0:  # what is booked but has not begun can be placed on the new SMs too
        rounds = math.ceil(f[s, LEFT_OLD] / f[s, WAVE] - EPS) - 1.0
        if rounds > 0.0:
            f[s, WAITING] += rounds * f[s, SMS_OLD]
            f[s, LEFT_OLD] -= rounds * f[s, WAVE]
    before = f[s, HELD]
    got = min(f[s, WAITING], free)
    f[s, WAITING] -= got
    held = before + got
    if f[s, WAITING] >= held - EPS:
        work = f[s, SMS_OLD] * f[s, LEFT_OLD] + f[s, SMS_NEW] * f[s, LEFT_NEW] + got * f[s, WAVE]
        f[s, SMS_OLD], f[s, LEFT_OLD] = held, work / held
        f[s, SMS_NEW], f[s, LEFT_NEW] = 0.0, FOREVER
        _book(f, s)
    else:
        work = f[s, SMS_NEW] * f[s, LEFT_NEW] + got * f[s, WAVE]
        f[s, SMS_NEW] += got
        f[s, LEFT_NEW] = work / f[s, SMS_NEW]
    _hold(i, f, s, table)
    return free - (f[s, HELD] - before)


@_compiled
def _wants(i: Array, f: Array, s: int) -> bool:
    """Whether a kernel has loads that hold no SM yet, those of booked rounds included."""
    if i[s, PHASE] == RUN:
        if f[s, WAITING] > EPS:
            return True
        left, wave = f[s, LEFT_OLD], f[s, WAVE]
        return left > wave and f[s, SMS_NEW] == 0.0 and left / wave - EPS > 1.0
    return i[s, PHASE] == LINE


@_compiled
def give_out(i: Array, f: Array, settings: Array, table: Array) -> None:
    """Free SMs to what waits for them, in order of arrival."""
    free = settings[SMS]
    for s in range(i.shape[0]):
        free -= f[s, HELD]
    while free > EPS:
        head = -1
        for s in range(i.shape[0]):
            if _wants(i, f, s) and (head < 0 or i[s, ORDER] < i[head, ORDER]):
                head = s
        if head < 0:
            break
        free = _widen(i, f, head, free, table) if f[head, HELD] > 0.0 else _start(i, f, head, free, table)


@_compiled
def give_engines(i: Array, f: Array, table: Array) -> None:
    """Free copy engines to what waits for them, in order of arrival."""
    for kind in range(COMPUTE_LIKE, COMPUTE_LIKE + 2):
        head, taken = -1, False
        for s in range(i.shape[0]):
            if (i[s, PHASE] == COPY or i[s, PHASE] == COPY_LINE) and table[i[s, POS], KIND] == kind:
                if i[s, PHASE] == COPY:
                    taken = True
                elif head < 0 or i[s, ORDER] < i[head, ORDER]:
                    head = s
        if head >= 0 and not taken:
            i[head, PHASE] = COPY
            f[head, LEFT_OLD] = f[head, WAITING]


@_compiled
def _stretch(f: Array, settings: Array) -> tuple[float, float, float]:
    """How many times longer everything on SMs takes, beside all the rest. Returns SMs held, the bandwidth
    really taken by all, and SMs free."""
    total, watts, held, free = 0.0, settings[IDLE_W], 0.0, settings[SMS]
    for s in range(f.shape[0]):
        total += f[s, USED]
        watts += f[s, DRAWN]
        held += f[s, HELD]
        free -= f[s, HELD]
    crowding = max(1.0, total)
    watts += settings[MEMORY_W] * min(1.0, total)
    clock = 1.0
    if watts > settings[CAP_W]:
        clock = max(settings[LEAST_CLOCK], 1.0 - settings[SLOPE] * (watts / settings[CAP_W] - 1.0))
    moved = 0.0
    for s in range(f.shape[0]):
        t, used = f[s, MEMORY], f[s, USED]
        slower = f[s, CLOCK] / clock if f[s, CLOCK] > clock else 1.0
        f[s, STRETCH] = (1.0 - t) * slower + t * (crowding + settings[CACHE] * (total - used))
        moved += used / f[s, STRETCH]
    return held, moved, free


@_compiled
def _arrive(i: Array, f: Array, totals: Array, s: int, table: Array, settings: Array, seed: int) -> None:
    """The gap of a stream has ended: its kernel waits for SMs, or for a copy engine."""
    k = i[s, POS]
    factor = _noise(i[s, SERIAL], k, f[s, PACE], totals[NOW], settings, seed)
    totals[ARRIVALS] += 1.0
    i[s, ORDER] = np.int64(totals[ARRIVALS])
    f[s, WAVE], f[s, LEFT_OLD] = table[k, WAVE_NS] * factor, FOREVER
    if table[k, KIND] < COMPUTE_LIKE:
        i[s, PHASE], f[s, WAITING] = LINE, table[k, LOADS]
    else:
        i[s, PHASE], f[s, WAITING] = COPY_LINE, table[k, SPAN_NS] * factor


@_compiled
def _leave(
    i: Array, f: Array, totals: Array, marks: Array, s: int, stream: int, ends: Array, settings: Array
) -> int:  # fmt: skip
    """The kernel of row `s`, which is of `stream`, has ended. Returns 2 when that ends its run, 1 at a
    boundary, else 0."""
    i[s, POS] += 1
    f[s, MEMORY], f[s, CLOCK] = 0.0, 0.0
    passed = 0
    if i[s, POS] == i[s, NEXT]:
        marks[stream, i[s, SEGMENT]] = totals[NOW]
        i[s, SEGMENT] += 1
        if i[s, SEGMENT] < ends.shape[1]:
            i[s, NEXT] = ends[i[s, PROGRAM], i[s, SEGMENT]]
        passed = 1
    if i[s, POS] >= i[s, END]:
        i[s, PHASE] = IDLE
        return 2
    i[s, PHASE] = GAP
    f[s, LEFT_OLD] = settings[LAUNCH_GAP] + settings[NEIGHBOUR_GAP] * (i.shape[0] - 1)
    if i[s, POS] == i[s, STALLS_AT]:
        f[s, LEFT_OLD] += f[s, STALL]
    return passed


@_compiled
def _end_wave(
    i: Array, f: Array, totals: Array, marks: Array, s: int, stream: int, table: Array, ends: Array,
    settings: Array,
) -> int:  # fmt: skip
    """The group of row `s` with the least left is done. Returns as `_leave`, 0 when the kernel goes on."""
    done = f[s, SMS_NEW] == 0.0 and f[s, WAITING] <= EPS
    if f[s, SMS_NEW] > 0.0:
        if f[s, LEFT_NEW] > f[s, LEFT_OLD]:
            f[s, SMS_OLD], f[s, LEFT_OLD] = f[s, SMS_NEW], f[s, LEFT_NEW]
        f[s, SMS_NEW], f[s, LEFT_NEW] = 0.0, FOREVER
        _hold(i, f, s, table)
    else:
        f[s, SMS_OLD], f[s, LEFT_OLD] = 0.0, FOREVER
        f[s, HELD], f[s, USED], f[s, DRAWN] = 0.0, 0.0, 0.0
    return _leave(i, f, totals, marks, s, stream, ends, settings) if done else 0


@_compiled
def _alone(
    i: Array, f: Array, totals: Array, marks: Array, stream: int, table: Array, ends: Array, settings: Array,
    seed: int, until: float, at_boundaries: bool,
) -> int:  # fmt: skip
    """Kernel by kernel while the only row is between kernels. Returns as `_leave`."""
    while True:
        k = i[0, POS]
        if table[k, KIND] >= COMPUTE_LIKE:
            return 0
        begins = totals[NOW] + f[0, LEFT_OLD]
        factor = _noise(i[0, SERIAL], k, f[0, PACE], begins, settings, seed)
        span = table[k, SPAN_NS] * factor
        if begins + span > until:
            return 0
        totals[NOW] = begins + span
        used = table[k, LOADS] * table[k, WAVE_NS] * factor
        totals[SM_NS] += used
        totals[MOVED_NS] += used / table[k, FULL] * table[k, BANDWIDTH]
        totals[ARRIVALS] += 1.0
        left = _leave(i, f, totals, marks, 0, stream, ends, settings)
        if left == 2 or (left == 1 and at_boundaries):
            return left


@_compiled
def _go_on(
    i: Array, f: Array, totals: Array, marks: Array, streams: Array, table: Array, ends: Array,
    settings: Array, seed: int, until: float, at_boundaries: bool,
) -> tuple[int, int]:  # fmt: skip
    """`advance` for the rows of streams at work, n_active each. Returns a row and what `_leave` said of it,
    (0, 0) when the time is up.

    SMs are never free while a kernel wants them: what arrives is given free ones without a look around."""
    n = i.shape[0]
    changed, held, moved, free = True, 0.0, 0.0, 0.0
    while True:
        if n == 1 and i[0, PHASE] == GAP:
            left = _alone(
                i, f, totals, marks, streams[0], table, ends, settings, seed, until, at_boundaries
            )  # fmt: skip
            if left > 0:
                return 0, left
        if changed:
            held, moved, free = _stretch(f, settings)
            changed = False
        first, step = -1, FOREVER
        for s in range(n):
            wait = f[s, LEFT_OLD] if f[s, LEFT_OLD] <= f[s, LEFT_NEW] else f[s, LEFT_NEW]
            wait *= f[s, STRETCH]
            if wait < step:
                first, step = s, wait
        if totals[NOW] + step > until:
            step, first = until - totals[NOW], -1
        if step > 0.0:
            for s in range(n):
                done = step / f[s, STRETCH]
                f[s, LEFT_OLD] -= done
                f[s, LEFT_NEW] -= done
            totals[NOW] += step
            totals[SM_NS] += held * step
            totals[MOVED_NS] += moved * step
        if first < 0:
            return 0, 0
        left = 0
        if i[first, PHASE] == GAP:
            _arrive(i, f, totals, first, table, settings, seed)
            if i[first, PHASE] == COPY_LINE:
                give_engines(i, f, table)
            elif free > EPS:
                free = _start(i, f, first, free, table)
                changed = True
        elif i[first, PHASE] == COPY:
            left = _leave(i, f, totals, marks, first, streams[first], ends, settings)
            give_engines(i, f, table)
        else:
            left = _end_wave(i, f, totals, marks, first, streams[first], table, ends, settings)
            give_out(i, f, settings, table)
            changed = True
        if left == 2 or (left == 1 and at_boundaries):
            return first, left


@njit(cache=True, error_model="numpy")
def advance(
    i: Array, f: Array, totals: Array, marks: Array, table: Array, ends: Array, settings: Array, seed: int,
    until: float, at_boundaries: bool,
) -> int:  # fmt: skip
    """Let time go on until the instant `until` (ns) or until a run has ended, whichever is first.

    i: n_streams x N_INTS; f: n_streams x N_FLOATS; totals: N_TOTALS; marks: n_streams x most segments,
    instants of boundaries passed; table: n_kernels x N_COLUMNS; ends: n_programs x most segments, kernel
    before which each segment ends; settings: N_SETTINGS. Returns the stream whose run has ended, -1 if none
    has; with `at_boundaries` also n_streams + the stream that passed a boundary."""
    n = i.shape[0]
    streams = np.flatnonzero(i[:, PHASE] != IDLE)
    if len(streams) == 0:
        if until < FOREVER:
            totals[NOW] = max(totals[NOW], until)
        return -1
    own_i, own_f = i[streams], f[streams]
    row, left = _go_on(
        own_i, own_f, totals, marks, streams, table, ends, settings, seed, until, at_boundaries
    )  # fmt: skip
    i[streams], f[streams] = own_i, own_f
    if left == 0:
        return -1
    stream = int(streams[row])
    return stream if left == 2 else n + stream
