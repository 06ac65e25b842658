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
SMS_OLD, LEFT_OLD, SMS_NEW, LEFT_NEW, WAITING, WAVE, STRETCH, PACE, STALL = range(9)
N_FLOATS = 9
"""Of a stream: SMs and time left (ns at full speed) of both groups, loads not placed, span of a wave with
this run's noise, stretch, the run's own factor, span of its stall (ns). In a gap or a copy LEFT_OLD is what
is left of that."""
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

Array = np.ndarray[Any, Any]
_GOLDEN, _MIX_A, _MIX_B = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


@njit(cache=True, inline="always")
def _mixed(value: np.uint64) -> np.uint64:
    """SplitMix64's finaliser."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(_MIX_A)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(_MIX_B)
    return value ^ (value >> np.uint64(31))


@njit(cache=True)
def gaussian(seed: int, serial: int, n: int) -> float:
    """About standard normal (a sum of four uniform numbers, so within 3.5): a function of its arguments."""
    value = _mixed(np.uint64(seed) * np.uint64(_GOLDEN) + np.uint64(serial))
    value = _mixed(value + np.uint64(n) * np.uint64(_GOLDEN))
    total = 0.0
    for part in range(4):
        total += float((value >> np.uint64(16 * part)) & np.uint64(0xFFFF))
    return (total / 65535.0 - 2.0) * 1.7320508075688772


@njit(cache=True, inline="always")
def _noise(run: Array, pos: int, pace: float, now: float, settings: Array, seed: int) -> float:
    """Factor on the span of a kernel that arrives now."""
    factor = pace
    if settings[KERNEL_SIGMA] > 0.0:
        factor *= math.exp(settings[KERNEL_SIGMA] * gaussian(seed, run[SERIAL], pos))
    if settings[DRIFT] > 0.0:
        turn = 2.0 * math.pi * now / settings[DRIFT_NS] + settings[DRIFT_PHASE]
        factor *= math.exp(settings[DRIFT] * (0.7 * math.sin(turn) + 0.3 * math.sin(2.3 * turn)))
    return factor


@njit(cache=True, inline="always")
def _unplaced(f: Array, s: int) -> float:
    """Loads of a kernel that hold no SM yet, those of booked rounds included."""
    waiting = f[s, WAITING]
    if f[s, SMS_OLD] > 0.0 and f[s, SMS_NEW] == 0.0:
        rounds = math.ceil(f[s, LEFT_OLD] / f[s, WAVE] - EPS) - 1.0
        if rounds > 0.0:
            waiting += rounds * f[s, SMS_OLD]
    return waiting


@njit(cache=True, inline="always")
def _book(f: Array, s: int) -> None:
    """Let the only group of a kernel run as many whole rounds as there are loads for."""
    rounds = math.floor(f[s, WAITING] / f[s, SMS_OLD] + EPS)
    if rounds > 0.0:
        f[s, LEFT_OLD] += rounds * f[s, WAVE]
        f[s, WAITING] = max(0.0, f[s, WAITING] - rounds * f[s, SMS_OLD])


@njit(cache=True)
def _take(f: Array, s: int, free: float) -> None:
    """Give a kernel with loads to place as many of the free SMs as it can use."""
    if f[s, SMS_OLD] == 0.0:
        got = min(f[s, WAITING], free)
        f[s, SMS_OLD], f[s, LEFT_OLD] = got, f[s, WAVE]
        f[s, WAITING] -= got
        _book(f, s)
        return
    if f[s, SMS_NEW] == 0.0:  # what is booked but has not begun can be placed on the new SMs too
        rounds = math.ceil(f[s, LEFT_OLD] / f[s, WAVE] - EPS) - 1.0
        if rounds > 0.0:
            f[s, WAITING] += rounds * f[s, SMS_OLD]
            f[s, LEFT_OLD] -= rounds * f[s, WAVE]
    got = min(f[s, WAITING], free)
    f[s, WAITING] -= got
    held = f[s, SMS_OLD] + f[s, SMS_NEW] + got
    if f[s, WAITING] >= held - EPS:
        work = f[s, SMS_OLD] * f[s, LEFT_OLD] + f[s, SMS_NEW] * f[s, LEFT_NEW] + got * f[s, WAVE]
        f[s, SMS_OLD], f[s, LEFT_OLD] = held, work / held
        f[s, SMS_NEW], f[s, LEFT_NEW] = 0.0, 0.0
        _book(f, s)
    else:
        work = f[s, SMS_NEW] * f[s, LEFT_NEW] + got * f[s, WAVE]
        f[s, SMS_NEW] += got
        f[s, LEFT_NEW] = work / f[s, SMS_NEW]


@njit(cache=True)
def _give_out(i: Array, f: Array, settings: Array, table: Array) -> None:
    """Free SMs and copy engines to what waits, in order of arrival."""
    n = i.shape[0]
    free = settings[SMS]
    lines = False
    for s in range(n):
        if i[s, PHASE] == RUN:
            free -= f[s, SMS_OLD] + f[s, SMS_NEW]
        elif i[s, PHASE] == COPY_LINE:
            lines = True
    while free > EPS:
        head = -1
        for s in range(n):
            if (i[s, PHASE] == LINE or (i[s, PHASE] == RUN and _unplaced(f, s) > EPS)) and (
                head < 0 or i[s, ORDER] < i[head, ORDER]
            ):
                head = s
        if head < 0:
            break
        held = f[head, SMS_OLD] + f[head, SMS_NEW]
        _take(f, head, free)
        i[head, PHASE] = RUN
        free -= f[head, SMS_OLD] + f[head, SMS_NEW] - held
    if lines:
        _give_engines(i, table)


@njit(cache=True)
def _give_engines(i: Array, table: Array) -> None:
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


@njit(cache=True)
def _stretches(i: Array, f: Array, settings: Array, table: Array) -> None:
    """How many times longer everything on SMs takes, beside all the rest."""
    total, watts = 0.0, settings[IDLE_W]
    for s in range(i.shape[0]):
        if i[s, PHASE] == RUN:
            k = i[s, POS]
            held = f[s, SMS_OLD] + f[s, SMS_NEW]
            used = table[k, BANDWIDTH] * held / table[k, FULL]
            f[s, STRETCH] = used
            total += used
            watts += held * table[k, WATTS]
    crowding = max(1.0, total)
    watts += settings[MEMORY_W] * min(1.0, total)
    clock = 1.0
    if watts > settings[CAP_W]:
        clock = max(settings[LEAST_CLOCK], 1.0 - settings[SLOPE] * (watts / settings[CAP_W] - 1.0))
    for s in range(i.shape[0]):
        if i[s, PHASE] == RUN:
            k = i[s, POS]
            t = table[k, MEMORY_TIME]
            f[s, STRETCH] = (1.0 - t) * max(1.0, table[k, CLOCK_ALONE] / clock) + t * (
                crowding + settings[CACHE] * (total - f[s, STRETCH])
            )


@njit(cache=True, inline="always")
def _arrive(
    i: Array, f: Array, totals: Array, s: int, table: Array, settings: Array, seed: int
) -> None:  # fmt: skip
    k = i[s, POS]
    factor = _noise(i[s], k, f[s, PACE], totals[NOW], settings, seed)
    totals[ARRIVALS] += 1.0
    i[s, ORDER] = np.int64(totals[ARRIVALS])
    f[s, WAVE] = table[k, WAVE_NS] * factor
    if table[k, KIND] < COMPUTE_LIKE:
        i[s, PHASE] = LINE
        f[s, WAITING] = table[k, LOADS]
        f[s, SMS_OLD], f[s, LEFT_OLD], f[s, SMS_NEW], f[s, LEFT_NEW] = 0.0, 0.0, 0.0, 0.0
    else:
        i[s, PHASE] = COPY_LINE
        f[s, LEFT_OLD] = table[k, SPAN_NS] * factor


@njit(cache=True, inline="always")
def _leave(
    i: Array, f: Array, totals: Array, marks: Array, s: int, n_active: int, ends: Array, settings: Array
) -> int:  # fmt: skip
    """The kernel of a stream has ended. Returns 2 when that ends its run, 1 at a boundary, else 0."""
    i[s, POS] += 1
    passed = 0
    if i[s, POS] == i[s, NEXT]:
        marks[s, i[s, SEGMENT]] = totals[NOW]
        i[s, SEGMENT] += 1
        if i[s, SEGMENT] < ends.shape[1]:
            i[s, NEXT] = ends[i[s, PROGRAM], i[s, SEGMENT]]
        passed = 1
    if i[s, POS] >= i[s, END]:
        i[s, PHASE] = IDLE
        return 2
    i[s, PHASE] = GAP
    f[s, LEFT_OLD] = settings[LAUNCH_GAP] + settings[NEIGHBOUR_GAP] * (n_active - 1)
    if i[s, POS] == i[s, STALLS_AT]:
        f[s, LEFT_OLD] += f[s, STALL]
    return passed


@njit(cache=True)
def _alone(
    i: Array, f: Array, totals: Array, marks: Array, s: int, table: Array, ends: Array, settings: Array,
    seed: int, until: float, at_boundaries: bool,
) -> int:  # fmt: skip
    """Kernel by kernel while one stream is alone and between kernels. Returns as `_leave`."""
    while True:
        k = i[s, POS]
        if table[k, KIND] >= COMPUTE_LIKE:
            return 0
        begins = totals[NOW] + f[s, LEFT_OLD]
        factor = _noise(i[s], k, f[s, PACE], begins, settings, seed)
        span = table[k, SPAN_NS] * factor
        if begins + span > until:
            return 0
        totals[NOW] = begins + span
        used = table[k, LOADS] * table[k, WAVE_NS] * factor
        totals[SM_NS] += used
        totals[MOVED_NS] += used / table[k, FULL] * table[k, BANDWIDTH]
        totals[ARRIVALS] += 1.0
        left = _leave(i, f, totals, marks, s, 1, ends, settings)
        if left == 2 or (left == 1 and at_boundaries):
            return left


@njit(cache=True)
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
    dirty = True
    while True:
        n_active, only = 0, -1
        for s in range(n):
            if i[s, PHASE] != IDLE:
                n_active += 1
                only = s
        if n_active == 0:
            if until < FOREVER:
                totals[NOW] = max(totals[NOW], until)
            return -1
        if n_active == 1 and i[only, PHASE] == GAP:
            left = _alone(
                i, f, totals, marks, only, table, ends, settings, seed, until, at_boundaries
            )  # fmt: skip
            if left == 2:
                return only
            if left == 1:
                return n + only
        if dirty:
            _stretches(i, f, settings, table)
            dirty = False
        first, step, held, moved = -1, FOREVER, 0.0, 0.0
        for s in range(n):
            phase = i[s, PHASE]
            if phase == RUN:
                mine = f[s, SMS_OLD] + f[s, SMS_NEW]
                held += mine
                moved += table[i[s, POS], BANDWIDTH] * mine / table[i[s, POS], FULL] / f[s, STRETCH]
                wait = f[s, LEFT_OLD]
                if f[s, SMS_NEW] > 0.0 and f[s, LEFT_NEW] < wait:
                    wait = f[s, LEFT_NEW]
                wait *= f[s, STRETCH]
            elif phase in (GAP, COPY):
                wait = f[s, LEFT_OLD]
            else:
                continue
            if wait < step:
                first, step = s, wait
        if totals[NOW] + step > until:
            step, first = until - totals[NOW], -1
        if step > 0.0:
            for s in range(n):
                phase = i[s, PHASE]
                if phase == RUN:
                    done = step / f[s, STRETCH]
                    f[s, LEFT_OLD] -= done
                    if f[s, SMS_NEW] > 0.0:
                        f[s, LEFT_NEW] -= done
                elif phase in (GAP, COPY):
                    f[s, LEFT_OLD] -= step
            totals[NOW] += step
            totals[SM_NS] += held * step
            totals[MOVED_NS] += moved * step
        if first < 0:
            return -1
        s = first
        left = 0
        if i[s, PHASE] == GAP:
            _arrive(i, f, totals, s, table, settings, seed)
        elif i[s, PHASE] == COPY:
            left = _leave(i, f, totals, marks, s, n_active, ends, settings)
        else:
            dirty = True
            if f[s, SMS_NEW] > 0.0:
                if f[s, LEFT_NEW] <= f[s, LEFT_OLD]:  # the new group is the one that ends
                    f[s, SMS_NEW], f[s, LEFT_NEW] = 0.0, 0.0
                else:
                    f[s, SMS_OLD], f[s, LEFT_OLD] = f[s, SMS_NEW], f[s, LEFT_NEW]
                    f[s, SMS_NEW], f[s, LEFT_NEW] = 0.0, 0.0
            else:
                f[s, SMS_OLD], f[s, LEFT_OLD] = 0.0, 0.0
                if f[s, WAITING] <= EPS:
                    left = _leave(i, f, totals, marks, s, n_active, ends, settings)
        _give_out(i, f, settings, table)
        dirty = True
        if left == 2:
            return s
        if left == 1 and at_boundaries:
            return n + s
