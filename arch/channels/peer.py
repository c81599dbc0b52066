"""Of up to a million experts of one neuron each, the k that H queries find.

  y = sum_h sum_{i in top k of h} g_hi gelu(x . u_i) v_i,  g = softmax of scores

PEER, He 2024, https://arxiv.org/abs/2407.04153, algorithm 1: u and v are shared
by the heads, keys and queries are each head's; see arch/product_keys.py. u
starts by fan-in, v so that y is of the size of the other channel mixers'.

N tokens  D width  H heads  k rows of a head
"""

import dataclasses
import math

import jax
from flax import nnx

from arch import config, product_keys, rows
from arch.law import Aux
from arch.product import product
from arch.roles import Table

MATCH = "keys", False  # what launch.compare solves, and not with the width


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config.Config):
  """Raises ValueError for sizes below 1, more rows than there are.

  Attributes:
    keys: n of each half; n^2 rows.
    heads: H.
    top: k.
    width: of a query's half; None for a quarter of dim.
    query_norm: whether each half of a query is normalised.
  """

  keys: int = 32
  heads: int = 4
  top: int = 8
  width: int | None = None
  query_norm: bool = True

  def __post_init__(self):
    self.positive("keys", "heads", "top", width="d")
    if self.top > self.keys**2:
      raise ValueError(
        f"{self.where}: top={self.top} of keys={self.keys}^2 rows"
      )

  @property
  def d(self) -> int:
    """width of a query's half"""
    return max(1, self.dim // 4) if self.width is None else self.width


class Channel(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    D, N = cfg.dim, cfg.keys**2
    self.keys = product_keys.Keys(cfg, rngs=rngs)
    # a head's y is about as large as one of its rows / sqrt(k) is
    size = math.sqrt(cfg.top / cfg.heads / (2 * cfg.depth))
    draw = jax.random.normal
    self.u = Table(draw(rngs.params(), (N, D)) / math.sqrt(D))
    self.v = Table(draw(rngs.params(), (N, D)) * size)

  def init_state(self, batch, length=None):
    return {}

  def idle(self) -> int:
    """Parameters that a token does not use, be all its rows different ones."""
    n, asked = self.cfg.keys**2, self.cfg.heads * self.cfg.top
    return (self.u.size + self.v.size) // n * max(0, n - asked)

  def __call__(self, x, reset, state):
    x = x.astype(self.cfg.compute)
    asked = self.keys(x), x
    y = rows.apart(self.read, asked, self.u[...], self.v[...])
    return y, {}, Aux()

  def read(self, asked, u, v):
    return product_keys.read(self.cfg.top, neurons, *asked, u, v)


def neurons(x, share, u, v):
  h = jax.nn.gelu(product("nd,nkd->nk", x, u), approximate=False) * share
  return product("nk,nkd->nd", h.astype(x.dtype), v)
