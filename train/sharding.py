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
  if isinstance(placed, NamedSharding) and rows.AXIS in placed.spec[axis:]:
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
  def fitting(cls, model: int, batch: int, replicates: int = 0):
    """On as many of JAX's devices as can share the batch, or the replicates.

    More would all repeat the same work.
    """
    devices = jax.devices()
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

  def state_specs(self, state):
    """A PartitionSpec for every leaf of a training state."""
    R = state["step"].ndim

    def spec(path, leaf):
      axes = [None] * leaf.ndim
      if R and self._over_data(leaf.shape[0]):
        axes[0] = rows.AXIS
      stacked = any(
        str(getattr(k, "key", "")).startswith("stack_") for k in path
      )
      own = range(R + stacked, leaf.ndim)
      model = self.mesh.shape["model"]
      fit = [i for i in own if leaf.shape[i] % model == 0]
      if model > 1 and fit and leaf.ndim - R - stacked > 1:
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

  def state(self, state):
    """The state, on the mesh."""
    return self._put(state, self.state_specs(state))

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
