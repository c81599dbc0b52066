"""A short row per symbol, and a matrix between the rows and the stream.

  embed(t) = E_t P,  logits(x) = (x Q) R^T;  tied: R is E without the start

Lan et al. 2019, https://arxiv.org/abs/1909.11942, sec. 3.1: V D parameters
become V K + K D. As there, the way out has a matrix of its own, tied or not.
E starts at 0.02, so that the loss starts near ln V, and P such that E_t P is of
unit size, as in arch/vocab/full.py.

B batch  T time  D width  K rank  V symbols  C positions in a chunk
"""

import dataclasses
import math

from flax import nnx

from arch.roles import Embedding, Matrix
from arch.starts import fan_in
from arch.vocab import full


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(full.Config):
  """Raises ValueError for fewer than two symbols, or a rank below 1.

  Attributes:
    rank: width of a symbol's row; None for a quarter of dim.
    tied: whether the readout's rows are the embedding's. By default, since
      the table is what this saves; P and Q differ, so the start is safe.
  """

  rank: int | None = None
  tied: bool = True

  def __post_init__(self):
    super().__post_init__()
    if self.width < 1:
      raise ValueError(f"vocabulary lowrank: rank={self.rank}, needs 1 or more")

  @property
  def width(self) -> int:
    return math.ceil(self.dim / 4) if self.rank is None else self.rank


def read(params, x):
  """C V logits in float32 from C D."""
  narrow, table = params
  return full.read(table, x @ narrow.astype(x.dtype))


class Vocab(full.Vocab):
  read = staticmethod(read)

  def __init__(self, cfg, *, rngs):
    self.cfg = cfg
    D, K, V = cfg.dim, cfg.width, cfg.size
    small = 0.02
    rows = nnx.initializers.normal(small)
    self.embedding = Embedding(rows(rngs.params(), (V + 1, K)))
    self.widen = Matrix(fan_in(1 / small)(rngs.params(), (K, D)))
    self.narrow = Matrix(fan_in()(rngs.params(), (D, K)))
    if not cfg.tied:
      self.readout = Embedding(rows(rngs.params(), (V, K)))

  @property
  def params(self):
    return self.narrow[...], self.table

  def embed(self, tokens):
    return super().embed(tokens) @ self.widen[...].astype(self.cfg.dtype)
