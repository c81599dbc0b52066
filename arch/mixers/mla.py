"""Multi-head latent attention: keys and values of all heads come from one small
latent, which is all that the state holds, with one key of the position.

  c = norm(x W_c),  r = layers.rotary(x W_r)                    of all heads
  k, v = c W_up;  key = [k, r],  query = [q, rotary(p)]  of a head
  q, p = norm(x W_cq) W_upq, or x W_q
  y_t = sum_s softmax_s(query_t . key_s / sqrt(K + R)) v_s
  out = y W_out

DeepSeek-V2, https://arxiv.org/abs/2405.04434, eq. 9 to 19, with the norms of
its section 3.1.2; DeepSeek-V3, https://arxiv.org/abs/2412.19437, eq. 1 to 11.
Every matrix starts from a normal of deviation 0.006, as both papers say, which
is near 1 / (2 sqrt(D)) at their D.

What a token can see is as in attention.py, without a window. The state is a
ring (recurrence/ring.py) of [c, r]. Many tokens make the keys and values of all
that they see; one token reads the ring itself, as one group of keys that are
their own values, for q . (c W_k) = (q W_k^T) . c and sum_s p_s (c_s W_v) =
(sum_s p_s c_s) W_v: section 2.1.2 of DeepSeek-V2.

B batch  T time  S keys  D width  H heads  K head width  V value width
C width of the latent  R turned width
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from arch import config, layers
from arch.law import Aux
from arch.product import matmul, product
from arch.recurrence import ring
from arch.recurrence.attend import attend, read


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config.Config):
  """
  Attributes:
    head: K.
    heads: H; None for as many as make up dim.
    value: V; None for K.
    rank: C.
    query_rank: width of the latent of queries; None for none.
    rotary: R, an even number.
    base: of the rotary angles; None to turn nothing, as in Kimi Linear,
      https://arxiv.org/abs/2510.26692.
    eps: of the norms.
    std: standard deviation of what the matrices start from.
  """

  head: int = 128
  heads: int | None = None
  value: int | None = None
  rank: int = 512
  query_rank: int | None = None
  rotary: int = 64
  base: float | None = 10_000.0
  eps: float = 1e-6
  std: float = 0.006

  def __post_init__(self):
    self.positive("head", "value", "rank", "query_rank", "rotary", heads="H")
    if self.rotary % 2:
      raise ValueError(f"mla: rotary={self.rotary} must be even")
    if self.base is not None and self.base <= 1:
      raise ValueError(f"mla: base={self.base} must exceed 1")

  @property
  def H(self):
    """heads"""
    return self.divide("dim", "head") if self.heads is None else self.heads

  @property
  def V(self):
    """value width"""
    return self.head if self.value is None else self.value


class Mixer(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    H, K, V, C, R = cfg.H, cfg.head, cfg.V, cfg.rank, cfg.rotary
    init = nnx.initializers.normal(cfg.std)
    kw = dict(init=init, rngs=rngs)
    Q = cfg.query_rank or H * (K + R)
    self.in_proj = cfg.linear(cfg.dim, (Q, C, R), **kw)
    if cfg.query_rank:
      self.q_norm = layers.RMSNorm(Q, eps=cfg.eps)
      self.q_up = cfg.linear(Q, H * (K + R), **kw)
    self.norm = layers.RMSNorm(C, eps=cfg.eps)
    self.up = cfg.linear(C, H * (K + V), **kw)
    self.out_proj = cfg.linear(H * V, cfg.dim, **kw)

  def init_state(self, batch, length=None):
    cfg = self.cfg
    latent = 1, cfg.rank + cfg.rotary, cfg.compute
    return ring.fresh(batch, length or cfg.length, latent=latent)

  def __call__(self, x, reset, state):
    cfg = self.cfg
    B, T, _ = x.shape
    H, K, R = cfg.H, cfg.head, cfg.rotary
    q, c, r = self.in_proj(x)
    if cfg.query_rank:
      q = self.q_up(self.q_norm(q))
    q, p = jnp.split(q.reshape(B, T, H, K + R), (K,), -1)
    c, r = self.norm(c)[:, :, None], r[:, :, None]
    if cfg.base is not None:
      position = ring.positions(state, T)
      p, r = (layers.rotary(t, position, cfg.base) for t in (p, r))
    new = {"latent": jnp.concatenate([c, r], -1)}
    if state is not None and T == 1:
      y, state = self.step(q, p, new, reset, state)
    else:
      y, state = self.call(q, p, new, reset, state)
    return self.out_proj(y.reshape(B, T, -1)), state, Aux()

  def call(self, q, p, new, reset, state):
    """Many tokens: the keys and values of all latents that they see."""
    cfg = self.cfg
    H, K, C, R = cfg.H, cfg.head, cfg.rank, cfg.rotary
    alone = state is None
    old = self.init_state(q.shape[0]) if alone else state
    window = None if alone else ring.length(old)
    seen, first, state = ring.extend(old, new, reset, alone=alone)
    c, r = jnp.split(seen["latent"], (C,), -1)  # B S 1 C and R
    kv = matmul(c.reshape(-1, C), self.up.matrix().astype(c.dtype))
    kv = kv.reshape(*c.shape[:2], H, -1)
    k, v = jnp.split(kv, (K,), -1)
    key = jnp.concatenate([k, jnp.broadcast_to(r, (*k.shape[:3], R))], -1)
    query = jnp.concatenate([q, p], -1)
    return attend(query, key, v, first, window), state

  def step(self, q, p, new, reset, state):
    """One token: the matrices of keys and values go to the query's side."""
    cfg = self.cfg
    H, K, C, R = cfg.H, cfg.head, cfg.rank, cfg.rotary
    up = self.up.matrix().astype(q.dtype).reshape(C, H, -1)
    W_k, W_v = jnp.split(up, (K,), -1)
    q = product("bthk,chk->bthc", q, W_k).astype(p.dtype)
    query = jnp.concatenate([q, p], -1)
    state, visible = ring.push(state, new, reset)
    held, scale = state["latent"], (K + R) ** -0.5
    # r is summed up with c: cheaper than to copy c out of the ring
    y = read(query, held, held, visible, scale=scale)[..., :C]
    y = product("bthc,chv->bthv", y, W_v).astype(y.dtype)
    return y, state
