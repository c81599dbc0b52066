"""What a block's backward pass finds kept, and what it computes again.

  none   everything is kept
  auto   products with a matrix that answer fewer numbers than they read, and
         what `kept` names
  block  only what the block was given

To write and read a number costs a TPU of today as much as a sum of 500
products: a map that widens is made again at no loss, one that narrows is kept.
The products of attention and of recurrences have a batch of matrices on both
sides; they are made again from the few numbers that `kept` names.
"""

import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

NAME = "kept"
REMAT = ("none", "auto", "block")


def kept(tree):
  """The same, kept under "auto"."""
  return jax.tree.map(lambda x: checkpoint_name(x, NAME), tree)


def keeping(step):
  """A scan's step that keeps its states, so that the scan is not run again for
  them."""
  return lambda state, x: step(kept(state), x)


def kept_bits(tree):
  """As `kept`, where no gradient is taken: as in a custom_vjp's pass forward.

  JAX rounds floats that it keeps once more, which is a pass over what a kernel
  answers; it does not round integers.
  """

  def keep(x):
    whole = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    bits = kept(jax.lax.bitcast_convert_type(x, whole))
    return jax.lax.bitcast_convert_type(bits, x.dtype)

  return jax.tree.map(keep, tree)


def narrows(primitive, *shapes, **how) -> bool:
  """Whether it is a product with a matrix that answers fewer numbers a row than
  it reads."""
  if primitive is not jax.lax.dot_general_p:
    return False
  (summed, _), (batch, _) = how["dimension_numbers"]
  read = math.prod(shapes[0].shape[i] for i in summed)
  return not batch and shapes[1].size < read**2


def applied(run, how: str):
  """run, whose gradient is taken in that way of REMAT."""
  if how == "none":
    return run
  save = jax.checkpoint_policies
  named = save.save_only_these_names(NAME)
  policy = save.save_from_both_policies(narrows, named)
  return jax.checkpoint(run, policy=policy if how == "auto" else None)
