"""What the chunked twins of recurrences share.

Time is cut into chunks of C tokens: inside a chunk everything is a product of
matrices, and only the state crosses from one to the next. With L the running
sum of the log decays g <= 0, what token j wrote has decayed by exp(L_i - L_j)
at token i. That is formed as a product of the multipliers w = exp(g), block by
block and twice as long each time: L would lose its digits to strong decays,
and exp(-L_j) overflows. Gradients are of L, which needs no division by w.

A decay of 0 (g = -inf, and so every reset) cuts a chunk into segments. Nothing
crosses a cut, in value or in gradient, not even as rounding.

B batch, T time, H heads, M = B H, N chunks, C chunk, K width, s tokens of a
block.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from arch import target
from arch.product import product

# accumulated in float32, and exact in float32 on a TPU as well
dot = functools.partial(product, precision=jax.lax.Precision.HIGHEST)


def size(time, chunk=None):
  """The power of two that covers `time`, at most `chunk`.

  By default that is the target's.
  """
  if chunk is None:
    chunk = target.now().chunk
  if chunk < 1 or chunk & (chunk - 1):
    raise ValueError(f"{chunk=} must be a power of two")
  return min(chunk, 1 << (time - 1).bit_length())


def cut(x, chunk):
  """B T H ... -> N M C ..., the last chunk filled up with zeros.

  One axis M of B H rows: XLA's reductions on a CPU take ten times as long over
  a shape with an axis of one.
  """
  B, T, H = x.shape[:3]
  x = jnp.pad(x, [(0, 0), (0, -T % chunk)] + [(0, 0)] * (x.ndim - 2))
  x = x.reshape(B, -1, chunk, *x.shape[2:])
  x = x.transpose(1, 0, 3, 2, *range(4, x.ndim))
  return x.reshape(-1, B * H, *x.shape[3:])


def merge(x, batch, time):
  """N M C V -> B T H V, undoes `cut`."""
  N, _, C, V = x.shape
  x = x.reshape(N, batch, -1, C, V).transpose(1, 0, 3, 2, 4)
  return x.reshape(batch, N * C, -1, V)[:, :time]


def where_reset(reset, value, x):
  """x, but `value` where reset (B T, or None) is True. x: B T ..."""
  if reset is None:
    return x
  reset = reset.reshape(*reset.shape, *[1] * (x.ndim - 2))
  return jnp.where(reset, jnp.asarray(value, x.dtype), x)


def later(x, first):
  """x of the token before, `first` for the first. x: ... C K."""
  first = jnp.full_like(x[..., :1, :], first)
  return jnp.concatenate([first, x[..., :-1, :]], axis=-2)


def scaled(x, scale):
  """Scaled in float32, answered in x.dtype."""
  return (x.astype(jnp.float32) * scale).astype(x.dtype)


def halves(x, s):
  """... C K -> the two halves of each block of 2 s tokens, ... C/2s s K."""
  x = x.reshape(*x.shape[:-2], -1, 2, s, x.shape[-1])
  return x[..., 0, :, :], x[..., 1, :, :]


def join(first, second):
  """Undoes `halves`."""
  x = jnp.stack([first, second], axis=-3)
  return x.reshape(*x.shape[:-4], -1, x.shape[-1])


def corners(x):
  """... n 2s 2s -> the blocks on the diagonal, ... 2n s s."""
  s = x.shape[-1] // 2
  x = jnp.stack([x[..., :s, :s], x[..., s:, s:]], axis=-3)
  return x.reshape(*x.shape[:-4], -1, s, s)


def grow(diagonal, low):
  """Undoes `corners`: low, ... n s s, is the quarter below, 0 above."""
  x = diagonal.reshape(*low.shape[:-2], 2, *low.shape[-2:])
  top = jnp.concatenate([x[..., 0, :, :], jnp.zeros_like(low)], axis=-1)
  low = jnp.concatenate([low, x[..., 1, :, :]], axis=-1)
  return jnp.concatenate([top, low], axis=-2)


def products(w):
  """[(s, P, Q)] for blocks of s = 1, 2, 4 ... C tokens. w: ... C K.

  P_i is the product of w from its block's first token to i, Q_j that from
  j + 1 to the block's last: exp(L_i) and exp(L_s - L_j) of that block.
  """
  out = [(1, w, jnp.ones_like(w))]
  while out[-1][0] < w.shape[-2]:
    s, P, Q = out[-1]
    (P0, P1), (Q0, Q1) = halves(P, s), halves(Q, s)
    P = join(P0, P1 * P0[..., -1:, :])
    Q = join(Q0 * P1[..., -1:, :], Q1)
    # fused with its users, each level would compute all those before it again
    out.append((2 * s, *jax.lax.optimization_barrier((P, Q))))
  return out


def decay_gradient(w, dL):
  """dg of dL: g_t is in L_i for every i >= t of its segment. Both ... C K."""
  C = w.shape[-2]
  segment = jnp.cumsum((w == 0).all(-1), axis=-1)
  ahead = jnp.triu(jnp.ones((C, C), bool)).reshape(*[1] * (w.ndim - 2), C, C)
  ahead &= segment[..., :, None] == segment[..., None, :]
  dg = dot("...ti,...ik->...tk", ahead.astype(jnp.float32), dL)
  return jnp.where(w == 0, 0, dg)


@jax.custom_vjp
def decays(g):
  """One decay a head. g: ... C float32 -> D: ... C C, P and Q: ... C 1.

  D_ij = exp(L_i - L_j) for j <= i and else 0, P_i = exp(L_i),
  Q_j = exp(L_C - L_j).
  """
  return decays_forward(g)[0]


def decays_forward(g):
  w = jnp.exp(g)[..., None]
  *inner, (_, P, Q) = products(w)
  D = jnp.ones((*g.shape, 1, 1))
  for s, p, q in inner:
    p, q = halves(p, s)[1], halves(q, s)[0]
    D = grow(D, p * q.swapaxes(-1, -2))
  D = D[..., 0, :, :]
  return (D, P, Q), (w, D, P, Q)


def decays_backward(saved, ct):
  w, D, P, Q = saved
  dD, dP, dQ = ct
  x = jnp.tril(D * dD, -1)
  y = Q * dQ
  dL = (x.sum(-1) - x.sum(-2))[..., None] + P * dP - y
  dL = dL.at[..., -1, :].add(y.sum(-2))
  return (decay_gradient(w, dL)[..., 0],)


decays.defvjp(decays_forward, decays_backward)


def pairs(rows, cols, g, late):
  """Those of halves, or of whole chunks where the target likes that."""
  make = whole_pairs if target.now().whole else halved_pairs
  return make(rows, cols, g, late)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def halved_pairs(rows, cols, g, late):
  """K decays a head: what `decays` is for one, already times rows and cols.

  Args:
    rows: tuple of ... C K (q and what else reads the state).
    cols: tuple of ... C K (k and what else writes it).
    g: ... C K float32.
    late: for each of rows, whether it reads the state of the token before:
      then L_i is that of i - 1 and j < i.

  Returns:
    A[row][col]: ... C C, sum over K of row_i col_j exp(L_i - L_j) for j <= i;
    rows exp(L_i); cols exp(L_C - L_j); exp(L_C): ... K.

  The lower left quarter of a block is one product of rows and cols scaled to
  the block's middle; the two quarters on the diagonal are blocks half as long.
  """
  return pairs_forward(rows, cols, g, late)[0]


def whole_pairs(rows, cols, g, late):
  """`pairs` by products of whole chunks: of each level of blocks one, over all
  rows and columns, in which what is outside its quarters is 0. A TPU pads the
  small blocks of `pairs` to eight by 128."""
  f32, C = jnp.float32, g.shape[-2]
  g = jnp.maximum(g, -104)  # whose exponential is 0
  at = np.arange(C)
  t, i = at[:, None], at[None]

  def sums(seen):
    """exp of the sum of g over the tokens t of seen, C C by t and i; 0 for an i
    of none that is not to be seen."""
    own, there = seen
    own = jnp.asarray(own, f32)
    exact = jax.lax.Precision.HIGHEST
    total = jnp.einsum("...tk,ti->...ik", g, own, precision=exact)
    return jnp.where(jnp.asarray(there)[:, None], jnp.exp(total), 0)

  def stack(parts, scales):
    x = [scaled(p, s) for p, s in zip(parts, scales, strict=True)]
    return jnp.concatenate(x, -2)

  n, m = len(rows), len(cols)
  A = jnp.zeros((*g.shape[:-2], n * C, m * C))
  s = 1
  while s < C:
    middle = at // (2 * s) * 2 * s + s  # the first token of the second half
    second = at >= middle
    before = {x: (t >= middle[None]) & (t <= i - x) for x in {*late}}
    P = {x: sums((before[x], second)) for x in {*late}}
    Q = sums(((t > i) & (t < middle[None]), ~second))
    one = np.tile(i // (2 * s) == t // (2 * s), (n, m))
    left = stack(rows, [P[x] for x in late])
    made = dot("...ik,...jk->...ij", left, stack(cols, [Q] * m))
    A += jnp.where(jnp.asarray(one), made, 0)
    s *= 2
  all_ = np.ones(C, bool)
  P = {x: sums((t <= i - x, all_)) for x in {*late}}
  Q = sums((t > i, all_))
  A = A.reshape(*g.shape[:-2], n, C, m, C)
  found = []
  for a, (row, x) in enumerate(zip(rows, late, strict=True)):
    found.append([])
    for b, col in enumerate(cols):
      own = A[..., a, :, b, :]
      if not x:
        same = (row.astype(f32) * col.astype(f32)).sum(-1)
        own += jnp.where(jnp.asarray(t == i), same[..., None], 0)
      found[-1].append(own)
  total = jnp.exp(g.sum(-2))
  rows = [scaled(r, P[x]) for r, x in zip(rows, late, strict=True)]
  return found, rows, [scaled(c, Q) for c in cols], total


def quarters(rows, cols, level, late):
  """Of each block of 2 s: the scaled second half of rows, first of cols."""
  s, P, Q = level
  P, Q = halves(P, s)[1], halves(Q, s)[0]
  scales = [later(P, 1) if x else P for x in late]
  left = [scaled(halves(r, s)[1], x) for r, x in zip(rows, scales, strict=True)]
  right = [scaled(halves(c, s)[0], Q) for c in cols]
  return scales, left, Q, right


def pairs_forward(rows, cols, g, late):
  *inner, (_, P, Q) = products(jnp.exp(g))
  A = []
  for r, x in zip(rows, late, strict=True):
    same = [r.astype(jnp.float32) * c.astype(jnp.float32) for c in cols]
    same = [jnp.zeros_like(a) if x else a for a in same]
    A.append([a.sum(-1)[..., None, None] for a in same])
  for level in inner:
    _, left, _, right = quarters(rows, cols, level, late)
    for row, r in zip(A, left, strict=True):
      low = [dot("...ik,...jk->...ij", r, c) for c in right]
      row[:] = map(grow, row, low)
  A = [[a[..., 0, :, :] for a in row] for row in A]
  scales = [later(P, 1) if x else P for x in late]
  rowsP = list(map(scaled, rows, scales))
  colsQ = [scaled(c, Q) for c in cols]
  return (A, rowsP, colsQ, P[..., -1, :]), (rows, cols, g)


def pairs_backward(late, saved, ct):
  rows, cols, g = saved  # each ... C K
  dA, drowsP, dcolsQ, dtotal = ct  # ... C C, ... C K twice, ... K
  f32 = jnp.float32
  w = jnp.exp(g)
  *inner, (C, P, Q) = products(w)
  rows32, cols32 = ([x.astype(f32) for x in xs] for xs in (rows, cols))
  scales = [later(P, 1) if x else P for x in late]
  drows = [d.astype(f32) * p for d, p in zip(drowsP, scales, strict=True)]
  dcols = [d.astype(f32) * Q for d in dcolsQ]
  last = dtotal * P[..., -1, :]
  for d, c in zip(dcols, cols32, strict=True):
    last += (d * c).sum(-2)
  dA = [[a[..., None, :, :] for a in row] for row in dA]  # ... 1 C C
  for level in inner[::-1]:
    s = level[0]
    scales, left, scale, right = quarters(rows, cols, level, late)
    dleft = [jnp.zeros(x.shape, f32) for x in left]  # ... C/2s s K
    dright = [jnp.zeros(x.shape, f32) for x in right]
    for i, j in itertools.product(range(len(rows)), range(len(cols))):
      low = dA[i][j][..., s:, :s].astype(right[j].dtype)
      dleft[i] += dot("...ij,...jk->...ik", low, right[j])
      dright[j] += dot("...ij,...ik->...jk", low, left[i])
      dA[i][j] = corners(dA[i][j])
    for i, d in enumerate(dleft):
      drows[i] += join(jnp.zeros_like(d), d * scales[i])
    for j, d in enumerate(dright):
      dcols[j] += join(d * scale, jnp.zeros_like(d))
  # what is off the diagonal depends on L_i and, with the other sign, on L_j
  dL = jnp.zeros_like(g).at[..., -1, :].set(last)
  for r, d, x in zip(rows32, drows, late, strict=True):
    dL += jnp.roll((r * d).at[..., 0, :].set(0), -1, axis=-2) if x else r * d
  for c, d in zip(cols32, dcols, strict=True):
    dL -= c * d
  dg = decay_gradient(w, dL)
  for i, j in itertools.product(range(len(rows)), range(len(cols))):
    if not late[i]:
      same = dA[i][j].reshape(*g.shape[:-1], 1)
      drows[i] += same * cols32[j]
      dcols[j] += same * rows32[i]
  drows = tuple(d.astype(r.dtype) for d, r in zip(drows, rows, strict=True))
  dcols = tuple(d.astype(c.dtype) for d, c in zip(dcols, cols, strict=True))
  return drows, dcols, dg


halved_pairs.defvjp(pairs_forward, pairs_backward)


@jax.custom_vjp
def inverse(x):
  """(I - x)^-1 of a strictly lower triangular x: ... C C float32.

  Blocks on the diagonal with inverses Y and Z have Z x Y below them. Stable,
  where the sum of the powers of x is not: they grow like binomials.
  """

  def times(x, y):
    if x.shape[-1] <= 4:  # XLA has no quick product of these on a CPU
      return (x[..., None] * y[..., None, :, :]).sum(-2)
    return dot("...ij,...jk->...ik", x, y)

  lows, x = [], x[..., None, :, :]
  while x.shape[-1] > 1:
    s = x.shape[-1] // 2
    lows.append(x[..., s:, :s])
    x = corners(x)
  y = jnp.ones_like(x)
  for low in lows[::-1]:
    first, second = y[..., ::2, :, :], y[..., 1::2, :, :]
    y = grow(y, times(second, times(low, first)))
  return y[..., 0, :, :]


def inverse_forward(x):
  y = inverse(x)
  return y, y


def inverse_backward(y, dy):
  d = dot("...ji,...jk->...ik", y, dy)
  return (jnp.tril(dot("...ik,...jk->...ij", d, y), -1),)


inverse.defvjp(inverse_forward, inverse_backward)
