"""The strongest published practice: gradient boosting with quantiles, grown anew on a window of completions.

Source: llm-d/llm-d-latency-predictor, `training_server.py` (200 trees of depth 6, rate 0.05, columns sampled
0.8, leaf weight 5, quantile loss). There it predicts one model's latency from the state of its server; here
the same from what corresponds to it under co-location: solo profile, sums of the co-runners' profiles, how
far each co-runner is, number in flight, load. Differences: scikit-learn's histogram trees (no row sampling),
the latest `WINDOW` completions instead of a stratified buffer, grown anew every `EVERY` completions instead
of every so many seconds; targets are log(span / solo span).

`boosting-online` answers with its quantile models; `boosting-online-conformal` scales the calibrator's
offsets by their spread (Lei et al., Distribution-Free Predictive Inference for Regression, JASA 2018,
section 5.2).

Longer than its neighbours: it needs the state at dispatch, so it is a predictor by itself and no
`SlowdownModel`.

Choose it where completions are plenty and features tell the situation: it sees overlap at dispatch, adapts,
and needs no model of the device. It fails after a change until the window has turned over, on workloads
unlike any seen, at small spans (milliseconds per prediction), and its quantiles miss their coverage (no
feedback).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import msgspec
import numpy as np

from cotenant.domain import Candidate, InFlight, LoadEstimate, Observation, Snapshot
from cotenant.ports import Forecast, LaneInfo
from cotenant.predict.solo import possible
from cotenant.predict.zoo.encoding import Encoder
from cotenant.predict.zoo.margins import Margins, MarginsState, finish, remaining
from cotenant.predict.zoo.quantile_trees import NEUTRAL, QuantileTrees
from cotenant.predict.zoo.seam import Array, Other, Stored, array_of, decoded, presence, stored
from cotenant.predict.zoo.workloads import Workloads
from cotenant.predict.zoo.wrapped import LEAST_LEFT
from cotenant.profile.features import FeatureTable, WorkloadFeatures

WINDOW, EVERY, FEWEST = 2000, 200, 100
N_EACH = 4
"""Co-runners whose progress is told one by one; those with most left first."""
N_STATE = 2 * N_EACH + 5
UNKNOWN = -99.0
"""Of an input that was not measured; farther out than any that was, so that trees can tell."""
FORMAT = 1


class _State(msgspec.Struct):
    format: int
    name: str
    version: int
    n_since: int
    n_refused: int
    trained: Stored
    samples: Stored
    margins: MarginsState


class BoostingOnline:
    """Implements `StudyPredictor`."""

    def __init__(
        self, name: str, features: FeatureTable, lanes: Sequence[LaneInfo], *, conformal: bool, seed: int = 0
    ) -> None:
        self.name, self.version, self.n_refused = name, 0, 0
        self._conformal = conformal
        self.workloads, self._margins = Workloads(features, lanes), Margins()
        self._encode = Encoder(self.workloads.table)
        self._n_pair = 2 * self._encode.n + 1
        self.n_inputs = self._n_pair + N_STATE
        self._samples: deque[Array] = deque(maxlen=WINDOW)
        self._n_since = 0
        self._trees = QuantileTrees(self.n_inputs, self._n_pair, seed)

    # --- asking -------------------------------------------------------------------------------------------

    def predict(self, snapshot: Snapshot, candidates: Sequence[Candidate]) -> Forecast:
        """See `StudyPredictor.predict`."""
        at = snapshot.at
        flying: list[InFlight | Candidate] = list(snapshot.in_flight)
        worlds: list[list[InFlight | Candidate]] = [flying, *[[*flying, one] for one in candidates]]
        inputs = [self._inputs(i, world, snapshot) for world in worlds for i in range(len(world))]
        logs = self._trees.logs(np.array(inputs).reshape(-1, self.n_inputs))
        answers = iter(zip(inputs, logs, strict=True))
        in_flight, finish_at, features = [], [], []
        for world in worlds:
            ends: list[list[int]] = []
            until: dict[int, float] = {}
            for run in world:
                x, log = next(answers)
                solo = self.workloads.victim(run.variant, run.share).solo_ns
                base, offsets, scale = self._margin(run, log, solo, len(world) - 1, at)
                if isinstance(run, Candidate):
                    base += until.get(run.lane, float(max(0, run.start_at - at)))
                    finish_at.append(finish(at, base, offsets))
                    features.append((base, scale, *x.tolist()))
                    continue
                left = max(LEAST_LEFT * solo, base - (at - run.decided_at))
                if run.lane >= 0:
                    until[run.lane] = left
                ends.append(remaining(at, left, at - run.decided_at, offsets))
            in_flight.append(ends)
        return Forecast(
            finish_at=finish_at,
            in_flight_finish_at=in_flight[1:],
            baseline_finish_at=in_flight[0],
            version=self.version,
            features=features,
        )

    def _margin(
        self, run: InFlight | Candidate, log: Array, solo: float, n_beside: int, at: int
    ) -> tuple[float, list[float], float]:
        """Median (ns), log offsets of the levels, and the run's spread beside the usual one."""
        scale = self._trees.relative_spread(log)
        own = (log - log[0]).tolist()
        offsets = [*own, own[-1]]
        if self._conformal or not self._trees.grown:
            upper = self._margins.offsets(run.variant.model, n_beside, at)[1:]
            offsets = [0.0, *(max(0.0, scale * offset) for offset in upper)]
        return solo * math.exp(float(log[0])), offsets, scale

    def _inputs(self, i: int, world: Sequence[InFlight | Candidate], snapshot: Snapshot) -> Array:
        me = world[i]
        victim = self.workloads.victim(me.variant, me.share)
        others, progress = [], []
        for k, run in enumerate(world):
            if k != i:
                other = self.workloads.beside(run.variant, run.share, run.lane, me.lane)
                started = None if isinstance(run, Candidate) else run.started_at
                elapsed = 0.0 if started is None else (snapshot.at - started) / other.solo_ns
                others.append((other, 1.0))
                progress.append((max(0.0, 1.0 - elapsed) * other.solo_ns / victim.solo_ns, elapsed))
        return self._vector(victim, others, progress, snapshot.load)

    def _vector(
        self,
        victim: WorkloadFeatures,
        others: Sequence[Other],
        progress: Sequence[tuple[float, float]],
        load: LoadEstimate | None,
    ) -> Array:
        """`progress`: of each co-runner the solo work left (in the victim's solo spans) and share done."""
        state = np.full(N_STATE, UNKNOWN)
        for k, (left, done) in enumerate(sorted(progress, reverse=True)[:N_EACH]):
            state[2 * k], state[2 * k + 1] = left, done
        if load is not None:
            state[-5:-1] = load.busy, load.refill, load.fill_per_s, load.span_ns
        state[-1] = len(others)
        return np.concatenate([self._pair(victim, others), state])

    def _pair(self, victim: WorkloadFeatures, others: Sequence[Other]) -> Array:
        return np.nan_to_num(self._encode.pair(victim, others), nan=UNKNOWN)

    def given_overlap(self, observation: Observation) -> float:
        """See `StudyPredictor.given_overlap`: a model of its own, of the shares that others were present."""
        row = self.workloads.row(observation)
        if row is None:
            return self.workloads.victim(observation.variant, observation.share).solo_ns
        work = self.workloads.work_ns(row.victim, observation)
        if presence(row.others) <= 0:
            return work
        return work * math.exp(self._trees.given_presence(self._pair(row.victim, row.others)))

    # --- learning -----------------------------------------------------------------------------------------

    def fit(self, observations: Sequence[Observation]) -> None:
        """See `StudyPredictor.fit`."""
        for observation in observations:
            self._take(observation)
        if len(self._samples) >= 8:
            self._grow()

    def learn(self, observation: Observation) -> int | None:
        """See `StudyPredictor.learn`."""
        if not self._take(observation):
            return None
        issued = observation.predictions[0].features if observation.predictions else ()
        self._margins.learn(observation, issued[1] if len(issued) > 1 else NEUTRAL)
        self.version += 1
        self._n_since += 1
        if self._n_since >= (EVERY if self._trees.grown else FEWEST):
            self._grow()
        return self.version

    def _grow(self) -> None:
        self._trees.grow(np.array(self._samples))
        self._n_since = 0
        self.version += 1

    def _take(self, observation: Observation) -> bool:
        if not possible(observation):
            self.n_refused += 1
            return False
        row = self.workloads.row(observation)
        if row is None:
            return False
        issued = observation.predictions[0].features if observation.predictions else ()
        if len(issued) == 2 + self.n_inputs:
            x = np.array(issued[2:])
        else:  # nothing was issued: as far as the overlaps tell
            there = [o for o in observation.overlaps if o.began_at <= observation.started_at]
            beside = self.workloads.beside
            others = [(beside(o.variant, o.share, o.lane, observation.lane), 1.0) for o in there]
            x = self._vector(row.victim, others, (), None)
        work = self.workloads.work_ns(row.victim, observation)
        log = math.log(min(50.0, max(0.4, observation.span_ns / work)))
        known = math.log(min(50.0, max(0.4, row.slowdown)))
        self._samples.append(np.concatenate([x, self._pair(row.victim, row.others), [log, known]]))
        return True

    # --- state --------------------------------------------------------------------------------------------

    def state(self) -> bytes:
        """See `StudyPredictor.state`."""
        samples = np.array(self._samples).reshape(-1, self._trees.n_sample)
        return msgspec.msgpack.encode(
            _State(
                FORMAT, self.name, self.version, self._n_since, self.n_refused, stored(self._trees.samples),
                stored(samples), self._margins.state(),
            )
        )  # fmt: skip

    def restore(self, state: bytes) -> None:
        """Trees are grown again from the window that they were grown from."""
        found = decoded(state, _State)
        if (found.format, found.name) != (FORMAT, self.name):
            raise ValueError(f"the learned state is of {found.name!r}, expected {self.name!r}")
        trained, samples = array_of(found.trained), array_of(found.samples)
        n = self._trees.n_sample
        if (*trained.shape[1:], *samples.shape[1:]) != (n, n):
            raise ValueError(f"the learned state does not have {n} numbers per sample")
        self._margins.restore(found.margins)
        self._samples = deque(samples, maxlen=WINDOW)
        self._trees.grow(trained)
        self._n_since, self.version, self.n_refused = found.n_since, found.version, found.n_refused
