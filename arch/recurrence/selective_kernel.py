"""The selective recurrence of Mamba as kernels of a TPU: `diagonal.selective`
for tokens on lanes.

As in diagonal_kernel.py, for one of the N numbers of a channel after another.
Nothing of D x N numbers a token leaves the kernel: the pass backward goes
through the chunks once forward, for the states at their starts, and once back.

B batch  T time  D width  N state  C chunk  M chunks
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from arch.recurrence.diagonal_kernel import before as past_of
from arch.recurrence.diagonal_kernel import (
  block,
  joined,
  joined_back,
  last_of,
  refused,
)
from arch.recurrence.diagonal_kernel import lanes_of as wide
from arch.recurrence.flash import LANES as C
from arch.recurrence.flash import VECTOR, part, said
from arch.remat import kept_bits

__all__ = ["refused", "selective"]


def selective(x, dt, A, b, c, keep, h, negative, interpret=False):
  """As diagonal.selective; keep: B T float32, 0 at a reset; h: B D N."""
  T = x.shape[1]
  how = negative, interpret
  # behind the end nothing decays and nothing is written
  args = wide(x), wide(dt), A, wide(b), wide(c)
  keep = jnp.pad(keep, ((0, 0), (0, -T % C)), constant_values=1)[:, None]
  y, h = select(how, *args, keep, h)
  return y.swapaxes(1, 2)[:, :T], h


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def select(how, x, dt, A, b, c, keep, h):
  """x, dt: B D T, A: D N, b, c: B N T, keep: B 1 T, h: B D N -> y, h."""
  return forward(how, x, dt, A, b, c, keep, h)[0]


def column(x, k, axis=1):
  """Column k of n N, n 1; with axis=0 row k."""
  at = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis)
  return jnp.where(at == k, x, 0).sum(axis, keepdims=True)


def put(x, k, new, axis=1):
  at = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis)
  return jnp.where(at == k, new, x)


def decay(dt, A, keep, negative):
  """a, and its slope in dt A; n C."""
  slope = jnp.exp(dt * A) * keep
  return (2 * slope - keep, 2 * slope) if negative else (slope, slope)


def specs(B, D, N, T):
  n = block(D, T)

  def at(*shape, over):
    return pl.BlockSpec((1, *shape), lambda b, d: (b, d * over, 0))

  return dict(
    grid=(B, D // n),
    x=at(n, T, over=1),
    A=pl.BlockSpec((n, N), lambda b, d: (d, 0)),
    b=at(N, T, over=0),
    keep=at(1, T, over=0),
    h=at(n, N, over=1),
  )


def shape(x):
  return jax.ShapeDtypeStruct(x.shape, x.dtype)


def forward(how, x, dt, A, b, c, keep, h):
  negative, interpret = how
  (B, D, T), N = x.shape, A.shape[1]
  s = specs(B, D, N, T)

  def kernel(x_ref, dt_ref, A_ref, b_ref, c_ref, keep_ref, h_ref, *others):
    y_ref, end_ref = others
    A = A_ref[...]

    def chunk(m, h):
      here = part(m, C)
      dt, keep = dt_ref[0, :, here], keep_ref[0, :, here]
      dtx = dt * x_ref[0, :, here]
      b, c = b_ref[0, :, here], c_ref[0, :, here]

      def number(k, carry):
        y, h = carry
        a, _ = decay(dt, column(A, k), keep, negative)
        a, new = joined(a, dtx * column(b, k, 0))
        new += a * column(h, k)
        y += new * column(c, k, 0)
        return y, put(h, k, last_of(new))

      y, h = jax.lax.fori_loop(0, N, number, (jnp.zeros_like(dt), h))
      y_ref[0, :, here] = y
      return h

    end_ref[0] = jax.lax.fori_loop(0, T // C, chunk, h_ref[0])

  y, end = pl.pallas_call(
    kernel,
    grid=s["grid"],
    in_specs=[s[i] for i in ("x", "x", "A", "b", "b", "keep", "h")],
    out_specs=[s["x"], s["h"]],
    out_shape=[shape(x), shape(h)],
    **said(interpret, VECTOR * 56 * N * x.size, N * x.size, (x, x, x, b, c)),
  )(x, dt, A, b, c, keep, h)
  y = kept_bits(y)
  return (y, end), (x, dt, A, b, c, keep, h)


def backward(how, saved, ct):
  x, dt, A, b, c, keep, h = saved
  negative, interpret = how
  (B, D, T), N, M = x.shape, A.shape[1], x.shape[2] // C
  s = specs(B, D, N, T)

  def kernel(x_ref, dt_ref, A_ref, b_ref, c_ref, keep_ref, h_ref, *others):
    dy_ref, end_ref, dx_ref, ddt_ref, dA_ref, *others = others
    db_ref, dc_ref, dh_ref, start_ref = others
    A = A_ref[...]

    @pl.when(pl.program_id(1) == 0)
    def _():
      db_ref[...] = jnp.zeros_like(db_ref)
      dc_ref[...] = jnp.zeros_like(dc_ref)

    def states(m, k, h):
      """a, its slope and h of a chunk, from h n N before it."""
      here = part(m, C)
      dt, x = dt_ref[0, :, here], x_ref[0, :, here]
      keep = keep_ref[0, :, here]
      a, slope = decay(dt, column(A, k), keep, negative)
      through, new = joined(a, dt * x * column(b_ref[0, :, here], k, 0))
      return a, slope, new + through * column(h, k)

    def chunk(m, h):
      start_ref[m] = h
      return jax.lax.fori_loop(
        0, N, lambda k, new: put(new, k, last_of(states(m, k, h)[2])), h
      )

    jax.lax.fori_loop(0, M, chunk, h_ref[0])

    def back(i, carry):
      later, dA = carry
      m = M - 1 - i
      here, start = part(m, C), start_ref[m]
      dt, x, dy = dt_ref[0, :, here], x_ref[0, :, here], dy_ref[0, :, here]
      at = jax.lax.broadcasted_iota(jnp.int32, dt.shape, 1)

      def number(k, carry):
        u, ddt, later, dA, db, dc = carry
        a, slope, h = states(m, k, start)
        d = dy * column(c_ref[0, :, here], k, 0)
        g = joined_back(a, d + jnp.where(at == C - 1, column(later, k), 0))
        dlog = g * slope * past_of(h, column(start, k))
        dc = put(dc, k, (dy * h).sum(0, keepdims=True), 0)
        db = put(db, k, (g * dt * x).sum(0, keepdims=True), 0)
        u += g * column(b_ref[0, :, here], k, 0)
        ddt += dlog * column(A, k)
        own = column(dA, k) + (dlog * dt).sum(1, keepdims=True)
        later = put(later, k, a[:, :1] * g[:, :1])
        return u, ddt, later, put(dA, k, own), db, dc

      zero = jnp.zeros_like(dt)
      rows = jnp.zeros((N, C), jnp.float32)
      own = zero, zero, later, dA, rows, rows
      u, ddt, later, dA, db, dc = jax.lax.fori_loop(0, N, number, own)
      dx_ref[0, :, here] = u * dt
      ddt_ref[0, :, here] = ddt + u * x
      db_ref[0, :, here] += db
      dc_ref[0, :, here] += dc
      return later, dA

    zero = jnp.zeros_like(A)
    dh_ref[0], dA_ref[0] = jax.lax.fori_loop(0, M, back, (end_ref[0], zero))

  dx, ddt, dA, db, dc, dh = pl.pallas_call(
    kernel,
    grid=s["grid"],
    in_specs=[s[i] for i in ("x", "x", "A", "b", "b", "keep", "h", "x", "h")],
    out_specs=[s[i] for i in ("x", "x", "h", "b", "b", "h")],
    out_shape=[shape(i) for i in (x, dt, h, b, c, h)],
    scratch_shapes=[pltpu.VMEM((M, block(D, T), N), jnp.float32)],
    **said(interpret, VECTOR * 180 * N * x.size, 2 * N * x.size, (x,) * 5),
  )(x, dt, A, b, c, keep, h, *ct)
  return dx, ddt, dA.sum(0), db, dc, None, dh


select.defvjp(forward, backward)
