"""`cotenant study predictors`: every predictor on a data set of co-runs.

How this works. Steady sets and the splits `random`, `pair`, `workload` ask what a predictor makes of what
it has not seen, given the overlap: it is fitted on one part and asked about the other. `time` is
prequential: rows are predicted when they are dispatched, with nothing known but what was in flight, and
learned when they end, so labels come late; the first tenth of the rows is not scored. With a test set, each
is fitted on the training set alone; nothing of the test set is learned but profiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cotenant.clock import Clock
from cotenant.domain import NS_PER_S, Observation, Prediction
from cotenant.experiment.corun_events import Dispatched, Replay, lanes_of
from cotenant.experiment.datasets import Dataset
from cotenant.experiment.scores import Scores, block_bootstrap, overlap_share
from cotenant.experiment.splits import Sample, samples, split
from cotenant.ports import LaneInfo
from cotenant.predict.fluid import FluidPredictor
from cotenant.predict.pair_map import ReducedMap
from cotenant.predict.study_port import StudyPredictor
from cotenant.predict.zoo import ZOO
from cotenant.profile.features import FeatureTable

Make = Callable[[FeatureTable, Sequence[LaneInfo]], StudyPredictor]
UNSCORED = 0.1
"""Share of the rows of a prequential run that only warm up."""
SLO_LEVEL = 0.99
OURS = "fluid"


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyPlan:
    """What to study."""

    splits: tuple[str, ...] = ("random", "pair", "workload", "time")
    test_share: float = 0.2
    seeds: int = 5


@dataclass(slots=True, kw_only=True)
class Studied:
    """One predictor on one split."""

    predictor: str
    split: str
    scores: Scores

    def row(self) -> dict[str, Any]:
        """As it is printed and stored."""
        return {"predictor": self.predictor, "split": self.split, **self.scores.report()}


def study(
    dataset: Dataset,
    predictors: dict[str, Make],
    plan: StudyPlan,
    clock: Clock,
    progress: Callable[[str], None] = lambda what: None,
) -> Iterator[Studied]:
    """Every predictor on every split that the data set allows (`time` needs intervals)."""
    found = samples(dataset)
    for kind in plan.splits:
        if kind == "time":
            if dataset.steady:
                continue
            for name, make in predictors.items():
                progress(f"{kind}: {name}")
                scores = prequential(dataset, make(dataset.features, lanes_of(dataset)), clock)
                yield Studied(predictor=name, split=kind, scores=scores)
            continue
        parts = list(split(found, kind, test_share=plan.test_share, seeds=plan.seeds))
        for name, make in predictors.items():
            progress(f"{kind}: {name}")
            scores = Scores()
            for part in parts:
                predictor = make(dataset.features, lanes_of(dataset))
                scores.extend(fitted(predictor, part.train, part.test, clock))
            yield Studied(predictor=name, split=kind, scores=scores)


def known_predictors(only: Sequence[str] = ()) -> dict[str, Make]:
    """Ours and every baseline, or some of them. Raises ValueError for a name that is none."""

    def ours(features: FeatureTable, lanes: Sequence[LaneInfo]) -> StudyPredictor:
        return FluidPredictor(features, ReducedMap(features).begin(), lanes=lanes)

    known: dict[str, Make] = {OURS: ours, **ZOO}
    unknown = [name for name in only if name not in known]
    if unknown:
        raise ValueError(f"no predictor {', '.join(unknown)}; there are: {', '.join(known)}")
    return {name: make for name, make in known.items() if not only or name in only}


def study_sets(
    train: Dataset,
    test: Dataset | None,
    predictors: dict[str, Make],
    plan: StudyPlan,
    clock: Clock,
    progress: Callable[[str], None] = lambda what: None,
) -> Iterator[Studied]:
    """One data set against itself, or fitted on one and asked about the other."""
    if test is None:
        yield from study(train, predictors, plan, clock, progress)
    else:
        yield from study_test(train, test, predictors, clock, progress)


def study_test(
    train: Dataset,
    test: Dataset,
    predictors: dict[str, Make],
    clock: Clock,
    progress: Callable[[str], None] = lambda what: None,
) -> Iterator[Studied]:
    """Fitted on `train`, asked about every row of `test`, whose profiles are known."""
    features = FeatureTable(
        tuple(dict.fromkeys((*train.features.resources, *test.features.resources))),
        tuple(dict.fromkeys((*train.features.statics, *test.features.statics))),
    )
    for dataset in (train, test):
        for entry in dataset.features:
            features.add(dataset.features.aligned(entry, features))
    for name, make in predictors.items():
        progress(f"test: {name}")
        predictor = make(features, lanes_of(test))
        scores = fitted(predictor, samples(train), samples(test), clock)
        yield Studied(predictor=name, split="test", scores=scores)


def fitted(
    predictor: StudyPredictor, train: Sequence[Sample], test: Sequence[Sample], clock: Clock
) -> Scores:
    """Fit on one part, predict the other given its overlap. Spans are from start to end."""
    predictor.fit([sample.observation for sample in train])
    scores = Scores()
    for sample in test:
        o = sample.observation
        began = clock.now()
        span = predictor.given_overlap(o)
        spent_us = (clock.now() - began) / 1000
        actual = float(o.ended_at - o.started_at)
        scores.add(
            span,
            actual,
            given=span,
            given_actual=actual,
            n_most=len(o.overlaps) if any(x.ended_at is None for x in o.overlaps) else _most(o),
            overlap=_overlap(o),
            spent_us=spent_us,
        )
    return scores


def prequential(dataset: Dataset, predictor: StudyPredictor, clock: Clock) -> Scores:
    """Predict at dispatch, learn at the end; see the module's head. Spans are from dispatch to end."""
    replay = Replay(dataset)
    scores = Scores()
    spent: dict[int, float] = {}
    first_scored = int(UNSCORED * dataset.n)
    for event in replay:
        if isinstance(event, Dispatched):
            began = clock.now()
            forecast = predictor.predict(event.snapshot, [event.candidate])
            spent[event.number] = (clock.now() - began) / 1000
            replay.issue(
                event.number,
                Prediction(
                    issued_at=event.snapshot.at,
                    finish_at=tuple(forecast.finish_at[0]),
                    slo_level=SLO_LEVEL,
                    version=forecast.version,
                    corunners=len(event.snapshot.in_flight),
                    features=forecast.features[0] if forecast.features else (),
                ),
            )
            continue
        o = event.observation
        if event.number >= first_scored:
            issued = o.predictions[0]
            spans = [float(at - issued.issued_at) for at in issued.finish_at]
            scores.add(
                max(1.0, spans[0]),
                float(o.ended_at - issued.issued_at),
                upper=(spans[1], spans[2], spans[3]),
                given=predictor.given_overlap(o),
                given_actual=float(o.ended_at - o.started_at),
                n_most=event.n_most,
                overlap=_overlap(o),
                at_s=o.ended_at / NS_PER_S,
                spent_us=spent[event.number],
            )
        predictor.learn(o)
    return scores


def compared(studied: Sequence[Studied]) -> list[dict[str, Any]]:
    """Ours against every other on `time`: difference of mean errors with its interval over blocks of 60 s."""
    on_time = {s.predictor: s.scores for s in studied if s.split == "time"}
    ours = on_time.get(OURS)
    if ours is None:
        return []
    return [
        {"predictor": name, **block_bootstrap(ours, other)} for name, other in on_time.items() if name != OURS
    ]


def _most(o: Observation) -> int:
    """Most others at once."""
    changes = sorted(
        [(x.began_at, 1) for x in o.overlaps]
        + [(o.ended_at if x.ended_at is None else x.ended_at, -1) for x in o.overlaps]
    )
    return int(max(np.cumsum([change for _, change in changes]), default=0))


def _overlap(o: Observation) -> float:
    spans = [(x.began_at, o.ended_at if x.ended_at is None else x.ended_at) for x in o.overlaps]
    return overlap_share(spans, o.started_at, o.ended_at)
