import jax
import jax.numpy as jnp

from arch.recurrence import chunks


def reference(q, k, v, g, reset=None, state=None, read="after", u=None):
  H = v.shape[2]
  f32 = jnp.float32
  q, k = (jnp.repeat(x.astype(f32), H // x.shape[2], axis=2) for x in (q, k))
  w = jnp.exp(chunks.where_reset(reset, -jnp.inf, g.astype(f32)))
  w = w.reshape(*v.shape[:3], -1)
  S = fresh(q, v, H) if state is None else state
  past = jnp.ones(v.shape[:2], f32) if reset is None else 1 - reset.astype(f32)

  def step(S, x):
    q, k, v, w, past = x
    kv = k[..., None] * v[..., None, :]
    old = S * past[:, None, None, None]
    S = w[..., None] * S + kv
    if read == "after":
      o = jnp.einsum("bhk,bhkv->bhv", q, S)
    else:
      o = jnp.einsum("bhk,bhkv->bhv", q, old + u[None, ..., None] * kv)
    return S, o

  xs = (q, k, v.astype(f32), w, past)
  S, o = jax.lax.scan(step, S, jax.tree.map(lambda x: x.swapaxes(0, 1), xs))
  return o.swapaxes(0, 1).astype(v.dtype), S


def fresh(k, v, H):
  return jnp.zeros((v.shape[0], H, k.shape[-1], v.shape[-1]), jnp.float32)


def chunked(q, k, v, g, reset=None, state=None, read="after", u=None, chunk=64):
  B, T, H, V = v.shape
  G, K = q.shape[2:]
  R = H // G
  C = chunks.size(T, chunk)
  f32 = jnp.float32
  late = read == "before"
  S = fresh(k, v, H) if state is None else state
  S = S.reshape(B, G, R, K, V)
  g = chunks.where_reset(reset, -jnp.inf, g.astype(f32))
  values = v
  g, v = chunks.split(g, C), chunks.split(v, C)
  g, v = (x.reshape(*x.shape[:2], G, R, *x.shape[3:]) for x in (g, v))
  qc = chunks.split(chunks.where_reset(reset, 0, q) if late else q, C)
  kc = chunks.split(k, C)
  dot = chunks.dot
  if g.ndim == 5:
    D, P, Q = chunks.decays(g)
    total = P[..., -1, None, None]
    if late:
      D, P = chunks.shift(D), chunks.exclusive(P[..., None])[..., 0]
    A = (dot("nbgik,nbgjk->nbgij", qc, kc)[:, :, :, None] * D).astype(v.dtype)
    add = dot(
      "nbgck,nbgrcv->nbgrkv", kc, (v.astype(f32) * Q[..., None]).astype(v.dtype)
    )
  else:
    qc, kc = (jnp.broadcast_to(x[:, :, :, None], g.shape) for x in (qc, kc))
    ((A,),), (qc,), (kc,), total = chunks.pairs((qc,), (kc,), g, (late,))
    A, total = A.astype(v.dtype), total[..., None]
    add = dot("nbgrck,nbgrcv->nbgrkv", kc, v)

  def step(S, x):
    total, add = x
    return total * S + add, S

  S, past = jax.lax.scan(step, S, (total, add))
  past = past.astype(v.dtype)
  o = dot("nbgrij,nbgrjv->nbgriv", A, v)
  if g.ndim == 5:
    o += P[..., None] * dot("nbgik,nbgrkv->nbgriv", qc, past)
  else:
    o += dot("nbgrik,nbgrkv->nbgriv", qc, past)
  o = chunks.merge(o.reshape(*o.shape[:2], H, C, V), T)
  if late:
    qk = (q * k).astype(f32).reshape(B, T, G, 1, K)
    o += ((u.reshape(1, 1, G, R, K) * qk).sum(-1)).reshape(
      B, T, H, 1
    ) * values.astype(f32)
  return o.astype(v.dtype), S.reshape(B, H, K, V)
