"""Hyena: a convolution as long as the text between two gates.

  a, b, v = conv(u W_in + b_in)
  s = b v,  y_t = sum_j k_j s_{t-j} + skip s_t                     j < length
  out = (a y) W_out + b_out
  k_j = exp(-|delta| j / (length - 1)) (f(f(f(z_j W_1)) W_2) W_3) W_4
  f(p) = sin(w p),  biases in W_1 to W_3,  one w for all three

Poli et al. 2023, https://arxiv.org/abs/2302.10866, definition 3.1 with order 2
and section 3.3; parameters and their start as in HazyResearch/safari, models/
sequence/hyena.py and long_conv_lm.py, with the sizes of configs/experiment/
pile/hyena.yaml: normal of 0.02, over sqrt(2 depth) in W_out, biases 0, skip
normal, w 14. z_j, time and the waves exp(-2 pi i f j / length), is a parameter
there and here; delta, spread evenly so that k falls to 1 % within 0.3 to 1.5 of
the length, is fixed. Weight decay leaves all of k's parameters out.

The state is the last length - 1 of s; the convolution's time grows with the
square of the length.

B batch  T time  D width  L length  F features of a lag  W filter width
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from arch import config, layers, roles
from arch.law import Aux
from arch.recurrence import convolution


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config.Config):
  """
  Attributes:
    conv: taps of the short convolution.
    filter: W, hidden units of the network that makes k.
    features: F, of a lag; odd: time, and sines and cosines in pairs.
    frequency: where w starts.
  """

  conv: int = 3
  filter: int = 64
  features: int = 33
  frequency: float = 14.0

  def __post_init__(self):
    self.positive("conv", "filter")
    if self.features < 3 or self.features % 2 == 0:
      raise ValueError(
        f"hyena: features={self.features} must be odd and at least 3"
      )

  @property
  def values(self):
    return "in_proj", 2 * self.dim, 1, self.dim


def waves(L, F):
  """Time in [0, 1], then cosines and negated sines: L F."""
  bands = (F - 1) // 2
  angle = 2 * jnp.pi * jnp.arange(L) / L
  angle = angle[:, None] * jnp.linspace(1e-4, bands - 1, bands)[None]
  time = jnp.linspace(0, 1, L)[:, None]
  return jnp.concatenate([time, jnp.cos(angle), -jnp.sin(angle)], 1)


class Filter(nnx.Module):
  def __init__(self, cfg, *, rngs):
    D, F, W = cfg.dim, cfg.features, cfg.filter
    normal = nnx.initializers.normal(0.02)
    kw = dict(dtype="float32", rngs=rngs, init=normal, role=roles.Gate)
    self.z = roles.Gate(waves(cfg.length, F))
    self.first = layers.Linear(F, W, bias=True, **kw)
    self.second = layers.Linear(W, W, bias=True, **kw)
    self.third = layers.Linear(W, W, bias=True, **kw)
    self.last = layers.Linear(W, D, **kw)
    self.w = roles.Vector(jnp.full(W, cfg.frequency, jnp.float32))

  def __call__(self):
    """k, L D."""
    k = self.z[...]
    # bfloat16 passes, which a TPU takes for float32, would be 14 times as
    # coarse in a sine
    with jax.default_matmul_precision("highest"):
      for layer in (self.first, self.second, self.third):
        k = jnp.sin(self.w[...][None] * layer(k))
      k = self.last(k)
    L, D = k.shape
    fall = -math.log(1e-2)
    delta = jnp.linspace(fall / 1.5, fall / 0.3, D)
    return k * jnp.exp(-jnp.linspace(0, 1, L)[:, None] * delta[None])


class Mixer(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    D = cfg.dim
    kw = dict(bias=True, rngs=rngs)
    normal = nnx.initializers.normal
    self.in_proj = cfg.linear(D, 3 * D, init=normal(0.02), **kw)
    self.conv = layers.ShortConv(3 * D, cfg.conv, dtype=cfg.compute, **kw)
    self.filter = Filter(cfg, rngs=rngs)
    self.skip = roles.Gate(jax.random.normal(rngs.params(), (D,)))
    residual = normal(0.02 * (2 * cfg.depth) ** -0.5)
    self.out_proj = cfg.linear(D, D, init=residual, **kw)

  def init_state(self, batch, length=None):
    L = min(length or self.cfg.length, self.cfg.length)
    past = jnp.zeros((batch, L - 1, self.cfg.dim), self.cfg.compute)
    return {"conv": self.conv.init_state(batch), "past": past}

  def __call__(self, u, reset, state):
    state = state or {"conv": None, "past": None}
    x, conv = self.conv(self.in_proj(u), reset, state["conv"])
    a, b, v = jnp.split(x, 3, -1)
    s = b * v
    y, past = convolution.chunked(self.filter(), s, reset, state["past"])
    y += self.skip[...][None, None] * s.astype(jnp.float32)
    return (
      self.out_proj(a * y.astype(a.dtype)),
      {"conv": conv, "past": past},
      Aux(),
    )
