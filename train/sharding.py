"""Shards from outside the model, by one rule that holds on any devices.

A mesh has the axes `data` and `model`. Replicates go over `data` where they
divide it, else the batch does; a parameter's largest axis that divides it goes
over `model`. Axes that stack layers are never sharded.

A CPU counts as one device a core where `platform.setup` was told so: XLA keeps
most of a step's small products on one thread, and halves of a batch on two.
"""

import contextlib

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from arch import rows


def apart(batch):
  """Where what reads a batch is traced: arch.rows knows who holds its rows."""
  placed = getattr(batch["tokens"], "sharding", None)
  axis = batch["tokens"].ndim - 2
  if not isinstance(placed, NamedSharding):
    return contextlib.nullcontext()
  if placed.mesh.size == 1 or rows.AXIS in placed.spec[axis:]:
    return jax.set_mesh(placed.mesh)
  return contextlib.nullcontext()


class Sharding:
  """Places states and batches on the devices.

  Args:
    model: how many devices share one copy of the parameters.
    devices: all of JAX's by default.
  """

  def __init__(self, model: int = 1, devices=None):
    devices = np.asarray(jax.devices() if devices is None else devices)
    if model < 1 or devices.size % model:
      raise ValueError(
        f"{model} devices a model must divide the {devices.size} there are"
      )
    self.mesh = Mesh(
      devices.reshape(-1, model),
      (rows.AXIS, "model"),
      axis_types=(AxisType.Auto,) * 2,
    )

  @classmethod
  def fitting(cls, model: int, batch: int, replicates: int = 0, devices=None):
    """On as many of the devices, JAX's by default, as can share the batch, or
    the replicates.

    More would all repeat the same work.
    """
    devices = jax.devices() if devices is None else list(devices)
    if model < 1 or len(devices) % model:
      return cls(model, devices)  # refuses
    data = len(devices) // model
    while batch % data and (not replicates or replicates % data):
      data -= 1
    return cls(model, devices[: data * model])

  @classmethod
  def of(cls, state):
    """The sharding that a training state is placed by."""
    placed = state["step"].sharding
    if isinstance(placed, NamedSharding):
      mesh = placed.mesh
      return cls(mesh.shape["model"], mesh.devices.ravel())
    return cls(devices=list(placed.device_set))

  def _over_data(self, size: int) -> bool:
    return size % self.mesh.shape[rows.AXIS] == 0

  def state_specs(self, state, layers=None):
    """A PartitionSpec for every leaf of a training state.

    Args:
      layers: arch.arrays.layers of its model; needed where several devices
        share one copy.
    """
    R, model = state["step"].ndim, self.mesh.shape["model"]
    if layers is None and model > 1:
      raise ValueError(
        f"{model} devices a model: say which axes stack its layers"
      )

    def spec(path, leaf):
      axes = [None] * leaf.ndim
      if R and self._over_data(leaf.shape[0]):
        axes[0] = rows.AXIS
      if model > 1:
        first = R + stacked(path, layers)
        own = range(first, leaf.ndim)
        fit = [i for i in own if leaf.shape[i] % model == 0]
        if fit and len(own) > 1:
          axes[max(fit, key=lambda i: leaf.shape[i])] = "model"
      return P(*axes)

    return jax.tree_util.tree_map_with_path(spec, state)

  def batch_specs(self, batch, replicates: int = 0):
    """B over `data`, unless the replicates are; R where they are its own."""

    def spec(leaf):
      R = leaf.ndim - 2
      if R and self._over_data(leaf.shape[0]):
        return P(rows.AXIS)
      if replicates and self._over_data(replicates):
        return P()
      return (
        P(*[None] * R, rows.AXIS) if self._over_data(leaf.shape[R]) else P()
      )

    return jax.tree.map(spec, batch)

  def state(self, state, layers=None):
    """The state, on the mesh; see state_specs."""
    return self._put(state, self.state_specs(state, layers))

  def batch(self, batch, replicates: int = 0):
    """The batch of a state with so many replicates, on the mesh."""
    return self._put(batch, self.batch_specs(batch, replicates))

  def _put(self, tree, specs):
    return jax.device_put(
      tree, jax.tree.map(lambda s: NamedSharding(self.mesh, s), specs)
    )

  def placed(self, shapes, specs):
    """Shapes that say where their arrays will be."""
    return jax.tree.map(
      lambda leaf, spec: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=NamedSharding(self.mesh, spec)
      ),
      shapes,
      specs,
    )


def stacked(path, layers: dict[tuple, int]) -> int:
  """How many axes of a state's leaf stack layers, be it a parameter or what an
  optimiser keeps of one, whose path ends as the parameter's does."""
  keys = tuple(k.key for k in path if isinstance(k, jax.tree_util.DictKey))
  tails = (keys[i:] for i in range(len(keys)))
  return next((layers[tail] for tail in tails if tail in layers), 0)
