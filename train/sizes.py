"""Solves a config's sizes for a number of parameters, or of FLOPs a token.

Depth and head size stay; the width D = model.dim and one second size s, which
the config names in `match`, are solved. D goes in steps of 8, or of what the
heads demand; s in steps of 1, or of what the config accepts: a state of pairs
is even. Where `match.grows`, s is usually in proportion to D
(a channel's width), else it is usually the config's own (a state's width).
Among the pairs within 1 % of the budget, that with the most usual s wins.
"""

import functools
import math
from collections.abc import Callable

import jax
import ml_collections

from arch import arrays, lm
from arch.config import closest
from arch.count import forward

STEP, TOLERANCE = 8, 0.01
WIDEST = 16_384
NEAR = 4  # widths to each side of the usual proportions that are tried
SPAN = 8  # steps over which a slope is taken


def get(cfg, path: str):
  """cfg.a.b.c for "a.b.c"; ValueError where the config sets no such field."""
  for name in path.split("."):
    if name not in cfg:
      raise ValueError(
        f"match.size={path!r} must name a field that the config sets: there is "
        f"no {name!r}. {closest(name, cfg)}"
      )
    cfg = cfg[name]
  return cfg


def put(cfg, path: str, value):
  inner, _, last = path.rpartition(".")
  get(cfg, inner)[last] = value


def parameters(cfg) -> int:
  params, _ = arrays.pure(lm.abstract(cfg.model))
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def flops(cfg) -> float:
  """Those a token of a pass forward, as the tables have them."""
  return forward(lm.abstract(cfg.model), cfg.model.length).total


MEASURES = {"parameters": parameters, "FLOPs a token": flops}


def solve(cfg, budget: int, of="parameters") -> ml_collections.ConfigDict:
  """cfg with model.dim and its second size solved for a budget.

  Args:
    of: what it is a budget of, a name of MEASURES.

  Raises:
    ValueError: no width reaches the budget, with the range that they do, or
      no second size comes within 1 % of it.
  """
  cfg = cfg.copy_and_resolve_references()
  cfg.unlock()
  dim, second = cfg.model.dim, get(cfg, cfg.match.size)

  @functools.cache
  def count(D, s):
    cfg.model.dim = D
    put(cfg, cfg.match.size, s)
    return MEASURES[of](cfg)

  part = grain(lambda s: count(dim, s), second)
  least = smallest(lambda s: count(dim, s), part, second)

  def usual(D):
    if not cfg.match.grows:
      return second
    return part * max(1, round(second * D / dim / part))

  step = demanded(lambda D: count(D, usual(D)), dim)

  def by(width):  # in steps
    return count(width * step, usual(width * step))

  # the least width that is enough: between halves or doubles of the config's
  widest = WIDEST // step
  low, high = 0, max(1, dim // step)
  while by(high) < budget and high < widest:
    low, high = high, min(2 * high, widest)
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (low, middle) if by(middle) >= budget else (middle, high)
  if by(high) * (1 + TOLERANCE) < budget or (
    high == 1 and count(step, least) / (1 + TOLERANCE) > budget
  ):
    raise ValueError(
      f"no width reaches {budget:,} {of}: they go from "
      f"{count(step, least):,.0f} at model.dim={step} and {cfg.match.size}="
      f"{least} to {by(widest):,.0f} at model.dim={widest * step}"
    )
  found = []
  for near in range(NEAR):
    for width in (high - 1 - near, high + near):
      D = width * step
      if D < 1:
        continue
      s = nearest(lambda s, D=D: count(D, s), usual(D), least, part, budget)
      error = abs(count(D, s) / budget - 1)
      if error <= TOLERANCE:
        found.append((abs(math.log(s / usual(D))), error, D, s))
    if found:  # farther off the second size only departs more from the usual
      break
  if not found:
    below = max(1, high - 1)
    raise ValueError(
      f"no {cfg.match.size} comes within {TOLERANCE:.0%} of {budget:,} {of}: "
      f"model.dim={high * step} and the usual {usual(high * step)} have "
      f"{by(high):,.0f}, and model.dim={below * step} has {by(below):,.0f}"
    )
  _, _, D, s = min(found)
  cfg.model.dim = D
  put(cfg, cfg.match.size, s)
  return cfg.lock()


def demanded(count: Callable[[int], int], dim: int) -> int:
  """The least multiple of 8 whose multiples the model accepts as a width."""
  for step in range(STEP, dim + 1, STEP):
    if dim % step == 0:
      try:
        count(step)
        return step
      except ValueError:
        continue
  count(dim)  # raises what is wrong with the config's own width
  return dim


def grain(count: Callable[[int], int], size: int) -> int:
  """The least step that the model accepts from the config's second size on."""
  for step in range(1, size):
    if size % step == 0:
      try:
        count(size + step)
        return step
      except ValueError:
        continue
  return size


def smallest(count: Callable[[int], int], step: int, size: int) -> int:
  """The least second size that the model accepts, in steps."""
  for s in range(step, size, step):
    try:
      count(s)
      return s
    except ValueError:
      continue
  return size


def nearest(
  count: Callable[[int], int], usual: int, least: int, step: int, budget: int
) -> int:
  """The size from `least` on whose count is nearest the budget, in steps, of a
  count that is nearly affine: at once, where it is."""
  slope = (count(usual + SPAN * step) - count(usual)) / SPAN
  size, tried = usual, {}
  while size not in tried and len(tried) < 6:
    tried[size] = abs(count(size) - budget)
    if slope > 0:
      off = round((budget - count(size)) / slope)
      size = max(least, size + step * off)
  return min(tried, key=tried.get)
