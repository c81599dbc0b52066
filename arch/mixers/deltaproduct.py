"""Gated DeltaProduct: Gated DeltaNet with n Householder steps a token.

  q, k_1..k_n, v_1..v_n = silu(conv(u W_qkv)),  z = u W_z,  b, a = u W_gates
  q = q / |q| / sqrt(K),  k_j = k_j / |k_j|
  beta_j = 2 sigmoid(b_j), or sigmoid(b_j): eigenvalues from 0, not -1, to 1
  alpha = exp(-exp(A_log) softplus(a + dt_bias)), or 1 without `decay`
  S_t,0 = alpha_t S_{t-1},n
  S_t,j = (I - beta_t,j k_t,j k_t,j^T) S_t,j-1 + beta_t,j k_t,j v_t,j^T
  o_t = S_t,n^T q_t
  out = (norm(o) silu(z)) W_out,  norm over a head

Siems et al. 2025, https://arxiv.org/abs/2502.10297, section 4, eq. 3; sizes,
parameters and their start as in fla-org/flash-linear-attention,
layers/gated_deltaproduct.py and models/gated_deltaproduct: gated_deltanet's
sizes beside n keys, values and beta; normal(0.02), the taps of the convolution
too. n = 1 is Gated DeltaNet.

The recurrence runs over T n steps: a token's decay and reset are at its first,
its query at its last.

B batch  T time  D width  H heads  G key heads  K key width  V value width
n steps
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from arch.law import Aux
from arch.mixers import gated_deltanet
from arch.recurrence import delta


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(gated_deltanet.Config):
  """
  Attributes:
    steps: n, Householder steps a token.
    decay: whether the state decays; without, it is DeltaProduct, ungated.
  """

  steps: int = 2
  decay: bool = True
  neg_eigval: bool = True

  def __post_init__(self):
    super().__post_init__()
    self.positive("steps")

  def starts(self):
    return (nnx.initializers.normal(0.02),) * 2


class Mixer(gated_deltanet.Mixer):
  def gate(self, u):
    if self.cfg.decay:
      return super().gate(u)
    b = self.gates(u)[0].astype(jnp.float32)
    none = jnp.zeros((*u.shape[:2], self.cfg.H))
    return (1 + self.cfg.neg_eigval) * jax.nn.sigmoid(b), none

  def __call__(self, u, reset, state):
    B, T, _ = u.shape
    H, n = self.cfg.H, self.cfg.steps
    state = state or self.init_state(u.shape[0])

    def at(step, x):
      """B T ... -> B Tn ...: x at that step of each token, else 0."""
      steps = [jnp.zeros_like(x)] * n
      steps[step] = x
      return jnp.stack(steps, 2).reshape(B, T * n, *x.shape[2:])

    q, k, v, z, conv = self.project(u, reset, state["conv"])
    q *= self.cfg.head**-0.5
    beta, log_alpha = self.gate(u)
    log_alpha = at(0, log_alpha)
    write = k * beta.reshape(B, T * n, H, 1)
    erase = k * jnp.exp(log_alpha)[..., None]
    q, write, erase = (t.astype(v.dtype) for t in (at(-1, q), write, erase))
    if reset is not None:
      reset = at(0, reset)
    o, S = delta.chunked(q, write, v, log_alpha, None, erase, reset, state["S"])
    return self.output(o[:, n - 1 :: n], z), {"conv": conv, "S": S}, Aux()
