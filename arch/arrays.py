"""How a model becomes arrays, and a model again: nested dicts to keep, or one
pytree for jax.jit."""

import jax
from flax import nnx
from flax.traverse_util import unflatten_dict

from arch.roles import ROLES, Buffer, Progress


def rngs(seed) -> nnx.Rngs:
  """The random numbers of a seed, which may be traced."""
  return nnx.Rngs(jax.random.key(seed))


def pure(model) -> tuple[dict, dict]:
  """Parameters and buffers as nested dicts of arrays."""
  _, params, buffers, _ = nnx.split(model, nnx.Param, Buffer, ...)
  return nnx.to_pure_dict(params), nnx.to_pure_dict(buffers)


def fill(model, params: dict, buffers: dict):
  """A model like `model` (which may be abstract) that holds these arrays."""
  graph, own_params, own_buffers, rest = nnx.split(
    model, nnx.Param, Buffer, ...
  )
  nnx.replace_by_pure_dict(own_params, params)
  nnx.replace_by_pure_dict(own_buffers, buffers)
  return nnx.merge(graph, own_params, own_buffers, rest)


def split(model):
  """The model's structure, and its arrays as one pytree for jax.jit."""
  return nnx.split(model)


def join(graph, arrays):
  return nnx.merge(graph, arrays)


def init_state(graph, arrays, batch: int, length: int | None = None):
  """A fresh state on the devices of the arrays, so that jit compiles once."""
  return jax.jit(lambda a: join(graph, a).init_state(batch, length))(arrays)


def mark(modules, **metadata):
  """Notes on variables what their classes do not say: `group`, the column that
  counts them, and `layers`, how many leading axes stack layers. What stands
  there already stays."""
  for _, node in nnx.iter_graph(modules):
    if isinstance(node, nnx.Variable):
      for name in metadata.keys() - node.get_metadata().keys():
        if hasattr(nnx.Variable, "set_metadata"):
          node.set_metadata(name, metadata[name])
        else:  # flax 0.11, which free TPUs have
          setattr(node, name, metadata[name])


def layers(model) -> dict[tuple, int]:
  """How many leading axes stack layers, by the path of every array that has
  some."""
  state = nnx.to_flat_state(nnx.state(model, (nnx.Param, Buffer)))
  found = {path: p.get_metadata().get("layers", 0) for path, p in state}
  return {path: n for path, n in found.items() if n}


def clocks(model) -> list[tuple]:
  """Paths of the Buffers that say how much of training is done."""
  return [path for path, _ in nnx.to_flat_state(nnx.state(model, Progress))]


def roles(model) -> dict:
  """The role of every parameter, nested as in `pure`; ValueError for none."""
  params = nnx.state(model, nnx.Param)
  flat = {path: type(p).__name__ for path, p in nnx.to_flat_state(params)}
  known = [role.__name__ for role in ROLES]
  for path, role in flat.items():
    if role not in known:
      raise ValueError(
        f"parameter {'.'.join(map(str, path))} is a {role}, which is no role: "
        f"make it with one of arch.roles: {', '.join(known)}"
      )
  return unflatten_dict(flat)
