"""The contract checks find what they are there to find: each is failed by a predictor broken in that way."""

from __future__ import annotations

import itertools

import pytest
from msgspec.structs import replace as with_fields

from cotenant.predict.zoo.at_dispatch import AtDispatch
from cotenant.predict.zoo.log_additive import LogAdditive
from cotenant.testing.predictor_checks import CHECKS, PredictorChecks


class Sound(AtDispatch):
    def __init__(self, features, lanes):
        super().__init__("sound", features, lanes, LogAdditive)


class LooksAtTheFirst(Sound):
    """Takes whoever comes first for all."""

    def predict(self, snapshot, candidates):
        first = with_fields(snapshot, in_flight=snapshot.in_flight[:1])
        found = super().predict(first, candidates)
        whole = super().predict(snapshot, candidates)
        return with_fields(whole, finish_at=found.finish_at, features=found.features)


class Counts(Sound):
    """Answers more the more it is asked."""

    def __init__(self, features, lanes):
        super().__init__(features, lanes)
        self.n_asked = 0

    def predict(self, snapshot, candidates):
        self.n_asked += 1
        found = super().predict(snapshot, candidates)
        return with_fields(found, finish_at=[[at + self.n_asked for at in row] for row in found.finish_at])


class Descends(Sound):
    def predict(self, snapshot, candidates):
        found = super().predict(snapshot, candidates)
        return with_fields(found, finish_at=[row[::-1] for row in found.finish_at])


class Forgets(Sound):
    def restore(self, state):
        pass


class Takes(Sound):
    """Refuses nothing."""

    def learn(self, observation):
        found = super().learn(observation)
        self.version += found is None
        return self.version


class Pessimist(Sound):
    def given_overlap(self, observation):
        return 1.5 * super().given_overlap(observation)


class Unseeded(Sound):
    seeds = itertools.count()

    def __init__(self, features, lanes):
        super().__init__(features, lanes)
        self.seed = next(self.seeds)

    def given_overlap(self, observation):
        return super().given_overlap(observation) + self.seed


@pytest.mark.parametrize("check", CHECKS)
def test_a_sound_predictor_passes(check):
    getattr(PredictorChecks(Sound), check)()


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (LooksAtTheFirst, "check_the_order_of_corunners_does_not_matter"),
        (Counts, "check_asking_never_changes_an_answer"),
        (Descends, "check_quantiles_ascend_and_the_future_is_ahead"),
        (Forgets, "check_a_stored_state_restores_to_identical_predictions"),
        (Forgets, "check_a_damaged_state_is_refused"),
        (Takes, "check_impossible_observations_are_refused"),
        (Pessimist, "check_alone_a_run_takes_about_its_solo_span"),
        (Unseeded, "check_the_same_teaching_gives_the_same_predictions"),
    ],
)
def test_a_broken_predictor_fails(broken, check):
    with pytest.raises(AssertionError):
        getattr(PredictorChecks(broken), check)()
