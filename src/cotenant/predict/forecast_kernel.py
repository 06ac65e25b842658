"""Everything from indices to quantiles of finish times, compiled as one step.

How this works. What is in flight stands in tables that are kept from call to call (`flights.py`); here its
progress is derived from the last boundary seen and who has run beside it since, pairs and calibration are
looked up, `kernel.py` integrates, and quantiles are spread about the medians.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from cotenant.domain import NS_PER_S
from cotenant.predict.calibrate_kernels import N_LEVELS, offsets_at
from cotenant.predict.estimator_kernels import Beliefs, Places
from cotenant.predict.kernel import (
    AFTER,
    FIRST,
    IDLE,
    LANE,
    LEFT,
    LIKELY,
    N_COLUMNS,
    N_SEGMENTS,
    PACE,
    REFILL,
    START,
    TAU,
    integrate_all,
)
from cotenant.predict.overlap_kernels import (
    MAX_SEGMENTS,
    OPEN,
    Tables,
    crowd_factors,
    gather,
    modulation,
    pace,
    part,
    walk,
)
from cotenant.predict.row_kernels import Array, evaluate, look_up

WORK, ON_LANE, SEGMENT, N_BESIDE, FIRST_BESIDE = range(5)
"""Columns of `flights`: workload, lane (-1: unknown), segment it was in at its `BEGIN`, and its entries of
`who` and `times` (see `estimator_kernels`); of candidates the first three."""
BEGIN, DECIDED = range(2)
"""Columns of `instants` (ns): since when its progress is to be derived (`OPEN`: it has not started), and when
it was decided."""
FILL_PER_S, TAKEN_AGAIN = range(2)
"""Columns of `uses`, a row per lane: as in `domain.LaneUse`; a rate below 0: nothing is known."""
NEVER_NS = 1e12
LEAST_LEFT = 0.02
"""Share of its solo span that a run which should have ended is taken to have left."""

Calibration = tuple[Array, Array, Array, Array]
"""The calibrator's terms, the rows of them by (model, number of others), and its tables by model."""


@njit(cache=True, fastmath=True)
def forecast(
    at: int, step: float, handover: float, in_flight: Array, flights: Array, instants: Array, who: Array,
    times: Array, asked: Array, starts: Array, mix: Array, mix_weights: Array, uses: Array,
    leave_per_s: float, tables: Tables, places: Places, beliefs: Beliefs, bias: float, scale: float,
    calibration: Calibration, on_grid: float, quantiles: Array, issued: Array,
) -> int:  # fmt: skip
    """Finish instants of what is in flight (rows `in_flight` of the tables) and of candidates `asked`, which
    can start `starts` ns after `at`, plus `handover`.

    `quantiles` (1 + n_candidates x n_in_flight + 1 x N_LEVELS, ns): row 0 what is in flight without any
    candidate, row 1 + c with candidate c, whose own stand last; `issued` (n_candidates x 1 + N_LEVELS): its
    median span (ns) and log offsets. `mix`: workloads that joiners are made of. Returns how many pairs are
    missing; unless 0, nothing was written."""
    n, now = in_flight.shape[0], float(at)
    n_runs, n_lanes, n_mix = n + asked.shape[0], uses.shape[0], mix.shape[0]
    work, lanes = np.empty(n_runs, np.int64), np.empty(n_runs, np.int64)
    runs = np.zeros((n_runs, N_COLUMNS))
    n_entries = _lay_out(in_flight, flights, asked, starts, handover, tables[3], work, lanes, runs)
    # every pair that is needed: of all runs, of each run in flight with those that were beside it, of joiners
    index, relations, missing = places
    n_pairs, n_beside = n_runs * n_runs, 2 * n_entries
    wanted = np.full((n_pairs + n_beside + n_runs * n_lanes * n_mix, 3), -1, np.int64)
    _want_pairs(n, work, lanes, relations, wanted)
    others, spans, bounds = np.empty(n_entries, np.int64), np.empty((3, n_entries)), np.zeros(n + 1, np.int64)
    for i in range(n):
        flight, begin, k = flights[in_flight[i]], instants[in_flight[i], BEGIN], bounds[i]
        bounds[i + 1] = k
        if begin < now:
            bounds[i + 1] += gather(
                work[i], lanes[i], begin, now, who, times, flight[FIRST_BESIDE], flight[N_BESIDE], relations,
                others[k:], spans[:, k:], wanted[n_pairs + 2 * k :],
            )  # fmt: skip
    kinds = np.full((n_runs, n_lanes), -1, np.int64)
    n_joining = _want_joiners(work, lanes, mix, uses, relations, kinds, wanted[n_pairs + n_beside :])
    n_wanted = n_pairs + n_beside + n_joining
    rows, excesses = np.empty(n_wanted, np.int64), np.empty(n_wanted)
    n_missing = look_up(index, wanted[:n_wanted], rows, missing)
    if n_missing > 0:
        return int(n_missing)
    phi, _, slots, level, theta, row_notes, slot_notes, crowd_slots, weight_slots = beliefs
    evaluate(rows, phi, slots, level, theta, row_notes, slot_notes, bias, scale, now, step, excesses)
    weights = modulation(level, weight_slots, now)
    crowd = crowd_factors(level, crowd_slots, now)
    excess = excesses[:n_pairs].reshape(n_runs, n_runs)
    segments, demands = np.empty((n_runs, MAX_SEGMENTS)), np.empty((n_runs, MAX_SEGMENTS, weights.shape[0]))
    means = np.empty((n_runs, weights.shape[0]))
    for i in range(n_runs):
        w = work[i]
        segments[i], demands[i], means[i] = tables[0][w], tables[1][w], tables[2][w]
        runs[i, PACE] = pace(level, tables[4][w], now)
    theirs = excesses[n_pairs : n_pairs + n_beside]
    _go_on(
        now, in_flight, instants, bounds, work, others, spans, theirs, crowd, weights, tables, segments, runs
    )
    joiners, joiner_excess = np.zeros((n_lanes, 4)), np.zeros((n_runs, n_lanes))
    joining = excesses[n_pairs + n_beside :]
    _join(uses, leave_per_s, mix_weights, kinds, joining, joiners, joiner_excess)
    finish = np.zeros((1 + n_runs - n, n_runs))
    integrate_all(n, runs, segments, demands, means, excess, weights, crowd, joiners, joiner_excess, finish)
    terms, paths, levels, settings = calibration
    for i in range(n_runs):
        model, n_beside = tables[5][work[i]], max(0, n - 1) if i < n else n
        path = paths[model, min(n_beside, paths.shape[1] - 1)]
        offsets = offsets_at(terms, path, levels[model], settings[model], on_grid)
        if i < n:
            _spread_rest(i, at, now - instants[in_flight[i], DECIDED], finish, offsets, quantiles)
        else:
            _spread(i - n, n, at, finish[1 + i - n, i], offsets, quantiles, issued)
    return 0


