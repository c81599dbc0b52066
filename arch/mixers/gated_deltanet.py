"""Gated DeltaNet: a matrix state a head that forgets, then corrects one key.

  q, k, v = silu(conv(u W_qkv)),  z = u W_z,  b, a = u W_gates
  q = q / |q| / sqrt(K),  k = k / |k|,  beta = sigmoid(b)
  alpha = exp(-exp(A_log) softplus(a + dt_bias))
  S_t = alpha_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T
  o_t = S_t^T q_t
  out = (norm(o) silu(z)) W_out,  norm over a head

Yang, Kautz and Hatamizadeh 2024, https://arxiv.org/abs/2412.06464, eq. 10 and
section 3.4; sizes, parameters and their start as in fla-org/
flash-linear-attention, layers/gated_deltanet.py: H K near 3/4 dim and V = 2 K
give 6 dim^2 parameters; torch.nn.Linear's start; no biases.

B batch  T time  D width  H heads  K key width  V value width
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from arch import layers
from arch.mixers.mamba import dt_bias
from arch.recurrence import delta


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(layers.Config):
  """
  Attributes:
    head: K, the width of a head's query and key.
    heads: H; None for the number that brings H K nearest to 3/4 dim.
    expand: V / K.
    conv: taps of the short convolution.
  """

  head: int = 64
  heads: int | None = None
  expand: int = 2
  conv: int = 4

  def __post_init__(self):
    for name in ("head", "expand", "conv"):
      if getattr(self, name) < 1:
        raise ValueError(
          f"gated_deltanet: {name}={getattr(self, name)} must be at least 1"
        )
    if self.heads is not None and self.heads < 1:
      raise ValueError(f"gated_deltanet: heads={self.heads} must be at least 1")

  @property
  def count(self):
    return self.heads or max(1, round(0.75 * self.dim / self.head))


def unit(x):
  """x / sqrt(|x|^2 + 1e-6) over the last axis, in float32."""
  K = x.shape[-1]
  return layers.normalise(x, 1e-6 / K) * K**-0.5


class Mixer(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    H, K = cfg.count, cfg.head
    V = cfg.expand * K
    kw = dict(dtype=cfg.compute, rngs=rngs, init=layers.uniform_fan_in())
    self.in_proj = layers.Linear(cfg.dim, 2 * H * (K + V), **kw)
    self.gates = layers.Linear(cfg.dim, 2 * H, **kw)
    self.conv = layers.ShortConv(
      H * (2 * K + V), cfg.conv, dtype=cfg.compute, rngs=rngs, bias=False
    )
    self.dt_bias = layers.Gate(dt_bias(rngs.params(), (H,)))
    # 1 - uniform is in (0, 1]: no logarithm of 0
    A = 16 * (1 - jax.random.uniform(rngs.params(), (H,)))
    self.A_log = layers.Gate(jnp.log(A))
    self.norm = layers.RMSNorm(V, eps=1e-5)
    self.out_proj = layers.Linear(H * V, cfg.dim, **kw)

  def init_state(self, batch, length=None):
    H, K = self.cfg.count, self.cfg.head
    return {
      "conv": self.conv.init_state(batch),
      "S": jnp.zeros((batch, H, K, self.cfg.expand * K)),
    }

  def __call__(self, u, reset, state):
    B, T, _ = u.shape
    H, K = self.cfg.count, self.cfg.head
    V = self.cfg.expand * K
    state = state or {"conv": None, "S": None}

    qkv, z = jnp.split(self.in_proj(u), (H * (2 * K + V),), -1)
    qkv, conv = self.conv(qkv, reset, state["conv"])
    q, k, v = jnp.split(jax.nn.silu(qkv), (H * K, 2 * H * K), -1)
    q, k = (unit(t.reshape(B, T, H, K)) for t in (q, k))
    v = v.reshape(B, T, H, V)
    beta, a = jnp.split(self.gates(u).astype(jnp.float32), 2, -1)
    a = jax.nn.softplus(a + self.dt_bias[...][None, None])
    log_alpha = -jnp.exp(self.A_log[...])[None, None] * a  # B T H
    write = k * jax.nn.sigmoid(beta)[..., None]
    erase = k * jnp.exp(log_alpha)[..., None]
    q, write, erase = (t.astype(v.dtype) for t in (q * K**-0.5, write, erase))
    o, S = delta.chunked(q, write, v, log_alpha, None, erase, reset, state["S"])
    o = self.norm(o.astype(jnp.float32)).reshape(B, T, H * V)
    o *= jax.nn.silu(z.astype(jnp.float32))
    return self.out_proj(o), {"conv": conv, "S": S}
