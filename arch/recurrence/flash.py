"""Causal softmax attention as kernels of a TPU: `attend.tiled` for tokens on
lanes.

A head's tile is n keys by m queries, s = k^T q with k: K n and q: K m, so that
sums over keys run down the sublanes, what belongs to a query is one row of
lanes, and no head is padded to the 128 lanes of a register. Tiles that hold no
visible key are left out. Forward as Dao 2023, FlashAttention-2,
https://arxiv.org/abs/2307.08691, alg. 1; backward alg. 2, dq summed in a
scratch over the keys' blocks.

B batch  T time  S keys  P past keys  H heads  G groups  R heads a group
K key width  V value width
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from arch.remat import kept_bits

HIDDEN = -1e30  # see attend.py
LANES = 128
BLOCK = 512
# operations of the vector unit weigh as many of the matrix unit's, which are
# counted at half their number a second; see train/chips.py
VECTOR = 16
MEMORY = 100 * 2**20  # of the 128 MiB beside a core that a kernel may take


class Tiles(NamedTuple):
  """n keys by m queries, of R heads of G groups, and what a query sees of
  a tile."""

  m: int
  n: int
  G: int
  R: int
  past: int
  window: int | None
  interpret: bool = False

  def keys(self, i):
    """The first key block of query block i, and the one after its last."""
    low = self.past + i * self.m
    high = (low + self.m - 1) // self.n + 1
    if self.window is None:
      return 0 * i, high
    return jnp.maximum(low - self.window + 1, 0) // self.n, high

  def queries(self, j, blocks):
    """The first query block of key block j, and the one after its last."""
    low = jnp.maximum(j * self.n - self.past, 0) // self.m
    if self.window is None:
      return low, blocks
    last = (j + 1) * self.n - 1 + self.window - 1 - self.past
    return low, jnp.minimum(last // self.m + 1, blocks)

  def hidden(self, s, first, i, j):
    """s, with what the queries do not see. first: 1 m."""
    at = j * self.n + jax.lax.broadcasted_iota(jnp.int32, s.shape, 0)
    last = self.past + i * self.m
    last += jax.lax.broadcasted_iota(jnp.int32, s.shape, 1)
    return jnp.where((first <= at) & (at <= last), s, HIDDEN)

  def count(self, T, S) -> int:
    """Pairs of a key and a query in the tiles that are visited."""
    found = 0
    for i in range(T // self.m):
      low = self.past + i * self.m
      start = 0 if self.window is None else max(0, low - self.window + 1)
      blocks = (low + self.m - 1) // self.n + 1 - start // self.n
      found += min(blocks, S // self.n) * self.n * self.m
    return self.G * self.R * found


def refused(q, key, value, level) -> str | None:
  """Why the kernels do not take these, or None."""
  if level is not None:
    return "a level"
  widths = q.shape[-1], value.shape[-1]
  if any(w % 16 for w in widths):
    return f"widths of {widths}, which 16 must divide"
  R = q.shape[2] // key.shape[2]
  T, S = (-(-x.shape[1] // LANES) * LANES for x in (q, key))
  size = q.dtype.itemsize
  # two of each block that stays, dq in float32, and eight of a tile
  whole = 2 * size * (2 * S + 4 * R * T) * max(widths)
  whole += 4 * R * T * widths[0] + 8 * 4 * BLOCK**2
  if whole > MEMORY:
    return f"{whole / 2**20:.0f} MiB of a group's keys and queries"
  return None


def flash(q, key, value, first, window, interpret=False):
  """As attend.attend, of scaled queries; first: B T."""
  B, T, H, _ = q.shape
  S, G = key.shape[1:3]
  m, n = (min(BLOCK, -(-x // LANES) * LANES) for x in (T, S))
  first = jnp.pad(first, ((0, 0), (0, -T % m)), mode="edge")[:, None]
  tiles = Tiles(m, n, G, H // G, S - T, window, interpret)
  qkv = lanes(q, m), lanes(key, n), lanes(value, n)
  out = heads(tiles, *qkv, first)
  return out.reshape(B, H, -1, out.shape[2]).transpose(0, 3, 1, 2)[:, :T]


def lanes(x, size):
  """B T H K -> B HK T, T filled up with zeros."""
  x = x.reshape(*x.shape[:2], -1).swapaxes(1, 2)
  return jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % size)))


def own(b, g, i):
  """Where block i of a group lies in B GK T."""
  return b, g, i


def whole(b, g, i):
  return b, g, 0


def dot(x, y, dims):
  dims = (((dims[0],), (dims[1],)), ((), ()))
  exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
  return jax.lax.dot_general(
    x, y, dims, precision=exact, preferred_element_type=jnp.float32
  )


def part(i, size):
  return pl.ds(pl.multiple_of(i * size, size), size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def heads(tiles, q, key, value, first):
  """q: B HK T, key: B GK S, value: B GV S, first: B 1 T -> B HV T."""
  return forward(tiles, q, key, value, first)[0]


def forward(tiles, q, key, value, first):
  m, n, G, R = tiles.m, tiles.n, tiles.G, tiles.R
  (B, _, T), S = q.shape, key.shape[2]
  K, V = key.shape[1] // G, value.shape[1] // G

  def kernel(q_ref, k_ref, v_ref, first_ref, out_ref, norm_ref):
    i = pl.program_id(2)

    def head(r, _):
      q = q_ref[0, part(r, K)]

      def tile(j, carry):
        out, top, total = carry
        s = dot(k_ref[0, :, part(j, n)], q, (0, 0))
        s = tiles.hidden(s, first_ref[0], i, j)
        new = jnp.maximum(top, s.max(0, keepdims=True))
        p, keep = jnp.exp(s - new), jnp.exp(top - new)
        v = v_ref[0, :, part(j, n)]
        out = keep * out + dot(v, p.astype(v.dtype), (1, 0))
        return out, new, keep * total + p.sum(0, keepdims=True)

      row = jnp.zeros((1, m), jnp.float32)
      start = jnp.zeros((V, m), jnp.float32), row + HIDDEN, row
      out, top, total = jax.lax.fori_loop(*tiles.keys(i), tile, start)
      out_ref[0, part(r, V)] = (out / total).astype(out_ref.dtype)
      norm_ref[0, 0, pl.ds(r, 1)] = top + jnp.log(total)
      return _

    jax.lax.fori_loop(0, R, head, 0)

  pairs = B * tiles.count(T, S)
  out, norm = pl.pallas_call(
    kernel,
    grid=(B, G, T // m),
    in_specs=[
      pl.BlockSpec((1, R * K, m), own),
      pl.BlockSpec((1, K, S), whole),
      pl.BlockSpec((1, V, S), whole),
      pl.BlockSpec((1, 1, m), lambda b, g, i: (b, 0, i)),
    ],
    out_specs=[
      pl.BlockSpec((1, R * V, m), own),
      pl.BlockSpec((1, 1, R, m), lambda b, g, i: (b, g, 0, i)),
    ],
    out_shape=[
      jax.ShapeDtypeStruct((B, G * R * V, T), q.dtype),
      jax.ShapeDtypeStruct((B, G, R, T), jnp.float32),
    ],
    **said(tiles.interpret, 2 * (K + V) * pairs, pairs, (q, key, value, q)),
  )(q, key, value, first)
  out, norm = kept_bits((out, norm))
  return out, (q, key, value, first, out, norm)


def backward(tiles, saved, d_out):
  q, key, value, first, out, norm = saved
  m, n, G, R = tiles.m, tiles.n, tiles.G, tiles.R
  (B, _, T), S = q.shape, key.shape[2]
  K, V = key.shape[1] // G, value.shape[1] // G

  def kernel(q_ref, k_ref, v_ref, first_ref, norm_ref, out_ref, d_ref, *others):
    dq_ref, dk_ref, dv_ref, sum_ref = others
    j = pl.program_id(2)

    @pl.when(j == 0)
    def _():
      sum_ref[...] = jnp.zeros_like(sum_ref)

    k, v = k_ref[0], v_ref[0]  # K n, V n

    def head(r, carry):
      def tile(i, carry):
        dk, dv = carry
        here = part(i, m)
        q, d = q_ref[0, part(r, K), here], d_ref[0, part(r, V), here]
        out = out_ref[0, part(r, V), here].astype(jnp.float32)
        inner = (out * d.astype(jnp.float32)).sum(0, keepdims=True)
        s = tiles.hidden(dot(k, q, (0, 0)), first_ref[0, :, here], i, j)
        p = jnp.exp(s - norm_ref[0, 0, pl.ds(r, 1), here])
        d_s = p * (dot(v, d, (0, 0)) - inner)
        p, d_s = p.astype(q.dtype), d_s.astype(q.dtype)
        sum_ref[part(r, K), here] += dot(k, d_s, (1, 0))
        return dk + dot(q, d_s, (1, 1)), dv + dot(d, p, (1, 1))

      return jax.lax.fori_loop(*tiles.queries(j, T // m), tile, carry)

    carry = jnp.zeros((K, n), jnp.float32), jnp.zeros((V, n), jnp.float32)
    carry = jax.lax.fori_loop(0, R, head, carry)
    dk_ref[0], dv_ref[0] = (x.astype(k.dtype) for x in carry)

    @pl.when(j == S // n - 1)
    def _():
      dq_ref[0] = sum_ref[...].astype(dq_ref.dtype)

  pairs = B * tiles.count(T, S)
  keys = [pl.BlockSpec((1, x, n), own) for x in (K, V)]
  moved = (q, q, out, d_out, key, key, value, value)
  like = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, key, value))
  dq, dk, dv = pl.pallas_call(
    kernel,
    grid=(B, G, S // n),
    in_specs=[
      pl.BlockSpec((1, R * K, T), whole),
      *keys,
      pl.BlockSpec((1, 1, T), lambda b, g, j: (b, 0, 0)),
      pl.BlockSpec((1, 1, R, T), lambda b, g, j: (b, g, 0, 0)),
      pl.BlockSpec((1, R * V, T), whole),
      pl.BlockSpec((1, R * V, T), whole),
    ],
    out_specs=[pl.BlockSpec((1, R * K, T), whole), *keys],
    out_shape=list(like),
    scratch_shapes=[pltpu.VMEM((R * K, T), jnp.float32)],
    **said(tiles.interpret, 2 * (3 * K + 2 * V) * pairs, pairs, moved),
  )(q, key, value, first, norm, out, d_out)
  return dq, dk, dv, None


heads.defvjp(forward, backward)


def said(interpret, flops, exponentials, moved):
  """What a kernel costs, and what it may take."""
  return dict(
    cost_estimate=pl.CostEstimate(
      flops=flops,
      transcendentals=exponentials,
      bytes_accessed=sum(x.size * x.dtype.itemsize for x in moved),
    ),
    compiler_params=pltpu.CompilerParams(vmem_limit_bytes=MEMORY),
    interpret=interpret,
  )
