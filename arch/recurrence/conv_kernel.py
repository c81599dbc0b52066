"""The short causal convolution of layers.ShortConv as kernels of a TPU, tokens
on lanes, with the SiLU that follows it.

  z_t = sum_j w_j x_{t-j} (+ b),  j < W in t's document,  y = z or silu(z)

B batch  T time  D width  W taps
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from arch.recurrence.flash import LANES, VECTOR, lanes, said

MOST = 2**18  # numbers of a block


def rows(D, T) -> int | None:
  """How many channels a block has, or None where there is no such block."""
  fit = [n for n in (256, 128, 64, 32, 16) if D % n == 0 and n * T <= MOST]
  return fit[0] if fit else None


def refused(x, width) -> str | None:
  """Why the kernels do not take this, or None."""
  T = -(-x.shape[1] // LANES) * LANES
  if rows(x.shape[2], T) is None:
    return f"{x.shape[2]} channels of {T} tokens"
  if not 1 < width <= min(8, x.shape[1] + 1):
    return f"{width} taps"
  return None


def convolved(x, weight, bias, document, silu, interpret=False):
  """B T D. weight: W D, the last for the token itself; bias: D; document: B T
  int32, which document each token is of."""
  T = x.shape[1]
  taps = jnp.concatenate([weight[::-1], bias[None]], 0).astype(jnp.float32).T
  document = lanes(document[..., None, None], LANES)
  y = taps_of(silu, interpret, lanes(x, LANES), taps, document)
  return y.swapaxes(1, 2)[:, :T]


def shifted(x, document, j):
  """x of j tokens before, 0 where that is of another document."""
  if j == 0:
    return x
  at = jax.lax.broadcasted_iota(jnp.int32, document.shape, 1)
  same = (at >= j) & (pltpu.roll(document, j, 1) == document)
  return jnp.where(same, pltpu.roll(x, j, 1), 0)


def summed(x, w, document):
  """z: D T, of w: D W+1."""
  W = w.shape[1] - 1
  taps = (w[:, j : j + 1] * shifted(x, document, j) for j in range(W))
  return sum(taps) + w[:, W:]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def taps_of(silu, interpret, x, w, document):
  """x: B D T, w: D W+1 float32, document: B 1 T."""
  return forward(silu, interpret, x, w, document)[0]


def blocks(x, w):
  B, D, T = x.shape
  n = rows(D, T)
  wide = pl.BlockSpec((1, n, T), lambda d, b: (b, d, 0))
  taps = pl.BlockSpec((n, w.shape[1]), lambda d, b: (d, 0))
  document = pl.BlockSpec((1, 1, T), lambda d, b: (b, 0, 0))
  return (D // n, B), wide, taps, document


def forward(silu, interpret, x, w, document):
  grid, wide, taps, own = blocks(x, w)

  def kernel(x_ref, w_ref, document_ref, y_ref):
    z = summed(x_ref[0].astype(jnp.float32), w_ref[...], document_ref[0])
    y = z * jax.nn.sigmoid(z) if silu else z
    y_ref[0] = y.astype(y_ref.dtype)

  y = pl.pallas_call(
    kernel,
    grid=grid,
    in_specs=[wide, taps, own],
    out_specs=wide,
    out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
    **said(interpret, VECTOR * 6 * w.shape[1] * x.size, silu * x.size, (x, x)),
  )(x, w, document)
  return y, (x, w, document)


def backward(silu, interpret, saved, d_y):
  x, w, document = saved
  grid, wide, taps, own = blocks(x, w)
  W, T = w.shape[1] - 1, x.shape[2]

  def kernel(x_ref, w_ref, document_ref, d_ref, dx_ref, dw_ref):
    x, w, document = x_ref[0].astype(jnp.float32), w_ref[...], document_ref[0]
    d = d_ref[0].astype(jnp.float32)
    if silu:
      z = summed(x, w, document)
      s = jax.nn.sigmoid(z)
      d *= s * (1 + z * (1 - s))
    dx, dw = w[:, :1] * d, [(d * x).sum(1, keepdims=True)]
    at = jax.lax.broadcasted_iota(jnp.int32, document.shape, 1)
    for j in range(1, W):
      dw.append((d * shifted(x, document, j)).sum(1, keepdims=True))
      same = (at < T - j) & (pltpu.roll(document, T - j, 1) == document)
      dx += w[:, j : j + 1] * jnp.where(same, pltpu.roll(d, T - j, 1), 0)
    dx_ref[0] = dx.astype(dx_ref.dtype)
    dw = jnp.concatenate([*dw, d.sum(1, keepdims=True)], 1)

    @pl.when(pl.program_id(1) == 0)
    def _():
      dw_ref[...] = jnp.zeros_like(dw_ref)

    dw_ref[...] += dw

  dx, dw = pl.pallas_call(
    kernel,
    grid=grid,
    in_specs=[wide, taps, own, wide],
    out_specs=[wide, taps],
    out_shape=[
      jax.ShapeDtypeStruct(x.shape, x.dtype),
      jax.ShapeDtypeStruct(w.shape, w.dtype),
    ],
    **said(
      interpret, VECTOR * 16 * w.shape[1] * x.size, silu * x.size, (x, x, d_y)
    ),
  )(x, w, document, d_y)
  return dx, dw, None


taps_of.defvjp(forward, backward)
