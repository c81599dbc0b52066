"""y = gelu(x W_up + b_up) W_down + b_down, gelu in its form with a tanh.

The MLP of the first transformers: Vaswani et al. 2017,
https://arxiv.org/abs/1706.03762, eq. 2, with the activation of GPT-2 (Hendrycks
and Gimpel 2016, https://arxiv.org/abs/1606.08415).

B batch  T time  D width  W hidden units
"""

import dataclasses
import math

import jax
from flax import nnx

from arch import config, starts
from arch.law import Aux


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config.Config):
  """Raises ValueError for a width below 1.

  Attributes:
    width: hidden units; None for 4 dim.
    bias: whether the maps have one, as GPT-2's do.
  """

  width: int | None = None
  bias: bool = False

  def __post_init__(self):
    self.positive(width="W")

  @property
  def W(self) -> int:
    """hidden units"""
    return 4 * self.dim if self.width is None else self.width


class Channel(nnx.Module):
  activation = staticmethod(jax.nn.gelu)

  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    kw = dict(bias=cfg.bias, rngs=rngs)
    self.up = cfg.linear(cfg.dim, cfg.W, **kw)
    small = starts.fan_in(1 / math.sqrt(2 * cfg.depth))
    self.down = cfg.linear(cfg.W, cfg.dim, init=small, **kw)

  def init_state(self, batch, length=None):
    return {}

  def __call__(self, x, reset, state):
    return self.down(self.activation(self.up(x))), {}, Aux()
