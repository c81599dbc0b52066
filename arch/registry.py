"""The files of arch/mixers, channels, vocab, weights, wiring and body are the
registry."""

import importlib
import pkgutil
import sys

from arch.config import closest

AXES = {
  "mixers": "mixer",
  "channels": "channel mixer",
  "vocab": "vocabulary",
  "weights": "weight",
  "wiring": "wiring",
  "body": "body",
}


def names(axis: str) -> list[str]:
  """The files of arch/<axis>, which are its registry."""
  folder = importlib.import_module(f"arch.{axis}").__path__
  return sorted(m.name for m in pkgutil.iter_modules(folder))


def find(axis: str, name: str):
  """The module arch/<axis>/<name>.py; ValueError names the closest ones."""
  module = f"arch.{axis}.{name}"
  # the folder is read once a file: a model asks some 30 times
  if module not in sys.modules and name not in names(axis):
    raise ValueError(
      f"unknown {AXES[axis]} {name!r}: {closest(name, names(axis))}"
    )
  return importlib.import_module(module)