@njit(cache=True)
def _lay_out(
    in_flight: Array, flights: Array, asked: Array, starts: Array, handover: float, n_segments: Array,
    work: Array, lanes: Array, runs: Array,
) -> int:  # fmt: skip
    """What is known of runs without looking anything up; returns how many entries there are of others."""
    n, n_entries = in_flight.shape[0], 0
    for i in range(work.shape[0]):
        row = flights[in_flight[i]] if i < n else asked[i - n]
        work[i], lanes[i] = row[WORK], row[ON_LANE]
        if i < n:
            n_entries += row[N_BESIDE]
        last = n_segments[work[i]] - 1
        runs[i, LANE], runs[i, FIRST], runs[i, LEFT] = lanes[i], min(row[SEGMENT], last), 1.0
        runs[i, N_SEGMENTS], runs[i, AFTER] = last + 1, -1.0
        for j in range(min(i, n)):
            if lanes[j] == lanes[i] >= 0:
                runs[i, AFTER] = j
        if i >= n:
            runs[i, START] = handover if runs[i, AFTER] >= 0.0 else handover + starts[i - n]
    return n_entries


@njit(cache=True)
def _want_pairs(n: int, work: Array, lanes: Array, relations: Array, wanted: Array) -> None:
    """All pairs of runs but those of two candidates, which are alternatives: n_runs x n_runs."""
    n_runs = work.shape[0]
    for i in range(n_runs):
        for j in range(n_runs):
            if i != j and (i < n or j < n):
                x = i * n_runs + j
                wanted[x, 0], wanted[x, 1], wanted[x, 2] = relations[lanes[i], lanes[j]], work[i], work[j]


@njit(cache=True)
def _want_joiners(
    work: Array, lanes: Array, mix: Array, uses: Array, relations: Array, kinds: Array, wanted: Array
) -> int:
    """Each run beside what may join it. Lanes of one relation to the run's own are one kind (`kinds`, n_runs
    x n_lanes, counted through all runs), with a pair for each workload of the mix; nobody joins on a run's
    own lane while it is there. Returns how many pairs."""
    n_kinds, n_mix = 0, mix.shape[0]
    for i in range(kinds.shape[0]):
        for lane in range(kinds.shape[1]):
            if uses[lane, FILL_PER_S] < 0.0 or lane == lanes[i]:
                continue
            relation = relations[lanes[i], lane]
            for other in range(lane):
                if kinds[i, other] >= 0 and relations[lanes[i], other] == relation:
                    kinds[i, lane] = kinds[i, other]
                    break
            if kinds[i, lane] >= 0:
                continue
            for k in range(n_mix):
                x = n_kinds * n_mix + k
                wanted[x, 0], wanted[x, 1], wanted[x, 2] = relation, work[i], mix[k]
            kinds[i, lane] = n_kinds
            n_kinds += 1
    return int(n_kinds * n_mix)


