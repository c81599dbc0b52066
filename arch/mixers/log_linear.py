"""Log-linear Gated DeltaNet: a state a head for every power of two of the
tokens so far.

  q, k, v = silu(conv(u W_qkv)),  z = u W_z,  b, a, l = u W_gates
  q = q / |q|,  k = k / |k|,  beta = sigmoid(b)
  alpha = exp(-exp(A_log) softplus(a + dt_bias)),  scale = softplus(L l)
  S_t = alpha_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T
  o_t = sum over levels n of scale_t[n] (the part of S_t of level n)^T q_t
  out = (norm(o) silu(z)) W_out,  norm over a head

recurrence/log_linear.py says what a level is. Guo et al. 2025,
https://arxiv.org/abs/2506.04761, section 3.4; parameters and their start as in
HanGuo97/log-linear-attention, modeling_h_gated_deltanet.py and configs/flame:
matrices and taps normal of deviation 0.006, W_out uniform in +-1 / sqrt(d_in)
over sqrt(2 depth), L = 1; H K near 3/4 dim and V = 2 K. Neither there nor here
is q scaled by 1 / sqrt(K).

B batch  T time  D width  H heads  K key width  V value width  L levels
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from arch import layers
from arch.mixers.gated_deltanet import decay_rate, unit
from arch.mixers.mamba import dt_bias
from arch.recurrence import log_linear


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(layers.Config):
  """
  Attributes:
    head: K, the width of a head's query and key.
    heads: H; None for the number that brings H K nearest to 3/4 dim.
    expand: V / K.
    conv: taps of the short convolution.
    levels: L; None for those of `length` tokens. Older ones share the last.
    chunk: tokens that are read at once, a power of two.
    deviation: of the matrices and taps at the start.
  """

  head: int = 64
  heads: int | None = None
  expand: int = 2
  conv: int = 4
  levels: int | None = None
  chunk: int = 64
  deviation: float = 0.006

  def __post_init__(self):
    self.positive("head", "expand", "conv", heads="count")
    check(self)

  @property
  def count(self):
    if self.heads is not None:
      return self.heads
    return max(1, round(0.75 * self.dim / self.head))


def check(cfg):
  cfg.power_of_two("chunk")
  if cfg.levels is not None and cfg.levels < 2:
    raise ValueError(f"{cfg.where}: levels={cfg.levels} must be at least 2")


class Levels(nnx.Module):
  """softplus(L l), l = u W: B T H L in float32."""

  def __init__(self, cfg, heads, *, rngs):
    levels = cfg.levels or max(2, math.ceil(math.log2(cfg.length)) + 1)
    init = nnx.initializers.normal(cfg.deviation)
    self.proj = layers.Linear(
      cfg.dim, heads * levels, dtype=cfg.compute, rngs=rngs, init=init
    )
    self.L = layers.Gate(jnp.ones((heads, levels)))

  def __call__(self, u):
    x = self.proj(u).astype(jnp.float32).reshape(*u.shape[:2], *self.L.shape)
    return jax.nn.softplus(self.L[...][None, None] * x)


class Mixer(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    H, K = cfg.count, cfg.head
    V = cfg.expand * K
    normal = nnx.initializers.normal(cfg.deviation)
    kw = dict(dtype=cfg.compute, rngs=rngs)
    self.in_proj = layers.Linear(cfg.dim, 2 * H * (K + V), init=normal, **kw)
    self.gates = layers.Linear(cfg.dim, 2 * H, init=normal, **kw)
    self.levels = Levels(cfg, H, rngs=rngs)
    self.conv = layers.ShortConv(
      H * (2 * K + V), cfg.conv, init=normal, bias=False, **kw
    )
    self.dt_bias = layers.Gate(dt_bias(rngs.params(), (H,)))
    self.A_log = layers.Gate(decay_rate(rngs.params(), (H,)))
    self.norm = layers.RMSNorm(V, eps=1e-5)
    residual = layers.uniform_fan_in((2 * cfg.depth) ** -0.5)
    self.out_proj = layers.Linear(H * V, cfg.dim, init=residual, **kw)

  def init_state(self, batch, length=None):
    H, K = self.cfg.count, self.cfg.head
    N = self.levels.L.shape[1] - 1
    return {
      "conv": self.conv.init_state(batch),
      "S": jnp.zeros((batch, H, K, N, self.cfg.expand * K)),
      "count": jnp.zeros(batch, jnp.int32),
    }

  def __call__(self, u, reset, state):
    B, T, _ = u.shape
    H, K = self.cfg.count, self.cfg.head
    V = self.cfg.expand * K
    state = state or self.init_state(B)

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
    q, write, erase = (t.astype(v.dtype) for t in (q, write, erase))
    o, (S, count) = log_linear.chunked(
      q,
      write,
      v,
      log_alpha,
      self.levels(u),
      erase,
      reset,
      (state["S"], state["count"]),
      chunk=self.cfg.chunk,
    )
    o = self.norm(o.astype(jnp.float32)).reshape(B, T, H * V)
    o *= jax.nn.silu(z.astype(jnp.float32))
    return self.out_proj(o), {"conv": conv, "S": S, "count": count}
