"""Student t intervals over seeds, and a ranking that does not count noise.

The interval of n scores x is  mean(x) +- t_{n-1} s / sqrt(n)  with s the sample
standard deviation (n - 1 below the line) and t_{n-1} the 97.5 % quantile of
Student's t with n - 1 degrees of freedom: 95 %, two-sided. One score has no
interval.

Arms are compared on the seeds that all of them finished. Seed s sees the same
batches in every arm, so what a seed does to all arms cancels in their
differences:

  x_as = m_a + b_s + e_as    A arms a, S seeds s; e normal, independent
  v_a  = A / ((A - 1) (S - 1))  sum_s (x_as - x_a. - x_.s + x_..)^2
  h_ab = q sqrt(max(v_a, v_b, v) / S)    v the mean of v_a over all arms

The intervals  x_a. - x_b. +- h_ab  hold for all pairs at once in 95 % of
comparisons, whichever arm the data put first: q is the 95 % quantile of the
studentised range of A means with (A - 1) (S - 1) degrees of freedom (Tukey's
honest significant difference), and v alone below the root would be exact where
every arm is equally noisy. That every pair is held to the noise of its noisier
arm as well is for arms that are not: with v alone, one arm of 20 that is ten
times as noisy as the others lets equal arms be told apart in 36 % of
comparisons of 3 seeds. With it that is 2 to 4 % where noise is equal, and where
it is not 9 % at most from 3 seeds on, 15 % with 2 (simulated: noise 3 or 10
times as large in one, two or half of 3, 5, 11 or 20 arms, or lognormal). Arms
that solve a task on some seeds and not on others are told apart in 6 % at most,
though nothing there is normal. For two arms it is the paired t interval.

t intervals of each pair by itself, with Holm's or Bonferroni's correction,
would need no assumption about other arms, and tell next to nothing apart: with
3 seeds they ask for a difference of 14 standard errors between 5 arms and of 61
between 20, where q asks for 3.5 and 3.8.

An arm's rank is a range: one more than the number of arms that are told apart
from it as better, to the number of arms less those told apart as worse. All
the true ranks lie in these ranges in 95 % of comparisons (Al Mohamad, van Zwet
and Goeman 2017, https://arxiv.org/abs/1708.02729). Where the ranges of two arms
do not overlap they are told apart, or an arm between them is from both.

A run that diverged has no score (None, or a number that is not finite). It is
left out of every mean here, and named wherever the mean is given.
"""

import functools
import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from scipy import special

Scores = Mapping[int, float | None]  # seed -> score, None where it diverged


class Interval(NamedTuple):
  """`mean` +- `half` at 95 %; `half` is None for one score."""

  mean: float
  half: float | None
  count: int  # scores


class Place(NamedTuple):
  """One arm's line of a ranking."""

  arm: str
  rank: int | None  # the best it may have; None where a seed diverged
  last: int | None  # the worst
  score: Interval | None  # over `seeds`
  gap: Interval | None  # this arm minus the first
  seeds: tuple[int, ...]  # common to all that are ranked; else its own
  diverged: tuple[int, ...]  # seeds


def interval(scores: Iterable[float]) -> Interval:
  """The mean and its 95 % Student t interval. ValueError without scores."""
  x = np.asarray(list(scores), np.float64)
  if not x.size or not np.isfinite(x).all():
    raise ValueError(f"an interval needs finite scores, got {x.tolist()}")
  if x.size == 1:
    return Interval(float(x[0]), None, 1)
  half = special.stdtrit(x.size - 1, 0.975) * x.std(ddof=1) / math.sqrt(x.size)
  return Interval(float(x.mean()), float(half), x.size)


@functools.cache
def quantile(arms: int, seeds: int) -> float:
  """q of the module's formula."""
  from scipy import stats  # takes a second, which only a ranking should cost

  freedom = (arms - 1) * (seeds - 1)
  return float(stats.studentized_range.ppf(0.95, arms, freedom))


def halves(x: np.ndarray) -> np.ndarray:
  """h_ab of the module's formula, ... A A, for scores ... A S.

  Infinite where there are fewer than two seeds.
  """
  *_, A, S = x.shape
  if A < 2 or S < 2:
    return np.full((*x.shape[:-1], A), np.inf)
  seed = x.mean(-2, keepdims=True) - x.mean((-2, -1), keepdims=True)
  left = x - x.mean(-1, keepdims=True) - seed
  v = (left**2).sum(-1) * A / ((A - 1) * (S - 1))
  v = np.maximum(v, v.mean(-1, keepdims=True))
  largest = np.maximum(v[..., :, None], v[..., None, :])
  return quantile(A, S) * np.sqrt(largest / S)


def finished(scores: Scores) -> dict[int, float]:
  """The seeds that have a score."""
  return {
    seed: score
    for seed, score in scores.items()
    if score is not None and math.isfinite(score)
  }


def rank(arms: Mapping[str, Scores], *, lower: bool) -> list[Place]:
  """Orders arms by their means over the seeds that all of them finished.

  Ranks, and the intervals of gaps, are those of the module's docstring. With
  fewer than two common seeds nothing is told apart; without any each arm's mean
  is of its own. An arm with a diverged seed has no rank and stands below those
  that finished: the mean of its survivors is a selection, and its gap has no
  interval. `lower`: whether lower is better.
  """
  done = {arm: finished(scores) for arm, scores in arms.items()}
  whole = [a for a in arms if done[a] and len(done[a]) == len(arms[a])]
  common = set(done[whole[0]]) if whole else set()
  common = sorted(common.intersection(*(done[arm] for arm in whole)))
  used = {
    arm: common if arm in whole and common else sorted(done[arm])
    for arm in arms
  }
  score = {
    arm: interval(done[arm][seed] for seed in seeds) if seeds else None
    for arm, seeds in used.items()
  }
  sign = 1 if lower else -1

  def order(arm):
    mean = sign * score[arm].mean if score[arm] else math.inf
    return arm not in whole, mean

  ordered = sorted(arms, key=order)
  A, S = len(whole), len(common)
  x = [[done[arm][seed] for seed in common] for arm in ordered[:A]]
  x = np.array(x).reshape(A, S)
  mean, half = x.sum(1) / max(S, 1), halves(x)
  told = np.abs(mean[:, None] - mean) > half

  places = []
  for i, arm in enumerate(ordered):
    ranked, gap = i < A, None
    both = sorted(set(used[arm]) & set(used[ordered[0]]))
    if i and A and both:
      gaps = [done[arm][seed] - done[ordered[0]][seed] for seed in both]
      own = float(half[i, 0]) if ranked and S > 1 else None
      gap = Interval(float(np.mean(gaps)), own, len(both))
    places.append(
      Place(
        arm,
        rank=1 + int(told[i, :i].sum()) if ranked else None,
        last=A - int(told[i, i:].sum()) if ranked else None,
        score=score[arm],
        gap=gap,
        seeds=tuple(used[arm]),
        diverged=tuple(sorted(arms[arm].keys() - done[arm].keys())),
      )
    )
  return places
