"""Kimi delta attention: Gated DeltaNet with a decay for each of K numbers.

  q, k, v = silu(conv(u W_qkv)),  b, f, r = u W_low
  q = q / |q| / sqrt(K),  k = k / |k|,  beta = sigmoid(b)
  alpha = exp(-exp(A_log) softplus(f W_decay + dt_bias))      K numbers a head
  S_t = (I - beta_t k_t k_t^T) diag(alpha_t) S_{t-1} + beta_t k_t v_t^T
  o_t = S_t^T q_t
  out = (norm(o) sigmoid(r W_gate)) W_out,  norm over a head

Kimi Team 2025, https://arxiv.org/abs/2510.26692, eq. 1 and section 4; sizes and
parameters as in the release, whose f and r are as wide as a head; their start
as in fla-org/flash-linear-attention, layers/kda.py and models/kda:
normal(0.02), the taps of the convolution too, and exp(A_log) uniform in
[1, 16]. No positions, no biases.

B batch  T time  D width  H heads  K width of a head
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from arch import config, layers, roles, starts
from arch.law import Aux
from arch.recurrence import delta


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config.Config):
  """
  Attributes:
    head: K, the width of a head's query, key and value.
    heads: H; None for the number that brings H K nearest to dim.
    conv: taps of the short convolution.
    eps: of the norm.
  """

  head: int = 128
  heads: int | None = None
  conv: int = 4
  eps: float = 1e-5

  def __post_init__(self):
    self.positive("head", "conv", heads="H")

  @property
  def H(self):
    """heads"""
    if self.heads is not None:
      return self.heads
    return max(1, round(self.dim / self.head))

  @property
  def values(self):
    return "qkv", 2 * self.H * self.head, self.H, self.head


class Mixer(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    H, K = cfg.H, cfg.head
    init = nnx.initializers.normal(0.02)
    kw = dict(init=init, bias=False, rngs=rngs)
    self.qkv = cfg.linear(cfg.dim, 3 * H * K, **kw)
    self.low = cfg.linear(cfg.dim, (H, K, K), **kw)
    self.decay_proj = cfg.linear(K, H * K, **kw)
    self.gate_proj = cfg.linear(K, H * K, **kw)
    self.conv = layers.ShortConv(3 * H * K, cfg.conv, dtype=cfg.compute, **kw)
    self.dt_bias = roles.Gate(starts.dt_bias(rngs.params(), (H * K,)))
    self.A_log = roles.Gate(
      jnp.log(jax.random.uniform(rngs.params(), (H,), minval=1, maxval=16))
    )
    self.norm = layers.RMSNorm(K, eps=cfg.eps)
    self.out_proj = cfg.linear(H * K, cfg.dim, **kw)

  def init_state(self, batch, length=None):
    H, K = self.cfg.H, self.cfg.head
    conv = self.conv.init_state(batch)
    return {"conv": conv, "S": jnp.zeros((batch, H, K, K))}

  def __call__(self, u, reset, state):
    B, T, _ = u.shape
    H, K = self.cfg.H, self.cfg.head
    state = state or self.init_state(u.shape[0])

    qkv, conv = self.conv(self.qkv(u), reset, state["conv"])
    qkv = jax.nn.silu(qkv).reshape(B, T, 3, H, K)
    q, k, v = (qkv[:, :, i] for i in range(3))
    q, k = layers.unit(q) * K**-0.5, layers.unit(k)
    b, f, r = self.low(u)
    beta = jax.nn.sigmoid(b.astype(jnp.float32))
    f = self.decay_proj(f).astype(jnp.float32)
    f = jax.nn.softplus(f + self.dt_bias[...][None, None])
    rate = jnp.exp(self.A_log[...])[None, None, :, None]
    log_alpha = -rate * f.reshape(B, T, H, K)
    write = k * beta[..., None]
    erase = k * jnp.exp(log_alpha)
    q, write, erase = (t.astype(v.dtype) for t in (q, write, erase))
    o, S = delta.chunked(q, write, v, log_alpha, None, erase, reset, state["S"])
    o = self.norm(o.astype(jnp.float32)).reshape(B, T, H * K)
    o *= jax.nn.sigmoid(self.gate_proj(r).astype(jnp.float32))
    return self.out_proj(o), {"conv": conv, "S": S}, Aux()
