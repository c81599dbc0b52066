"""A row is made of two of about sqrt(V): of a symbol's quotient and remainder.

  E_t = Q_{t div c} o R_{t mod c},  o: the product or the sum
  embed(t) = E_t,  logits(x) = x E^T

Shi et al. 2020, https://arxiv.org/abs/1909.02107, sec. 3 and 4: every symbol
has a pair of its own. (V / c + c) D parameters in place of V D. Of a product
each factor starts at the root of a row's standard deviation, of a sum at
1 / sqrt(2) of it; the authors' code draws them from U(1 / sqrt(V / c), 1).

D width  V symbols
"""

import dataclasses
import math

import jax.numpy as jnp
from flax import nnx

from arch import vocab
from arch.roles import Embedding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(vocab.Config):
  """Raises ValueError for fewer remainders than 1, an unknown operation.

  Attributes:
    remainders: c; None for floor(sqrt(V)) + 1.
    operation: "product" or "sum".
  """

  remainders: int | None = None
  operation: str = "product"
  tied: bool = True

  def __post_init__(self):
    super().__post_init__()
    self.at_least(remainders=1)
    self.among("operation", ("product", "sum"))

  @property
  def c(self) -> int:
    """remainders"""
    return self.remainders or math.isqrt(self.size) + 1


class Rows(vocab.Rows):
  def __init__(self, cfg, std, *, rngs):
    own = math.sqrt(std) if cfg.operation == "product" else std / math.sqrt(2)
    draw, c = nnx.initializers.normal(own), cfg.c
    self.quotient = Embedding(draw(rngs.params(), (cfg.size // c + 1, cfg.dim)))
    self.remainder = Embedding(draw(rngs.params(), (c, cfg.dim)))

  @classmethod
  def of(cls, cfg, arrays, ids):
    q = jnp.take(arrays["quotient"], ids // cfg.c, axis=0)
    r = jnp.take(arrays["remainder"], ids % cfg.c, axis=0)
    return q * r if cfg.operation == "product" else q + r


Table, Readout = vocab.ways(Rows)
