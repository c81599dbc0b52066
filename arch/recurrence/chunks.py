"""What the chunked twins of gated.py and delta.py share.

Time is cut into chunks of C tokens; inside a chunk everything is a matrix
product, and only the state crosses from one to the next. L is the running sum
of the log decays g, so exp(L_i - L_j) is what is left at token i of what was
written at token j. A decay of 0 (g = -inf, and every reset) cuts a chunk into
segments: nothing crosses a cut, in value or gradient, not even as rounding.

N chunks, B batch, H heads (or groups and heads in a group), C chunk, K width.
"""

import functools

import jax
import jax.numpy as jnp

EXACT = jax.lax.Precision.HIGHEST


def size(time, chunk):
  """The power of two that covers `time`, at most `chunk`."""
  if chunk < 1 or chunk & (chunk - 1):
    raise ValueError(f"{chunk=} must be a power of two")
  return min(chunk, 1 << (time - 1).bit_length())


def split(x, chunk, fill=0):
  """B T H ... -> N B H C ..., the last chunk filled up."""
  pad = [(0, 0), (0, -x.shape[1] % chunk)] + [(0, 0)] * (x.ndim - 2)
  x = jnp.pad(x, pad, constant_values=fill)
  x = x.reshape(x.shape[0], -1, chunk, *x.shape[2:])
  return x.transpose(1, 0, 3, 2, *range(4, x.ndim))


def merge(x, time):
  """N B H C V -> B T H V, undoes `split`."""
  x = x.transpose(1, 0, 3, 2, 4)
  return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :time]


def where_reset(reset, value, x):
  """x, and `value` where reset: B T is True. x: B T ..."""
  if reset is None:
    return x
  reset = reset.reshape(*reset.shape, *[1] * (x.ndim - 2))
  return jnp.where(reset, jnp.asarray(value, x.dtype), x)


def shift(x):
  """Rows one token later, the first one 0. x: ... C K."""
  return jnp.pad(x[..., :-1, :], [(0, 0)] * (x.ndim - 2) + [(1, 0), (0, 0)])


def decays(g):
  """One decay a head. g: ... C -> D: ... C C, P: ... C, Q: ... C.

  D_ij = exp(L_i - L_j) for j <= i, P_i = exp(L_i), Q_j = exp(L_C - L_j).
  """
  C = g.shape[-1]
  dead = g < -87  # exp(g) is 0 in float32, and L would lose its digits
  segment = jnp.cumsum(dead, axis=-1)
  lower = jnp.tril(jnp.ones((C, C), bool))
  lower = lower.reshape(*[1] * (g.ndim - 1), C, C)
  same = (segment[..., :, None] == segment[..., None, :]) & lower
  g = jnp.where(dead, 0, g)
  L = jnp.einsum("...ij,...j->...i", same.astype(g.dtype), g, precision=EXACT)
  exp = lambda keep, x: jnp.exp(jnp.where(keep, x, -jnp.inf))
  eye = jnp.eye(C, dtype=bool).reshape(lower.shape)
  D = exp(same, jnp.where(eye, 0, L[..., :, None] - L[..., None, :]))
  P = exp(segment == 0, L)
  Q = D[..., -1, :]
  return D, P, Q


def halves(x, s):
  """... C K -> the two halves of each block of 2 s tokens, ... m s K."""
  x = x.reshape(*x.shape[:-2], -1, 2, s, x.shape[-1])
  return x[..., 0, :, :], x[..., 1, :, :]


def join(first, second):
  """Undoes `halves`."""
  x = jnp.stack([first, second], axis=-3)
  return x.reshape(*x.shape[:-4], -1, x.shape[-1])


def products(w):
  """[(s, P, Q)] for blocks of s = 1, 2, 4 ... C tokens. w: ... C K.

  P_i is the product of w from its block's first token to i, Q_j that from
  j + 1 to the block's last.
  """
  out = [(1, w, jnp.ones_like(w))]
  while out[-1][0] < w.shape[-2]:
    s, P, Q = out[-1]
    (P0, P1), (Q0, Q1) = halves(P, s), halves(Q, s)
    P = join(P0, P1 * P0[..., -1:, :])
    Q = join(Q0 * P1[..., -1:, :], Q1)
    # fused with the next level, each level would be computed once a use
    out.append((2 * s, *jax.lax.optimization_barrier((P, Q))))
  return out


def exclusive(P):
  """P of the token before, 1 at a block's first. P: ... s K."""
  return jnp.concatenate([jnp.ones_like(P[..., :1, :]), P[..., :-1, :]], -2)


def scaled(x, scale):
  return (x.astype(jnp.float32) * scale).astype(x.dtype)


