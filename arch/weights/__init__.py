"""How the weight of a map is stored and multiplied: a file each.

A file exports Weight, a frozen dataclass of its fields; `model.linear` names
the file of all maps that mixers and channel mixers make by `cfg.linear`, and
`model.weights` has fields by that name. Gates' maps, tables, and the matrices
of inner models are dense always.

  start(dense, parts, key) -> leaves     from what a mixer draws, d_in d_out
  product(leaves, parts, x) -> y         C d_in -> C d_out in x's dtype
  matrix(leaves, parts, d_in) -> W       what y is x W of, d_in d_out float32

A map is several side by side, `parts` of d_out in width: each by itself is
scaled, cut or factored, so that a small one does not drown in a large one.
Leaves are a dict of arrays by the names that a checkpoint has them by.

C tokens
"""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weight:
  def start(self, dense, parts, key) -> dict:
    raise NotImplementedError

  def product(self, leaves, parts, x):
    raise NotImplementedError

  def matrix(self, leaves, parts, d_in):
    return self.product(leaves, parts, jnp.eye(d_in))


def size(x):
  """Root mean square of all numbers of an array."""
  return jnp.sqrt(jnp.mean(x * x))


def apart(x, parts):
  """Its columns, cut at these widths."""
  ends = [sum(parts[:i]) for i in range(1, len(parts))]
  return jnp.split(x, ends, -1)


def through(x, rounded):
  """`rounded` exactly, with the gradient of x: straight-through."""
  return jax.lax.stop_gradient(rounded) + (x - jax.lax.stop_gradient(x))
