"""Softmax attention as in Transformer++: grouped queries, rotary positions.

  q, k, v = x W;  q, k = rotary(norm(q)), rotary(norm(k))
  y_t = sum_s softmax_s(q_t . k_s / sqrt(K)) v_s  over the keys that t can see
  out = y W_out

Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, eq. 1; grouped queries:
Ainslie et al. 2023, https://arxiv.org/abs/2305.13245; rotary: Su et al. 2021,
https://arxiv.org/abs/2104.09864; RMS norm of queries and keys, a weight for
each of the K numbers, shared by the heads: Qwen3,
https://arxiv.org/abs/2505.09388, sec. 2, after Henry et al. 2020,
https://arxiv.org/abs/2010.04245. W starts from a truncated normal of variance
1 / fan-in (LeCun et al. 1998, Efficient BackProp, eq. 16), W_out from that by
1 / sqrt(2 depth) (Radford et al. 2019, GPT-2, sec. 2.3).

What token t can see, itself included and only inside its document:
  - without a state, the call's tokens up to t; of those the last `window`;
  - with one, the last L tokens of the stream up to t, whatever calls brought
    them. L is the state's ring: `window`, or else the `length` that init_state
    was told, cfg.length by default.
The two agree as long as no more than L tokens were read. A call without a
state returns a ring of L = window or cfg.length.

The state holds the last L keys, turned to their positions, and values, the
token of stream position p at slot p mod L; `position` of the next token; and
`seen`, how many of the slots hold the document of the latest.

B batch  T time  D width  H heads  G groups  R heads a group  K head width
L ring length
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from arch import layers
from arch.attend import HIDDEN, attend, dot, rotary


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(layers.Config):
  """Raises ValueError for widths that do not divide.

  Attributes:
    head: K, an even number that divides dim.
    kv_heads: G, heads of keys and values; None or 0 for as many as queries.
    rotary: share of K that is turned to the position, 0 for none.
    base: of the rotary angles, position * base^(-2i / K).
    qk_norm: whether queries and keys are normalised.
    window: how many tokens a query sees; None or 0 for all.
    bias: whether the maps of queries, keys and values have one.
    out_bias: whether W_out has one; None for as `bias`.
  """

  head: int = 64
  kv_heads: int | None = None
  rotary: float = 1.0
  base: float = 10_000.0
  qk_norm: bool = True
  window: int | None = None
  bias: bool = False
  out_bias: bool | None = None

  def __post_init__(self):
    if not 0 <= self.rotary <= 1 or self.turned % 2:
      raise ValueError(
        f"attention: of head={self.head}, rotary={self.rotary} turns "
        f"{self.turned}, which must be even and at most head"
      )
    if self.base <= 1:
      raise ValueError(f"attention: base={self.base} must exceed 1")
    for name in ("kv_heads", "window"):
      if (getattr(self, name) or 0) < 0:
        raise ValueError(f"attention: {name}={getattr(self, name)} is negative")
    if self.kv_heads:
      self.divide("heads", "kv_heads")

  @property
  def heads(self):
    return self.divide("dim", "head")

  @property
  def turned(self):
    return int(self.rotary * self.head)

  @property
  def groups(self):
    return self.kv_heads or self.heads


class Mixer(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    H, G, K = cfg.heads, cfg.groups, cfg.head
    kw = dict(dtype=cfg.compute, rngs=rngs)
    self.qkv = layers.Linear(cfg.dim, (H + 2 * G) * K, bias=cfg.bias, **kw)
    small = layers.fan_in(1 / math.sqrt(2 * cfg.depth))
    bias = cfg.bias if cfg.out_bias is None else cfg.out_bias
    self.out_proj = layers.Linear(H * K, cfg.dim, init=small, bias=bias, **kw)
    self.q_norm = layers.RMSNorm(K) if cfg.qk_norm else None
    self.k_norm = layers.RMSNorm(K) if cfg.qk_norm else None

  def init_state(self, batch, length=None):
    cfg = self.cfg
    G, K, L = cfg.groups, cfg.head, cfg.window or length or cfg.length
    return {
      # as the product of one query with them wants it
      "key": jnp.zeros((batch, G, K, L), cfg.compute),
      "value": jnp.zeros((batch, G, L, K), cfg.compute),
      "position": jnp.zeros(batch, jnp.int32),
      "seen": jnp.zeros(batch, jnp.int32),
    }

  def __call__(self, x, reset, state):
    cfg = self.cfg
    B, T, _ = x.shape
    H, G, K = cfg.heads, cfg.groups, cfg.head
    q, k, v = jnp.split(self.qkv(x), (H * K, (H + G) * K), -1)
    q = q.reshape(B, T, H, K)
    k, v = k.reshape(B, T, G, K), v.reshape(B, T, G, K)
    if cfg.qk_norm:
      q, k = self.q_norm(q), self.k_norm(k)
    position = jnp.arange(T)[None]
    if state is not None:
      position = state["position"][:, None] + position
    q, k = self.turn(q, position), self.turn(k, position)
    if state is not None and T == 1:
      y, state = step(q, k, v, reset, state)
    else:
      y, state = self.call(q, k, v, reset, state)
    return self.out_proj(y.reshape(B, T, H * K)), state

  def turn(self, x, position):
    """x, B T H K, with its first `turned` numbers at their position."""
    R, K = self.cfg.turned, self.cfg.head
    if R == 0:
      return x
    if R == K:
      return rotary(x, position, self.cfg.base)
    turned = rotary(x[..., :R], position, self.cfg.base)
    return jnp.concatenate([turned, x[..., R:]], -1)

  def call(self, q, k, v, reset, state):
    """Many tokens: attends, then the last L of all keys are the new ring."""
    B, T = q.shape[:2]
    window, P = self.cfg.window or None, 0
    old = self.init_state(B) if state is None else state
    L = old["value"].shape[2]
    if state is not None:
      window, P = L, L
      # slot order to stream order
      key = jnp.einsum("bgkl->blgk", roll(old["key"], -old["position"], 2))
      value = jnp.einsum("bglk->blgk", roll(old["value"], -old["position"], 1))
      k, v = jnp.concatenate([key, k], 1), jnp.concatenate([value, v], 1)

    start = -old["seen"][:, None]  # of t's document, a token of this call is 0
    if reset is not None:
      start = jax.lax.cummax(jnp.where(reset, jnp.arange(T)[None], start), 1)
    first = None if state is None and reset is None else P + start
    if first is not None:
      first = jnp.broadcast_to(first, (B, T))
    y = attend(q, k, v, first, window)

    short = max(0, L - k.shape[1])
    k, v = (
      jnp.pad(x[:, -L:], ((0, 0), (short, 0), (0, 0), (0, 0))) for x in (k, v)
    )
    position = old["position"] + T
    return y, {
      "key": roll(jnp.einsum("blgk->bgkl", k), position, 2),
      "value": roll(jnp.einsum("blgk->bglk", v), position, 1),
      "position": position,
      "seen": jnp.minimum(T - start[:, -1], L),
    }


def roll(x, shift, axis):
  """Rolls each row of x by its own shift."""
  return jax.vmap(lambda x, shift: jnp.roll(x, shift, axis))(x, shift)


def step(q, k, v, reset, state):
  """One token: its key and value take a slot of the ring, where they lie."""
  B, _, H, K = q.shape
  G, L = k.shape[2], state["value"].shape[2]
  slot = state["position"] % L

  def put(ring, new, axis):
    write = jax.lax.dynamic_update_slice_in_dim
    return jax.vmap(lambda *row: write(*row, axis))(ring, new, slot)

  key = put(state["key"], k[:, 0, ..., None], 2)
  value = put(state["value"], v[:, 0, :, None], 1)
  seen = state["seen"]
  if reset is not None:
    seen = jnp.where(reset[:, 0], 0, seen)
  seen = jnp.minimum(seen + 1, L)
  age = (slot[:, None] - jnp.arange(L)[None]) % L
  visible = (age < seen[:, None])[:, None, None]  # B 1 1 L

  q = q.reshape(B, G, H // G, K) * K**-0.5
  s = jnp.where(visible, dot(q, key), HIDDEN)  # B G R L
  p = jax.nn.softmax(s).astype(v.dtype)
  y = dot(p, value).astype(v.dtype).reshape(B, 1, H, K)
  return y, {
    "key": key,
    "value": value,
    "position": state["position"] + 1,
    "seen": seen,
  }
