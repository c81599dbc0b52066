"""What every mixer and channel mixer is held against, a file each.

tests/parity/mixers/NAME.py belongs to arch/mixers/NAME.py, and channels alike.
It has

  SOURCE   whose code or equations these are, in a line
  CASES    a dict of fields for each call of `case`
  case     builds a Case: the same weights in our module and in theirs
  START    a dict of fields for `start`, or a line that says why there is none
  start    the parameters that their own initialisation draws, as ours are named

"Theirs" is code that nobody here wrote where there is any: transformers', or
the naive twins of flash-linear-attention; else a loop over time in torch, in
float64, that spells the paper's equations out.
"""

import dataclasses
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode


def output(theirs, x):
  y = theirs(x)
  return y[0] if isinstance(y, tuple) else y


@dataclasses.dataclass
class Case:
  """Two modules that should be one.

  Attributes:
    make: our class, called with cfg, layer and rngs.
    cfg: its Config.
    theirs: a torch.nn.Module, B T D -> B T D.
    weights: what theirs calls its parameters -> our nested dict; linear, since
      gradients go through it as well. Takes and gives numpy arrays.
    call: theirs and x -> B T D.
    decode: theirs -> a function that takes a token (B 1 D) and answers it from
      its own cache, or None where the source has no such thing.
    length: T.
    scale: standard deviation of every parameter.
  """

  make: Callable
  cfg: object
  theirs: torch.nn.Module
  weights: Callable
  call: Callable = output
  decode: Callable | None = None
  length: int = 19
  scale: float = 0.5


def naive(path: str):
  """A module of fla-core, loaded by its file: its packages need a GPU.

  `path` is like "gla/naive"; what it imports of its own package is loaded in
  the same way where that is possible.
  """
  root = Path(importlib.util.find_spec("fla").origin).parent / "ops"
  file = root / f"{path}.py"
  name = f"naive_{path.replace('/', '_')}"
  spec = importlib.util.spec_from_file_location(name, file)
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module
  spec.loader.exec_module(module)
  return types.SimpleNamespace(**vars(module))


class Double(TorchFunctionMode):
  """In here what a naive twin casts to float32 is float64."""

  def __torch_function__(self, function, types, args=(), kwargs=None):
    kwargs = dict(kwargs or {})
    if function is torch.Tensor.float:
      return args[0].double()
    if kwargs.get("dtype") is torch.float32:
      kwargs["dtype"] = torch.float64
    return function(*args, **kwargs)
