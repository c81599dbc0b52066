"""Weights of few bits: how they are rounded, and noise as large as that.

  step_j = k rms(w_j) / (2^(bits - 1) - 1),  q = clip(round(w / step), +-levels)

Each map out (a column of a d_in x d_out matrix) or row of a table has a step of
its own, in float16. Clipping by a spread makes the symbols' entropy
bits - log2 k + 1.05 for normal weights, whatever their scale: OpenAI's
parameter-golf records of 2026-04, where k is 20 for 8 bits and 12.85 for 6,
some 4.7 and 3.4 bits a weight; with 5 for 4 bits it is 2.7. Those take the
standard deviation; of weights that do not lie around 0, such as a few shared
rows' shares, that says nothing, hence the root of the mean square. Ternary
weights are those of arch/weights/ternary.py, a scale a part.
"""

import math

import jax
import jax.numpy as jnp

CLIP = {8: 20.0, 6: 12.85, 4: 5.0}
ROWS = ("Embedding", "Table")  # roles whose last axis is a row's
ROUNDED = ("Matrix", *ROWS)
SHARED = 4  # by fewer numbers a step of 16 bits saves little


def levels(bits: int) -> int:
  """The largest symbol; symbols go from its negative."""
  return 2 ** (bits - 1) - 1


def axes(shape, role: str | None) -> tuple[int, ...]:
  """Of the numbers that share a step; none where they stay what they are.

  A row that is shorter than SHARED takes the axes before it, but for the
  first: a core of a product of tensors is V x R x D x 1.
  """
  if role not in ROUNDED or 0 in shape:
    return ()
  if role == "Matrix":
    found = (-2,)
  else:
    most = max(len(shape) - 1, 1)
    ways = (tuple(range(-n, 0)) for n in range(1, most + 1))
    sizes = {a: math.prod(shape[i] for i in a) for a in ways}
    found = next((a for a in sizes if sizes[a] >= SHARED), min(sizes))
  enough = math.prod(shape[i] for i in found) >= SHARED
  return found if enough else ()


def step(w, role: str, bits: int):
  """Of every number of w, as an array that broadcasts with it."""
  square = jnp.mean(w * w, axis=axes(w.shape, role), keepdims=True)
  size = CLIP[bits] * jnp.sqrt(square) / levels(bits)
  return jnp.maximum(size, 1e-7).astype(jnp.float16).astype(jnp.float32)


def rounded(w, role: str, bits: int):
  """Symbols int8 and their steps: w is about their product."""
  size, most = step(w, role, bits), levels(bits)
  return jnp.clip(jnp.round(w / size), -most, most).astype(jnp.int8), size


def noisy(params, roles, bits: int, key):
  """Parameters with noise, uniform over a step: what rounding does to them, as
  long as training moves them."""
  leaves, tree = jax.tree.flatten(params)
  found = []
  for i, (w, role) in enumerate(
    zip(leaves, jax.tree.leaves(roles), strict=True)
  ):
    if axes(w.shape, role):
      own = jax.random.uniform(jax.random.fold_in(key, i), w.shape)
      size = jax.lax.stop_gradient(step(w, role, bits))
      w = w + size * (own - 0.5)
    found.append(w)
  return jax.tree.unflatten(tree, found)
