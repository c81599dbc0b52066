"""LRU: a complex diagonal recurrence, the same at every token, then a gate.

  lambda = exp(-exp(nu_log) + i exp(theta_log))
  h_t = lambda h_{t-1} + exp(gamma_log) (u_t W_B)                h complex
  y_t = Re(h_t W_C) + D u_t
  out = GLU(gelu(y) W_out + b_out),  GLU(p, q) = p sigmoid(q)

Orvieto et al. 2023, https://arxiv.org/abs/2303.06349, section 3 and, for sizes
and start, the code of its appendix A: lambda uniform on the ring between
radius r_min and r_max, up to max_phase; |gamma| = sqrt(1 - |lambda|^2), so that
white noise gives states of size 1; W_B normal of variance 1 / 2D in both parts,
W_C of 1 / N, D of 1. The GLU, whose code is not in the paper, as in
NicolasZucchet/minimal-LRU, lru/model.py: lecun normal, biases 0.

B batch  T time  D width  N complex numbers of state
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from arch import config, roles
from arch.law import Aux
from arch.recurrence import diagonal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config.Config):
  """
  Attributes:
    state: N, complex numbers; None for dim.
    r_min: least |lambda| at the start.
    r_max: largest |lambda| at the start.
    max_phase: largest angle of lambda at the start, in radians.
  """

  state: int | None = None
  r_min: float = 0.0
  r_max: float = 1.0
  max_phase: float = 6.28

  def __post_init__(self):
    self.positive(state="N")
    if not 0 <= self.r_min < self.r_max <= 1:
      raise ValueError(
        f"lru: r_min={self.r_min} and r_max={self.r_max} must be "
        "0 <= r_min < r_max <= 1"
      )
    if not 0 < self.max_phase <= 2 * math.pi:
      raise ValueError(
        f"lru: max_phase={self.max_phase} must be above 0 and at most 2 pi"
      )

  @property
  def N(self):
    """states"""
    return self.dim if self.state is None else self.state


def normal(variance):
  return nnx.initializers.normal(variance**0.5)


def ring(rngs, cfg):
  """nu_log, theta_log and gamma_log of lambda uniform on the ring."""
  # above 0 and below 1: both ends would be logarithms of 0
  tiny = jnp.finfo(jnp.float32).tiny
  u, phase = jax.random.uniform(rngs.params(), (2, cfg.N), minval=tiny)
  power = cfg.r_min**2 + u * (cfg.r_max**2 - cfg.r_min**2)  # |lambda|^2
  nu = -jnp.log(power) / 2
  gamma_log = jnp.log(-jnp.expm1(-2 * nu)) / 2
  return jnp.log(nu), jnp.log(cfg.max_phase * phase), gamma_log


class Mixer(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    D, N = cfg.dim, cfg.N
    nu_log, theta_log, gamma_log = ring(rngs, cfg)
    self.nu_log = roles.Gate(nu_log)
    self.theta_log = roles.Gate(theta_log)
    self.gamma_log = roles.Gate(gamma_log)
    # real parts, then imaginary ones; of W_C those are negated
    self.B = cfg.linear(D, (N, N), init=normal(1 / (2 * D)), rngs=rngs)
    self.C = cfg.linear(2 * N, D, init=normal(1 / N), rngs=rngs)
    self.D = roles.Gate(jax.random.normal(rngs.params(), (D,)))
    self.out_proj = cfg.linear(D, (D, D), bias=True, rngs=rngs)

  def init_state(self, batch, length=None):
    zero = jnp.zeros((batch, self.cfg.N))
    return {"h": (zero, zero)}

  def __call__(self, u, reset, state):
    state = state or self.init_state(u.shape[0])
    gamma = jnp.exp(self.gamma_log[...])[None, None]
    b = (part.astype(jnp.float32) for part in self.B(u))
    h, last = diagonal.scan_pair(
      -jnp.exp(self.nu_log[...])[None, None],
      jnp.exp(self.theta_log[...])[None, None],
      *(gamma * part for part in b),
      reset,
      state["h"],
    )
    y = self.C(jnp.concatenate(h, -1)).astype(jnp.float32)
    y += self.D[...][None, None] * u.astype(jnp.float32)
    p, q = self.out_proj(jax.nn.gelu(y))
    return p * jax.nn.sigmoid(q), {"h": last}, Aux()
