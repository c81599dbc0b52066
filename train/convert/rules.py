"""The rules that types of checkpoints are written in.

A rule is one array of ours, made of one tensor or more, and back: see Same.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Same:
  """One tensor as it is."""

  name: str

  def ours(self, tensors):
    return tensors[self.name]

  def theirs(self, array) -> dict:
    return {self.name: array}


class Transposed(Same):
  """torch.nn.Linear's weight: d_out x d_in."""

  def ours(self, tensors):
    return tensors[self.name].T

  def theirs(self, array):
    return {self.name: array.T}


class Taps(Same):
  """A depthwise torch.nn.Conv1d's weight: D x 1 x W, ours W x D."""

  def ours(self, tensors):
    return tensors[self.name][:, 0].T

  def theirs(self, array):
    return {self.name: array.T[:, None]}


@dataclasses.dataclass(frozen=True)
class Flat(Same):
  """A tensor of this shape; ours has one axis."""

  shape: tuple[int, ...]

  def ours(self, tensors):
    return tensors[self.name].ravel()

  def theirs(self, array):
    return {self.name: array.reshape(self.shape)}


@dataclasses.dataclass(frozen=True)
class Heads(Same):
  """A tensor of one axis; ours has a row for each of so many heads."""

  heads: int

  def ours(self, tensors):
    return tensors[self.name].reshape(self.heads, -1)

  def theirs(self, array):
    return {self.name: array.ravel()}


@dataclasses.dataclass(frozen=True)
class Rows(Same):
  """A row per symbol; ours has one more, the start symbol's.

  Attributes:
    start: the symbol that begins a document there, whose row becomes ours too;
      None for a row of zeros.
  """

  start: int | None = None

  def ours(self, tensors):
    rows = super().ours(tensors)
    first = rows[self.start] if self.start is not None else 0 * rows[0]
    return np.concatenate([rows, first[None]])

  def theirs(self, array):
    return {self.name: array[:-1]}


@dataclasses.dataclass(frozen=True)
class Part(Same):
  """Rows from `start` to `stop` of a torch.nn.Linear's weight, transposed.

  Of such parts `backwards` makes the whole.
  """

  start: int
  stop: int

  def ours(self, tensors):
    return tensors[self.name][self.start : self.stop].T

  def theirs(self, array):
    return {self.name: {self.start: array.T}}


@dataclasses.dataclass(frozen=True)
class Joined:
  """Several rules' arrays side by side on the last axis, of these widths."""

  rules: tuple
  widths: tuple[int, ...]

  def ours(self, tensors):
    return np.concatenate([rule.ours(tensors) for rule in self.rules], -1)

  def theirs(self, array):
    found, start = {}, 0
    for rule, width in zip(self.rules, self.widths, strict=True):
      found |= rule.theirs(array[..., start : start + width])
      start += width
    return found


@dataclasses.dataclass(frozen=True)
class Permuted:
  """A rule's array with the numbers of its last axis in another order."""

  rule: object
  order: np.ndarray  # which of theirs each of ours is

  def ours(self, tensors):
    return self.rule.ours(tensors)[..., self.order]

  def theirs(self, array):
    return self.rule.theirs(array[..., np.argsort(self.order)])


@dataclasses.dataclass(frozen=True)
class Stacked:
  """Several rules' arrays on a new first axis, as those of experts."""

  rules: tuple

  def ours(self, tensors):
    return np.stack([rule.ours(tensors) for rule in self.rules])

  def theirs(self, array):
    found = {}
    for rule, part in zip(self.rules, array, strict=True):
      found |= rule.theirs(part)
    return found


@dataclasses.dataclass(frozen=True)
class Absent:
  """A buffer of ours that the format has no place for, 0 where one starts."""

  path: tuple[str, ...]
  shape: tuple[int, ...]

  def ours(self, tensors):
    return np.zeros(self.shape)

  def theirs(self, array):
    if np.any(array):
      raise ValueError(
        f"the format has no place for {'.'.join(self.path)}, which training "
        "has changed"
      )
    return {}


def under(name: str, parts: Mapping) -> dict:
  """Path -> rule of a part of a block, from its own."""
  return {(name, *path): rule for path, rule in parts.items()}


def demand(hf: Mapping, **expected):
  """ValueError where a field of config.json is set to what we do not have."""
  for name, value in expected.items():
    if hf.get(name, value) != value:
      raise ValueError(
        f"{hf['model_type']}: {name}={hf[name]!r} is not supported, only "
        f"{value!r}"
      )


def backwards(found: Mapping, ours: Mapping) -> dict[str, np.ndarray]:
  """The folder's tensors, from our flat arrays."""
  if found.keys() != ours.keys():
    raise ValueError(
      "the rules and the model differ in "
      + ", ".join(".".join(p) for p in sorted(found.keys() ^ ours.keys()))
    )
  tensors = {}
  for path, rule in found.items():
    several = rule if isinstance(rule, list) else [rule]
    parts = ours[path] if isinstance(rule, list) else [ours[path]]
    for one, array in zip(several, parts, strict=True):
      for name, tensor in one.theirs(array).items():
        if isinstance(tensor, dict):
          tensors.setdefault(name, {}).update(tensor)
        else:
          tensors[name] = tensor
  for name, tensor in tensors.items():
    if isinstance(tensor, dict):
      tensors[name] = np.concatenate([tensor[i] for i in sorted(tensor)])
  return tensors


def forwards(found: Mapping, tensors: Mapping) -> dict:
  """Our flat arrays in float32, from the folder's tensors."""

  def one(rule):
    return np.asarray(rule.ours(tensors), np.float32)

  return {
    path: np.stack([one(r) for r in rule])
    if isinstance(rule, list)
    else one(rule)
    for path, rule in found.items()
  }
