"""Student t intervals over seeds, and a ranking that does not count noise.

The interval of n scores x is  mean(x) +- t_{n-1} s / sqrt(n)  with s the sample
standard deviation (n - 1 below the line) and t_{n-1} the 97.5 % quantile of
Student's t with n - 1 degrees of freedom: 95 %, two-sided. One score has no
interval. Two arms are compared by the interval of their differences, seed by
seed: seed s sees the same batches in every arm, so that what the seed does to
both cancels.

A run that diverged has no score (None, or a number that is not finite). It is
left out of every mean here, and named wherever the mean is given.
"""

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
  count: int

  @property
  def holds_zero(self) -> bool:
    """Whether 0 is possible; one score alone excludes nothing."""
    return self.half is None or abs(self.mean) <= self.half


class Place(NamedTuple):
  """One arm's line of a ranking."""

  arm: str
  rank: int | None  # None where a seed diverged, or where there is no score
  score: Interval | None  # over the seeds that did not diverge
  gap: Interval | None  # this arm minus the first, over their common seeds
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


def finished(scores: Scores) -> dict[int, float]:
  """The seeds that have a score."""
  return {
    seed: score
    for seed, score in scores.items()
    if score is not None and math.isfinite(score)
  }


def paired(a: Scores, b: Scores) -> Interval | None:
  """The interval of a - b over the seeds that both finished; None without."""
  a, b = finished(a), finished(b)
  common = sorted(a.keys() & b.keys())
  return interval([a[seed] - b[seed] for seed in common]) if common else None


def rank(arms: Mapping[str, Scores], *, lower: bool) -> list[Place]:
  """Orders arms by mean; arms that noise could swap share a rank.

  Standard competition ranking (1, 1, 3): going down the order of means, an arm
  shares the rank of the best arm of the current group unless the interval of
  their paired difference excludes 0; then it opens the next group, and its rank
  is its position. An arm is held against the best of its group only, since
  being indistinguishable is not transitive. With one seed, or without common
  seeds, no interval exists and nothing is distinguishable. An interval is that
  of one pair: nothing is added for the number of pairs looked at.

  An arm with a diverged seed has no rank and stands below those that finished:
  the mean of its survivors is a selection. `lower`: whether lower is better.
  """
  sign = 1 if lower else -1

  def order(item):
    scores = finished(item[1])
    mean = sign * interval(scores.values()).mean if scores else math.inf
    return len(scores) < len(item[1]) or not scores, mean

  places = []
  first = best = None
  shared = 0
  for position, (arm, scores) in enumerate(sorted(arms.items(), key=order), 1):
    done = finished(scores)
    diverged = tuple(sorted(scores.keys() - done.keys()))
    ranked = bool(done) and not diverged
    gap = paired(scores, first) if first is not None else None
    if ranked:
      if best is None:
        first = best = scores
        shared = position
      else:
        difference = paired(scores, best)
        if difference is not None and not difference.holds_zero:
          best, shared = scores, position
    score = interval(done.values()) if done else None
    places.append(Place(arm, shared if ranked else None, score, gap, diverged))
  return places
