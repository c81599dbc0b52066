"""Gated linear attention: a matrix state whose every key forgets by itself.

  q, k, v, z = u W_in,  a = sigmoid((u W_down) W_up + b)^(1 / 16)
  S_t = diag(a_t) S_{t-1} + k_t v_t^T,  o_t = S_t^T q_t / sqrt(K)
  out = (norm(o) silu(z)) W_out,  norm over a head

Yang et al. 2023, https://arxiv.org/abs/2312.06635, eq. 3 and section 4.4. Sizes
and parameters as in the authors' fla-org/flash-linear-attention, layers/gla.py:
H V = dim, H K = dim / 2, an RMS norm, no bias but b. The start as in their
berlino/gated_linear_attention, gla.py: Xavier's uniform of gain 2^-2.5 for q, k
and the gate's maps, torch.nn.Linear's for the rest.

B batch  T time  D width  H heads  K key width  V value width  R rank
"""

import dataclasses

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
    heads: H.
    rank: R, of the map that makes the decays.
    normaliser: what the logarithms of the decays are divided by.
    eps: of the norm.
  """

  heads: int = 4
  rank: int = 16
  normaliser: float = 16.0
  eps: float = 1e-5

  def __post_init__(self):
    self.positive("rank", "normaliser")
    if self.heads < 1 or self.dim % (2 * self.heads):
      raise ValueError(
        f"gla: twice heads={self.heads} must divide dim={self.dim}"
      )

  @property
  def K(self):
    """key width"""
    return self.dim // (2 * self.heads)

  @property
  def V(self):
    """value width"""
    return self.dim // self.heads

  @property
  def values(self):
    return "in_proj", 2 * self.heads * self.K + self.rank, self.heads, self.V


class Mixer(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    D, R = cfg.dim, cfg.rank
    HK = D // 2
    small, uniform = starts.xavier_uniform(2**-2.5), starts.uniform_fan_in()
    inits = small, small, small, uniform, uniform
    widths = HK, HK, R, D, D
    init = starts.columns(*zip(inits, widths, strict=True))
    self.in_proj = cfg.linear(D, widths, init=init, rngs=rngs)
    self.gate = cfg.linear(R, HK, init=small, rngs=rngs)
    bias = jax.random.uniform(rngs.params(), (HK,), minval=-1, maxval=1)
    self.gate_bias = roles.Gate(bias * R**-0.5)
    self.norm = layers.RMSNorm(cfg.V, eps=cfg.eps)
    self.out_proj = cfg.linear(D, D, init=uniform, rngs=rngs)

  def init_state(self, batch, length=None):
    cfg = self.cfg
    return {"S": jnp.zeros((batch, cfg.heads, cfg.K, cfg.V))}

  def __call__(self, u, reset, state):
    state = state or self.init_state(u.shape[0])
    cfg = self.cfg
    B, T, D = u.shape
    H, K, V = cfg.heads, cfg.K, cfg.V

    q, k, low, v, z = self.in_proj(u)
    g = self.gate(low).astype(jnp.float32) + self.gate_bias[...][None, None]
    g = jax.nn.log_sigmoid(g) / cfg.normaliser
    q, k, g = (t.reshape(B, T, H, K) for t in (q * K**-0.5, k, g))
    o, S = gated.chunked(q, k, v.reshape(B, T, H, V), g, reset, state["S"])
    o = self.norm(o.astype(jnp.float32)).reshape(B, T, D)
    return (
      self.out_proj(o * jax.nn.silu(z.astype(jnp.float32))),
      {"S": S},
      Aux(),
    )
