"""A short row per symbol, and a matrix between the rows and the stream.

  embed(t) = E_t P,  logits(x) = (x Q) R^T;  tied: R is E without the start

Lan et al. 2019, https://arxiv.org/abs/1909.11942, sec. 3.1: V D parameters
become V K + K D. Tied or not, the way out has a matrix of its own. E starts at
0.02, for a loss near ln V, and P such that E_t P is of unit size.

B batch  T time  D width  K rank  V symbols  C positions in a chunk
"""

import dataclasses
import math

from arch import vocab
from arch.roles import Matrix
from arch.starts import fan_in
from arch.vocab import full

SMALL = 0.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(full.Config):
  """Raises ValueError for fewer than two symbols, or a rank below 1.

  Attributes:
    rank: width of a symbol's row; None for a quarter of dim.
    tied: by default, as the table is what this saves; P and Q differ.
  """

  rank: int | None = None
  tied: bool = True

  def __post_init__(self):
    super().__post_init__()
    if self.K < 1:
      raise ValueError(f"{self.where}: rank={self.rank}, needs 1 or more")

  @property
  def K(self) -> int:
    """rank"""
    return math.ceil(self.dim / 4) if self.rank is None else self.rank


class Table(full.Table):
  def __init__(self, cfg, *, rngs):
    self.cfg, self.lends = cfg, f"rows of {cfg.K} numbers"
    self.rows = vocab.drawn(SMALL, cfg.size + 1, cfg.K, rngs=rngs)
    self.widen = Matrix(fan_in(1 / SMALL)(rngs.params(), (cfg.K, cfg.dim)))

  def __call__(self, tokens, reset, state):
    rows, state = super().__call__(tokens, reset, state)
    return rows @ self.widen[...].astype(self.cfg.dtype), state


class Readout(full.Readout):
  def __init__(self, cfg, *, rngs):
    self.wide, self.borrows = cfg.size, f"rows of {cfg.K} numbers"
    self.narrow = Matrix(fan_in()(rngs.params(), (cfg.dim, cfg.K)))
    if not cfg.tied:
      self.rows = vocab.drawn(SMALL, cfg.size, cfg.K, rngs=rngs)

  def params(self, lent):
    return self.narrow[...], super().params(lent)

  @classmethod
  def logits(cls, cfg, params, held, x):
    narrow, rows = params
    return super().logits(cfg, rows, held, x @ narrow.astype(x.dtype))
