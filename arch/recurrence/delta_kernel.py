"""The delta rule of one decay a head, with a = -k, as kernels of a TPU:
`delta.chunked` for tokens on lanes.

In a chunk of C tokens, with L the running sum of w, D as in gated_kernel.py,
and E_ij = exp(L_{i-1} - L_j) for j < i,

  Y (I + (k^T b * E)) = v - exp(L_{i-1}) S^T b          Y: V C
  o = Y (k^T q * D) + exp(L) S^T q
  S^T = exp(L_C) S^T + (exp(L_C - L) Y) k^T             S^T: V K in a scratch

The states before each chunk are kept for the pass backward.

B batch  T time  H heads  K key width  V value width  C chunk  N chunks
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from arch.recurrence.flash import MEMORY, dot, lanes, said
from arch.recurrence.gated_kernel import (
  CHUNK,
  CUT,
  between,
  edges,
  scaled,
  sums,
  triangle,
)
from arch.remat import kept_bits


class Sizes(NamedTuple):
  H: int
  C: int
  interpret: bool = False


def refused(q, v, w, a) -> str | None:
  """Why the kernels do not take these, or None."""
  if w.ndim != 3 or a is not None:
    return "K decays a head, or any a"
  widths = q.shape[-1], v.shape[-1]
  if any(x % 16 for x in widths):
    return f"widths of {widths}, which 16 must divide"
  if 32 * widths[0] * widths[1] > MEMORY:
    return f"a state of {widths}"
  return None


def chunked(q, k, v, w, b, state, beta=None, chunk=CHUNK, interpret=False):
  """As delta.chunked; w and b hold the resets. With beta, B T H, and b=None as
  delta.corrected."""
  B, T, H, V = v.shape
  sizes = Sizes(H, chunk, interpret)

  def row(x):
    return lanes(x.astype(jnp.float32)[..., None], chunk)[:, :, None]

  w, beta = jax.tree.map(row, (w, beta))
  S = state.swapaxes(2, 3)
  q, k, v, b = jax.tree.map(lambda x: lanes(x, chunk), (q, k, v, b))
  o, S = scan(sizes, q, k, v, b, w, S, beta)
  o = o.reshape(B, H, V, -1).transpose(0, 3, 1, 2)[:, :T]
  return o, S.swapaxes(2, 3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def scan(sizes, q, k, v, b, w, S, beta):
  """q, k, b: B HK T, v: B HV T, w: B H 1 T, S: B H V K -> o as v, S; beta as
  w, and b None, or the other way round."""
  return forward(sizes, q, k, v, b, w, S, beta)[0]


def unit(x):
  """K C over its columns' norms, float32, and 1 over those."""
  x = x.astype(jnp.float32)
  over = jax.lax.rsqrt((x * x).sum(0, keepdims=True) + 1e-6)
  return x * over, over


def unit_back(x, over, d):
  """d of unit(x), what it answered before."""
  return over * (d - x * (x * d).sum(0, keepdims=True))


def given(q, k, other, w):
  """q, k and b of the delta rule, of what was given in their place."""
  if other.shape[0] > 1:
    return q, k, other
  dtype, (q, _), (k, _) = q.dtype, unit(q), unit(k)
  q = q * q.shape[0] ** -0.5
  return (x.astype(dtype) for x in (q, k * other, k * jnp.exp(w)))


