"""Products of arrays that are summed in float32, as each machine takes them
best."""

import collections
import functools
import re

import jax
import jax.numpy as jnp

from arch import target


def product(formula, x, y, precision=None):
  """The einsum of two arrays of one dtype, summed and answered in float32.

  Each letter is once in two or three of the formula's parts, with one size, and
  "..." in front of all parts or of none. Reverse-mode gradients only.

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
