"""RWKV-7's channel mixing: each token sees the one before it.

  k_t = x_t + m (x_{t-1} - x_t),  y_t = relu(k_t W_up)^2 W_down    x_{-1} = 0

Peng et al. 2025, https://arxiv.org/abs/2503.14456. m and W start as in BlinkDL/
RWKV-LM, RWKV-v7/train_temp/src/model.py: m_i = 1 - (i / D)^(r^4) with r = 1 -
layer / depth, W_up orthogonal and W_down 0, which its generate_init_weight puts
over what the layer drew. The state is the last token; a document's first token
sees zeros.

B batch  T time  D width  W hidden units
"""

import jax.numpy as jnp
from flax import nnx

from arch import layers
from arch.channels import gelu, relu2

Config = gelu.Config


class Channel(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    D, W = cfg.dim, cfg.hidden
    kw = dict(dtype=cfg.compute, rngs=rngs, bias=cfg.bias)
    power = (1 - layer / cfg.depth) ** 4
    self.mix = layers.Vector(1 - (jnp.arange(D) / D) ** power)
    orthogonal = nnx.initializers.orthogonal()
    self.up = layers.Linear(D, W, init=orthogonal, **kw)
    self.down = layers.Linear(W, D, init=nnx.initializers.zeros, **kw)

  def init_state(self, batch, length=None):
    return jnp.zeros((batch, self.cfg.dim), self.cfg.compute)

  def __call__(self, x, reset, state):
    x = x.astype(self.cfg.compute)
    state = self.init_state(x.shape[0]) if state is None else state
    before = layers.shift(x, reset, state)
    x_k = x + self.mix[...].astype(x.dtype)[None, None] * (before - x)
    return self.down(relu2.squared_relu(self.up(x_k))), x[:, -1], {}
