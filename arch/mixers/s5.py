"""S5: one diagonal state space for all channels, in conjugate pairs; a gate.

  A = min(A_re, -1e-4) + i A_im,  dt = exp(log_dt)
  h_t = exp(dt A) h_{t-1} + (exp(dt A) - 1) / A (u_t W_B)       zero-order hold
  y_t = 2 Re(h_t W_C) + D u_t
  out = z sigmoid(z W_out + b_out),  z = gelu(y)

Smith, Warrington and Linderman 2022, https://arxiv.org/abs/2208.04933, section
3, not bidirectional. As in lindermanlab/S5, s5/ssm.py, s5/ssm_init.py and
s5/train.py: A starts as the eigenvalues of HiPPO-N, J blocks of it; W_B and W_C
as V^-1 B and C V, with V its eigenvectors, B lecun normal and C normal of
variance 1 / N cut at two deviations; D normal; dt log-uniform in [1e-3, 1e-1];
W_out lecun normal, b_out 0. The gate is its default, half_glu1. The bound on
Re A is its clip_eigs, off by default and recommended there for autoregressive
models.

B batch  T time  D width  N state  J blocks  M = N / 2 pairs of conjugates
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from arch import config, roles, starts
from arch.law import Aux
from arch.recurrence import diagonal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config.Config):
  """
  Attributes:
    state: N, real numbers that the layer remembers.
    blocks: J, of the matrix whose eigenvalues A starts from; 2 J divides N.
  """

  state: int = 256
  blocks: int = 8

  def __post_init__(self):
    if self.blocks < 1 or self.state < 1 or self.state % (2 * self.blocks):
      raise ValueError(
        f"s5: state={self.state} must be a multiple of 2 blocks, "
        f"blocks={self.blocks}: each holds pairs"
      )


def hippo(N):
  """Half of the eigenvalues of HiPPO-N (the rest conjugate), eigenvectors."""
  p = np.sqrt(np.arange(N) + 0.5)
  skew = np.tril(np.outer(p, p), -1)
  imag, V = np.linalg.eigh(1j * (skew - skew.T))
  return imag[: N // 2], V[:, : N // 2]


class Mixer(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    D, N, J = cfg.dim, cfg.state, cfg.blocks
    M = N // 2
    imag, V = hippo(N // J)
    V = np.kron(np.eye(J), V)  # N M
    V = jnp.asarray(V.real, jnp.float32), jnp.asarray(V.imag, jnp.float32)
    self.A_re = roles.Gate(jnp.full(M, -0.5, jnp.float32))
    self.A_im = roles.Gate(jnp.asarray(np.tile(imag, J), jnp.float32))
    low, high = np.log(1e-3), np.log(1e-1)
    log_dt = jax.random.uniform(rngs.params(), (M,), minval=low, maxval=high)
    self.log_dt = roles.Gate(log_dt)

    def normal(*shape):
      return starts.fan_in()(rngs.params(), shape, jnp.float32)

    # real parts, then imaginary ones; of W_C those are negated
    B = normal(N, D).T
    B = jnp.concatenate([B @ V[0], -(B @ V[1])], 1)
    self.B = cfg.linear(D, (M, M), init=lambda *_: B, rngs=rngs)
    re, im = normal(N, D), normal(N, D)
    re, im = V[0].T @ re - V[1].T @ im, V[0].T @ im + V[1].T @ re
    C = jnp.concatenate([re, -im], 0)
    self.C = cfg.linear(N, D, init=lambda *_: C, rngs=rngs)
    self.D = roles.Gate(jax.random.normal(rngs.params(), (D,)))
    self.out_proj = cfg.linear(D, D, bias=True, rngs=rngs)

  def init_state(self, batch, length=None):
    zero = jnp.zeros((batch, self.cfg.state // 2))
    return {"h": (zero, zero)}

  def __call__(self, u, reset, state):
    state = state or self.init_state(u.shape[0])
    real = jnp.minimum(self.A_re[...], -1e-4)
    A, gain = diagonal.hold(jnp.exp(self.log_dt[...]), real, self.A_im[...])
    A, gain = (tuple(t[None, None] for t in pair) for pair in (A, gain))
    b = tuple(part.astype(jnp.float32) for part in self.B(u))
    h, last = diagonal.scan_pair(
      *A,
      *diagonal.times(gain, b),
      reset,
      state["h"],
    )
    y = 2 * self.C(jnp.concatenate(h, -1)).astype(jnp.float32)
    y += self.D[...][None, None] * u.astype(jnp.float32)
    z = jax.nn.gelu(y)
    gate = jax.nn.sigmoid(self.out_proj(z).astype(jnp.float32))
    return (z * gate).astype(self.cfg.compute), {"h": last}, Aux()
