"""The gated matrix recurrence of linear attention.

  S_t = diag(exp g_t) S_{t-1} + k_t v_t^T        S: B H K V float32
  o_t = S_t^T q_t                                read="after"
  o_t = S_{t-1}^T q_t + (q_t . u k_t) v_t        read="before"
  o_t = S_{t-1}^T q_t                            read="past"

  q, k: B T G K, and G groups divide the H heads: head h is of group h // (H/G)
  v: B T H V, its dtype is that of q, k and of o
  or B T s G K and B T s H V: s keys and values are written in one step, and s
  queries read it; with one decay a head, and not with read="before"
  g: B T H or B T H K, <= 0; -inf forgets all that was before
  u: H K, only with read="before"
  reset: B T bool, True at a first token, or None; state: S before, or None: 0

One decay a head: RetNet, Mamba-2 (Dao and Gu 2024, arXiv 2405.21060, section
6), mLSTM. K decays: GLA (Yang et al. 2023, arXiv 2312.06635, section 4, whose
second level of chunks is here halved until it is one token), HGRN2, RWKV-6.
Several tokens in a step: Mamba-3 (Lahoti et al. 2026, arXiv 2603.15569).

B batch, T time, G groups, R heads a group, H = G R heads, K key width,
V value width, C chunk, s tokens of a step, m = B G rows
"""

import jax
import jax.numpy as jnp

from arch import rows, target
from arch.layers import unit
from arch.recurrence import chunks, gated_kernel
from arch.remat import keeping, kept


def reference(q, k, v, g, reset=None, state=None, read="after", u=None):
  f32 = jnp.float32
  R = check(q, v, g, read, u)
  S = fresh(k, v) if state is None else state
  B, T, H = g.shape[:3]
  q, k = (jnp.repeat(x.astype(f32), R, axis=-2) for x in (q, k))
  q, k, v_ = (
    x.reshape(B, T, -1, H, x.shape[-1]) for x in (q, k, v.astype(f32))
  )
  w = jnp.exp(g.astype(f32)).reshape(B, T, H, -1)
  keep = chunks.where_reset(reset, 0, jnp.ones((B, T), f32))
  u = jnp.zeros((H, 1)) if u is None else u

  def step(S, x):
    q, k, v, w, keep = x
    past = keep[:, None, None, None] * S
    kv = chunks.dot("bshk,bshv->bhkv", k, v)
    S = w[..., None] * past + kv
    seen = S if read == "after" else past + u[None, ..., None] * kv
    return S, chunks.dot("bshk,bhkv->bshv", q, seen)

  xs = [x.swapaxes(0, 1) for x in (q, k, v_, w, keep)]
  S, o = jax.lax.scan(step, S, xs)
  return o.swapaxes(0, 1).reshape(v.shape).astype(v.dtype), S


