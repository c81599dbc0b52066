"""The files of arch/mixers, arch/channels and arch/vocab are the registry."""

import dataclasses
import importlib
import numbers
import pkgutil
import types
import typing

from arch.layers import closest

# of the types of fields that are checked
WORDS = {
  int: "whole number",
  float: "number",
  bool: "True or False",
  str: "word",
  types.NoneType: "None",
}


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
  """config_class(**fields); ValueError names the closest fields, and values of
  another type."""
  known = [f.name for f in dataclasses.fields(config_class)]
  hints = typing.get_type_hints(config_class)
  for name, value in fields.items():
    if name not in known:
      raise ValueError(f"{where} has no field {name!r}: {closest(name, known)}")
    if not fits(value, hints[name]):
      kinds = typing.get_args(hints[name]) or (hints[name],)
      words = ", nor ".join(WORDS[kind] for kind in kinds)
      raise ValueError(f"{where}: {name}={value!r} is no {words}")
  return config_class(**fields)


def fits(value, hint) -> bool:
  """Whether a value is of the kind of number or text that a hint names; other
  hints are left to what reads the value."""
  hints = typing.get_args(hint) or (hint,)
  if not WORDS.keys() >= set(hints):
    return True
  if isinstance(value, bool):
    return bool in hints
  wide = {int: numbers.Integral, float: numbers.Real}
  return isinstance(value, tuple(wide.get(h, h) for h in hints))
