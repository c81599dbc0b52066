"""Causal softmax attention in tiles.

  o_t = sum_s p_ts v_s,  p_ts = softmax_s(q_t . k_s / sqrt(K) + c_t - c_s),
  over the keys s with first_t <= s <= P + t

c, the level, is 0 unless it is given: a sum of log forget gates (Lin et al.
2025, https://arxiv.org/abs/2503.02130, sec. 3).

Of S = P + T keys the last T belong to the T queries, so that query t is at key
P + t. A tile is n keys by m queries, and one scan visits the tiles that hold a
visible key, row by row: T x T never exists, neither forward nor backward, time
is linear in T under a window, and compilation does not grow with T. Softmax
runs online in float32 (Milakov and Gimelshein 2018,
https://arxiv.org/abs/1805.02867, alg. 3); the backward pass makes the tiles
again from the log of the normaliser (Dao 2023, FlashAttention-2,
https://arxiv.org/abs/2307.08691, alg. 2).

Tiles are held keys first. Then softmax runs along rows, and every product is
[.., m, k] x [.., k, n]: XLA's other batched products are slow on a CPU.

B batch  T time  S keys  P past keys  H heads  G groups  R heads a group
K key width  V value width  N blocks of m queries  M = B G rows, an axis that is
left out where it is one: see chunks.cut in arch/recurrence
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from arch import rows as rows_
from arch import target
from arch.product import product
from arch.recurrence import flash
from arch.remat import kept

HIDDEN = -1e30  # a score whose exponential is 0, and no NaN against itself

dot = functools.partial(product, "...ij,...jk->...ik")


def reference(
  q, key, value, first=None, window=None, *, level=None, scale=None
):
  f32, T, S = jnp.float32, q.shape[1], key.shape[1]
  R = q.shape[2] // key.shape[2]
  at, last = jnp.arange(S)[None], jnp.arange(S - T, S)[:, None]
  visible = (at <= last) & (at > last - (window or S))
  visible = visible[None]
  if first is not None:
    visible &= first[..., None] <= at[None]
  q, key, value_ = (x.astype(f32) for x in (q, key, value))
  key, value_ = (jnp.repeat(x, R, 2) for x in (key, value_))
  s = jnp.einsum("bthk,bshk->bhts", q, key) * (scale or q.shape[-1] ** -0.5)
  if level is not None:
    c = jnp.einsum("bsgr->bgrs", level).reshape(-1, q.shape[2], S)
    s += c[..., S - T :, None] - c[..., None, :]
  p = jax.nn.softmax(jnp.where(visible[:, None], s, -jnp.inf))
  return jnp.einsum("bhts,bshv->bthv", p, value_).astype(value.dtype)


def attend(q, key, value, first=None, window=None, *, level=None, scale=None):
  """Answers B T H V in the queries' dtype.

  Args:
    q: B T H K.
    key: B S G K with S >= T; one group serves H / G heads.
    value: B S G V.
    first: B T int32, the earliest key that a query may see, or None for 0.
    window: a query sees itself and the window - 1 keys before; None for all.
    level: c above in float32, B S G R, or None for 0.
    scale: of the scores, None for 1 / sqrt(K).
  """
  T, S = q.shape[1], key.shape[1]
  first = jnp.zeros((1, T), jnp.int32) if first is None else first
  if window is not None:
    first = jnp.maximum(first, (jnp.arange(T) + S - T - window + 1)[None])
  q = q * (scale or q.shape[-1] ** -0.5)
  if target.now().kernels and rows_.known(q):
    if not flash.refused(q, key, value, level):
      first = jnp.broadcast_to(first, q.shape[:2])

      def run(x):
        return flash.flash(*x, window)

      return rows_.kernel(run, (q, key, value, first))
  m, n = (block(length, min(length, window or length)) for length in (T, S))
  end = -T % m
  front = -(S + end) % n
  past = front + S - T
  q = pad(q, 0, end)
  key, value = pad(key, front, end), pad(value, front, end)
  level = None if level is None else pad(level, front, end)
  # edge: what is computed for the padding stays finite, and is cut off
  first = jnp.pad(front + first, ((0, 0), (0, end)), mode="edge")
  tiling = Tiling(m, n, past, window)
  return tiled(tiling, q, key, value, level, first)[:, :T]


def read(q, key, value, visible, *, level=None, scale=None):
  """One query over keys in any order; answers B 1 H V in value's dtype.

  Args:
    q: B 1 H K.
    key: B G L K.
    value: B G L V.
    visible: B L bool, the keys that it sees.
    level: c_s - c_t in float32, B G L R, or None for 0.
    scale: of the scores, None for 1 / sqrt(K).
  """
  B, _, H, K = q.shape
  G = key.shape[1]
  q = q.reshape(B, G, H // G, K) * (scale or K**-0.5)
  s = dot(key, q.swapaxes(2, 3))  # B G L R
  if level is not None:
    s -= level
  s = jnp.where(visible[:, None, :, None], s, HIDDEN)
  p = jax.nn.softmax(s, 2).astype(value.dtype).swapaxes(2, 3)
  return dot(p, value).astype(value.dtype).reshape(B, 1, H, -1)


def block(length, span):
  """Blocks of equal size, about a quarter of what a query sees."""
  widest = min(512, max(64, 1 << (span - 1).bit_length() >> 2))
  return math.ceil(length / math.ceil(length / widest))


def pad(x, front, end):
  return jnp.pad(x, ((0, 0), (front, end), (0, 0), (0, 0)))


class Tiling(NamedTuple):
  m: int
  n: int
  past: int
  window: int | None

  def visible(self, T):
    """Query block and key block of each tile, as two arrays."""
    tiles = []
    for i in range(T // self.m):
      low = self.past + i * self.m
      high = low + self.m - 1
      low = 0 if self.window is None else max(0, low - self.window + 1)
      tiles += [(i, j) for j in range(low // self.n, high // self.n + 1)]
    return tuple(np.array(tiles, np.int32).T)

  def scores(self, ks, qs, firsts, cs, i, j):
    """n keys by R m queries in float32."""
    first = get(firsts, i)
    wide = (1,) * (first.ndim - 2)
    at = j * self.n + jnp.arange(self.n).reshape(*wide, -1, 1)
    last = self.past + i * self.m + jnp.arange(self.m)
    last = jnp.tile(last, first.shape[-1] // self.m).reshape(*wide, 1, -1)
    s = dot(get(ks, j), get(qs, i))
    if cs is not None:
      own, low = cs
      s += get(own, i) - jnp.repeat(get(low, j), self.m, -1)
    return jnp.where((first <= at) & (at <= last), s, HIDDEN)


def cut(x, size, G, order):
  """B T H K -> N M and, by `order`, R m K (rows) or K R m (columns)."""
  B, T, H, K = x.shape
  x = x.reshape(B, T // size, size, G, H // G, K)
  x = jnp.einsum(f"bnmgrk->nbg{order}", x)
  own = (-1, K) if order == "rmk" else (K, -1)
  return x.reshape(x.shape[0], *axis(B * G), *own)


def join(x, size, G, order):
  """Undoes cut."""
  N, K = x.shape[0], x.shape[-1 if order == "rmk" else -2]
  own = (-1, size, K) if order == "rmk" else (K, -1, size)
  B = math.prod(x.shape[1:-2]) // G
  x = x.reshape(N, B, G, *own)
  x = jnp.einsum(f"nbg{order}->bnmgrk", x)
  return x.reshape(B, N * size, -1, K)


def axis(size):
  return () if size == 1 else (size,)


rows = functools.partial(cut, order="rmk")
columns = functools.partial(cut, order="krm")


def limits(first, B, m, G, R):
  """B T, or 1 T -> N M 1 R m."""
  first = jnp.broadcast_to(first, (B, first.shape[1])).reshape(B, -1, m)
  first = jnp.tile(jnp.repeat(first, G, 0).swapaxes(0, 1), (1, 1, R))
  return first.reshape(first.shape[0], *axis(B * G), 1, -1)


def levels(tiling, level):
  """B S G R -> of queries N M 1 R m, and of keys N M n R; None of None."""
  if level is None:
    return None
  B, _, G, R = level.shape
  own = level[:, tiling.past :].reshape(B, -1, G * R, 1)
  return columns(own, tiling.m, G), rows(level, tiling.n, G)


def get(x, i):
  return jax.lax.dynamic_index_in_dim(x, i, keepdims=False)


def put(x, new, i):
  return jax.lax.dynamic_update_index_in_dim(x, new, i, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def tiled(tiling, q, key, value, level, first):
  return forward(tiling, q, key, value, level, first)[0]


def forward(tiling, q, key, value, level, first):
  m, n, G = tiling.m, tiling.n, key.shape[2]
  qs = columns(q, m, G)
  ks, vs = rows(key, n, G), columns(value, n, G)
  firsts = limits(first, q.shape[0], m, G, q.shape[2] // G)
  cs = levels(tiling, level)

  def tile(carry, place):
    i, j = place
    out, top, total = (get(x, i) for x in carry)
    s = tiling.scores(ks, qs, firsts, cs, i, j)
    new = jnp.maximum(top, s.max(-2, keepdims=True))
    p, keep = jnp.exp(s - new), jnp.exp(top - new)
    out = keep * out + dot(get(vs, j), p.astype(value.dtype))
    total = keep * total + p.sum(-2, keepdims=True)
    made = (out, new, total)
    return tuple(put(x, y, i) for x, y in zip(carry, made, strict=True)), None

  shape = *qs.shape[:-2], value.shape[-1], qs.shape[-1]  # N M V Rm
  one = *shape[:-2], 1, shape[-1]
  carry = jnp.zeros(shape), jnp.full(one, HIDDEN), jnp.zeros(one)
  (out, top, total), _ = jax.lax.scan(tile, carry, tiling.visible(q.shape[1]))
  out = join(out / total, m, G, "krm").astype(q.dtype)
  out, norm = kept((out, top + jnp.log(total)))
  return out, (q, key, value, level, first, out, norm)


def backward(tiling, saved, d_out):
  q, key, value, level, first, out, norm = saved
  m, n, G = tiling.m, tiling.n, key.shape[2]
  qs, q_rows = columns(q, m, G), rows(q, m, G)
  ks, k_columns = rows(key, n, G), columns(key, n, G)
  vs = rows(value, n, G)
  ds, d_rows = columns(d_out, m, G), rows(d_out, m, G)
  firsts = limits(first, q.shape[0], m, G, q.shape[2] // G)
  inner = d_out.astype(jnp.float32) * out.astype(jnp.float32)
  inner = inner.reshape(-1, out.shape[-1]).sum(-1).reshape(*out.shape[:-1], 1)
  inner = columns(inner, m, G)  # N M 1 Rm
  cs = levels(tiling, level)

  def tile(carry, place):
    i, j = place
    dq, dk, dv, dc = carry
    s = tiling.scores(ks, qs, firsts, cs, i, j)
    p = jnp.exp(s - get(norm, i))
    d_s = p * (dot(get(vs, j), get(ds, i)) - get(inner, i))
    if level is not None:  # nothing from the queries': their d_s sum to 0
      low = -d_s.reshape(*d_s.shape[:-1], -1, m).sum(-1)
      dc = put(dc, get(dc, j) + low, j)
    p, d_s = p.astype(q.dtype), d_s.astype(q.dtype)
    dq = put(dq, get(dq, i) + dot(get(k_columns, j), d_s), i)
    dk = put(dk, get(dk, j) + dot(d_s, get(q_rows, i)), j)
    dv = put(dv, get(dv, j) + dot(p, get(d_rows, i)), j)
    return (dq, dk, dv, dc), None

  like = qs, ks, vs, None if level is None else cs[1]
  carry = jax.tree.map(lambda x: jnp.zeros(x.shape), like)
  (dq, dk, dv, dc), _ = jax.lax.scan(tile, carry, tiling.visible(q.shape[1]))
  return (
    join(dq, m, G, "krm").astype(q.dtype),
    join(dk, n, G, "rmk").astype(key.dtype),
    join(dv, n, G, "rmk").astype(value.dtype),
    None if level is None else join(dc, n, G, "rmk"),
    None,
  )


tiled.defvjp(forward, backward)


TWINS = {"attention": {"reference": reference, "tiled": attend}}


def example(draw, B, T, H, K):
  return {"attention": {x: draw(B, T, H, K) for x in ("q", "key", "value")}}
