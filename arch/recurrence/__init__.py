"""Recurrences: each the formula, and a fast twin equal to it.

A file exports TWINS, by the recurrence's name the functions that compute it,
the formula as `reference` among them, and `example(draw, B, T, H, K)`, inputs
by a label that starts with that name; draw(*shape) is normal. Tests hold the
twins of every file against one another, launch.bench times them.
"""

import importlib
import pkgutil


def twins() -> dict:
  """(functions, examples) of every recurrence here, by its name."""
  found = {}
  for file in pkgutil.iter_modules(__path__):
    module = importlib.import_module(f"{__name__}.{file.name}")
    for name, functions in getattr(module, "TWINS", {}).items():
      found[name] = functions, module.example
  return found
