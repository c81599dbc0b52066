"""RWKV's channel mixing: each token sees the one before it.

  k_t = x_t + m (x_{t-1} - x_t),  y_t = relu(k_t W_up)^2 W_down    x_{-1} = 0

or, in RWKV-6, sigmoid(r_t W_r) y_t with r_t made as k_t is.

RWKV-7: Peng et al. 2025, https://arxiv.org/abs/2503.14456; RWKV-6: Peng et al.
2024, https://arxiv.org/abs/2404.05892, eq. 10-13. m and W start as in BlinkDL/
RWKV-LM, RWKV-v7/train_temp/src/model.py and RWKV-v5/src/model.py: m_i = 1 -
(i / D)^(r^4), in RWKV-6 (i / D)^(r^3), with r = 1 - layer / depth, W_up
orthogonal, W_down and W_r 0, which generate_init_weight puts over what the
layer drew. The state is the last token; a document's first token sees zeros.

B batch  T time  D width  W hidden units
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from arch import layers, roles
from arch.channels import gelu, relu2
from arch.law import Aux


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(gelu.Config):
  """
  Attributes:
    receptance: whether it is RWKV-6's, with W_r.
  """

  receptance: bool = False


class Channel(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    D, W = cfg.dim, cfg.W
    kw = dict(bias=cfg.bias, rngs=rngs)
    zeros, orthogonal = nnx.initializers.zeros, nnx.initializers.orthogonal()
    power = (1 - layer / cfg.depth) ** (3 if cfg.receptance else 4)
    self.mix = roles.Vector(1 - (jnp.arange(D) / D) ** power)
    self.up = cfg.linear(D, W, init=orthogonal, **kw)
    self.down = cfg.linear(W, D, init=zeros, **kw)
    if cfg.receptance:
      self.mix_r = roles.Vector(self.mix[...])
      self.receptance = cfg.linear(D, D, init=zeros, **kw)

  def init_state(self, batch, length=None):
    return {"x": jnp.zeros((batch, self.cfg.dim), self.cfg.compute)}

  def __call__(self, x, reset, state):
    x = x.astype(self.cfg.compute)
    state = state or self.init_state(x.shape[0])
    step = layers.shift(x, reset, state["x"]) - x

    def mixed(m):
      return x + m[...].astype(x.dtype)[None, None] * step

    y = self.down(relu2.squared_relu(self.up(mixed(self.mix))))
    if self.cfg.receptance:
      y *= jax.nn.sigmoid(self.receptance(mixed(self.mix_r)))
    return y, {"x": x[:, -1]}, Aux()