def inverse(U):
  """(I + U)^-1, U: C C, strictly upper triangular: see chunks.inverse."""
  C = U.shape[0]
  at = [jax.lax.broadcasted_iota(jnp.int32, (C, C), i) for i in (0, 1)]
  X = jnp.where(at[0] == at[1], 1.0, 0.0)
  s = 1
  while s < C:
    corner = (at[0] // (2 * s) == at[1] // (2 * s)) & (at[0] // s < at[1] // s)
    X -= dot(dot(X, jnp.where(corner, U, 0), (1, 0)), X, (1, 0))
    s *= 2
  return X


class Chunk(NamedTuple):
  """What both passes make of a chunk."""

  qk: jax.Array  # C C, by key and query, without its decays D
  bk: jax.Array
  D: jax.Array
  E: jax.Array
  P: jax.Array  # 1 C: exp(L), exp(L_{i-1}), exp(L_C - L)
  before: jax.Array
  Q: jax.Array
  X: jax.Array
  read: jax.Array  # V C: S^T q, S^T b, Y
  erased: jax.Array
  Y: jax.Array
  same: jax.Array  # C C: pairs of one segment, and of that of the token before
  past: jax.Array


def inside(q, k, v, b, w, S) -> Chunk:
  """S: V K in v's dtype."""
  C = w.shape[1]
  sum_ = sums(w)
  gone, w = jnp.where(w < CUT, 1.0, 0.0), jnp.where(w < CUT, 0.0, w)
  at = [jax.lax.broadcasted_iota(jnp.int32, (C, C), i) for i in (0, 1)]
  earlier = sum_.segment - gone  # that of the token before
  whose = dot(triangle(C), gone, (0, 1))  # C 1
  past = jnp.where((at[0] < at[1]) & (whose == earlier), 1.0, 0.0)
  late = dot(w, past, (1, 0))
  D = between(sum_.L, sum_.column, sum_.same)
  E = between(late, sum_.column, past)
  P, Q = edges(sum_)
  before = jnp.where(earlier == 0, jnp.exp(late), 0)
  qk, bk = dot(k, q, (0, 0)), dot(k, b, (0, 0))
  X = inverse(bk * E)
  read, erased = dot(S, q, (1, 0)), dot(S, b, (1, 0))
  Y = (v.astype(jnp.float32) - before * erased).astype(v.dtype)
  Y = dot(Y, X.astype(v.dtype), (1, 0)).astype(v.dtype)
  return Chunk(qk, bk, D, E, P, before, Q, X, read, erased, Y, sum_.same, past)


def forward(sizes, q, k, v, b, w, S, beta):
  H, C, _ = sizes
  (B, HV, T), K = v.shape, k.shape[1] // H
  V, N = HV // H, T // C

  other = b if beta is None else beta

  def kernel(q_ref, k_ref, v_ref, b_ref, w_ref, S_ref, *others):
    o_ref, end_ref, past_ref, now_ref = others
    c = pl.program_id(2)

    @pl.when(c == 0)
    def _():
      now_ref[...] = S_ref[0, 0]

    S = now_ref[...]
    past = S.astype(past_ref.dtype)
    past_ref[0, 0, 0] = past
    w = w_ref[0, 0]
    b = b_ref[0] if beta is None else b_ref[0, 0]
    q, k, b = given(q_ref[0], k_ref[0], b, w)
    x = inside(q, k, v_ref[0], b, w, past)
    o = dot(x.Y, (x.qk * x.D).astype(x.Y.dtype), (1, 0)) + x.P * x.read
    o_ref[0] = o.astype(o_ref.dtype)
    now_ref[...] = x.P[:, C - 1 :] * S + dot(scaled(x.Y, x.Q), k, (1, 1))

    @pl.when(c == N - 1)
    def _():
      end_ref[0, 0] = now_ref[...]

  def own(b, h, c):
    return b, h, c

  narrow, wide = pl.BlockSpec((1, K, C), own), pl.BlockSpec((1, V, C), own)
  rows = pl.BlockSpec((1, 1, 1, C), lambda b, h, c: (b, h, 0, c))
  state = pl.BlockSpec((1, 1, V, K), lambda b, h, c: (b, h, 0, 0))
  past = jax.ShapeDtypeStruct((B, H, N, V, K), v.dtype)
  o, end, past = pl.pallas_call(
    kernel,
    grid=(B, H, N),
    in_specs=[
      narrow,
      narrow,
      wide,
      narrow if beta is None else rows,
      rows,
      state,
    ],
    out_specs=[
      wide,
      state,
      pl.BlockSpec((1, 1, 1, V, K), lambda b, h, c: (b, h, c, 0, 0)),
    ],
    out_shape=[
      jax.ShapeDtypeStruct(v.shape, v.dtype),
      jax.ShapeDtypeStruct(S.shape, S.dtype),
      past,
    ],
    scratch_shapes=[pltpu.VMEM((V, K), jnp.float32)],
    **cost(sizes, 2, 3, 2, (q, k, other, v, v, w, S, S, past), (B, N, K, V)),
  )(q, k, v, other, w, S)
  o, past = kept_bits((o, past))
  return (o, end), (q, k, v, b, w, past, beta)


def backward(sizes, saved, ct):
  q, k, v, b, w, past, beta = saved
  d_o, d_end = ct
  H, C, _ = sizes
  (B, HV, T), K = v.shape, k.shape[1] // H
  V, N = HV // H, T // C

  def kernel(q_ref, k_ref, v_ref, b_ref, w_ref, past_ref, d_ref, *others):
    end_ref, dq_ref, dk_ref, dv_ref, db_ref, dw_ref, dS_ref, now_ref = others
    c = pl.program_id(2)

    @pl.when(c == 0)
    def _():
      now_ref[...] = end_ref[0, 0]

    S, w = past_ref[0, 0, 0], w_ref[0, 0]
    raw = q_ref[0], k_ref[0], b_ref[0] if beta is None else b_ref[0, 0]
    q, k, b = given(*raw, w)
    d, dtype = d_ref[0], v_ref.dtype
    x = inside(q, k, v_ref[0], b, w, S)
    dS = now_ref[...]
    dS16 = dS.astype(dtype)
    at = [jax.lax.broadcasted_iota(jnp.int32, (C, C), i) for i in (0, 1)]
    ahead = at[0] < at[1]

    wrote = dot(dS16, k, (1, 0))
    dY = dot(d, (x.qk * x.D).astype(dtype), (1, 1)) + x.Q * wrote
    dR = dot(dY.astype(dtype), x.X.astype(dtype), (1, 1))
    dv_ref[0] = dR.astype(dtype)
    dR16 = dR.astype(dtype)
    dqk = dot(x.Y, d, (0, 0)) * x.D
    dbk = -dot(x.Y, dR16, (0, 0)) * x.E

    one, other = jnp.where(ahead, dqk * x.qk, 0), dbk * x.bk
    d32, Y32 = d.astype(jnp.float32), x.Y.astype(jnp.float32)
    y = x.Q * (Y32 * wrote).sum(0, keepdims=True)
    dL = one.sum(0, keepdims=True) - y
    dL -= dot(jnp.ones((1, C)), one + other, (1, 1))
    dL += x.P * (d32 * x.read).sum(0, keepdims=True)
    late = other.sum(0, keepdims=True)
    late -= x.before * (dR * x.erased).sum(0, keepdims=True)
    total = x.P[:, C - 1 :]
    held = (dS * S.astype(jnp.float32)).sum(0, keepdims=True)
    end = y.sum(1, keepdims=True) + total * held.sum(1, keepdims=True)
    last = jax.lax.broadcasted_iota(jnp.int32, (1, C), 1) == C - 1
    dL += jnp.where(last, end, 0)
    dw = dot(dL, x.same, (1, 1)) + dot(late, x.past, (1, 1))
    read, erased = scaled(d, x.P), scaled(dR16, x.before)
    dqk, dbk = dqk.astype(dtype), dbk.astype(dtype)
    dq = dot(S, read, (0, 0)) + dot(k, dqk, (1, 0))
    db = dot(k, dbk, (1, 0)) - dot(S, erased, (0, 0))
    dk = dot(q, dqk, (1, 1)) + dot(b, dbk, (1, 1))
    dk += dot(dS16, scaled(x.Y, x.Q), (0, 0))
    if beta is None:
      db_ref[0] = db.astype(dtype)
    else:
      (q_, q_over), (k_, k_over), alpha = unit(raw[0]), unit(raw[1]), jnp.exp(w)
      db_ref[0, 0] = (dk * k_).sum(0, keepdims=True)
      dw += alpha * (db * k_).sum(0, keepdims=True)
      dk = unit_back(k_, k_over, raw[2] * dk + alpha * db)
      dq = unit_back(q_, q_over, K**-0.5 * dq)
    dw_ref[0, 0] = jnp.where(w < CUT, 0, dw)
    dq_ref[0], dk_ref[0] = dq.astype(dtype), dk.astype(dtype)
    now_ref[...] = total * dS + dot(read, q, (1, 1)) - dot(erased, b, (1, 1))

    @pl.when(c == N - 1)
    def _():
      dS_ref[0, 0] = now_ref[...]

  def own(b, h, c):
    return b, h, N - 1 - c

  narrow, wide = pl.BlockSpec((1, K, C), own), pl.BlockSpec((1, V, C), own)
  rows = pl.BlockSpec((1, 1, 1, C), lambda b, h, c: (b, h, 0, N - 1 - c))
  state = pl.BlockSpec((1, 1, V, K), lambda b, h, c: (b, h, 0, 0))
  other, spec = (b, narrow) if beta is None else (beta, rows)
  moved = (q, q, k, k, other, other, v, v, v, w, w, past, d_end, d_end)
  like = (q, k, v, other, w, d_end)
  dq, dk, dv, d_other, dw, dS = pl.pallas_call(
    kernel,
    grid=(B, H, N),
    in_specs=[
      narrow,
      narrow,
      wide,
      spec,
      rows,
      pl.BlockSpec((1, 1, 1, V, K), lambda b, h, c: (b, h, N - 1 - c, 0, 0)),
      wide,
      state,
    ],
    out_specs=[narrow, narrow, wide, spec, rows, state],
    out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in like],
    scratch_shapes=[pltpu.VMEM((V, K), jnp.float32)],
    **cost(sizes, 6, 8, 6, moved, (B, N, K, V)),
  )(q, k, v, other, w, past, d_o, d_end)
  one = (d_other, None) if beta is None else (None, d_other)
  return dq, dk, dv, one[0], dw, dS, one[1]


scan.defvjp(forward, backward)


def cost(sizes, keys, states, values, moved, shape):
  """So many products C K C, C V K and C C V a chunk, and the inverse, whose
  products in float32 take six passes."""
  B, N, K, V = shape
  C = sizes.C
  inverses = 6 * 2 * (C.bit_length() - 1) * C**3
  flops = C * (keys * C * K + states * V * K + values * C * V) + inverses
  count = B * sizes.H * N
  return said(sizes.interpret, 2 * count * flops, 2 * count * C * C, moved)
