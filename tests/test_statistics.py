"""Intervals against numbers worked out by hand, and who shares a rank."""

import math

import pytest

from train import statistics


def places(arms, lower=True):
  return [(p.arm, p.rank) for p in statistics.rank(arms, lower=lower)]


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


def test_pairs_cancel_what_a_seed_does():
  a = {1: 1.0, 2: 5.0, 3: 9.0}
  b = {1: 0.9, 2: 4.9, 3: 8.9, 4: 0.0}  # seed 4 has no partner
  mean, half, count = statistics.paired(a, b)
  assert mean == pytest.approx(0.1) and half < 1e-9 and count == 3
  # the arms' own intervals overlap by far, and yet they are told apart
  assert places({"a": a, "b": {s: b[s] for s in a}}) == [("b", 1), ("a", 2)]


def test_pairs_leave_out_diverged_seeds():
  gap = statistics.paired({1: 1.0, 2: None, 3: 3.0}, {1: 0.0, 2: 0.0, 4: 0.0})
  assert gap == (1.0, None, 1)
  assert statistics.paired({1: 1.0}, {2: 1.0}) is None


def arm(mean, *noise):
  return {seed: mean + n for seed, n in enumerate(noise)}


CLOSE = {
  "first": arm(1.0, 0.0, 0.0, 0.0),
  "near": arm(1.01, 0.05, -0.05, 0.0),
  "far": arm(2.0, 0.01, -0.01, 0.0),
}


def test_noise_shares_a_rank_and_the_next_takes_its_position():
  assert places(CLOSE) == [("first", 1), ("near", 1), ("far", 3)]


def test_direction():
  assert places(CLOSE, lower=False)[0] == ("far", 1)


def test_an_arm_is_held_against_the_best_of_its_group():
  arms = {
    "a": arm(1.0, 0.0, 0.0, 0.0),
    "b": arm(1.1, 0.001, -0.001, 0.0),  # not a
    "c": arm(1.101, 0.01, -0.01, 0.0),  # not a, but could be b
    "d": arm(1.2, 0.2, -0.2, 0.0),  # could be b, and a as well
    "e": arm(1.3, 0.001, -0.001, 0.0),  # could be d, but not b
  }
  assert places(arms) == [("a", 1), ("b", 2), ("c", 2), ("d", 2), ("e", 5)]


def test_one_seed_tells_nothing_apart():
  assert places({"a": {1: 1.0}, "b": {1: 9.0}}) == [("a", 1), ("b", 1)]


def test_a_diverged_seed_costs_the_rank():
  arms = CLOSE | {
    "broken": {0: 0.1, 1: None, 2: math.nan},
    "gone": {0: None, 1: None, 2: None},
    "missing": {},
  }
  ranking = statistics.rank(arms, lower=True)
  assert [p.arm for p in ranking[:3]] == ["first", "near", "far"]
  broken, gone, missing = ranking[3:]
  assert broken.rank is None and broken.diverged == (1, 2)
  assert broken.score == (0.1, None, 1)  # of the seed that survived
  assert broken.gap.mean == pytest.approx(-0.9)
  assert gone.rank is None and gone.score is None and gone.gap is None
  assert missing.rank is None and missing.diverged == ()


def test_gap_is_to_the_first():
  first, _, far = statistics.rank(CLOSE, lower=True)
  assert first.gap is None
  assert far.gap.mean == pytest.approx(1.0)
