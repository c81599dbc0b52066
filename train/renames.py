"""Names that a model's arrays had before, so that older checkpoints are read.

A name is a path in the nested dict of a model; what renames turns one of today
into that of before. A state holds several such dicts: the parameters, buffers,
and what the optimiser keeps of each parameter.
"""

from collections.abc import Callable, Iterable

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

Rename = Callable[[tuple], tuple]


def whole_vocab(path: tuple) -> tuple:
  """Before a vocabulary was a way in and a way out."""
  match path:
    case ("vocab", ("embedding" | "readout") as way, "rows"):
      return ("vocab", way)
    case ("vocab", _, ("widen" | "narrow") as name):
      return ("vocab", name)
    case ("vocab", "positions"):
      return ("positions",)
  return path


def without_trunk(path: tuple) -> tuple:
  """When blocks lay beside the vocabulary."""
  path = whole_vocab(path)
  return path[1:] if path[0] == "trunk" else path


def bare_maps(path: tuple) -> tuple:
  """When SwiGLU's and experts' maps were arrays of the channel mixer's own."""
  match path:
    case (*block, ("gate" | "up" | "down") as name, "weight"):
      return (*block, name)
  return path


def of(names: Iterable[str]) -> Rename | None:
  """What renames, where the names of a checkpoint's arrays are of before."""
  names = set(names)
  vocab = any(name.endswith("vocab.embedding") for name in names)
  trunk = any(".trunk." in name for name in names)
  maps = any(name.endswith(".channel.gate") for name in names)
  whole = (whole_vocab if trunk else without_trunk) if vocab else lambda p: p

  def before(path):
    old = bare_maps(whole(path))
    bare = any(name.endswith(".".join(old)) for name in names)
    return old if bare else whole(path)

  if maps:
    return before
  return whole if vocab else None


def older(tree, rename: Rename):
  """A state with the names of before."""
  if _model(tree):
    flat = flatten_dict(tree)
    return unflatten_dict({rename(path): x for path, x in flat.items()})
  if isinstance(tree, dict):
    return {k: older(x, rename) for k, x in tree.items()}
  if isinstance(tree, tuple):
    return _within(lambda x: older(x, rename), tree)
  return tree


def newer(tree, like, rename: Rename):
  """Undoes `older`; `like` has the names of today."""
  if _model(like):
    flat = flatten_dict(tree)
    return unflatten_dict(
      {path: flat[rename(path)] for path in flatten_dict(like)}
    )
  if isinstance(like, dict):
    return {k: newer(tree[k], x, rename) for k, x in like.items()}
  if isinstance(like, tuple):
    return _within(lambda x, y: newer(x, y, rename), tree, like)
  return tree


def _model(tree) -> bool:
  return isinstance(tree, dict) and bool(tree.keys() & {"trunk", "vocab"})


def _within(function, *trees):
  """Of each field of tuples, named or not."""
  return jax.tree.map(
    function, *trees, is_leaf=lambda x: not any(x is tree for tree in trees)
  )
