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
from arch.mixers import gated_deltanet
from arch.mixers.mamba import dt_bias
from arch.recurrence import log_linear


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(gated_deltanet.Config):
  """
  Attributes:
    levels: L; None for those of `length` tokens. Older ones share the last.
    chunk: tokens that are read at once, a power of two.
    deviation: of the matrices and taps at the start.
  """

  levels: int | None = None
  chunk: int = 64
  deviation: float = 0.006

  def __post_init__(self):
    super().__post_init__()
    check(self)


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


class Mixer(gated_deltanet.Mixer):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    H, G, K, V = self.sizes
    normal = nnx.initializers.normal(cfg.deviation)
    kw = dict(dtype=cfg.compute, rngs=rngs)
    inner = 2 * G * K + H * V
    self.in_proj = layers.Linear(cfg.dim, inner + H * V, init=normal, **kw)
    self.gates = layers.Linear(cfg.dim, 2 * H, init=normal, **kw)
    self.levels = Levels(cfg, H, rngs=rngs)
    self.conv = layers.ShortConv(inner, cfg.conv, init=normal, bias=False, **kw)
    self.dt_bias = layers.Gate(dt_bias(rngs.params(), (H,)))
    self.A_log = layers.Gate(gated_deltanet.decay_rate(rngs.params(), (H,)))
    self.norm = layers.RMSNorm(V, eps=cfg.eps)
    residual = layers.uniform_fan_in((2 * cfg.depth) ** -0.5)
    self.out_proj = layers.Linear(H * V, cfg.dim, init=residual, **kw)

  def init_state(self, batch, length=None):
    H, _, K, V = self.sizes
    N = self.levels.L.shape[1] - 1
    return {
      "conv": self.conv.init_state(batch),
      "S": jnp.zeros((batch, H, K, N, V)),
      "count": jnp.zeros(batch, jnp.int32),
    }

  def __call__(self, u, reset, state):
    state = state or self.init_state(u.shape[0])
    q, k, v, z, conv = self.project(u, reset, state["conv"])
    beta, log_alpha = self.gate(u)
    write = k * beta[..., None]
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
    return self.read(o, z), {"conv": conv, "S": S, "count": count}