@njit(cache=True, fastmath=True)
def _join(
    uses: Array, leave_per_s: float, mix_weights: Array, kinds: Array, excesses: Array, joiners: Array,
    joiner_excess: Array,
) -> None:  # fmt: skip
    """How likely lanes are taken, and the mean excess that joiners on them bring."""
    n_mix = mix_weights.shape[0]
    for lane in range(kinds.shape[1]):
        joiners[lane, TAU] = NEVER_NS
        if uses[lane, FILL_PER_S] >= 0.0:
            both = uses[lane, FILL_PER_S] + leave_per_s
            joiners[lane, LIKELY], joiners[lane, TAU] = uses[lane, FILL_PER_S] / both, NS_PER_S / both
            joiners[lane, REFILL], joiners[lane, IDLE] = uses[lane, TAKEN_AGAIN], 0.0
    known, mean = -1, 0.0
    for i in range(kinds.shape[0]):
        for lane in range(kinds.shape[1]):
            kind = kinds[i, lane]
            if kind < 0:
                continue
            if kind != known:
                known, mean = kind, 0.0
                for k in range(n_mix):
                    mean += mix_weights[k] * excesses[kind * n_mix + k]
            joiner_excess[i, lane] = mean


@njit(cache=True, fastmath=True)
def _go_on(
    now: float, in_flight: Array, instants: Array, bounds: Array, work: Array, others: Array, spans: Array,
    excesses: Array, crowd: Array, weights: Array, tables: Tables, segments: Array, runs: Array,
) -> None:  # fmt: skip
    """Where each run in flight has come to. Its entries of `others` and `spans` lie within its `bounds`."""
    excess, slower = np.empty(others.shape[0]), np.empty(others.shape[0])
    part(excesses, bounds[-1], excess, slower)
    reached, unused = np.empty(2), np.empty(0)
    for i in range(in_flight.shape[0]):
        begin, these = instants[in_flight[i], BEGIN], slice(bounds[i], bounds[i + 1])
        if begin >= now:
            runs[i, START] = begin - now if begin < OPEN else 0.0
            continue
        walk(
            now - begin, work[i], np.int64(runs[i, FIRST]), runs[i, PACE], bounds[i + 1] - bounds[i],
            others[these], spans[:, these], slower[these], excess[these], crowd, weights, tables, False,
            unused, unused, unused, reached,
        )  # fmt: skip
        _resume(i, reached, runs, segments)


@njit(cache=True, fastmath=True)
def _resume(i: int, reached: Array, runs: Array, segments: Array) -> None:
    """Run i goes on from where it has come to; one that should have ended has `LEAST_LEFT` of its solo span
    left."""
    k, left = np.int64(reached[0]), max(0.0, reached[1])
    n_segments = np.int64(runs[i, N_SEGMENTS])
    if k == n_segments - 1:
        whole = 0.0
        for m in range(n_segments):
            whole += segments[i, m]
        left = max(left, min(LEAST_LEFT * whole, segments[i, k]))
    runs[i, FIRST], runs[i, LEFT] = k, min(1.0, left / max(1.0, segments[i, k]))


@njit(cache=True)
def _spread(
    c: int, n: int, at: int, span: float, offsets: tuple[float, float, float, float, float],
    quantiles: Array, issued: Array,
) -> None:  # fmt: skip
    """Quantiles of candidate c: offsets apply to its whole span."""
    issued[c, 0] = span
    for q in range(N_LEVELS):
        issued[c, 1 + q] = offsets[q]
        quantiles[1 + c, n, q] = at + np.int64(span * math.exp(offsets[q]))


@njit(cache=True)
def _spread_rest(
    i: int, at: int, elapsed: float, finish: Array, offsets: tuple[float, float, float, float, float],
    quantiles: Array,
) -> None:  # fmt: skip
    """Quantiles of a run in flight. Offsets apply to its whole span, of which a part is past; of a sum of
    independent parts the rest has the square root of its share of the spread."""
    wide = np.empty(N_LEVELS)
    for q in range(N_LEVELS):
        wide[q] = math.expm1(offsets[q])
    for row in range(finish.shape[0]):
        span = finish[row, i]
        spread = math.sqrt(max(0.0, span * (span + elapsed)))
        for q in range(N_LEVELS):
            quantiles[row, i, q] = at + np.int64(max(1.0, span + spread * wide[q]))
