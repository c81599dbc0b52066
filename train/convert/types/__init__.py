"""Types of checkpoints, each a file.

A model_type is the name of a file in this package, which exports, for that
config `hf`, with the names of the folder's tensors as `tensors`:

  model(hf)        the fields of a config's `model`
  top(hf)          our parameters outside of the blocks, and what they are made
                   of: path -> rule
  block(hf, i)     those of block i, which may name buffers, too; of one that
                   is shared, those of its first place
  own(hf, i)       where blocks are shared: what block i has to itself
  ignored(hf)      names of tensors that hold nothing of the model's own, or
                   patterns of names, as fnmatch has them
"""

import importlib
import pkgutil
from collections.abc import Mapping

from arch.layers import closest


def names() -> list[str]:
  return sorted(m.name for m in pkgutil.iter_modules(__path__))


def find(hf: Mapping, where):
  """The file of this package for a config.json."""
  kind = hf.get("model_type")
  if kind not in names():
    raise ValueError(
      f"{where}: unknown model_type {kind!r}: {closest(str(kind), names())}"
    )
  return importlib.import_module(f"{__name__}.{kind}")
