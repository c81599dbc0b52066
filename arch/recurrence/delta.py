"""The delta rule: a matrix recurrence that reads before it writes.

  S_t = (diag(exp w_t) + a_t b_t^T) S_{t-1} + k_t v_t^T    S: B H K V float32
  o_t = S_t^T q_t

  q, k, a, b: B T H K; v: B T H V; all of one dtype, which is that of o
  w: B T H or B T H K, <= 0, the log of the decay
  a: None for a = -k, which costs one product less (all but RWKV-7)
  reset: B T bool, True at a first token, or None; state: S before, or None: 0

With k' what multiplies v: DeltaNet (Yang et al. 2024, arXiv 2406.06484) w = 0,
k = beta k', b = k'; Gated DeltaNet (arXiv 2412.06464) and Kimi w = log alpha,
k = beta k', b = alpha k'; RWKV-7 (arXiv 2503.14456) a = -(iclr kk), b = kk.
A reset clears S_{t-1} for b as well. w = -inf alone does not: it is one only
where b = 0 too, as alpha k' is.

In a chunk, u_t = S_{t-1}^T b_t makes the step S_t = diag(exp w_t) S_{t-1} +
a_t u_t^T + k_t v_t^T, a gated recurrence that writes twice; so, with S_0 the
state before the chunk and L the running sum of w,

  u_i = (b_i exp(L_{i-1}))^T S_0 + sum over j < i of
        (b_i . a_j exp(L_{i-1} - L_j)) u_j + (b_i . k_j exp(L_{i-1} - L_j)) v_j

L_{i-1} and not L_i: b_t meets the state before the decay of t (b = alpha k'
brings its own), so no exponent is positive. With ba and bk the matrices in
the sum, strictly lower triangular, U = (I - ba)^-1 (b S_0 + bk V). If a = -k,
ba = -bk and u - v =: -y is all that is written: Y = (I + bk)^-1 (V - b S_0).

B batch, T time, H heads, K key width, V value width, C chunk, m = B H rows
"""

import jax
import jax.numpy as jnp

from arch import rows, target
from arch.layers import unit
from arch.recurrence import chunks, delta_kernel
from arch.recurrence.gated import fresh
from arch.remat import keeping, kept


def reference(q, k, v, w, a, b, reset=None, state=None):
  f32 = jnp.float32
  S = fresh(k, v) if state is None else state
  a = -k if a is None else a
  decay = jnp.exp(w.astype(f32)).reshape(*v.shape[:3], -1)
  keep = chunks.where_reset(reset, 0, jnp.ones(v.shape[:2], f32))

  def step(S, x):
    q, k, v, w, a, b, keep = x
    S = keep[:, None, None, None] * S
    u = chunks.dot("bhk,bhkv->bhv", b, S)
    S = w[..., None] * S + chunks.dot("bhk,bhv->bhkv", a, u)
    S += chunks.dot("bhk,bhv->bhkv", k, v)
    return S, chunks.dot("bhk,bhkv->bhv", q, S)

  xs = [x.astype(f32).swapaxes(0, 1) for x in (q, k, v, decay, a, b, keep)]
  S, o = jax.lax.scan(step, S, xs)
  return o.swapaxes(0, 1).astype(v.dtype), S