def chunked(
  q, k, v, g, reset=None, state=None, read="after", u=None, chunk=None
):
  B, T, H = g.shape[:3]
  (G, K), V = k.shape[-2:], v.shape[-1]
  R = check(q, v, g, read, u)
  C = chunks.size(T, chunk)
  s = v.shape[2] if v.ndim == 5 else 1
  late, one = read != "after", g.ndim == 3
  S = fresh(k, v) if state is None else state  # B H K V
  if chunk is None and target.now().kernels and rows.known(v):
    if not gated_kernel.refused(q, v, g, read, u):
      g = chunks.where_reset(reset, -jnp.inf, g.astype(jnp.float32))

      def run(x):
        return gated_kernel.chunked(*x)

      return rows.kernel(run, (q, k, v, g, S))
  g = chunks.where_reset(reset, -jnp.inf, g.astype(jnp.float32))
  reads = chunks.where_reset(reset, 0, q) if late else q
  # the s tokens of a step are rows of the chunk
  reads, k_, v_ = (
    chunks.cut(x.reshape(B, T * s, *x.shape[-2:]), C * s) for x in (reads, k, v)
  )
  g = chunks.cut(g, C)
  # q and k: m C K, one for the r heads of v and g: m r C V, m r C (K). An axis
  # of one is left out, see chunks.cut
  m, r = "m" * (B * G > 1 or R == 1), "r" * (R > 1)
  lead, heads = (B * G,) * len(m), (R,) * len(r)
  xs = [x.reshape(-1, *lead, *x.shape[2:]) for x in (reads, k_)]
  xs += [x.reshape(-1, *lead, *heads, *x.shape[2:]) for x in (v_, g)]

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
      D, P, Q = chunks.decays(g)  # m r C C, and m r C 1 twice
      total = P[..., -1:, :]
      if late:
        D, P = chunks.later(D, 0), chunks.later(P, 1)
      if s > 1:
        D = jnp.repeat(jnp.repeat(D, s, -1), s, -2)
        P, Q = (jnp.repeat(x, s, -2) for x in (P, Q))
      A = spread(dot("{m}ik,{m}jk->{m}ij", q, k), D) * D
      o = P * dot("{m}ik,{h}kv->{h}iv", q, past)
      new = dot("{m}ck,{h}cv->{h}kv", k, chunks.scaled(v, Q))  # m r K V
    else:
      q, k = spread(q, g), spread(k, g)
      ((A,),), (q,), (k,), total = chunks.pairs((q,), (k,), g, (late,))
      total = total[..., None]
      o = dot("{h}ik,{h}kv->{h}iv", q, past)  # m r C V
      new = dot("{h}ck,{h}cv->{h}kv", k, v)
    o += dot("{h}ij,{h}jv->{h}iv", A.astype(v.dtype), v)
    return total * S + new, o.astype(v.dtype)

  S, o = jax.lax.scan(keeping(step), S.reshape(*lead, *heads, K, V), xs)
  o = chunks.merge(kept(o).reshape(-1, B * H, C * s, V), B, T * s).reshape(
    v.shape
  )
  if u is not None:
    now = q.astype(jnp.float32) * k.astype(jnp.float32)
    now = now.reshape(B, T, G, 1, K)
    now = (now * u.reshape(1, 1, G, R, K)).sum(-1).reshape(B, T, H, 1)
    o += chunks.scaled(v, now)
  return o, S.reshape(B, H, K, V)


def stepped(q, k, x, step, skip, g, reset=None, state=None):
  """`chunked` with v = step x, and skip x added to o, in float32.

  Args:
    x: B T H V; step: B T H; skip: H.
  """
  if target.now().kernels and rows.known(x):
    if not gated_kernel.refused(q, x, g, "after", None):
      state = fresh(k, x) if state is None else state
      g = chunks.where_reset(reset, -jnp.inf, g.astype(jnp.float32))
      skip = jnp.broadcast_to(skip, step.shape)

      def run(held):
        return gated_kernel.chunked(*held)

      return rows.kernel(run, (q, k, x, g, state, step, skip))
  v = x * step[..., None].astype(x.dtype)
  o, S = chunked(q, k, v, g, reset, state)
  x, o = x.astype(jnp.float32), o.astype(jnp.float32)
  return o + skip[None, None, :, None] * x, S


def fresh(k, v):
  shape = v.shape[0], v.shape[-2], k.shape[-1], v.shape[-1]
  return jnp.zeros(shape, jnp.float32)


def check(q, v, g, read, u):
  """Heads a group."""
  H, G = v.shape[-2], q.shape[-2]
  if H % G:
    raise ValueError(f"q and k have {G} groups, which must divide {H} heads")
  if (read, u is None) not in (
    ("after", True),
    ("before", False),
    ("past", True),
  ):
    raise ValueError(
      f"{read=} with u={'None' if u is None else 'given'}: "
      'read="after" or "past" takes no u, read="before" needs one'
    )
  if v.ndim == 5 and (u is not None or g.ndim == 4):
    raise ValueError(
      f"{v.shape[2]} tokens in a step need one decay a head and no u, not "
      f"{read=} with g of {g.ndim} axes"
    )
  return H // G


TWINS = {"gated": {"reference": reference, "chunked": chunked}}


def example(draw, B, T, H, K):
  q, k, v, n = (draw(B, T, H, K) for _ in range(4))
  g = jax.nn.log_sigmoid(n + 3)
  x = dict(q=q, k=unit(k), v=v)
  return {"gated": x | dict(g=g[..., 0]), "gated, K decays": x | dict(g=g)}
