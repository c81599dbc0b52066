"""Types of checkpoints, each a file.

A model_type is the name of a file in this package, which exports, for that
config `hf`, with every field of FIELDS and the names of the folder's tensors as
`tensors`:

  FIELDS           the fields of config.json: see train/convert/fields.py
  NAMES, UNREAD    where there are: other names of fields, and those of which no
                   logit depends
  PREFIX           of the tensors of the model without its readout
  model(hf)        the fields of a config's `model`
  top(hf)          our parameters outside of the blocks, and what they are made
                   of: path -> rule
  block(hf, i)     those of block i, which may name buffers, too; of one that
                   is shared, those of its first place
  own(hf, i)       where blocks are shared: what block i has to itself
  ignored(hf)      tensors that hold nothing of the model's own: name -> what
                   each must be equal to: the tensor of a name, or an array;
                   None for one that transformers leaves out as well
"""

import importlib
import pkgutil
from collections.abc import Mapping

from arch.config import closest


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
