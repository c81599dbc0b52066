"""MesaNet: at every token, the linear map that fits all values so far best.

  q, k = silu(conv(u W_qk)),  v = u W_v,  a, b = u W_gates + b_gates
  q = q / |q|,  k = k / |k|,  beta = sigmoid(b),  alpha = sigmoid(a)
  ridge = softplus(ridge_raw) + floor
  H_t = alpha_t H_{t-1} + beta_t k_t k_t^T
  G_t = alpha_t G_{t-1} + beta_t k_t v_t^T
  o_t = G_t^T (H_t + diag(ridge))^-1 q_t
  out = norm(o) W_out,  norm over a head

von Oswald et al. 2025, https://arxiv.org/abs/2506.05233, eq. 4 to 8; parameters
and their start as in fla-org/flash-linear-attention, layers/mesa_net.py and
models/mesa_net: matrices and taps normal of deviation 0.02, biases 0, ridge 1.
Conjugate gradients take `steps` steps, the 30 of that release, which however
adds 1e-5 to their denominators and so stops near a residual of 3e-3.

B batch  T time  D width  H heads  K key and value width
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from arch import config, layers, roles
from arch.law import Aux
from arch.recurrence import mesa


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config.Config):
  """
  Attributes:
    head: K, the width of a head.
    heads: H; None for dim / head.
    conv: taps of the short convolution of q and k.
    floor: the least ridge.
    steps: of conjugate gradients.
  """

  head: int = 64
  heads: int | None = None
  conv: int = 4
  floor: float = 0.25
  steps: int = 30

  def __post_init__(self):
    self.positive("head", "conv", "steps", heads="H")
    if not 0 < self.floor < 1:
      raise ValueError(
        f"mesanet: floor={self.floor} must be between 0 and the ridge's 1"
      )

  @property
  def H(self):
    """heads"""
    return self.divide("dim", "head") if self.heads is None else self.heads

  @property
  def values(self):
    return "in_proj", 2 * self.H * self.head, self.H, self.head


class Mixer(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    H, K = cfg.H, cfg.head
    normal = nnx.initializers.normal(0.02)
    D, HK = cfg.dim, H * K
    kw = dict(init=normal, rngs=rngs)
    self.in_proj = cfg.linear(D, (2 * HK, HK), **kw)
    self.gates = cfg.linear(D, (H, H), bias=True, **kw)
    self.conv = layers.ShortConv(
      2 * HK, cfg.conv, bias=False, dtype=cfg.compute, **kw
    )
    raw = math.log(math.expm1(1 - cfg.floor))
    self.ridge = roles.Gate(jnp.full((H, K), raw, jnp.float32))
    self.norm = layers.RMSNorm(K, eps=1e-5)
    self.out_proj = cfg.linear(HK, D, **kw)

  def init_state(self, batch, length=None):
    H, K = self.cfg.H, self.cfg.head
    zeros = jnp.zeros((batch, H, K, K))
    return {"conv": self.conv.init_state(batch), "H": zeros, "G": zeros}

  def __call__(self, u, reset, state):
    cfg = self.cfg
    B, T, _ = u.shape
    H, K = cfg.H, cfg.head
    state = state or self.init_state(B)

    qk, v = self.in_proj(u)
    qk, conv = self.conv(qk, reset, state["conv"])
    qk = layers.unit(jax.nn.silu(qk).reshape(B, T, 2 * H, K)).astype(v.dtype)
    q, k = jnp.split(qk, 2, 2)
    a, b = (t.astype(jnp.float32) for t in self.gates(u))
    o, (new_H, new_G) = mesa.chunked(
      q,
      k,
      v.reshape(B, T, H, K),
      jax.nn.log_sigmoid(a),
      jax.nn.sigmoid(b),
      jax.nn.softplus(self.ridge[...]) + cfg.floor,
      reset,
      (state["H"], state["G"]),
      steps=cfg.steps,
    )
    o = self.norm(o).reshape(B, T, H * K)
    return self.out_proj(o), {"conv": conv, "H": new_H, "G": new_G}, Aux()
