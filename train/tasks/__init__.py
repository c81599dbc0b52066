"""Synthetic tasks: task:NAME is train/tasks/NAME.py, with

Config: a frozen dataclass that validates itself, with `vocab` (inputs and
  targets below it), `length`, `note` ("", or what a result has to say) and
  `scored`, the Config of what valid and test are made of.
batch(cfg, key, batch): dict of tokens, targets, weights and reset, each
  batch x cfg.length, a pure function that can be jitted.
"""

import importlib
import pkgutil

from arch.layers import closest


def names() -> list[str]:
  return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str):
  """The task's module; ValueError names the closest ones."""
  if name not in names():
    raise ValueError(f"unknown task {name!r}: {closest(name, names())}")
  return importlib.import_module(f"{__name__}.{name}")
