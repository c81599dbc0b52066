"""The mesa layer: at every token, least squares over all that was written.

  A_t = exp(g_t) A_{t-1} + beta_t k_t k_t^T              A: B H K K float32
  S_t = exp(g_t) S_{t-1} + beta_t k_t v_t^T              S: B H K V float32
  o_t = S_t^T x_t,  (A_t + diag(ridge)) x_t = q_t

  q, k: B T H K; v: B T H V, its dtype is that of q, k and of o
  g: B T H, <= 0; beta: B T H, >= 0; ridge: H K, > 0
  reset: B T bool, True at a first token, or None; state: (A, S), or None: 0

von Oswald et al. 2025, https://arxiv.org/abs/2506.05233, section 3. Conjugate
gradients find x for all tokens of a chunk at once: A_t p_t is linear attention
whose values are the keys, and no A_t exists inside a chunk. The gradient solves
once more, for the cotangent of x, instead of going back through the steps.

B batch, T time, H heads, K key width, V value width, C chunk, m = B H rows
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from arch.layers import unit
from arch.recurrence import chunks
from arch.recurrence.gated import fresh


def reference(q, k, v, g, beta, ridge, reset=None, state=None):
  f32, ridge = jnp.float32, jax.vmap(jnp.diag)(ridge)[None]
  state = (fresh(k, k), fresh(k, v)) if state is None else state
  w = jnp.exp(chunks.where_reset(reset, -jnp.inf, g.astype(f32)))

  def step(past, x):
    q, k, v, w, beta = x
    A, S = (w[..., None, None] * past for past in past)
    A += chunks.dot("bhk,bhj->bhkj", beta[..., None] * k, k)
    S += chunks.dot("bhk,bhv->bhkv", beta[..., None] * k, v)
    # of rows, x A; A is symmetric
    x = jnp.linalg.solve((A + ridge).swapaxes(-1, -2), q[..., None])[..., 0]
    return (A, S), chunks.dot("bhk,bhkv->bhv", x, S)

  xs = [x.astype(f32).swapaxes(0, 1) for x in (q, k, v, w, beta)]
  state, o = jax.lax.scan(step, state, xs)
  return o.swapaxes(0, 1).astype(v.dtype), state


def chunked(
  q, k, v, g, beta, ridge, reset=None, state=None, steps=30, chunk=64
):
  """`steps` of conjugate gradients; K of them are exact but for rounding."""
  B, T, H, V = v.shape
  f32, C = jnp.float32, chunks.size(T, chunk)
  state = (fresh(k, k), fresh(k, v)) if state is None else state
  g = chunks.where_reset(reset, -jnp.inf, g.astype(f32))
  xs = [chunks.cut(x, C) for x in (q, k, v, g, beta.astype(f32))]
  ridge = jnp.tile(ridge, (B, 1))[:, None]  # m 1 K

  def step(carry, x):
    A, S = carry
    q, k, v, g, beta = x
    k = k.astype(f32)
    D, P, Q = chunks.decays(g)
    D *= beta[:, None]
    x = solve(steps, (A, k, D, P, ridge), q.astype(f32)).astype(v.dtype)
    o = P * chunks.dot("mik,mkv->miv", x, S.astype(v.dtype))
    weights = D * chunks.dot("mik,mjk->mij", x, k.astype(v.dtype))
    o += chunks.dot("mij,mjv->miv", weights.astype(v.dtype), v)
    w, total = k * Q * beta[..., None], P[:, -1:]
    A = total * A + chunks.dot("mck,mcj->mkj", w, k)
    S = total * S + chunks.dot("mck,mcv->mkv", w, v.astype(f32))
    return (A, S), o.astype(v.dtype)

  kept = jax.checkpoint_policies.save_only_these_names("solution")
  step = jax.checkpoint(step, policy=kept)
  carry = [x.reshape(B * H, *x.shape[2:]) for x in state]
  carry, o = jax.lax.scan(step, tuple(carry), xs)
  state = tuple(x.reshape(B, H, *x.shape[1:]) for x in carry)
  return chunks.merge(o, B, T), state


def apply(system, x):
  """x_i (A_i + diag(ridge)) for each token of a chunk. x: m C K."""
  A, k, D, P, ridge = system
  weights = D * chunks.dot("mik,mjk->mij", x, k)
  y = P * chunks.dot("mik,mkj->mij", x, A) + ridge * x
  return y + chunks.dot("mij,mjk->mik", weights, k)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def solve(steps, system, q):
  """The x with apply(system, x) = q, by conjugate gradients from 0."""

  def inner(x, y):
    return (x * y).sum(-1, keepdims=True)

  def over(x, y):  # 0 where x and y are, once a token has converged
    return x / jnp.maximum(y, 1e-30)

  def step(_, carry):
    x, r, p, rr = carry
    Ap = apply(system, p)
    a = over(rr, inner(p, Ap))
    x, r = x + a * p, r - a * Ap
    new = inner(r, r)
    return x, r, r + over(new, rr) * p, new

  carry = jnp.zeros_like(q), q, q, inner(q, q)
  return jax.lax.fori_loop(0, steps, step, carry)[0]


def solve_forward(steps, system, q):
  x = checkpoint_name(solve(steps, system, q), "solution")
  return x, (system, x)


def solve_backward(steps, saved, dx):
  system, x = saved
  dq = solve(steps, system, dx)
  _, back = jax.vjp(lambda system: apply(system, x), system)
  return *back(-dq), dq


solve.defvjp(solve_forward, solve_backward)


TWINS = {"mesa": {"reference": reference, "chunked": chunked}}


def example(draw, B, T, H, K):
  q, k, v = (draw(B, T, H, K) for _ in range(3))
  g = jax.nn.log_sigmoid(draw(B, T, H) + 3)
  beta, ridge = jax.nn.sigmoid(draw(B, T, H)), jnp.exp(draw(H, K))
  x = dict(q=unit(q), k=unit(k), v=v, g=g, beta=beta, ridge=ridge)
  return {"mesa": x}
