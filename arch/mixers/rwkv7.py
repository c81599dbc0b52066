"""RWKV-7: a delta rule with a decay and a learning rate for each number.

  x_j = x + m_j (x_{t-1} - x),  j = r, w, k, v, a, g           x_{-1} = 0
  r, k, v = x_r W_r, x_k W_k, x_v W_v,  g = sigmoid(x_g W_g1) W_g2
  w = exp(-exp(-1/2) sigmoid(w_0 + tanh(x_w W_w1) W_w2))
  a = sigmoid(a_0 + x_a W_a1 W_a2)
  v = v + (v' - v) sigmoid(v_0 + x_v W_v1 W_v2)      v' of the first block
  kk = k k_k / |k k_k|,  k = k (1 + (a - 1) k_a)
  S_t = (diag(w_t) - (a_t kk_t) kk_t^T) S_{t-1} + k_t v_t^T
  o_t = S_t^T r_t
  out = ((norm(o) + (r . r_k k) v) g) W_out
  norm: of mean 0 and variance 1 over a head, then a weight and a bias

Peng et al. 2025, https://arxiv.org/abs/2503.14456, section 4; sizes, parameters
and their start as in BlinkDL/RWKV-LM, RWKV-v7/train_temp/src/model.py, where
generate_init_weight has the last word. A config gives its first block
residual=False, and the shell LayerNorm, one after the embedding, and the
channel mixer `rwkv`. As there, weight decay leaves the low-rank maps out.

B batch  T time  D width  H heads  K width of a head
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from arch import config, layers, roles
from arch.law import Aux
from arch.recurrence import delta


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config.Config):
  """
  Attributes:
    head: K, which divides dim.
    residual: whether v is mixed with the first block's; if not, this block's v
      is what later blocks mix with theirs.
    decay_rank: width of x_w W_w1; None for 2.5 sqrt(dim), rounded to 32s.
    rate_rank: of x_a W_a1; None for the same.
    value_rank: of x_v W_v1; None for 1.7 sqrt(dim), rounded to 32s.
    gate_rank: of x_g W_g1; None for 5 sqrt(dim), rounded to 32s.
    eps: of the norm, times K.
  """

  head: int = 64
  residual: bool = True
  decay_rank: int | None = None
  rate_rank: int | None = None
  value_rank: int | None = None
  gate_rank: int | None = None
  eps: float = 1e-5

  @property
  def reads(self):
    return ("first_value",) if self.residual else ()

  @property
  def writes(self):
    return () if self.residual else ("first_value",)

  def __post_init__(self):
    self.divide("dim", "head")
    self.positive("decay_rank", "rate_rank", "value_rank", "gate_rank")

  @property
  def H(self):
    """heads"""
    return self.dim // self.head

  def rank(self, given, factor):
    if given is not None:
      return given
    return max(32, 32 * round(factor * math.sqrt(self.dim) / 32))

  @property
  def values(self):
    return "v_proj", 0, self.H, self.head


class LowRank(nnx.Module):
  """bias + f(x W_1) W_2 in float32. W_1 starts at 0, W_2 orthogonal."""

  def __init__(self, cfg, rank, bias=None, *, rngs):
    D = cfg.dim
    kw = dict(dtype=cfg.compute, rngs=rngs, role=roles.Gate)
    scale = 0.1 * max(1, math.sqrt(rank / D))
    self.down = layers.Linear(D, rank, init=nnx.initializers.zeros, **kw)
    orthogonal = nnx.initializers.orthogonal(scale)
    self.up = layers.Linear(rank, D, init=orthogonal, **kw)
    self.bias = None if bias is None else roles.Gate(bias)

  def __call__(self, x, f=lambda x: x):
    y = self.up(f(self.down(x).astype(jnp.float32))).astype(jnp.float32)
    return y if self.bias is None else y + self.bias[...][None, None]


class Mixer(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    D, K = cfg.dim, cfg.head
    late = layer / max(1, cfg.depth - 1)  # 0 to 1
    early = 1 - layer / cfg.depth  # 1 to nearly 0
    i = jnp.arange(D)
    ramp = i / max(1, D - 1)
    zigzag = 2 * (i % K) / max(1, K - 1) - 1
    zigzag *= jnp.abs(zigzag)

    powers = jnp.array([0.2, 0.9, 0.7, 0.7, 0.9, 0.2])[:, None] * early
    self.mix = roles.Vector(1 - (i / D)[None] ** powers)  # r w k v a g
    orthogonal, zeros = nnx.initializers.orthogonal, nnx.initializers.zeros
    self.r_proj = cfg.linear(D, D, init=orthogonal(), rngs=rngs)
    self.k_proj = cfg.linear(D, D, init=orthogonal(0.1), rngs=rngs)
    self.v_proj = cfg.linear(D, D, init=orthogonal(), rngs=rngs)
    self.out_proj = cfg.linear(D, D, init=zeros, rngs=rngs)
    decay = 6 * ramp ** (1 + late**0.3) - 5.5 + 2.5 * zigzag
    rank = cfg.rank(cfg.decay_rank, 2.5)
    self.decay = LowRank(cfg, rank, decay, rngs=rngs)
    rate = 0.3 * zigzag + 0.4 * (ramp - 0.5) - 0.19
    rank = cfg.rank(cfg.rate_rank, 2.5)
    self.rate = LowRank(cfg, rank, rate, rngs=rngs)
    self.gate = LowRank(cfg, cfg.rank(cfg.gate_rank, 5), rngs=rngs)
    if cfg.residual:
      rank = cfg.rank(cfg.value_rank, 1.7)
      self.value = LowRank(cfg, rank, 0.73 - 0.4 * (ramp - 0.5), rngs=rngs)
    self.k_k = roles.Vector(0.71 - 0.1 * (ramp - 0.5))
    self.k_a = roles.Vector(1.02 * jnp.ones(D))
    self.r_k = roles.Gate(-0.04 * jnp.ones(D))
    self.norm = roles.Vector(jnp.full(D, ((1 + layer) / cfg.depth) ** 0.7))
    self.norm_bias = roles.Vector(jnp.zeros(D))

  def init_state(self, batch, length=None):
    H, K = self.cfg.H, self.cfg.head
    return {
      "token": jnp.zeros((batch, self.cfg.dim), self.cfg.compute),
      "S": jnp.zeros((batch, H, K, K)),
    }

  def __call__(self, x, reset, state, first_value=None):
    B, T, D = x.shape
    state = state or self.init_state(B)

    step = layers.shift(x, reset, state["token"]) - x
    x_r, x_w, x_k, x_v, x_a, x_g = (
      x + m.astype(x.dtype)[None, None] * step for m in self.mix[...]
    )
    log_w = jax.nn.sigmoid(self.decay(x_w, jnp.tanh)) * -math.exp(-0.5)
    a = jax.nn.sigmoid(self.rate(x_a))
    g = self.gate(x_g, jax.nn.sigmoid)
    r, k, v = self.r_proj(x_r), self.k_proj(x_k), self.v_proj(x_v)
    if self.cfg.residual:
      share = jax.nn.sigmoid(self.value(x_v)).astype(v.dtype)
      v += (first_value - v) * share

    aux = Aux() if self.cfg.residual else Aux(stream={"first_value": v})
    r, k = r.astype(jnp.float32), k.astype(jnp.float32)
    kk = self.by_head(k * self.k_k[...][None, None])
    kk = layers.normalise(kk, 1e-24) * self.cfg.head**-0.5
    k *= 1 + (a - 1) * self.k_a[...][None, None]
    r, log_w, k, v, a = map(self.by_head, (r, log_w, k, v, a))
    args = (t.astype(v.dtype) for t in (r, k, v))
    rank_one = ((-a * kk).astype(v.dtype), kk.astype(v.dtype))
    o, S = delta.chunked(*args, log_w, *rank_one, reset, state["S"])
    v = v.astype(jnp.float32)
    bonus = r * k * self.by_head(self.r_k[...][None, None])
    bonus = jnp.sum(bonus, -1, keepdims=True) * v
    o = layers.standardise(o, self.cfg.head * self.cfg.eps).reshape(B, T, D)
    o = o * self.norm[...][None, None] + self.norm_bias[...][None, None]
    y = (o + bonus.reshape(B, T, D)) * g
    return self.out_proj(y), {"token": x[:, -1], "S": S}, aux

  def by_head(self, x):
    return x.reshape(*x.shape[:2], self.cfg.H, self.cfg.head)
