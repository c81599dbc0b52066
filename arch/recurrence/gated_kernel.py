"""The gated recurrence of one decay a head as kernels of a TPU: `gated.chunked`
for tokens on lanes.

In a chunk of C tokens, with L the running sum of g and D_ij = exp(L_i - L_j)
for j <= i, all with a head's state S^T: V K in a scratch,

  o = v (k^T q * D)^T + exp(L) S^T q,  S^T = exp(L_C) S^T + (exp(L_C - L) v) k^T

The pass backward goes through the chunks from the last, with the states before
each, which are kept, and does not run the recurrence again. A decay below
exp(-30) cuts a chunk: nothing crosses it, and L is summed without it.

B batch  T time  H heads  G groups  R heads a group  K key width  V value width
C chunk  N chunks
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from arch.recurrence.flash import MEMORY, dot, lanes, part, said
from arch.remat import kept_bits

CHUNK = 128
CUT = -30.0


class Sizes(NamedTuple):
  G: int
  R: int
  K: int
  V: int
  C: int
  interpret: bool = False


def refused(q, v, g, read, u) -> str | None:
  """Why the kernels do not take these, or None."""
  if g.ndim != 3 or v.ndim != 4:
    return "K decays a head, or several tokens in a step"
  if read != "after" or u is not None:
    return f"{read=}"
  widths = q.shape[-1], v.shape[-1]
  if any(w % 16 for w in widths):
    return f"widths of {widths}, which 16 must divide"
  state = v.shape[2] * v.shape[3] * q.shape[-1]
  if 16 * state > MEMORY:
    return f"a state of {state:,} numbers"
  return None


def chunked(
  q, k, v, g, state, step=None, skip=None, chunk=CHUNK, interpret=False
):
  """As gated.chunked with read="after"; g holds the resets. With a step and a
  skip, B T H, as gated.stepped, the skip one a token."""
  B, T, H, V = v.shape
  G, K = q.shape[2:]
  C = chunk
  sizes = Sizes(G, H // G, K, V, C, interpret)

  def row(x):
    return lanes(x.astype(jnp.float32)[..., None], C).reshape(B, G, H // G, -1)

  g, step, skip = jax.tree.map(row, (g, step, skip))
  S = state.swapaxes(2, 3).reshape(B, H * V, K)
  o, S = scan(sizes, lanes(q, C), lanes(k, C), lanes(v, C), g, S, step, skip)
  o = o.reshape(B, H, V, -1).transpose(0, 3, 1, 2)[:, :T]
  return o, S.reshape(B, H, V, K).swapaxes(2, 3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def scan(sizes, q, k, v, g, S, step, skip):
  """q, k: B GK T, v: B HV T, S: B HV K, g, step and skip: B G R T, or the last
  two None -> o as v, S."""
  return forward(sizes, q, k, v, g, S, step, skip)[0]


def triangle(C):
  """C C float32, 1 where the row is not after the column."""
  at = [jax.lax.broadcasted_iota(jnp.int32, (C, C), i) for i in (0, 1)]
  return jnp.where(at[0] <= at[1], 1.0, 0.0)


class Sums(NamedTuple):
  """Of g, 1 C, from where a token's segment starts.

  Attributes:
    segment: 1 C, how many cuts were until a token.
    same: C C, 1 for a token and those after it in its segment, else 0.
    L: 1 C, of g; column: the same, C 1.
  """

  segment: jax.Array
  same: jax.Array
  L: jax.Array
  column: jax.Array


def sums(g) -> Sums:
  until = triangle(g.shape[1])
  gone, g = jnp.where(g < CUT, 1.0, 0.0), jnp.where(g < CUT, 0.0, g)
  segment = dot(gone, until, (1, 0))
  same = jnp.where(dot(until, gone, (0, 1)) == segment, until, 0)
  return Sums(segment, same, dot(g, same, (1, 0)), dot(same, g, (0, 1)))


def between(L, column, same):
  """C C, exp(L_i - L_j) by key j and query i, 0 for pairs that are not same."""
  return jnp.where(same > 0, jnp.exp(jnp.minimum(L - column, 0)), 0)


def edges(x: Sums):
  """P and Q of chunks.decays, 1 C."""
  C = x.L.shape[1]
  P = jnp.where(x.segment == 0, jnp.exp(x.L), 0)
  ends = x.segment == x.segment[:, C - 1 :]
  return P, jnp.where(ends, jnp.exp(x.L[:, C - 1 :] - x.L), 0)


def decays(g):
  """D^T: C C, P and Q: 1 C, as in chunks.decays, and Sums.same."""
  x = sums(g)
  return between(x.L, x.column, x.same), *edges(x), x.same


def scaled(x, row):
  return (x.astype(jnp.float32) * row).astype(x.dtype)


def forward(sizes, q, k, v, g, S, step, skip):
  G, R, K, V, C, _ = sizes
  B, _, T = q.shape
  N = T // C
  more = () if step is None else (step, skip)

  def kernel(q_ref, k_ref, v_ref, g_ref, S_ref, *others):
    more, (o_ref, end_ref, past_ref, now_ref) = others[:-4], others[-4:]
    c = pl.program_id(2)

    @pl.when(c == 0)
    def _():
      now_ref[...] = S_ref[0]

    past_ref[0, 0] = now_ref[...].astype(past_ref.dtype)
    q, k = q_ref[0], k_ref[0]
    A = dot(k, q, (0, 0))  # C C, by key and query

    def head(r, carry):
      D, P, Q, _ = decays(g_ref[0, 0, pl.ds(r, 1)])
      own = part(r, V)
      x, S = v_ref[0, own], now_ref[own]
      row = [ref[0, 0, pl.ds(r, 1)] for ref in more]
      v = scaled(x, row[0]) if more else x
      o = dot(v, (A * D).astype(v.dtype), (1, 0))
      if more:
        o += row[1] * x.astype(jnp.float32)
      o += P * dot(S.astype(v.dtype), q, (1, 0))
      o_ref[0, own] = o.astype(o_ref.dtype)
      now_ref[own] = P[:, C - 1 :] * S + dot(scaled(v, Q), k, (1, 1))
      return carry

    jax.lax.fori_loop(0, R, head, 0)

    @pl.when(c == N - 1)
    def _():
      end_ref[0] = now_ref[...]

  def own(b, g, c):
    return b, g, c

  def group(b, g, c):
    return b, g, 0

  heads = B * G * R * N
  flops = 2 * heads * C * V * (C + 2 * K) + 2 * B * G * N * C * C * K
  past = jax.ShapeDtypeStruct((B, N, G * R * V, K), v.dtype)
  o, end, past = pl.pallas_call(
    kernel,
    grid=(B, G, N),
    in_specs=[
      pl.BlockSpec((1, K, C), own),
      pl.BlockSpec((1, K, C), own),
      pl.BlockSpec((1, R * V, C), own),
      pl.BlockSpec((1, 1, R, C), lambda b, g, c: (b, g, 0, c)),
      pl.BlockSpec((1, R * V, K), group),
      *[pl.BlockSpec((1, 1, R, C), lambda b, g, c: (b, g, 0, c)) for _ in more],
    ],
    out_specs=[
      pl.BlockSpec((1, R * V, C), own),
      pl.BlockSpec((1, R * V, K), group),
      pl.BlockSpec((1, 1, R * V, K), lambda b, g, c: (b, c, g, 0)),
    ],
    out_shape=[
      jax.ShapeDtypeStruct(v.shape, v.dtype),
      jax.ShapeDtypeStruct(S.shape, S.dtype),
      past,
    ],
    scratch_shapes=[pltpu.VMEM((R * V, K), jnp.float32)],
    **said(sizes.interpret, flops, heads * C * C, (q, k, v, v, g, S, S, past)),
  )(q, k, v, g, S, *more)
  o, past = kept_bits((o, past))
  return (o, end), (q, k, v, g, past, step, skip)


def backward(sizes, saved, ct):
  q, k, v, g, past, step, skip = saved
  d_o, d_end = ct
  G, R, K, V, C, _ = sizes
  B, _, T = q.shape
  N = T // C
  more = () if step is None else (step, skip)
  extra = len(more)

  def kernel(q_ref, k_ref, v_ref, g_ref, past_ref, d_ref, end_ref, *others):
    more, others = others[:extra], others[extra:]
    dq_ref, dk_ref, dv_ref, dg_ref, dS_ref, *d_more, now_ref = others
    c = pl.program_id(2)

    @pl.when(c == 0)
    def _():
      now_ref[...] = end_ref[0]

    q, k = q_ref[0], k_ref[0]
    A = dot(k, q, (0, 0))
    last = jax.lax.broadcasted_iota(jnp.int32, (1, C), 1) == C - 1
    at = [jax.lax.broadcasted_iota(jnp.int32, (C, C), i) for i in (0, 1)]
    before = at[0] < at[1]

    def head(r, carry):
      dA, dq, dk = carry
      own = part(r, V)
      row = g_ref[0, 0, pl.ds(r, 1)]
      D, P, Q, same = decays(row)
      x, d, S = v_ref[0, own], d_ref[0, own], past_ref[0, 0, own]
      rows = [ref[0, 0, pl.ds(r, 1)] for ref in more]
      v = scaled(x, rows[0]) if more else x
      dS = now_ref[own]
      v32, d32 = v.astype(jnp.float32), d.astype(jnp.float32)
      read, wrote = dot(S, q, (1, 0)), dot(dS.astype(k.dtype), k, (1, 0))
      dv = dot(d, (A * D).astype(d.dtype), (1, 1)) + Q * wrote
      if more:
        x32 = x.astype(jnp.float32)
        for ref, value in zip(d_more, (dv, d32), strict=True):
          ref[0, 0, pl.ds(r, 1)] = (value * x32).sum(0, keepdims=True)
        dv = rows[0] * dv + rows[1] * d32
      dv_ref[0, own] = dv.astype(dv_ref.dtype)
      X = dot(v, d, (0, 0)) * D
      pair = jnp.where(before, X * A, 0)
      y = Q * (v32 * wrote).sum(0, keepdims=True)
      dL = pair.sum(0, keepdims=True) - dot(jnp.ones((1, C)), pair, (1, 1))
      dL += P * (d32 * read).sum(0, keepdims=True) - y
      total = P[:, C - 1 :]
      held = (dS * S.astype(jnp.float32)).sum(0, keepdims=True)
      end = y.sum(1, keepdims=True) + total * held.sum(1, keepdims=True)
      dL += jnp.where(last, end, 0)
      dg = dot(dL, same, (1, 1))
      dg_ref[0, 0, pl.ds(r, 1)] = jnp.where(row < CUT, 0, dg)
      d = scaled(d, P)
      now_ref[own] = total * dS + dot(d, q, (1, 1))
      dq += dot(S, d, (0, 0))
      dk += dot(dS.astype(k.dtype), scaled(v, Q), (0, 0))
      return dA + X, dq, dk

    zero = jnp.zeros((K, C), jnp.float32)
    carry = jnp.zeros((C, C), jnp.float32), zero, zero
    dA, dq, dk = jax.lax.fori_loop(0, R, head, carry)
    dA = dA.astype(q.dtype)
    dq_ref[0] = (dq + dot(k, dA, (1, 0))).astype(dq_ref.dtype)
    dk_ref[0] = (dk + dot(q, dA, (1, 1))).astype(dk_ref.dtype)

    @pl.when(c == N - 1)
    def _():
      dS_ref[0] = now_ref[...]

  def own(b, g, c):
    return b, g, N - 1 - c

  def group(b, g, c):
    return b, g, 0

  rows = pl.BlockSpec((1, 1, R, C), lambda b, g, c: (b, g, 0, N - 1 - c))
  narrow, wide = pl.BlockSpec((1, K, C), own), pl.BlockSpec((1, R * V, C), own)
  state = pl.BlockSpec((1, R * V, K), group)

  def before(b, g, c):
    return b, N - 1 - c, g, 0

  heads = B * G * R * N
  flops = 2 * heads * C * V * (2 * C + 5 * K) + 6 * B * G * N * C * C * K
  moved = (q, q, k, k, v, v, v, g, g, past, d_end, d_end)
  dq, dk, dv, dg, dS, *d_more = pl.pallas_call(
    kernel,
    grid=(B, G, N),
    in_specs=[
      narrow,
      narrow,
      wide,
      rows,
      pl.BlockSpec((1, 1, R * V, K), before),
      wide,
      state,
      *[rows for _ in more],
    ],
    out_specs=[narrow, narrow, wide, rows, state, *[rows for _ in more]],
    out_shape=[
      jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v, g, d_end, *more)
    ],
    scratch_shapes=[pltpu.VMEM((R * V, K), jnp.float32)],
    **said(sizes.interpret, flops, heads * C * C, moved),
  )(q, k, v, g, past, d_o, d_end, *more)
  return dq, dk, dv, dg, dS, *(d_more or (None, None))


scan.defvjp(forward, backward)
