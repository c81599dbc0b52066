import jax
import jax.numpy as jnp

from arch.recurrence import chunks
from arch.recurrence.gated import fresh


def reference(q, k, v, w, a, b, reset=None, state=None):
  f32 = jnp.float32
  a = -k if a is None else a
  b = chunks.where_reset(reset, 0, b)
  decay = jnp.exp(chunks.where_reset(reset, -jnp.inf, w.astype(f32)))
  decay = decay.reshape(*v.shape[:3], -1)
  S = fresh(k, v, v.shape[2]) if state is None else state

  def step(S, x):
    q, k, v, w, a, b = x
    u = jnp.einsum("bhk,bhkv->bhv", b, S)
    S = w[..., None] * S + a[..., None] * u[..., None, :]
    S += k[..., None] * v[..., None, :]
    return S, jnp.einsum("bhk,bhkv->bhv", q, S)

  xs = [x.astype(f32).swapaxes(0, 1) for x in (q, k, v, decay, a, b)]
  S, o = jax.lax.scan(step, S, xs)
  return o.swapaxes(0, 1).astype(v.dtype), S


def chunked(q, k, v, w, a, b, reset=None, state=None, chunk=64):
  T, dtype = v.shape[1], v.dtype
  C = chunks.size(T, chunk)
  f32 = jnp.float32
  dot = chunks.dot
  S = fresh(k, v, v.shape[2]) if state is None else state
  g = chunks.where_reset(reset, -jnp.inf, w.astype(f32))
  b = chunks.where_reset(reset, 0, b)
  q, k, v, g, b = (chunks.split(x, C) for x in (q, k, v, g, b))
  cols = (k,) if a is None else (k, chunks.split(a, C))
  if g.ndim == 4:
    D, P, Q = (x[..., None] if x.ndim == 4 else x for x in chunks.decays(g))
    A = [
      [D * dot("...ik,...jk->...ij", q, c) for c in cols],
      [chunks.shift(D) * dot("...ik,...jk->...ij", b, c) for c in cols],
    ]
    total = P[..., -1:, :]
    q, b = chunks.scaled(q, P), chunks.scaled(b, chunks.exclusive(P))
    cols = [chunks.scaled(c, Q) for c in cols]
  else:
    A, (q, b), cols, total = chunks.pairs((q, b), cols, g, (False, True))
    total = total[..., None]
  (qk, *qa), (bk, *ba) = A
  if a is None:
    X = chunks.inverse(-bk).astype(dtype)
    y0, y1 = dot("...ij,...jv->...iv", X, v), -dot("...ij,...jk->...ik", X, b)
    add, out, reads = 0, 0, qk
  else:
    X = chunks.inverse(ba[0]).astype(dtype)
    y0 = dot("...ij,...jv->...iv", bk.astype(dtype), v).astype(dtype)
    y0, y1 = dot("...ij,...jv->...iv", X, y0), dot("...ij,...jk->...ik", X, b)
    add = dot("...ck,...cv->...kv", cols[0], v)
    out, reads = dot("...ij,...jv->...iv", qk.astype(dtype), v), qa[0]
  y1 = y1.astype(dtype)

  def step(S, x):
    y0, y1, col, total, add = x
    y = y0 + dot("...ik,...kv->...iv", y1, S.astype(dtype))
    y = y.astype(dtype)
    return total * S + add + dot("...ck,...cv->...kv", col, y), (S, y)

  add = jnp.zeros((len(y0), *[1] * 4), f32) if a is None else add
  S, (past, y) = jax.lax.scan(step, S, (y0, y1, cols[-1], total, add))
  out += dot("...ij,...jv->...iv", reads.astype(dtype), y)
  out += dot("...ik,...kv->...iv", q, past.astype(dtype))
  return chunks.merge(out, T).astype(dtype), S
