"""The files of arch/mixers, arch/channels and arch/vocab are the registry."""

import dataclasses
import importlib
import pkgutil

from arch.layers import closest


def names(axis: str) -> list[str]:
  """The files of arch/<axis>, which are its registry."""
  folder = importlib.import_module(f"arch.{axis}").__path__
  return sorted(m.name for m in pkgutil.iter_modules(folder))


def find(axis: str, name: str):
  """The module arch/<axis>/<name>.py; ValueError names the closest ones."""
  if name not in names(axis):
    what = {"mixers": "mixer", "channels": "channel mixer"}.get(
      axis, "vocabulary"
    )
    raise ValueError(f"unknown {what} {name!r}: {closest(name, names(axis))}")
  return importlib.import_module(f"arch.{axis}.{name}")


def configure(config_class, where: str, **fields):
  """config_class(**fields); ValueError names the closest fields."""
  known = [f.name for f in dataclasses.fields(config_class)]
  for name in fields:
    if name not in known:
      raise ValueError(f"{where} has no field {name!r}: {closest(name, known)}")
  return config_class(**fields)