def chunked(q, k, v, w, a, b, reset=None, state=None, chunk=None):
  B, T, H, V = v.shape
  dtype = v.dtype
  C = chunks.size(T, chunk)
  S = fresh(k, v) if state is None else state
  w = chunks.where_reset(reset, -jnp.inf, w.astype(jnp.float32))
  b = chunks.where_reset(reset, 0, b)
  if chunk is None and target.now().kernels and rows.known(v):
    if not delta_kernel.refused(q, v, w, a):

      def run(x):
        return delta_kernel.chunked(*x)

      return rows.kernel(run, (q, k, v, w, b, S))
  cols = (k,) if a is None else (k, a)
  xs = jax.tree.map(lambda x: chunks.cut(x, C), ((q, b), cols, v, w))

  def dot(formula, x, y):
    return chunks.dot(formula, x.astype(dtype), y.astype(dtype))

  @jax.checkpoint
  def step(S, x):
    reads, cols, v, w = x
    A, (q, b), cols, total = within(reads, cols, w)
    (qk, *qa), (bk, *ba) = A
    bS = dot("mik,mkv->miv", b, S)
    o = dot("mik,mkv->miv", q, S)
    S = total * S
    if a is None:
      reads, x, y = qk, -bk, v.astype(jnp.float32) - bS
    else:
      reads, x = qa[0], ba[0]
      y = bS + dot("mij,mjv->miv", bk, v)
      o += dot("mij,mjv->miv", qk, v)
      S += dot("mck,mcv->mkv", cols[0], v)
    y = dot("mij,mjv->miv", chunks.inverse(x), y)
    o += dot("mij,mjv->miv", reads, y)
    S += dot("mck,mcv->mkv", cols[-1], y)
    return S, o.astype(dtype)

  S, o = jax.lax.scan(keeping(step), S.reshape(B * H, -1, V), xs)
  return chunks.merge(kept(o), B, T), S.reshape(B, H, -1, V)


def corrected(q, k, v, beta, w, reset=None, state=None):
  """The gated delta rule: `chunked` with q = unit(q) / sqrt(K), and with k now
  unit(k), k = beta k and b = exp(w) k.

  Args:
    q, k: B T G K, of which each serves H / G heads; v: B T H V.
    beta: B T H float32.
  """
  R = v.shape[2] // q.shape[2]
  if target.now().kernels and rows.known(v):
    if not delta_kernel.refused(q, v, w, None):
      state = fresh(k, v) if state is None else state
      w = chunks.where_reset(reset, -jnp.inf, w.astype(jnp.float32))
      q, k = (jnp.repeat(t, R, 2) for t in (q, k))

      def run(x):
        q, k, v, beta, w, state = x
        return delta_kernel.chunked(q, k, v, w, None, state, beta)

      return rows.kernel(run, (q, k, v, beta, w, state))
  q, k = (jnp.repeat(unit(t), R, 2) for t in (q, k))
  q *= q.shape[-1] ** -0.5
  write = k * beta[..., None]
  erase = k * jnp.exp(w)[..., None]
  q, write, erase = (t.astype(v.dtype) for t in (q, write, erase))
  return chunked(q, write, v, w, None, erase, reset, state)


def within(rows, cols, w):
  """What `chunks.pairs` gives, for one decay a head too. rows: q, b."""
  if w.ndim == 3:
    A, rows, cols, total = chunks.pairs(rows, cols, w, (False, True))
    return A, rows, cols, total[..., None]
  D, P, Q = chunks.decays(w)
  total = P[..., -1:, :]
  D, P = (D, chunks.later(D, 0)), (P, chunks.later(P, 1))

  def dot(r, c):
    return chunks.dot("mik,mjk->mij", r, c)

  A = [[d * dot(r, c) for c in cols] for r, d in zip(rows, D, strict=True)]
  rows = list(map(chunks.scaled, rows, P))
  return A, rows, [chunks.scaled(c, Q) for c in cols], total


TWINS = {"delta": {"reference": reference, "chunked": chunked}}


def example(draw, B, T, H, K):
  q, k, v, n, r = (draw(B, T, H, K) for _ in range(5))
  k, w = unit(k), jax.nn.log_sigmoid(n + 3)
  x = dict(q=q, k=k, v=v, b=k)
  return {
    f"delta{any_a}{wide}": x | dict(a=a, w=decay)
    for any_a, a in (("", None), (", any a", -k * jax.nn.sigmoid(r)))
    for wide, decay in (("", w[..., 0]), (", K decays", w))
  }
