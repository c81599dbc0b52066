"""S4D: a time-invariant state space, diagonal, in conjugate pairs.

  A = -exp(log_A_real) + i A_imag,  dt = exp(log_dt)
  h_t = exp(dt A) h_{t-1} + u_t
  y_t = 2 Re(C (exp(dt A) - 1) / A h_t) + D u_t            zero-order hold
  out = GLU(gelu(y) W_out + b_out),  GLU(p, q) = p sigmoid(q)

Gu, Gupta, Goel and Re 2022, https://arxiv.org/abs/2206.11893, section 3, with B
inside C. A starts as in its section 4, with real part -1/2 and, for n < N / 2,
imaginary part

  lin   i pi n
  inv   i N / pi (N / (2 n + 1) - 1)
  legs  eigenvalues of the normal part of HiPPO-LegS

The rest is as in state-spaces/s4, models/s4/s4d.py: C and D start normal, dt
log-uniform in [1e-3, 1e-1], W_out and b_out as torch.nn.Linear's.

B batch  T time  D width  M pairs of conjugates, N / 2 a channel
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from arch import config, roles, starts
from arch.law import Aux
from arch.recurrence import diagonal


def lin(N):
  return np.pi * np.arange(N // 2)


def inv(N):
  return N / np.pi * (N / (2 * np.arange(N // 2) + 1) - 1)


def legs(N):
  """HiPPO-LegS plus its rank-one part is skew but for -1/2 on the diagonal."""
  p = np.sqrt(np.arange(N) + 0.5)
  skew = np.tril(np.outer(p, p), -1)
  return np.sort(np.linalg.eigvalsh(1j * (skew - skew.T)))[N // 2 :]


STARTS = {"lin": lin, "inv": inv, "legs": legs}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config.Config):
  """
  Attributes:
    state: N, real numbers a channel remembers; even.
    start: where the imaginary parts of A start: lin, inv or legs.
  """

  state: int = 64
  start: str = "lin"

  def __post_init__(self):
    if self.state < 2 or self.state % 2:
      raise ValueError(
        f"s4d: state={self.state} must be even and at least 2: it holds pairs"
      )
    self.among("start", STARTS)


class Mixer(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    D, M = cfg.dim, cfg.state // 2
    low, high = math.log(1e-3), math.log(1e-1)
    log_dt = jax.random.uniform(rngs.params(), (D,), minval=low, maxval=high)
    self.log_dt = roles.Gate(log_dt)
    self.log_A_real = roles.Gate(jnp.log(jnp.full((D, M), 0.5, jnp.float32)))
    imag = jnp.asarray(STARTS[cfg.start](cfg.state), jnp.float32)
    self.A_imag = roles.Gate(jnp.broadcast_to(imag[None], (D, M)))
    # a complex normal of variance 1
    C = jax.random.normal(rngs.params(), (2, D, M)) * 0.5**0.5
    self.C = roles.Vector(C)
    self.D = roles.Gate(jax.random.normal(rngs.params(), (D,)))
    bias, init = starts.uniform(D**-0.5), starts.uniform_fan_in()
    self.out_proj = cfg.linear(D, (D, D), init=init, bias=bias, rngs=rngs)

  def init_state(self, batch, length=None):
    zero = jnp.zeros((batch, self.cfg.dim, self.cfg.state // 2))
    return {"ssm": (zero, zero)}

  def __call__(self, u, reset, state):
    state = state or self.init_state(u.shape[0])
    dt = jnp.exp(self.log_dt[...])[:, None]
    real = -jnp.exp(self.log_A_real[...])
    (x, angle), (p, q) = diagonal.hold(dt, real, self.A_imag[...])
    c, d = self.C[...]
    c, d = 2 * (c * p - d * q), 2 * (c * q + d * p)
    wide = u.astype(jnp.float32)
    y, ssm = diagonal.convolve(wide, x, angle, c, d, reset, state["ssm"])
    y = y + self.D[...][None, None] * wide
    y = jax.nn.gelu(y, approximate=False)
    a, b = self.out_proj(y)
    return a * jax.nn.sigmoid(b), {"ssm": ssm}, Aux()
