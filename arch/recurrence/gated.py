"""The gated matrix recurrence of linear attention.

  S_t = diag(exp g_t) S_{t-1} + k_t v_t^T        S: B H K V float32
  o_t = S_t^T q_t                                read="after"
  o_t = S_{t-1}^T q_t + (q_t . u k_t) v_t        read="before"

  q, k: B T G K, and G groups divide the H heads: head h is of group h // (H/G)
  v: B T H V, its dtype is that of q, k and of o
  g: B T H or B T H K, <= 0; -inf forgets all that was before
  u: H K, only with read="before"
  reset: B T bool, True at a first token, or None; state: S before, or None: 0

One decay a head: RetNet, Mamba-2 (Dao and Gu 2024, arXiv 2405.21060, section
6), mLSTM. K decays: GLA (Yang et al. 2023, arXiv 2312.06635, section 4, whose
second level of chunks is here halved until it is one token), HGRN2, RWKV-6.

B batch, T time, G groups, R heads a group, H = G R heads, K key width,
V value width, C chunk
"""

import jax
import jax.numpy as jnp

from arch.recurrence import chunks


def reference(q, k, v, g, reset=None, state=None, read="after", u=None):
  f32 = jnp.float32
  R = check(q, v, read, u)
  S = fresh(k, v) if state is None else state
  q, k = (jnp.repeat(x.astype(f32), R, axis=2) for x in (q, k))
  w = jnp.exp(g.astype(f32)).reshape(*v.shape[:3], -1)
  keep = chunks.where_reset(reset, 0, jnp.ones(v.shape[:2], f32))

  def step(S, x):
    q, k, v, w, keep = x
    past = keep[:, None, None, None] * S
    kv = chunks.dot("bhk,bhv->bhkv", k, v)
    S = w[..., None] * past + kv
    seen = S if read == "after" else past + u[None, ..., None] * kv
    return S, chunks.dot("bhk,bhkv->bhv", q, seen)

  xs = [x.swapaxes(0, 1) for x in (q, k, v.astype(f32), w, keep)]
  S, o = jax.lax.scan(step, S, xs)
  return o.swapaxes(0, 1).astype(v.dtype), S


def chunked(q, k, v, g, reset=None, state=None, read="after", u=None, chunk=64):
  B, T, H, V = v.shape
  G, K = k.shape[2:]
  R = check(q, v, read, u)
  C = chunks.size(T, chunk)
  late = read == "before"
  S = fresh(k, v) if state is None else state
  g = chunks.where_reset(reset, -jnp.inf, g.astype(jnp.float32))
  reads = chunks.where_reset(reset, 0, q) if late else q
  xs = [chunks.split(x, C) for x in (reads, k, v, g)]
  # B G C K, B G C K, B G R C V, B G R C (K)
  xs[2:] = (x.reshape(*x.shape[:2], G, R, *x.shape[3:]) for x in xs[2:])

  # recomputed in the backward pass: a chunk stays in the cache, what it would
  # have to keep does not
  @jax.checkpoint
  def step(S, x):
    q, k, v, g = x
    past = S.astype(v.dtype)
    if g.ndim == 4:
      D, P, Q = chunks.decays(g)
      total = P[..., -1:, :]
      if late:
        D, P = chunks.later(D, 0), chunks.later(P, 1)
      A = chunks.dot("bgik,bgjk->bgij", q, k)[:, :, None] * D
      o = P * chunks.dot("bgik,bgrkv->bgriv", q, past)
      new = chunks.dot("bgck,bgrcv->bgrkv", k, chunks.scaled(v, Q))
    else:
      q, k = (jnp.broadcast_to(x[:, :, None], g.shape) for x in (q, k))
      ((A,),), (q,), (k,), total = chunks.pairs((q,), (k,), g, (late,))
      total = total[..., None]
      o = chunks.dot("bgrik,bgrkv->bgriv", q, past)
      new = chunks.dot("bgrck,bgrcv->bgrkv", k, v)
    o += chunks.dot("bgrij,bgrjv->bgriv", A.astype(v.dtype), v)
    return total * S + new, o.astype(v.dtype)

  S, o = jax.lax.scan(step, S.reshape(B, G, R, K, V), xs)
  o = chunks.merge(o.reshape(-1, B, H, C, V), T)
  if late:
    now = (q * k).astype(jnp.float32).reshape(B, T, G, 1, K)
    now = (now * u.reshape(1, 1, G, R, K)).sum(-1).reshape(B, T, H, 1)
    o += chunks.scaled(v, now)
  return o, S.reshape(B, H, K, V)


def fresh(k, v):
  shape = v.shape[0], v.shape[2], k.shape[-1], v.shape[-1]
  return jnp.zeros(shape, jnp.float32)


def check(q, v, read, u):
  """Heads a group."""
  H, G = v.shape[2], q.shape[2]
  if H % G:
    raise ValueError(f"q and k have {G} groups, which must divide {H} heads")
  if (read, u is None) not in (("after", True), ("before", False)):
    raise ValueError(
      f"{read=} with u={'None' if u is None else 'given'}: "
      'read="after" takes no u, read="before" needs one (zeros for none)'
    )
  return H // G
