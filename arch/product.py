"""Products of arrays that are summed in float32, as each machine takes them
best.

With `mixed`, operands of float32 are rounded to bfloat16 where that saves time,
as a TPU does by itself; sums, answers and gradients stay float32. A product is
of A B for a batch of matrices A, R S, and B, S C.
"""

import collections
import contextlib
import contextvars
import functools
import math
import re

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from arch import target

# Of a batch of smaller matrices than these, R S C, rounding takes as long as it
# saves, on a CPU with AVX512_BF16.
WORTH = 1 << 18

_mixed = contextvars.ContextVar("mixed", default=False)


@contextlib.contextmanager
def mixed(on: bool):
  """Whether products that are written inside round their operands; their
  gradients do, too."""
  token = _mixed.set(on)
  try:
    yield
  finally:
    _mixed.reset(token)


def is_mixed() -> bool:
  return _mixed.get()


def matmul(x, w):
  """x w of two axes each and one dtype, in which it is answered."""
  if _mixed.get() and x.dtype == jnp.float32:
    return rounded("ij,jk->ik", target.now().arranged, x, w)
  return x @ w


def product(formula, x, y, precision=None):
  """The einsum of two arrays of one dtype, summed and answered in float32.

  Each letter is once in two or three of the formula's parts, with one size, and
  "..." in front of all parts or of none. With a `precision` operands are never
  rounded. Reverse-mode gradients only.

  Raises:
    ValueError: another formula.
  """
  parts = re.split(",|->", formula)
  dotted = {part.startswith("...") for part in parts}
  names = [part.removeprefix("...") for part in parts]
  letters = collections.Counter("".join(names))
  if (
    len(names) != 3
    or len(dotted) > 1
    or any(len(set(n)) < len(n) or not n.isalpha() for n in names)
    or min(letters.values()) < 2
  ):
    raise ValueError(
      f"product of {formula!r}: each letter must be once in two or three of "
      "its parts, and ... in front of all or none"
    )
  if precision is None and _mixed.get() and x.dtype == jnp.float32:
    dots = "ABCDEF"[: x.ndim - len(names[0])] if any(dotted) else ""
    named = "{},{}->{}".format(*(dots + own for own in names))
    if worth(named, x, y):
      return rounded(named, target.now().arranged, x, y)
  if target.now().arranged:
    # XLA refuses some bfloat16 products with a float32 sum there
    return cpu_product(formula, x.astype(jnp.float32), y.astype(jnp.float32))
  return jnp.einsum(
    formula, x, y, precision=precision, preferred_element_type=jnp.float32
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def cpu_product(formula, x, y):
  """The einsum of float32 arrays, as XLA takes it best on a CPU.

  Of a batch of matrices it has quick products where what is summed is the last
  axis on the left. Others it gives to oneDNN one by one, which allocates 64 KiB
  for each: small ones take up to three times as long, and two devices wait for
  one another. The gradients are products, so they are arranged as well.
  """
  left, right, out = re.split(",|->", formula)
  batch = set(left) & set(right) & set(out)
  rows, columns = (set(a) & set(out) - batch for a in (left, right))
  if batch and rows and columns:
    if [c for c in out if c not in batch][-1] in rows:
      x, y, left, right = y, x, right, left
    summed = [c for c in left if c not in out]
    names = left.replace(".", "")
    axes = [names.index(c) - len(names) for c in summed]
    ends = list(range(-len(summed), 0))
    if axes != ends:
      # or XLA makes the transposition a part of the product again
      x = jax.lax.optimization_barrier(jnp.moveaxis(x, axes, ends))
      left = "".join([c for c in left if c not in summed] + summed)
  return jnp.einsum(f"{left},{right}->{out}", x, y)


def cpu_product_forward(formula, x, y):
  return cpu_product(formula, x, y), (x, y)


def cpu_product_backward(formula, saved, d):
  x, y = saved
  left, right, out = re.split(",|->", formula)
  dx = cpu_product(f"{out},{right}->{left}", d, y)
  return dx, cpu_product(f"{left},{out}->{right}", x, d)


cpu_product.defvjp(cpu_product_forward, cpu_product_backward)


def sides(formula):
  """Letters of both operands and the answer; of these, those of the batch, of
  rows, of columns and of what is summed."""
  left, right, out = re.split(",|->", formula)
  batch = "".join(c for c in out if c in left and c in right)
  rows, columns = (
    "".join(c for c in out if c in own and c not in batch)
    for own in (left, right)
  )
  summed = "".join(c for c in left if c not in out)
  return left, right, out, batch, rows, columns, summed


def worth(formula, x, y) -> bool:
  """Whether rounding saves more time than it takes."""
  left, right, _, batch, rows, columns, summed = sides(formula)
  size = dict(zip(left + right, x.shape + y.shape, strict=True))
  each = math.prod(size[c] for c in rows + columns + summed)
  return not batch or each >= WORTH


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def rounded(formula, arranged, x, y):
  """The einsum of float32 arrays, of bfloat16 ones summed in float32.

  XLA has such products on a CPU, twice as fast as float32's, where rows of A
  and of the answer lie one after another, and B's rows or columns: `arranged`
  lays them out so. Of others it finds out at run time that it has none.
  """
  left, right, out, batch, rows, columns, summed = sides(formula)
  if (rows + columns) and [c for c in out if c not in batch][-1] in rows:
    x, y, left, right = y, x, right, left
    rows, columns = columns, rows
  size = dict(zip(left + right, x.shape + y.shape, strict=True))
  turned = bool(columns) and right[-1] not in columns  # C S
  second = (columns, summed) if turned else (summed, columns)

  def matrices(a, letters, *axes):
    a = a.astype(jnp.bfloat16)
    a = a.transpose([letters.index(c) for c in batch + "".join(axes)])
    return laid(a.reshape(shape(*batch, *axes)))

  def shape(*groups):
    return [math.prod(size[c] for c in group) for group in groups]

  def laid(a):
    if not arranged:
      return a
    return with_layout_constraint(a, Layout(tuple(range(a.ndim))))

  n = len(batch)
  found = jax.lax.dot_general(
    matrices(x, left, rows, summed),
    matrices(y, right, *second),
    (((n + 1,), (n + turned,)), (tuple(range(n)),) * 2),
    preferred_element_type=jnp.float32,
  )
  order = batch + rows + columns
  found = laid(found).reshape(shape(*order))
  return found.transpose([order.index(c) for c in out])


def rounded_forward(formula, arranged, x, y):
  return rounded(formula, arranged, x, y), (x, y)


def rounded_backward(formula, arranged, saved, d):
  (x, y), (left, right, out) = saved, re.split(",|->", formula)
  dx = rounded(f"{out},{right}->{left}", arranged, d, y)
  return dx, rounded(f"{left},{out}->{right}", arranged, x, d)


rounded.defvjp(rounded_forward, rounded_backward)
