"""The gated short convolution of LFM2: what it keeps is a few tokens.

  b, c, x = u W_in
  y = (c conv(b x)) W_out

Liquid AI 2025, LFM2 technical report, https://arxiv.org/abs/2511.23404, section
2; sizes and start as in their release in transformers, models/lfm2: normal of
0.02 in all weights, biases, where asked for, 0.

B batch  T time  D width  W taps
"""

import dataclasses

from flax import nnx

from arch import config, layers
from arch.law import Aux


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config.Config):
  """
  Attributes:
    conv: W, taps of the convolution.
    bias: whether the maps and the convolution have one.
  """

  conv: int = 3
  bias: bool = False

  def __post_init__(self):
    self.positive("conv")

  @property
  def values(self):
    return "in_proj", 2 * self.dim, 1, self.dim


class Mixer(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    D = cfg.dim
    normal = nnx.initializers.normal(0.02)
    kw = dict(init=normal, bias=cfg.bias, rngs=rngs)
    self.in_proj = cfg.linear(D, (D, D, D), **kw)
    self.conv = layers.ShortConv(D, cfg.conv, dtype=cfg.compute, **kw)
    self.out_proj = cfg.linear(D, D, **kw)

  def init_state(self, batch, length=None):
    return {"conv": self.conv.init_state(batch)}

  def __call__(self, u, reset, state):
    state = state or self.init_state(u.shape[0])
    b, c, x = self.in_proj(u)
    y, conv = self.conv(b * x, reset, state["conv"])
    return self.out_proj(c * y), {"conv": conv}, Aux()
