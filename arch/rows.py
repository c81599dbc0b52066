"""What a device does with its own rows of a batch, looking at no other's.

XLA splits a product as its rows are split, but a sort, or a gather whose
indices it does not know, it makes of all rows on every device. A program that
is traced below `jax.set_mesh` has its batch split over that mesh's axis `data`.

B batch  G devices that share it
"""

import jax
from jax.sharding import PartitionSpec as P

AXIS = "data"


def apart(function, x, *whole):
  """function(x, *whole) of each device's rows of x, joined along axis 0.

  Args:
    function: answers arrays whose first axis is of rows, or of one, of which
      there are then G.
    x: a pytree of B ..., split over the devices where G divides B.
    whole: pytrees that every device holds.
  """
  G = dict(jax.sharding.get_abstract_mesh().shape).get(AXIS, 1)
  if G == 1 or jax.tree.leaves(x)[0].shape[0] % G:
    return function(x, *whole)
  return split(function, x, *whole)


def known(x) -> bool:
  """Whether it is known who holds which rows of x, as a kernel that XLA cannot
  split has to know: see `kernel`."""
  mesh = jax.sharding.get_abstract_mesh()
  held = AXIS in mesh.shape and not mesh.manual_axes
  return held and x.shape[0] % mesh.shape[AXIS] == 0


def kernel(function, x, *whole):
  """As `apart`, of a function that holds kernels; x is `known`."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.size == 1:
    return function(x, *whole)
  return split(function, x, *whole, over=mesh.axis_names)


def split(function, x, *whole, over=(AXIS,)):
  return jax.shard_map(
    function,
    in_specs=(P(AXIS), *[P()] * len(whole)),
    out_specs=P(AXIS),
    axis_names=set(over),
    check_vma=False,  # a pass backward of our own answers each device's share
  )(x, *whole)
