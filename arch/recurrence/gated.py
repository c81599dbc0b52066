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
V value width, C chunk, m = B G rows
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
  late, one = read == "before", g.ndim == 3
  S = fresh(k, v) if state is None else state
  g = chunks.where_reset(reset, -jnp.inf, g.astype(jnp.float32))
  reads = chunks.where_reset(reset, 0, q) if late else q
  reads, k_, v_, g = (chunks.split(x, C) for x in (reads, k, v, g))
  # q and k: m C K, one for the r heads of v and g: m r C V, m r C (K). An axis
  # of one is left out, see chunks.split
  m, r = "m" * (B * G > 1 or R == 1), "r" * (R > 1)
  rows, heads = (B * G,) * len(m), (R,) * len(r)
  xs = [x.reshape(-1, *rows, *x.shape[2:]) for x in (reads, k_)]
  xs += [x.reshape(-1, *rows, *heads, *x.shape[2:]) for x in (v_, g)]

  def dot(formula, x, y):
    return chunks.dot(formula.format(m=m, h=m + r), x, y)

  def spread(x, like):
    """m C K -> m r C K, as a broadcast."""
    if r:
      x = jnp.expand_dims(x, -3)
    return jnp.broadcast_to(x, like.shape[:-2] + x.shape[-2:])

  # recomputed in the backward pass: a chunk stays in the cache, what it would
  # have to keep does not
  @jax.checkpoint
  def step(S, x):
    q, k, v, g = x
    past = S.astype(v.dtype)
    if one:
      D, P, Q = chunks.decays(g)
      total = P[..., -1:, :]
      if late:
        D, P = chunks.later(D, 0), chunks.later(P, 1)
      A = spread(dot("{m}ik,{m}jk->{m}ij", q, k), D) * D
      o = P * dot("{m}ik,{h}kv->{h}iv", q, past)
      new = dot("{m}ck,{h}cv->{h}kv", k, chunks.scaled(v, Q))
    else:
      q, k = spread(q, g), spread(k, g)
      ((A,),), (q,), (k,), total = chunks.pairs((q,), (k,), g, (late,))
      total = total[..., None]
      o = dot("{h}ik,{h}kv->{h}iv", q, past)
      new = dot("{h}ck,{h}cv->{h}kv", k, v)
    o += dot("{h}ij,{h}jv->{h}iv", A.astype(v.dtype), v)
    return total * S + new, o.astype(v.dtype)

  S, o = jax.lax.scan(step, S.reshape(*rows, *heads, K, V), xs)
  o = chunks.merge(o.reshape(-1, B * H, C, V), B, T)
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
