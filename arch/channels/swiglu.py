"""y = (silu(x W_gate) * (x W_up)) W_down, with biases if asked.

Shazeer 2020, https://arxiv.org/abs/2002.05202, eq. 6.

B batch  T time  D width  W hidden units
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from arch import config
from arch.law import Aux
from arch.layers import along, beside
from arch.roles import Vector
from arch.starts import fan_in


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config.Config):
  """Raises ValueError for a width below 1.

  Attributes:
    width: hidden units; None for 8/3 dim, rounded to a multiple of 8, which
      holds as many weights as a plain MLP of 4 dim (the paper's sec. 2).
    bias: whether the maps have one.
  """

  width: int | None = None
  bias: bool = False

  def __post_init__(self):
    self.positive(width="W")

  @property
  def W(self) -> int:
    """hidden units"""
    if self.width is not None:
      return self.width
    return max(8, 8 * round(self.dim / 3))


class Own(nnx.Module):
  """A low-rank map beside W_gate and W_up: x A B.

  The adapter of Zamba2's shared MLP, https://arxiv.org/abs/2411.15242.
  """

  def __init__(self, cfg, rank, *, rngs):
    self.down = cfg.linear(cfg.dim, rank, rngs=rngs)
    self.up = cfg.linear(rank, 2 * cfg.W, rngs=rngs)

  def __call__(self, x):
    return self.up(self.down(x))


class Channel(nnx.Module):
  activation = staticmethod(jax.nn.silu)

  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    D, W = cfg.dim, cfg.W
    small = fan_in(1 / math.sqrt(2 * cfg.depth))
    self.gate = cfg.linear(D, W, rngs=rngs)
    self.up = cfg.linear(D, W, rngs=rngs)
    self.down = cfg.linear(W, D, init=small, rngs=rngs)
    self.wide_bias = Vector(jnp.zeros(2 * W)) if cfg.bias else None
    self.down_bias = Vector(jnp.zeros(D)) if cfg.bias else None

  def init_state(self, batch, length=None):
    return {}

  def __call__(self, x, reset, state, own=None):
    gate, up = beside(x, self.gate, self.up)
    if own is not None:
      more = jnp.split(own(x), 2, -1)
      gate, up = gate + more[0], up + more[1]
    if self.cfg.bias:
      b, c = jnp.split(
        along(self.wide_bias[...], gate).astype(gate.dtype), 2, -1
      )
      gate, up = gate + b, up + c
    y = self.down(self.activation(gate) * up)
    if self.cfg.bias:
      y += along(self.down_bias[...], y).astype(y.dtype)
    return y, {}, Aux()
