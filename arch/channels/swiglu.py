"""y = (silu(x W_gate) * (x W_up)) W_down.

Shazeer 2020, https://arxiv.org/abs/2002.05202, eq. 6, without biases.

B batch  T time  D width
"""

import dataclasses
import math

import jax
from flax import nnx

from arch import layers
from arch.layers import Linear, fan_in


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(layers.Config):
  """Raises ValueError for a width below 1.

  Attributes:
    width: hidden units; None for 8/3 dim, rounded to a multiple of 8, which
      holds as many weights as a plain MLP of 4 dim (the paper's sec. 3).
  """

  width: int | None = None

  def __post_init__(self):
    if self.hidden < 1:
      raise ValueError(f"channel swiglu: width={self.width} must be positive")

  @property
  def hidden(self) -> int:
    if self.width is not None:
      return self.width
    return max(8, 8 * round(self.dim / 3))


class Channel(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    D, W = cfg.dim, cfg.hidden
    small = fan_in(1 / math.sqrt(2 * cfg.depth))
    self.gate = Linear(D, W, dtype=cfg.dtype, rngs=rngs)
    self.up = Linear(D, W, dtype=cfg.dtype, rngs=rngs)
    self.down = Linear(W, D, dtype=cfg.dtype, rngs=rngs, init=small)

  def init_state(self, batch, length=None):
    return {}

  def __call__(self, x, reset, state):
    return self.down(jax.nn.silu(self.gate(x)) * self.up(x)), {}, {}
