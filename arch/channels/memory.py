"""Values that H queries find among n^2, gated by the token that asks.

  m = sum_h sum_{i in top k of h} g_hi v_i,  g = softmax of scores
  y = (m * silu(x W_1)) W_2

Product-key memory, Lample et al. 2019, https://arxiv.org/abs/1907.05242, sec.
3.1, gated as in Memory+, Berges et al. 2024, https://arxiv.org/abs/2412.09764,
sec. 2.3. Values start as normal numbers of deviation dim^-.5 there; the gate
and W_2 by fan-in, W_2 as the way out of the other channel mixers.

N tokens  D width  H heads  k rows of a head
"""

import dataclasses
import math

import jax
from flax import nnx

from arch import product_keys, rows, starts
from arch.channels import peer
from arch.law import Aux
from arch.product import product
from arch.roles import Table

MATCH = peer.MATCH


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(peer.Config):
  """Raises ValueError for sizes below 1, more rows than there are.

  Attributes:
    gated: whether m is gated and mapped, or y itself.
  """

  top: int = 32
  gated: bool = True


class Channel(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    D, N = cfg.dim, cfg.keys**2
    self.keys = product_keys.Keys(cfg, rngs=rngs)
    self.v = Table(jax.random.normal(rngs.params(), (N, D)) / math.sqrt(D))
    if cfg.gated:
      small = starts.fan_in(1 / math.sqrt(2 * cfg.depth))
      self.gate = cfg.linear(D, D, rngs=rngs)
      self.down = cfg.linear(D, D, init=small, rngs=rngs)

  def init_state(self, batch, length=None):
    return {}

  def idle(self) -> int:
    """Parameters that a token does not use, be all its rows different ones."""
    n, asked = self.cfg.keys**2, self.cfg.heads * self.cfg.top
    return self.v.size // n * max(0, n - asked)

  def __call__(self, x, reset, state):
    x = x.astype(self.cfg.compute)
    m = rows.apart(self.read, (self.keys(x), x), self.v[...])
    if self.cfg.gated:
      m = self.down(m * jax.nn.silu(self.gate(x)))
    return m, {}, Aux()

  def read(self, asked, v):
    return product_keys.read(self.cfg.top, values, *asked, v)


def values(x, share, v):
  return product("nk,nkd->nd", share.astype(x.dtype), v)
