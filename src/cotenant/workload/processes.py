"""The arrival processes: seconds from the start of a stretch of time, ascending, below its length.

A rate that changes is made of a unit-rate Poisson process whose time is bent by the inverse of the
accumulated rate (exact where the rate is linear between instants), or by thinning (Lewis and Shedler, 1979).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from cotenant.workload.traffic import Traffic

Seconds = NDArray[np.float64]


def renewal(traffic: Traffic, span_s: float, rng: np.random.Generator) -> Seconds:
    """`poisson` and `gamma`: independent gaps. Seen from 0 the process has always been running: the first
    gap is what is left of one (its equilibrium distribution), so the mean rate holds from the start."""
    shape = 1.0 if traffic.process == "poisson" else 1.0 / traffic.cv**2
    scale = 1.0 / (traffic.rate_per_s * shape)
    first = 0.0 if shape == 1.0 else float(rng.random() * rng.gamma(shape + 1.0, scale))
    parts: list[Seconds] = [np.asarray([first])] if shape != 1.0 else []
    reached = first
    while reached < span_s:
        n = max(64, math.ceil((span_s - reached) * traffic.rate_per_s * 1.1))
        times = reached + np.cumsum(rng.gamma(shape, scale, n))
        parts.append(times)
        reached = float(times[-1])
    times = np.concatenate(parts)
    return times[times < span_s]


def mmpp(traffic: Traffic, span_s: float, rng: np.random.Generator, states: np.random.Generator) -> Seconds:
    """A Markov-modulated Poisson process: a quiet state, from which bursts of one or several kinds begin and
    to which they return, each state for an exponential time. It begins in a state drawn as often as the
    process is in it, so the expected rate is `rate_per_s` at every instant.

    The states are drawn by a generator of their own, so that another rate leaves the bursts where they
    were."""
    ratio, share, length_s = (
        np.asarray(values) for values in (traffic.burst_ratio, traffic.burst_share, traffic.burst_s)
    )
    quiet_share = 1.0 - share.sum()
    quiet_ratio = max(0.0, 1.0 - float(ratio @ share)) / quiet_share
    onset_per_s = share / length_s / quiet_share
    kinds, lengths = _states(share, length_s, onset_per_s, span_s, states)
    rates = traffic.rate_per_s * np.append(ratio, quiet_ratio)[kinds]
    edges = np.minimum(np.concatenate(([0.0], np.cumsum(lengths))), span_s)
    return piecewise(np.repeat(edges, 2)[1:-1], np.repeat(rates, 2), rng)


def _states(
    share: Seconds, length_s: Seconds, onset_per_s: Seconds, span_s: float, rng: np.random.Generator
) -> tuple[NDArray[np.int64], Seconds]:
    """Which state after which (an index of the bursts, or their number for quiet) and for how long (s), at
    least `span_s` in all."""
    n_kinds = len(share)
    quiet_s = 1.0 / onset_per_s.sum()
    weights = onset_per_s / onset_per_s.sum()
    first = int(np.searchsorted(np.cumsum(share), rng.random(), side="right"))
    kinds: list[NDArray[np.int64]] = []
    lengths: list[Seconds] = []
    if first < n_kinds:
        kinds.append(np.asarray([first]))
        lengths.append(rng.exponential(length_s[first], 1))
    reached = float(sum(part.sum() for part in lengths))
    while reached < span_s:
        n = max(16, math.ceil(1.2 * (span_s - reached) / (quiet_s + float(weights @ length_s))))
        bursts = rng.choice(n_kinds, n, p=weights)
        kinds.append(np.stack((np.full(n, n_kinds), bursts), axis=1).ravel())
        spans = np.stack((rng.exponential(quiet_s, n), rng.exponential(1.0, n) * length_s[bursts]), axis=1)
        lengths.append(spans.ravel())
        reached += float(spans.sum())
    return np.concatenate(kinds), np.concatenate(lengths)


def diurnal(traffic: Traffic, span_s: float, rng: np.random.Generator) -> Seconds:
    """A rate of `rate_per_s` x (1 + amplitude x sin), by thinning. The day goes by the time of the run, so a
    later phase finds it where it is."""
    peak = 1.0 + traffic.diurnal_amplitude
    times = unit(span_s * traffic.rate_per_s * peak, rng) / (traffic.rate_per_s * peak)
    days = (traffic.from_s + times) / traffic.diurnal_period_s + traffic.diurnal_phase
    level = 1.0 + traffic.diurnal_amplitude * np.sin(2 * np.pi * days)
    return times[rng.random(len(times)) * peak < level]


def flash(traffic: Traffic, span_s: float, rng: np.random.Generator) -> Seconds:
    """A flash crowd: the rate rises to a multiple, holds and falls. The rate outside is lowered so that the
    mean over this stretch is `rate_per_s`."""
    assert traffic.flash_at_s is not None
    assert traffic.flash_s is not None
    begin_s, ramp_s = traffic.flash_at_s - traffic.from_s, traffic.flash_ramp_s
    corners = begin_s + np.asarray((0.0, ramp_s, traffic.flash_s, traffic.flash_s + ramp_s))
    edges = np.concatenate(([min(0.0, begin_s)], corners, [max(span_s, corners[-1])]))
    levels = np.asarray((1.0, 1.0, traffic.flash_factor, traffic.flash_factor, 1.0, 1.0))
    knots, level = _within(edges, levels, span_s)
    mean = _areas(knots, level).sum() / span_s
    return piecewise(knots, level * traffic.rate_per_s / mean, rng)


def _within(edges: Seconds, levels: Seconds, span_s: float) -> tuple[Seconds, Seconds]:
    """The pieces of a line through (edge, level), cut to [0, span_s]: knots, two per piece, and levels."""
    lengths = np.diff(edges)
    slopes = np.divide(np.diff(levels), lengths, out=np.zeros_like(lengths), where=lengths > 0)
    low, high = np.clip(edges[:-1], 0.0, span_s), np.clip(edges[1:], 0.0, span_s)
    at_low, at_high = (levels[:-1] + (at - edges[:-1]) * slopes for at in (low, high))
    kept = high > low
    knots = np.stack((low[kept], high[kept]), axis=1).ravel()
    return knots, np.stack((at_low[kept], at_high[kept]), axis=1).ravel()


def _areas(knots: Seconds, rates: Seconds) -> Seconds:
    """What arrives on average between each two knots."""
    areas: Seconds = np.diff(knots) * (rates[1:] + rates[:-1]) / 2
    return areas


def piecewise(knots: Seconds, rates: Seconds, rng: np.random.Generator) -> Seconds:
    """Poisson arrivals at a rate that runs linearly between the knots (s, ascending; two equal ones make a
    step)."""
    lengths = np.diff(knots)
    reached = np.concatenate(([0.0], np.cumsum(_areas(knots, rates))))
    wanted = unit(float(reached[-1]), rng)
    piece = np.searchsorted(reached, wanted, side="right") - 1
    slopes = np.divide(np.diff(rates), lengths, out=np.zeros_like(lengths), where=lengths > 0)
    rest, rate, slope = wanted - reached[piece], rates[:-1][piece], slopes[piece]
    root = np.sqrt(np.maximum(rate**2 + 2 * slope * rest, 0.0))
    beyond = 2 * rest / np.maximum(rate + root, np.finfo(float).tiny)
    times: Seconds = np.minimum(knots[piece] + beyond, knots[piece + 1])
    inside: Seconds = times[times < knots[-1]]
    return inside


def unit(length: float, rng: np.random.Generator) -> Seconds:
    """A Poisson process of rate 1 on [0, length)."""
    parts: list[Seconds] = [np.empty(0)]
    reached = 0.0
    while reached < length:
        times = reached + np.cumsum(rng.standard_exponential(max(64, math.ceil((length - reached) * 1.05))))
        parts.append(times)
        reached = float(times[-1])
    times = np.concatenate(parts)
    return times[times < length]
