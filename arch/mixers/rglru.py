"""RG-LRU in Griffin's recurrent block: a gated linear recurrence, one number a
channel.

  y = gelu(u W_y + b_y),  x = conv(u W_x + b_x)
  r = sigmoid(W_r x + b_r),  i = sigmoid(W_i x + b_i)      block-diagonal W
  log a = -8 r softplus(decay)
  h_t = a_t h_{t-1} + sqrt(1 - a_t^2) i_t x_t              no sqrt at a reset
  out = (y h) W_out + b_out

De et al. 2024, https://arxiv.org/abs/2402.19427, section 2.4, eq. 1-4, in the
form of its appendix A. a at r = 1 starts uniform in [0.9, 0.999], as section
2.4 says (the released code starts its eighth root there). The rest starts as
in google-deepmind/recurrentgemma, torch/layers.py and torch/modules.py: normal
of variance 1 / fan_in, times 2 / depth in W_out and 0.01 in the convolution;
biases 0.

B batch  T time  D width  E recurrent width  H blocks  K block width
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from arch import config, layers, roles
from arch.law import Aux
from arch.product import product
from arch.recurrence import diagonal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config.Config):
  """
  Attributes:
    width: E, channels of the recurrence; None for dim.
    blocks: H, diagonal blocks of the gates' matrices.
    conv: taps of the short convolution.
  """

  width: int | None = None
  blocks: int = 8
  conv: int = 4

  def __post_init__(self):
    self.positive("conv")
    self.divide("E", "blocks")

  @property
  def E(self):
    """inner width"""
    return self.dim if self.width is None else self.width

  @property
  def values(self):
    return "in_proj", self.E, 1, self.E


def normal(variance=1.0):
  return nnx.initializers.variance_scaling(variance, "fan_in", "normal")


@jax.custom_jvp
def root(x):
  """sqrt, whose slope is cut at 1000: a gate that saturates reaches x = 0."""
  return jnp.sqrt(x)


@root.defjvp
def _(primals, tangents):
  y = jnp.sqrt(primals[0])
  return y, tangents[0] / jnp.maximum(2 * y, 1e-3)


def decay(key, shape):
  """exp(-8 softplus(decay)) is uniform in [0.9, 0.999]."""
  a = jax.random.uniform(key, shape, minval=0.9, maxval=0.999)
  return jnp.log(jnp.expm1(-jnp.log(a) / 8))


class Mixer(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    E, H = cfg.E, cfg.blocks
    K = E // H
    kw = dict(bias=True, rngs=rngs)
    self.in_proj = cfg.linear(cfg.dim, (E, E), init=normal(), **kw)
    self.conv = layers.ShortConv(
      E, cfg.conv, init=normal(0.01), dtype=cfg.compute, **kw
    )
    gates = jax.random.normal(rngs.params(), (H, K, 2 * K)) * K**-0.5
    self.gates = roles.Matrix(gates)
    self.gates_bias = roles.Vector(jnp.zeros((H, 2 * K)))
    self.decay = roles.Gate(decay(rngs.params(), (E,)))
    self.out_proj = cfg.linear(E, cfg.dim, init=normal(2 / cfg.depth), **kw)

  def init_state(self, batch, length=None):
    """`fresh`: no token was read, so that the next one is a first token."""
    return {
      "conv": self.conv.init_state(batch),
      "h": jnp.zeros((batch, self.cfg.E)),
      "fresh": jnp.ones(batch, bool),
    }

  def __call__(self, u, reset, state):
    B, T, _ = u.shape
    alone = state is None
    state = state or self.init_state(B)
    first = (jnp.arange(T) == 0)[None] & state["fresh"][:, None]
    if reset is not None:
      first |= reset

    y, x = self.in_proj(u)
    x, conv = self.conv(x, reset, None if alone else state["conv"])
    r, i = self.gate(x)
    softplus = jax.nn.softplus(self.decay[...])
    log_a = -8 * r * softplus[None, None]
    scale = jnp.where(first[..., None], 1, root(-jnp.expm1(2 * log_a)))
    b = scale * i * x.astype(jnp.float32)
    h, last = diagonal.scan(jnp.exp(log_a), b, reset, state["h"])
    y = jax.nn.gelu(y) * h.astype(y.dtype)
    new = {"conv": conv, "h": last, "fresh": jnp.zeros(B, bool)}
    return self.out_proj(y), new, Aux()

  def gate(self, x):
    """r and i, both B T E in float32."""
    H, K, _ = self.gates.shape
    w = self.gates[...].astype(x.dtype)
    x = x.reshape(*x.shape[:2], H, K)
    s = product("bthk,hkj->bthj", x, w)
    s = jax.nn.sigmoid(s + self.gates_bias[...][None, None])
    r, i = jnp.split(s, 2, -1)
    return (t.reshape(*t.shape[:2], H * K) for t in (r, i))
