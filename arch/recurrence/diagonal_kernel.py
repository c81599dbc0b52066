"""The diagonal recurrence as kernels of a TPU: `diagonal.scan` for tokens on
lanes.

In a chunk of C = 128 tokens, pairs (a, b) of h -> a h + b are joined to those
1, 2, 4 ... tokens before (Hillis and Steele 1986), seven times; one column of
states goes from chunk to chunk.

B batch  T time  D width
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from arch.recurrence.flash import LANES as C
from arch.recurrence.flash import VECTOR, lanes, part, said

MOST = 2**17  # numbers of a block


def block(D, T) -> int | None:
  """How many channels a block has, or None where there is no such block."""
  fit = [n for n in (128, 64, 32, 16, 8) if D % n == 0 and n * T <= MOST]
  return fit[0] if fit else None


def refused(x) -> str | None:
  """Why the kernels do not take x, B T D, or None."""
  T = -(-x.shape[1] // C) * C
  if block(x.shape[2], T) is None:
    return f"{x.shape[2]} channels of {T} tokens"
  return None


def joined(a, b):
  """Of n C: the products of a until a token, and h from 0."""
  at = jax.lax.broadcasted_iota(jnp.int32, a.shape, 1)
  s = 1
  while s < C:
    b += a * jnp.where(at >= s, pltpu.roll(b, s, 1), 0)
    a *= jnp.where(at >= s, pltpu.roll(a, s, 1), 1)
    s *= 2
  return a, b


def joined_back(a, d):
  """g_t = d_t + a_{t+1} g_{t+1}, of n C, and a behind the last is 0."""
  at = jax.lax.broadcasted_iota(jnp.int32, a.shape, 1)
  a = jnp.where(at < C - 1, pltpu.roll(a, C - 1, 1), 0)
  s = 1
  while s < C:
    d += a * jnp.where(at < C - s, pltpu.roll(d, C - s, 1), 0)
    a *= jnp.where(at < C - s, pltpu.roll(a, C - s, 1), 1)
    s *= 2
  return d


def before(h, first):
  """h of the token before, `first` (n 1) for the first of a chunk."""
  at = jax.lax.broadcasted_iota(jnp.int32, h.shape, 1)
  return jnp.where(at == 0, first, pltpu.roll(h, 1, 1))


def last_of(x):
  return x[:, C - 1 :]


def scan(a, b, h, interpret=False):
  """All h_t, B T D, of a_t and b_t, and h, B D; float32."""
  T = b.shape[1]
  out = run(interpret, lanes_of(a), lanes_of(b), h[..., None])
  return out.swapaxes(1, 2)[:, :T]


def lanes_of(x):
  return lanes(x[..., None], C)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def run(interpret, a, b, h):
  """a, b: B D T, h: B D 1 -> B D T."""
  return forward(interpret, a, b, h)[0]


def specs(B, D, T):
  n = block(D, T)
  wide = pl.BlockSpec((1, n, T), lambda b, d: (b, d, 0))
  one = pl.BlockSpec((1, n, 1), lambda b, d: (b, d, 0))
  return n, (B, D // n), wide, one


def forward(interpret, a, b, h):
  B, D, T = b.shape
  _, grid, wide, one = specs(B, D, T)

  def kernel(a_ref, b_ref, h_ref, out_ref):
    def chunk(c, h):
      here = part(c, C)
      a, b = joined(a_ref[0, :, here], b_ref[0, :, here])
      out = b + a * h
      out_ref[0, :, here] = out
      return last_of(out)

    jax.lax.fori_loop(0, T // C, chunk, h_ref[0])

  out = pl.pallas_call(
    kernel,
    grid=grid,
    in_specs=[wide, wide, one],
    out_specs=wide,
    out_shape=jax.ShapeDtypeStruct(b.shape, b.dtype),
    **said(interpret, VECTOR * 44 * b.size, 0, (a, b, b)),
  )(a, b, h)
  return out, (a, h, out)


def backward(interpret, saved, d_out):
  a, h, out = saved
  B, D, T = a.shape
  N = T // C
  _, grid, wide, one = specs(B, D, T)

  def kernel(a_ref, h_ref, out_ref, d_ref, da_ref, db_ref, dh_ref):
    def chunk(i, later):
      c = N - 1 - i
      here = part(c, C)
      a, d = a_ref[0, :, here], d_ref[0, :, here]
      at = jax.lax.broadcasted_iota(jnp.int32, a.shape, 1)
      g = joined_back(a, d + jnp.where(at == C - 1, later, 0))
      past = last_of(out_ref[0, :, part(jnp.maximum(c - 1, 0), C)])
      past = jnp.where(c == 0, h_ref[0], past)
      da_ref[0, :, here] = g * before(out_ref[0, :, here], past)
      db_ref[0, :, here] = g
      return a[:, :1] * g[:, :1]

    zero = jnp.zeros(h_ref.shape[1:], jnp.float32)
    dh_ref[0] = jax.lax.fori_loop(0, N, chunk, zero)

  return pl.pallas_call(
    kernel,
    grid=grid,
    in_specs=[wide, one, wide, wide],
    out_specs=[wide, wide, one],
    out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (a, a, h)],
    **said(interpret, VECTOR * 50 * a.size, 0, (a,) * 5),
  )(a, h, out, d_out)


run.defvjp(forward, backward)
