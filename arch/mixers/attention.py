"""Softmax attention as in Transformer++: grouped queries, rotary positions.

  q, k, v (, z) = x W;  q, k = layers.rotary(norm(q)), layers.rotary(norm(k))
  y_t = sum_s softmax_s(q_t . k_s / sqrt(K)) v_s  over the keys that t can see
  out = (y (sigmoid(z))) W_out

Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, eq. 1; grouped queries:
Ainslie et al. 2023, https://arxiv.org/abs/2305.13245; rotary: Su et al. 2021,
https://arxiv.org/abs/2104.09864; RMS norm of queries and keys, a weight for
each of the K numbers, shared by the heads: Qwen3's code (2025,
https://arxiv.org/abs/2505.09388, sec. 2), after Henry et al. 2020,
https://arxiv.org/abs/2010.04245; or over all heads at once: OLMoE,
https://arxiv.org/abs/2409.02060; gate z: Qiu et al. 2025,
https://arxiv.org/abs/2505.06708, as in Qwen3-Next. W starts from a truncated
normal of variance 1 / fan-in (LeCun et al. 1998, Efficient BackProp, eq. 16),
W_out from that by 1 / sqrt(2 depth) (Radford et al. 2019, GPT-2, sec. 2.3); or,
if `std` is given, both from a normal of that deviation, as the releases in
transformers do.

What token t can see, itself included and only inside its document:
  - without a state, the call's tokens up to t; of those the last `window`;
  - with one, the last L tokens of the stream up to t, whatever calls brought
    them. L is the state's ring: `window`, or else the `length` that init_state
    was told, cfg.length by default.
The two agree as long as no more than L tokens were read. A call without a
state returns a ring of L = window or cfg.length.

The state is that ring (recurrence/ring.py) of keys, turned to their positions,
and values.

B batch  T time  D width  H heads  G groups  R heads a group  K head width
L ring length
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from arch import config, layers, starts
from arch.law import Aux
from arch.recurrence import ring
from arch.recurrence.attend import attend, read


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config.Config):
  """Raises ValueError for widths that do not divide.

  Attributes:
    head: K.
    heads: H, heads of queries; None for as many as make up dim.
    kv_heads: G, heads of keys and values; None or 0 for as many as queries.
    rotary: share of K that is turned to the position, 0 for none.
    base: of the rotary angles, position * base^(-2i / K).
    qk_norm: whether queries and keys are normalised.
    norm: which of layers.NORMS does that, and `eps` of it.
    whole: whether it is taken over all heads at once.
    window: how many tokens a query sees; None or 0 for all.
    gate: whether there is z.
    embedding: whether W reads the embedded tokens beside x, as in Zamba2,
      https://arxiv.org/abs/2411.15242.
    scale: of the scores; None for 1 / sqrt(K).
    bias: whether the map of x has one.
    out_bias: whether W_out has one; None for as `bias`.
    std: standard deviation of what the maps start from, None for as above.
  """

  head: int = 64
  heads: int | None = None
  kv_heads: int | None = None
  rotary: float = 1.0
  base: float = 10_000.0
  qk_norm: bool = True
  norm: str = "rms"
  eps: float = 1e-6
  whole: bool = False
  window: int | None = None
  gate: bool = False
  embedding: bool = False
  scale: float | None = None
  bias: bool = False
  out_bias: bool | None = None
  std: float | None = None

  def __post_init__(self):
    if not 0 <= self.rotary <= 1 or self.turned % 2:
      raise ValueError(
        f"attention: of head={self.head}, rotary={self.rotary} turns "
        f"{self.turned}, which must be even and at most head"
      )
    if self.base <= 1:
      raise ValueError(f"attention: base={self.base} must exceed 1")
    for name in ("heads", "kv_heads", "window"):
      if (getattr(self, name) or 0) < 0:
        raise ValueError(f"attention: {name}={getattr(self, name)} is negative")
    self.positive("scale", "std", "eps")
    self.among("norm", layers.NORMS)
    if self.H and self.kv_heads:
      self.divide("H", "kv_heads")

  @property
  def H(self):
    """heads"""
    return self.heads or self.divide("dim", "head")

  @property
  def seen(self):
    """Numbers of a token that W reads."""
    return (1 + self.embedding) * self.dim

  @property
  def turned(self):
    return int(self.rotary * self.head)

  @property
  def G(self):
    """key heads"""
    return self.kv_heads or self.H

  @property
  def widths(self):
    """Of q, k, v (and z)."""
    wide, narrow = self.H * self.head, self.G * self.head
    return (wide, narrow, narrow) + (wide,) * self.gate

  def starts(self):
    """What W and W_out start from."""
    if self.std is not None:
      return (nnx.initializers.normal(self.std),) * 2
    return starts.fan_in(), starts.fan_in(1 / math.sqrt(2 * self.depth))

  @property
  def values(self):
    return "qkv", sum(self.widths[:2]), self.G, self.head


class Own(nnx.Module):
  """Low-rank maps beside those of q, k, v (and z): x A_n B_n, n by n.

  The adapters of Zamba2's shared attention.
  """

  def __init__(self, cfg, rank, *, rngs):
    kw = dict(init=cfg.starts()[0], rngs=rngs)
    self.names = "qkvz" if cfg.gate else "qkv"
    self.down = cfg.linear(cfg.seen, (rank,) * len(self.names), **kw)
    for name, width in zip(self.names, cfg.widths, strict=True):
      setattr(self, name, cfg.linear(rank, width, **kw))

  def __call__(self, x):
    parts = zip(self.names, self.down(x), strict=True)
    return jnp.concatenate([getattr(self, n)(low) for n, low in parts], -1)


class Mixer(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    H, G, K = cfg.H, cfg.G, cfg.head
    first, last = cfg.starts()
    D, wide = cfg.seen, sum(cfg.widths)
    self.qkv = cfg.linear(D, wide, init=first, bias=cfg.bias, rngs=rngs)
    bias = cfg.bias if cfg.out_bias is None else cfg.out_bias
    self.out_proj = cfg.linear(H * K, cfg.dim, init=last, bias=bias, rngs=rngs)
    self.q_norm, self.k_norm = (
      layers.NORMS[cfg.norm](heads * K if cfg.whole else K, eps=cfg.eps)
      if cfg.qk_norm
      else None
      for heads in (H, G)
    )

  def init_state(self, batch, length=None):
    cfg = self.cfg
    thing = cfg.G, cfg.head, cfg.compute
    L = cfg.window or length or cfg.length
    return ring.fresh(batch, L, key=thing, value=thing)

  def __call__(self, x, reset, state, own=None):
    cfg = self.cfg
    B, T, _ = x.shape
    H, G, K = cfg.H, cfg.G, cfg.head
    wide = self.qkv(x) if own is None else self.qkv(x) + own(x)
    q, k, v, *z = jnp.split(wide, np.cumsum(cfg.widths)[:-1], -1)
    q, k = self.normalised(self.q_norm, q), self.normalised(self.k_norm, k)
    position = ring.positions(state, T)
    q, k = self.turn(q, position), self.turn(k, position)
    new = {"key": k, "value": v.reshape(B, T, G, K), **self.beside(x)}
    y, state = self.mix(q, new, reset, state)
    y = y.reshape(B, T, H * K)
    if cfg.gate:
      y = y.astype(jnp.float32) * jax.nn.sigmoid(z[0].astype(jnp.float32))
    return self.out_proj(y), state, Aux()

  def normalised(self, norm, x):
    """B T H K from B T H*K."""
    heads = *x.shape[:2], -1, self.cfg.head
    if norm is None:
      return x.reshape(heads)
    if self.cfg.whole:
      return norm(x).reshape(heads)
    return norm(x.reshape(heads))

  def turn(self, x, position):
    """x, B T H K, with its first `turned` numbers at their position."""
    R, K = self.cfg.turned, self.cfg.head
    if R == 0:
      return x
    if R == K:
      return layers.rotary(x, position, self.cfg.base)
    turned = layers.rotary(x[..., :R], position, self.cfg.base)
    return jnp.concatenate([turned, x[..., R:]], -1)

  def beside(self, x):
    """What else the ring keeps of the tokens: here nothing."""
    return {}

  def mix(self, q, new, reset, state):
    """B T H K, and the ring after the new keys and values."""
    kw = dict(scale=self.cfg.scale)
    if state is not None and q.shape[1] == 1:
      state, visible = ring.push(state, new, reset)
      return read(q, **ring.things(state), visible=visible, **kw), state
    alone = state is None
    old = self.init_state(q.shape[0]) if alone else state
    window = self.cfg.window or None if alone else ring.length(old)
    seen, first, state = ring.extend(old, new, reset, alone=alone)
    return attend(q, **seen, first=first, window=window, **kw), state
