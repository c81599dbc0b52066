"""Synthetic tasks: task:NAME is train/tasks/NAME.py, with

Config: a frozen dataclass that validates itself, with `vocab` (inputs and
  targets below it), `length`, `note` ("", or what a result has to say) and
  `scored`, the Config of what valid and test are made of.
batch(cfg, key, batch): dict of tokens, targets, weights and reset, each
  batch x cfg.length, a pure function that can be jitted.
"""

import importlib
import pkgutil
from collections.abc import Iterable

from arch.config import closest


def names() -> list[str]:
  return sorted(module.name for module in pkgutil.iter_modules(__path__))


def check_whole(cfg, names: Iterable[str]):
  """ValueError unless these fields are whole numbers that int32 can hold."""
  for name in names:
    value = getattr(cfg, name)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or abs(value) >= 2**31:
      raise ValueError(f"{name}={value!r} is no whole number below 2**31")


def get(name: str):
  """The task's module; ValueError names the closest ones."""
  if name not in names():
    raise ValueError(f"unknown task {name!r}: {closest(name, names())}")
  return importlib.import_module(f"{__name__}.{name}")
