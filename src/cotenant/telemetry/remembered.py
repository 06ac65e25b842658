"""Dispatches that have ended, as they are remembered."""

from __future__ import annotations

from msgspec import Struct, structs

from cotenant.domain import Alternative, Dispatch, Observation, Outcome, Overlap, Prediction, Variant

MOST_CORUNNERS = 64
"""Co-runners of a run that are remembered one by one."""


class Run(Struct, frozen=True, kw_only=True):
    """A dispatch that has ended and was observed, without its snapshot and features, which are large."""

    id: int
    variant: Variant
    rows: int
    n_requests: int
    lane: int
    decided_at: int
    latest_start_at: int | None
    started_at: int
    ended_at: int
    first_segment: int
    end_segment: int
    whole: bool
    staged: bool
    resumes: int | None
    predictions: tuple[Prediction, ...]
    overlaps: tuple[Overlap, ...]
    n_corunners: int
    why: str
    alternatives: tuple[Alternative, ...]
    beside: tuple[Variant, ...]

    @classmethod
    def of(cls, dispatch: Dispatch, seen: Observation) -> Run:
        """What is remembered of a dispatch and its observation."""
        n_run = len(seen.segment_ended_at) if seen.preempted else seen.end_segment - seen.first_segment
        return cls(
            id=dispatch.id,
            variant=dispatch.variant,
            rows=dispatch.rows,
            n_requests=len(dispatch.requests),
            lane=dispatch.lane,
            decided_at=dispatch.decided_at,
            latest_start_at=dispatch.latest_start_at,
            started_at=seen.started_at,
            ended_at=seen.ended_at,
            first_segment=seen.first_segment,
            end_segment=seen.first_segment + n_run,
            whole=not seen.preempted,
            staged=seen.staged,
            resumes=dispatch.resumes,
            predictions=tuple([bare(prediction) for prediction in seen.predictions]),
            overlaps=_longest(seen.overlaps, seen.ended_at),
            n_corunners=len(seen.overlaps),
            why=dispatch.why,
            alternatives=dispatch.alternatives,
            beside=beside(dispatch),
        )

    @classmethod
    def failed(cls, dispatch: Dispatch, outcome: Outcome) -> Run:
        """The same of a dispatch that failed and so was not observed."""
        return cls(
            id=dispatch.id,
            variant=dispatch.variant,
            rows=dispatch.rows,
            n_requests=len(dispatch.requests),
            lane=dispatch.lane,
            decided_at=dispatch.decided_at,
            latest_start_at=dispatch.latest_start_at,
            started_at=outcome.ended_at if outcome.started_at is None else outcome.started_at,
            ended_at=outcome.ended_at,
            first_segment=dispatch.first_segment,
            end_segment=dispatch.end_segment,
            whole=False,
            staged=False,
            resumes=dispatch.resumes,
            predictions=(bare(dispatch.prediction),),
            overlaps=(),
            n_corunners=0,
            why=dispatch.why,
            alternatives=dispatch.alternatives,
            beside=beside(dispatch),
        )


def _longest(overlaps: tuple[Overlap, ...], until: int) -> tuple[Overlap, ...]:
    """The longest of them: a long run may have had thousands."""
    if len(overlaps) <= MOST_CORUNNERS:
        return overlaps
    by_span = sorted(
        overlaps, key=lambda one: one.began_at - (until if one.ended_at is None else one.ended_at)
    )
    return tuple(by_span[:MOST_CORUNNERS])


def beside(dispatch: Dispatch) -> tuple[Variant, ...]:
    """What was in flight when it was decided."""
    return tuple([flight.variant for flight in dispatch.snapshot.in_flight])


def bare(prediction: Prediction) -> Prediction:
    """Without the features, which are many."""
    return structs.replace(prediction, features=()) if prediction.features else prediction