def dot(formula, x, y):
  return jnp.einsum(formula, x, y, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def pairs(rows, cols, g, late):
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


def quarters(rows, cols, level, late):
  """Of each block of 2 s: the scaled second half of rows, first of cols."""
  s, P, Q = level
  P, Q = halves(P, s)[1], halves(Q, s)[0]
  scales = [exclusive(P) if x else P for x in late]
  left = [scaled(halves(r, s)[1], x) for r, x in zip(rows, scales, strict=True)]
  right = [scaled(halves(c, s)[0], Q) for c in cols]
  return scales, left, Q, right


def pairs_forward(rows, cols, g, late):
  *inner, (_, P, Q) = products(jnp.exp(g))

  def diagonal(r, c, x):
    a = r.astype(jnp.float32) * c.astype(jnp.float32)
    return (jnp.zeros_like(a) if x else a).sum(-1)[..., None, None]

  A = [[diagonal(r, c, x) for c in cols] for r, x in zip(rows, late)]
  for level in inner:
    _, left, _, right = quarters(rows, cols, level, late)
    for i, r in enumerate(left):
      for j, c in enumerate(right):
        low = dot("...ik,...jk->...ij", r, c)
        a = A[i][j].reshape(*low.shape[:-2], 2, *low.shape[-2:])
        top = jnp.concatenate([a[..., 0, :, :], jnp.zeros_like(low)], -1)
        low = jnp.concatenate([low, a[..., 1, :, :]], -1)
        A[i][j] = jnp.concatenate([top, low], -2)
  A = [[a[..., 0, :, :] for a in row] for row in A]
  scales = [exclusive(P) if x else P for x in late]
  rowsP = [scaled(r, x) for r, x in zip(rows, scales, strict=True)]
  colsQ = [scaled(c, Q) for c in cols]
  return (A, rowsP, colsQ, P[..., -1, :]), (rows, cols, g)


def pairs_backward(late, saved, ct):
  rows, cols, g = saved
  dA, drowsP, dcolsQ, dtotal = ct
  f32 = jnp.float32
  w = jnp.exp(g)
  *inner, (C, P, Q) = products(w)
  scales = [exclusive(P) if x else P for x in late]
  drows = [d.astype(f32) * x for d, x in zip(drowsP, scales, strict=True)]
  dcols = [d.astype(f32) * Q for d in dcolsQ]
  last = dtotal * P[..., -1, :]
  last += sum((d * c.astype(f32)).sum(-2) for d, c in zip(dcols, cols))
  dA = [[a[..., None, :, :] for a in row] for row in dA]
  for level in inner[::-1]:
    s = level[0]
    scales, left, scale, right = quarters(rows, cols, level, late)
    dleft, dright = [0 for _ in rows], [0 for _ in cols]
    for i in range(len(rows)):
      for j in range(len(cols)):
        a = dA[i][j]
        low = a[..., s:, :s].astype(cols[j].dtype)
        dleft[i] += dot("...ij,...jk->...ik", low, right[j])
        dright[j] += dot("...ij,...ik->...jk", low, left[i])
        a = jnp.stack([a[..., :s, :s], a[..., s:, s:]], -3)
        dA[i][j] = a.reshape(*a.shape[:-4], -1, s, s)
    for i, d in enumerate(dleft):
      drows[i] += join(jnp.zeros_like(d), d * scales[i])
    for j, d in enumerate(dright):
      dcols[j] += join(d * scale, jnp.zeros_like(d))
  # every A_ij but the diagonal depends on L_i and, with the other sign, on L_j
  dL = jnp.zeros_like(g).at[..., -1, :].set(last)
  for r, d, x in zip(rows, drows, late, strict=True):
    d = r.astype(f32) * d
    dL += jnp.roll(d.at[..., 0, :].set(0), -1, axis=-2) if x else d
  for c, d in zip(cols, dcols, strict=True):
    dL -= c.astype(f32) * d
  # g_t is in L_i for every i >= t of its segment
  segment = jnp.cumsum((w == 0).all(-1), axis=-1)
  upper = jnp.triu(jnp.ones((C, C), bool)).reshape(*[1] * (g.ndim - 2), C, C)
  same = (segment[..., :, None] == segment[..., None, :]) & upper
  dg = jnp.einsum("...ti,...ik->...tk", same.astype(f32), dL, precision=EXACT)
  dg = jnp.where(w == 0, 0, dg)
  for i, (r, x) in enumerate(zip(rows, late, strict=True)):
    for j, c in enumerate(cols):
      if not x:
        a = dA[i][j].reshape(*g.shape[:-1], 1)
        drows[i] += a * c.astype(f32)
        dcols[j] += a * r.astype(f32)
  drows = tuple(d.astype(r.dtype) for d, r in zip(drows, rows, strict=True))
  dcols = tuple(d.astype(c.dtype) for d, c in zip(dcols, cols, strict=True))
  return drows, dcols, dg


pairs.defvjp(pairs_forward, pairs_backward)


@jax.custom_vjp
def inverse(x):
  """(I - x)^-1 for a strictly lower triangular x: ... C C float32.

  Of two blocks on the diagonal with inverses Y and Z, the quarter below is
  Z x Y: from blocks of one token to the whole. Exact products throughout.
  """
  return inverse_forward(x)[0]


def inverse_forward(x):
  C, s = x.shape[-1], 1
  blocks = x[..., None, :, :]
  lows = []
  while blocks.shape[-1] > 1:
    h = blocks.shape[-1] // 2
    lows.append(blocks[..., h:, :h])
    blocks = jnp.stack([blocks[..., :h, :h], blocks[..., h:, h:]], -3)
    blocks = blocks.reshape(*blocks.shape[:-4], -1, h, h)
  y = jnp.ones_like(blocks)
  for low in lows[::-1]:
    y = y.reshape(*low.shape[:-2], 2, *low.shape[-2:])
    first, second = y[..., 0, :, :], y[..., 1, :, :]
    low = jnp.matmul(
      second, jnp.matmul(low, first, precision=EXACT), precision=EXACT
    )
    top = jnp.concatenate([first, jnp.zeros_like(low)], -1)
    low = jnp.concatenate([low, second], -1)
    y = jnp.concatenate([top, low], -2)
  y = y[..., 0, :, :]
  return y, y


def inverse_backward(y, dy):
  d = jnp.einsum("...ji,...jk->...ik", y, dy, precision=EXACT)
  return (
    jnp.tril(jnp.einsum("...ik,...jk->...ij", d, y, precision=EXACT), -1),
  )


inverse.defvjp(inverse_forward, inverse_backward)
