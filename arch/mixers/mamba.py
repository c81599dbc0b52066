"""Mamba: a diagonal state of N numbers a channel under an input-dependent step;
a whole block.

  x, z = u W_in;  x = silu(conv(x));  r, B, C = x W_x
  dt = softplus(r W_dt + dt_bias),  A = -exp(A_log)
  h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T,  y_t = h_t C_t + D x_t
  out = (y silu(z)) W_out

With `negative` 2 exp(dt_t A) - 1 stands for exp(dt_t A), so that a state can
turn its sign, which counting parities needs: Grazzi et al. 2024,
https://arxiv.org/abs/2411.12537, sections 4.1 and 4.2.

Gu and Dao 2023, https://arxiv.org/abs/2312.00752, algorithm 2 and section 3.4;
parameters and their start as in state-spaces/mamba, modules/mamba_simple.py
and, for W_out / sqrt(depth), models/mixer_seq_simple.py. A config pairs it with
channel="none".

B batch  T time  D width  E inner width  R rank of the step  N state
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from arch import config, layers, roles, starts
from arch.law import Aux
from arch.recurrence import diagonal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config.Config):
  """
  Attributes:
    state: N, numbers a channel remembers.
    expand: inner width over dim.
    rank: R, of the map that makes the step; None for dim / 16, rounded up.
    conv: taps of the short convolution.
    norm: which of layers.NORMS r, B and C have each, and `eps` of it; None for
      none. "rms" in Jamba, https://arxiv.org/abs/2403.19887, section 6.4;
      "rms_plain" in Falcon Mamba, https://arxiv.org/abs/2410.05355.
    negative: eigenvalues in [-1, 1], not in [0, 1].
  """

  state: int = 16
  expand: int = 2
  rank: int | None = None
  conv: int = 4
  norm: str | None = None
  eps: float = 1e-6
  negative: bool = False

  def __post_init__(self):
    self.positive("state", "expand", "conv", rank="R")
    if self.norm is not None:
      self.among("norm", layers.NORMS)

  @property
  def E(self):
    """inner width"""
    return self.expand * self.dim

  @property
  def R(self):
    """rank of the step"""
    return math.ceil(self.dim / 16) if self.rank is None else self.rank

  @property
  def values(self):
    return "in_proj", 0, 1, self.E


class Mixer(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    E, N, R = cfg.E, cfg.state, cfg.R
    uniform = starts.uniform_fan_in()
    self.in_proj = cfg.linear(cfg.dim, (E, E), init=uniform, rngs=rngs)
    self.conv = layers.ShortConv(E, cfg.conv, dtype=cfg.compute, rngs=rngs)
    self.x_proj = cfg.linear(E, (R, N, N), init=uniform, rngs=rngs)
    self.dt_norm, self.B_norm, self.C_norm = (
      layers.NORMS[cfg.norm](width, eps=cfg.eps) if cfg.norm else None
      for width in (R, N, N)
    )
    self.dt_proj = cfg.linear(R, E, init=uniform, rngs=rngs)
    self.dt_bias = roles.Gate(starts.dt_bias(rngs.params(), (E,)))
    A = jnp.broadcast_to(jnp.arange(1.0, N + 1)[None], (E, N))
    self.A_log = roles.Gate(jnp.log(A))
    self.D = roles.Gate(jnp.ones(E))
    residual = starts.uniform_fan_in(cfg.depth**-0.5)
    self.out_proj = cfg.linear(E, cfg.dim, init=residual, rngs=rngs)

  def init_state(self, batch, length=None):
    shape = (batch, self.cfg.E, self.cfg.state)
    return {"conv": self.conv.init_state(batch), "ssm": jnp.zeros(shape)}

  def __call__(self, u, reset, state):
    conv, ssm = (None,) * 2 if state is None else (state["conv"], state["ssm"])

    x, z = self.in_proj(u)
    x, conv = self.conv(x, reset, conv, silu=True)
    r, b, c = self.x_proj(x)
    if self.cfg.norm is not None:
      r, b, c = self.dt_norm(r), self.B_norm(b), self.C_norm(c)
    dt = self.dt_proj(r).astype(jnp.float32) + self.dt_bias[...][None, None]
    dt = jax.nn.softplus(dt)  # B T E
    A = -jnp.exp(self.A_log[...])
    x, z = x.astype(jnp.float32), z.astype(jnp.float32)
    b, c = b.astype(jnp.float32), c.astype(jnp.float32)
    y, ssm = diagonal.selective(
      x, dt, A, b, c, reset, ssm, negative=self.cfg.negative
    )
    y = (y + self.D[...][None, None] * x) * jax.nn.silu(z)
    return self.out_proj(y), {"conv": conv, "ssm": ssm}, Aux()
