"""Intervals against numbers worked out by hand, and what a rank claims."""

import math

import numpy as np
import pytest

from train import statistics


def places(arms, lower=True):
  return [(p.arm, p.rank, p.last) for p in statistics.rank(arms, lower=lower)]


def test_interval_by_hand():
  # mean 2, s = 1, t at 97.5 % with 2 degrees of freedom = 4.302653
  mean, half, count = statistics.interval([1.0, 2.0, 3.0])
  assert (mean, count) == (2.0, 3)
  assert half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)


def test_one_score_has_no_interval():
  assert statistics.interval([2.0]) == (2.0, None, 1)


@pytest.mark.parametrize("scores", [[], [1.0, math.nan], [math.inf]])
def test_interval_refuses_what_is_no_score(scores):
  with pytest.raises(ValueError, match="finite scores"):
    statistics.interval(scores)


def test_two_arms_are_a_paired_t_test():
  a, b = [1.0, 5.0, 9.0], [0.9, 5.2, 8.7]
  half = statistics.halves(np.array([a, b]))
  (_, paired, _) = statistics.interval(np.subtract(a, b))
  assert half[0, 1] == pytest.approx(paired, rel=1e-6)


def test_halves_by_hand():
  # the residuals of the noisy arms are 2 and -2, hence v_a = 32 / 3, 0, 0 and
  # 32 / 3, v = 16 / 3; q of 4 means with 3 degrees of freedom is 6.8245
  x = np.array([[2.0, -2.0], [10.0, 10.0], [8.0, 8.0], [6.0, 10.0]])
  half = statistics.halves(x)
  assert half[0, 1] == pytest.approx(6.8245 * math.sqrt(16 / 3), rel=1e-4)
  assert half[1, 2] == pytest.approx(6.8245 * math.sqrt(8 / 3), rel=1e-4)


def test_what_a_seed_does_to_all_arms_cancels():
  a = {1: 1.0, 2: 5.0, 3: 9.0}
  b = {seed: score - 0.1 for seed, score in a.items()}
  # the arms' own intervals overlap by far, and yet they are told apart
  assert places({"a": a, "b": b}) == [("b", 1, 1), ("a", 2, 2)]


def test_arms_are_ordered_and_tested_on_the_same_seeds():
  # on the seeds that both have b is better by .0100 +- .0025; two lucky seeds
  # more give a the better mean
  a = {1: 1.010, 2: 1.021, 3: 1.009, 4: 0.9, 5: 0.9}
  b = {1: 1.000, 2: 1.010, 3: 1.000}
  first, second = statistics.rank({"a": a, "b": b}, lower=True)
  assert (first.arm, first.rank, second.arm, second.rank) == ("b", 1, "a", 2)
  assert second.gap == pytest.approx((0.01, 0.0025, 3), abs=1e-4)
  assert second.seeds == (1, 2, 3) and second.score.count == 3


def told_apart(count, seeds, noisy=1.0, runs=1000):
  """In what share of comparisons of equal arms some are told apart."""
  rng = np.random.default_rng(0)
  x = rng.standard_normal((runs, count, seeds))
  x[:, 0] *= noisy
  x += 5 * rng.standard_normal((runs, 1, seeds))  # what a seed does to all
  mean = x.mean(-1)
  apart = np.abs(mean[:, :, None] - mean[:, None]) > statistics.halves(x)
  apart = apart.any((1, 2))
  # and rank says just that
  for scores, expected in zip(x[:9], apart[:9], strict=True):
    arms = {i: dict(enumerate(row)) for i, row in enumerate(scores)}
    ranking = statistics.rank(arms, lower=True)
    assert expected == any((p.rank, p.last) != (1, count) for p in ranking)
  return apart.mean()


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize("count", [5, 11, 20])
def test_equal_arms_are_told_apart_in_at_most_5_percent(count, seeds):
  assert told_apart(count, seeds) <= 0.05


@pytest.mark.parametrize("noisy", [3.0, 10.0])
@pytest.mark.parametrize("count", [5, 11, 20])
def test_an_arm_of_more_noise_hardly_changes_that(count, noisy):
  assert told_apart(count, 3, noisy) <= 0.09


def test_a_rank_is_a_range():
  arms = {
    "a": arm(1.0, 0.01, -0.01, 0.0),
    "b": arm(1.1, -0.01, 0.0, 0.01),
    "c": arm(1.13, 0.0, 0.01, -0.01),  # may be b, but not a
    "d": arm(2.0, 0.0, 0.0, 0.0),
    "e": arm(1.04, 0.05, -0.06, 0.01),  # too noisy to say
  }
  expected = {"a": (1, 2), "b": (2, 4), "c": (2, 4), "d": (5, 5), "e": (1, 4)}
  found = places(arms)
  assert [name for name, *_ in found] == ["a", "e", "b", "c", "d"]
  assert {name: tuple(ends) for name, *ends in found} == expected


def arm(mean, *noise):
  return {seed: mean + n for seed, n in enumerate(noise)}


CLOSE = {
  "first": arm(1.0, 0.0, 0.0, 0.0),
  "near": arm(1.01, 0.05, -0.05, 0.0),
  "far": arm(2.0, 0.01, -0.01, 0.0),
}


def test_noise_shares_a_rank_and_the_next_takes_its_position():
  assert places(CLOSE) == [("first", 1, 2), ("near", 1, 2), ("far", 3, 3)]


def test_direction():
  assert places(CLOSE, lower=False)[0] == ("far", 1, 1)


@pytest.mark.parametrize("other", [{1: 9.0}, {2: 9.0}, {1: 9.0, 2: 9.1}])
def test_without_two_common_seeds_nothing_is_told_apart(other):
  assert places({"a": {1: 1.0}, "b": other}) == [("a", 1, 2), ("b", 1, 2)]


def test_a_diverged_seed_costs_the_rank():
  arms = CLOSE | {
    "broken": {0: 0.1, 1: None, 2: math.nan},
    "gone": {0: None, 1: None, 2: None},
    "missing": {},
  }
  ranking = statistics.rank(arms, lower=True)
  assert [p.arm for p in ranking[:3]] == ["first", "near", "far"]
  assert ranking[:3] == statistics.rank(CLOSE, lower=True)
  broken, gone, missing = ranking[3:]
  assert broken.rank is None and broken.diverged == (1, 2)
  assert broken.score == (0.1, None, 1)  # of the seed that survived
  assert broken.gap == pytest.approx((-0.9, None, 1))
  assert gone.rank is None and gone.score is None and gone.gap is None
  assert missing.rank is None and missing.diverged == ()
  assert all(p.rank is None for p in statistics.rank({"m": {}}, lower=True))


def test_gap_is_to_the_first():
  first, near, far = statistics.rank(CLOSE, lower=True)
  assert first.gap is None
  assert far.gap.mean == pytest.approx(1.0)
  # the interval that decides
  assert near.gap.half > abs(near.gap.mean)
  assert far.gap.half < abs(far.gap.mean)
