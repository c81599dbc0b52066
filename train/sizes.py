"""Solves a config's sizes for a number of parameters.

Depth and head size stay; the width D = model.dim and one second size s, which
the config names in `match`, are solved. D goes in steps of 8, or of what the
heads demand; s is whole. Where `match.grows`, s is usually in proportion to D
(a channel's width), else it is usually the config's own (a state's width).
Among the pairs within 1 % of the budget, that with the most usual s wins.
"""

import math
from collections.abc import Callable

import jax
import ml_collections

from arch import lm
from arch.layers import closest

STEP, TOLERANCE = 8, 0.01
WIDEST = 16_384
NEAR = 4  # widths to each side of the usual proportions that are tried


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
  params, _ = lm.pure(lm.abstract(cfg.model))
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def solve(cfg, budget: int) -> ml_collections.ConfigDict:
  """cfg with model.dim and its second size solved for `budget` parameters.

  Raises:
    ValueError: no width reaches the budget, with the range that they do, or
      no second size comes within 1 % of it.
  """
  cfg = cfg.copy_and_resolve_references()
  cfg.unlock()
  dim, second = cfg.model.dim, get(cfg, cfg.match.size)

  def count(D, s):
    cfg.model.dim = D
    put(cfg, cfg.match.size, s)
    return parameters(cfg)

  def usual(D):
    return max(1, round(second * D / dim)) if cfg.match.grows else second

  step = demanded(lambda D: count(D, usual(D)), dim)
  low, high = 1, WIDEST // step  # in steps
  least, most = count(step, 1), count(high * step, usual(high * step))
  if not least / (1 + TOLERANCE) <= budget <= most * (1 + TOLERANCE):
    raise ValueError(
      f"no width reaches {budget:,} parameters: they go from {least:,} at "
      f"model.dim={step} and {cfg.match.size}=1 to {most:,} at "
      f"model.dim={high * step}"
    )
  while low < high:
    middle = (low + high) // 2
    if count(middle * step, usual(middle * step)) < budget:
      low = middle + 1
    else:
      high = middle
  found = []
  for width in range(max(1, low - NEAR), low + NEAR):
    D = width * step
    s = affine(lambda s, D=D: count(D, s), usual(D), budget)
    error = abs(count(D, s) / budget - 1)
    if error <= TOLERANCE:
      found.append((abs(math.log(s / usual(D))), error, D, s))
  if not found:
    raise ValueError(
      f"no {cfg.match.size} comes within {TOLERANCE:.0%} of {budget:,} "
      f"parameters: model.dim={low * step} and the usual {usual(low * step)} "
      f"have {count(low * step, usual(low * step)):,}, and model.dim="
      f"{max(1, low - 1) * step} has "
      f"{count(max(1, low - 1) * step, usual(max(1, low - 1) * step)):,}"
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


def affine(count: Callable[[int], int], usual: int, budget: int) -> int:
  """The size from which an affine count is nearest the budget, at least 1."""
  base = count(usual)
  slope = count(usual + 1) - base
  if not slope:
    return usual
  return max(1, usual + round((budget - base) / slope))
