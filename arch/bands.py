"""Bands by frequency: a rarer symbol has a shorter row.

  embed(t) = E_0[t] in the first band,  E_i[t] P_i in band i

Baevski and Auli 2019, https://arxiv.org/abs/1809.10853, sec. 3. Symbols have to
be numbered by frequency. The first band is arch/vocab/full.py, the others are
lowrank.py. The start symbol is in the last band.

D width  V symbols
"""

import dataclasses
import itertools
import math

import jax.numpy as jnp

from arch import vocab
from arch.vocab import full, lowrank


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(vocab.Config):
  """Raises ValueError for cutoffs that are no whole numbers, or that leave a
  band fewer than 3 symbols, and for a factor below 1.

  Attributes:
    cutoffs: where bands end, but for the last; None for V / 8 and V / 2, as far
      as these are 3 symbols apart.
    factor: a row of band i is D / factor^i wide.
  """

  cutoffs: tuple[int, ...] | None = None
  factor: int = 4
  tied: bool = True

  def __post_init__(self):
    super().__post_init__()
    self.at_least(factor=1)
    given = self.cutoffs
    whole = given is None or (
      isinstance(given, tuple | list) and all(type(c) is int for c in given)
    )
    # the last has the start symbol as well
    if not whole or any(
      b - a < 3
      for a, b in itertools.pairwise((0, *self.ends[:-1], self.size + 1))
    ):
      raise ValueError(
        f"{self.where}: cutoffs={given!r} must be whole numbers that cut the "
        f"{self.size} symbols into bands of 3 or more"
      )

  @property
  def ends(self) -> tuple[int, ...]:
    """cutoffs, and V"""
    cutoffs = self.cutoffs
    if cutoffs is None:
      eighth, half = math.ceil(self.size / 8), math.ceil(self.size / 2)
      cutoffs = [c for c in (eighth, half) if c >= 3 and half - eighth >= 3]
    return (*cutoffs, self.size)

  @property
  def lends(self) -> str:
    return f"bands that end at {self.ends} and narrow by {self.factor}"

  def bands(self, more=0):
    """The first symbol of each, its file, and its Config: of a table with
    `more` rows in the last, or of a readout."""
    told = dict(dim=self.dim, tied=self.tied, dtype=self.dtype)
    for i, (a, b) in enumerate(itertools.pairwise((0, *self.ends))):
      # a table has a row more than its size
      size = b - a - (b < self.size and more > 0)
      rank = dict(rank=max(1, self.dim // self.factor**i)) if i else {}
      file = lowrank if i else full
      yield a, file, file.Config(size=size, **rank, **told)


class Table(vocab.Table):
  def __init__(self, cfg, *, rngs):
    self.cfg, self.lends = cfg, cfg.lends
    for a, file, own in cfg.bands(more=1):
      setattr(self, f"from_{a}", file.Table(own, rngs=rngs))

  def __call__(self, tokens, reset, state):
    x = jnp.full((*tokens.shape, self.cfg.dim), jnp.nan, self.cfg.dtype)
    for a, _, own in self.cfg.bands(more=1):
      there = (tokens >= a) & (tokens <= a + own.size)
      # elsewhere some row: a NaN would have a gradient, 0 times itself
      at = jnp.where(there, tokens - a, 0)
      found, _ = getattr(self, f"from_{a}")(at, reset, None)
      x = jnp.where(there[..., None], found, x)
    return x, {}

  def lent(self):
    bands = self.cfg.bands()
    return [getattr(self, f"from_{a}").rows[...][: c.size] for a, _, c in bands]
