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

import jax.numpy as jnp
from flax import nnx

from arch import layers, roles, starts
from arch.law import Aux
from arch.mixers import gated_deltanet
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
    self.power_of_two("chunk")
    self.at_least(levels=2)


class Mixer(gated_deltanet.Mixer):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    H, G, K, V = self.sizes
    normal = nnx.initializers.normal(cfg.deviation)
    D, inner = cfg.dim, 2 * G * K + H * V
    kw = dict(init=normal, bias=False, rngs=rngs)
    self.in_proj = cfg.linear(D, (inner, H * V), **kw)
    self.gates = cfg.linear(D, (H, H), **kw)
    self.levels = layers.Levels(cfg, H, rngs=rngs)
    self.conv = layers.ShortConv(inner, cfg.conv, dtype=cfg.compute, **kw)
    self.dt_bias = roles.Gate(starts.dt_bias(rngs.params(), (H,)))
    self.A_log = roles.Gate(starts.decay_rate(rngs.params(), (H,)))
    self.norm = layers.RMSNorm(V, eps=cfg.eps)
    residual = starts.uniform_fan_in((2 * cfg.depth) ** -0.5)
    self.out_proj = cfg.linear(H * V, D, init=residual, rngs=rngs)

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
    return self.output(o, z), {"conv": conv, "S": S, "count": count}, Aux()
