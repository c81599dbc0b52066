"""HGRN: a gated recurrence whose forget gates are bounded below, more so in
higher layers.

  bound = the row of this layer in cumsum(softmax(bounds)) - softmax(bounds)_0
  f = bound + (1 - bound) sigmoid(x W_f)
  h_t = f_t h_{t-1} + (1 - f_t) silu(x_t W_i)
  out = (norm(h) silu(x W_g)) W_out

Qin, Yang and Zhong 2023, https://arxiv.org/abs/2311.04823, section 3, with real
states as in fla-org/flash-linear-attention, layers/hgrn.py (by one of the
authors), whose models/hgrn/modeling_hgrn.py says the start: normal of 0.02,
bounds 0, no biases. `bounds`, one row a layer, is one parameter of the model:
along it the softmax is taken. The first layer is not bounded.

B batch  T time  D width  E inner width
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from arch import config, layers, roles
from arch.law import Aux
from arch.recurrence import diagonal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config.Config):
  """
  Attributes:
    expand: E over dim.
    eps: of the norm.
  """

  expand: int = 1
  eps: float = 1e-5

  reads = ("bounds",)

  def __post_init__(self):
    self.positive("expand")

  @property
  def E(self):
    """inner width"""
    return self.expand * self.dim

  @property
  def values(self):
    return "in_proj", 0, 1, self.E


class Shared(nnx.Module):
  """The lower bounds of all layers; of one, E numbers in [0, 1)."""

  def __init__(self, cfg, *, rngs):
    self.bounds = roles.Gate(jnp.zeros((cfg.depth, cfg.E)))

  def __call__(self, layer):
    share = jax.nn.softmax(self.bounds[...], 0)
    below = jnp.arange(len(share)) <= layer
    # without the first share: what would be taken off again
    below &= jnp.arange(len(share)) > 0
    return jnp.where(below[:, None], share, 0).sum(0)


class Mixer(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    D, E = cfg.dim, cfg.E
    init = nnx.initializers.normal(0.02)
    self.in_proj = cfg.linear(D, (E, E, E), init=init, rngs=rngs)
    self.norm = layers.RMSNorm(E, eps=cfg.eps)
    self.out_proj = cfg.linear(E, D, init=init, rngs=rngs)

  def init_state(self, batch, length=None):
    return {"h": jnp.zeros((batch, self.cfg.E))}

  def __call__(self, x, reset, state, bounds):
    state = state or self.init_state(x.shape[0])
    i, f, g = (t.astype(jnp.float32) for t in self.in_proj(x))
    bound = bounds[None, None]
    # 1 - f, exact also where the gate is nearly open
    write = (1 - bound) * jax.nn.sigmoid(-f)
    f = bound + (1 - bound) * jax.nn.sigmoid(f)
    h, last = diagonal.scan(f, write * jax.nn.silu(i), reset, state["h"])
    return self.out_proj(self.norm(h) * jax.nn.silu(g)), {"h": last}, Aux()
