"""Mamba-2: a matrix state under one decay a head; a whole block.

  z, xBC, dt = u W_in;  x, B, C = silu(conv(xBC))
  dt = softplus(dt + dt_bias), within dt_limit
  S_t = exp(-exp(A_log) dt_t) S_{t-1} + B_t (dt_t x_t)^T
  y_t = S_t^T C_t + D x_t
  out = norm(y silu(z)) W_out

Dao and Gu 2024, https://arxiv.org/abs/2405.21060, eq. 2 with one number A_t a
head, in the block of section 7.1; parameters and their start as in
state-spaces/mamba, modules/mamba2.py and, for W_out / sqrt(depth),
models/mixer_seq_simple.py. One pair B, C serves H / G heads, and the norm is
over their E / G outputs. A config pairs it with channel="none".

B batch  T time  D width  E inner width  H heads  P head width  N state
G groups
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from arch import config, layers, roles, starts
from arch.law import Aux
from arch.recurrence import gated


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config.Config):
  """
  Attributes:
    state: N, the rows of a head's state.
    head: P, the width of a head and the columns of its state.
    expand: inner width over dim.
    groups: G, pairs of B and C, each for as many heads.
    conv: taps of the short convolution.
    eps: of the norm.
    dt_limit: the least and the largest dt.
  """

  state: int = 128
  head: int = 64
  expand: int = 2
  groups: int = 1
  conv: int = 4
  eps: float = 1e-5
  dt_limit: tuple = (0.0, math.inf)

  def __post_init__(self):
    self.positive("state", "conv")
    if not 0 <= self.dt_limit[0] < self.dt_limit[1]:
      raise ValueError(f"mamba2: dt_limit={self.dt_limit} must be of 0 or more")
    self.divide("H", "groups")

  @property
  def E(self):
    """inner width"""
    return self.expand * self.dim

  @property
  def H(self):
    """heads"""
    return self.divide("E", "head")

  @property
  def values(self):
    return "in_proj", self.E, self.H, self.head


class Mixer(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    D, E, H, GN = cfg.dim, cfg.E, cfg.H, cfg.groups * cfg.state
    wide, uniform = E + 2 * GN, starts.uniform_fan_in()
    self.in_proj = cfg.linear(D, (E, wide, H), init=uniform, rngs=rngs)
    self.conv = layers.ShortConv(wide, cfg.conv, dtype=cfg.compute, rngs=rngs)
    self.dt_bias = roles.Gate(starts.dt_bias(rngs.params(), (H,)))
    self.A_log = roles.Gate(
      jnp.log(jax.random.uniform(rngs.params(), (H,), minval=1, maxval=16))
    )
    self.D = roles.Gate(jnp.ones(H))
    self.norm = roles.Vector(jnp.ones(E))
    residual = starts.uniform_fan_in(cfg.depth**-0.5)
    self.out_proj = cfg.linear(E, D, init=residual, rngs=rngs)

  def init_state(self, batch, length=None):
    cfg = self.cfg
    shape = (batch, cfg.H, cfg.state, cfg.head)
    return {"conv": self.conv.init_state(batch), "ssm": jnp.zeros(shape)}

  def __call__(self, u, reset, state):
    conv, ssm = (None,) * 2 if state is None else (state["conv"], state["ssm"])
    x, z, conv, (c, b, dt, g) = self.project(u, reset, conv)
    y, ssm = gated.stepped(c, b, x, dt, self.D[...], g, reset, ssm)
    y = self.output(y, z, self.cfg.groups)
    return y, {"conv": conv, "ssm": ssm}, Aux()

  def project(self, u, reset, conv):
    """x: B T H P, z: B T E, the next state of the taps, and what a recurrence
    reads: C and B: B T G N, dt and the log decay: B T H."""
    cfg = self.cfg
    E, GN = cfg.E, cfg.groups * cfg.state
    z, xbc, dt = self.in_proj(u)
    xbc, conv = self.conv(xbc, reset, conv, silu=True)
    x, b, c = jnp.split(xbc, (E, E + GN), -1)
    x = x.reshape(*u.shape[:2], cfg.H, cfg.head)
    b, c = (t.reshape(*u.shape[:2], cfg.groups, cfg.state) for t in (b, c))
    dt = dt.astype(jnp.float32) + self.dt_bias[...][None, None]
    dt = jax.nn.softplus(dt)  # B T H
    low, high = cfg.dt_limit
    if low > 0 or high < math.inf:
      dt = jnp.clip(dt, low, high)
    return x, z, conv, (c, b, dt, -jnp.exp(self.A_log[...])[None, None] * dt)

  def output(self, y, z, groups):
    """y, gated, normalised over each group's share of E."""
    y, z = y.astype(jnp.float32), z.astype(jnp.float32)
    y = y.reshape(z.shape) * jax.nn.silu(z)
    share = y.reshape(*z.shape[:2], groups, -1)
    y = layers.normalise(share, self.cfg.eps).reshape(z.shape)
    return self.out_proj(y * self.norm[...][None, None])
