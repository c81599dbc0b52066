"""Fields of a mixer, a channel mixer or a vocabulary, and what is said of one
that is wrong."""

import dataclasses
import difflib
import numbers
import types
import typing
from collections.abc import Iterable

import jax.numpy as jnp

from arch import layers, weights

# of the types of fields that are checked
WORDS = {
  int: "whole number",
  float: "number",
  bool: "True or False",
  str: "word",
  types.NoneType: "None",
}


def closest(given: str, known: Iterable[str]) -> str:
  """The tail of an error about an unknown name: what was probably meant."""
  known = sorted(known)
  near = difflib.get_close_matches(given, known, n=3, cutoff=0.5)
  hint = f"did you mean {' or '.join(map(repr, near))}?" if near else ""
  if len(known) > 100:
    return hint or f"none of the {len(known)} known is like it"
  return f"{hint} Known: {', '.join(known)}.".lstrip()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What the shell tells every mixer and channel mixer.

  Attributes:
    dim: width of the residual stream.
    depth: number of blocks, which scales the initialisation of some.
    length: how many tokens back a mixer without a fixed-size memory looks.
    dtype: compute dtype; parameters are float32.
    weight: how maps store theirs, a Weight of arch/weights.
  """

  dim: int
  depth: int
  length: int
  dtype: str = "float32"
  weight: weights.Weight = layers.DENSE

  reads = ()  # entries of the stream that crosses layers; see arch/law.py
  writes = ()  # those that it answers in its Aux
  embedding = False  # whether what it reads has the embedded tokens beside it
  values = None  # (map, first column, H, V) of what goes into its memory

  @property
  def compute(self):
    return jnp.dtype(self.dtype)

  def linear(self, d_in, parts, *, rngs, init=None, bias=False):
    """A map of this dtype, x -> x W (+ b): of one width, or of several that are
    one product and answered apart. See layers.Linear."""
    return layers.Linear(
      d_in,
      parts,
      dtype=self.compute,
      rngs=rngs,
      init=init,
      bias=bias,
      kind=self.weight,
    )

  def linears(self, E, d_in, d_out, *, rngs, init):
    """E maps of one shape; see layers.Linears."""
    kw = dict(rngs=rngs, init=init, kind=self.weight)
    return layers.Linears(E, d_in, d_out, **kw)

  @property
  def where(self):
    """How an error names the file: `mamba2`, `channel swiglu`."""
    kind, _, name = type(self).__module__.rpartition(".")
    return f"channel {name}" if kind.endswith("channels") else name

  def positive(self, *fields: str, **derived: str):
    """ValueError unless each of these fields that is set is above 0.

    Args:
      derived: the property that says what a field is, given or not, as in
        heads="H".
    """
    for field, own in ({f: f for f in fields} | derived).items():
      given, value = getattr(self, field), getattr(self, own)
      if value is not None and value <= 0:
        means = "" if given == value else f", {value} at dim={self.dim},"
        raise ValueError(
          f"{self.where}: {self.means(field)}={given}{means} must be positive"
        )

  def power_of_two(self, field: str):
    """ValueError unless a field is one."""
    given = getattr(self, field)
    if given < 1 or given & (given - 1):
      raise ValueError(f"{self.where}: {field}={given} must be a power of two")

  def at_least(self, **bounds: int):
    """ValueError unless each of these fields that is set reaches its bound."""
    for field, bound in bounds.items():
      given = getattr(self, field)
      if given is not None and given < bound:
        raise ValueError(
          f"{self.where}: {field}={given} must be at least {bound}"
        )

  def among(self, field: str, known: Iterable[str]):
    """ValueError unless a field is one of the known names."""
    given = getattr(self, field)
    if given not in known:
      raise ValueError(
        f"{self.where}: unknown {field}={given!r}: {closest(given, known)}"
      )

  def divide(self, whole: str, part: str) -> int:
    """whole / part, both names of fields or of sizes that are made of them;
    ValueError unless it is exact."""
    self.positive(part, whole)
    w, p = getattr(self, whole), getattr(self, part)
    if w % p:
      below, above = w // p * p, w // p * p + p
      near = f"are {below} and {above}" if below else f"is {above}"
      at = "" if whole in self.fields() else f" at dim={self.dim}"
      raise ValueError(
        f"{self.where}: {self.means(part)}={p} must divide "
        f"{self.means(whole)}={w}{at}; the nearest {whole} {near}"
      )
    return w // p

  def means(self, name: str) -> str:
    """A field by its name; a letter after what its property says that it is."""
    if name in self.fields():
      return name
    return f"{getattr(type(self), name).__doc__} {name}"

  @classmethod
  def fields(cls) -> set[str]:
    return {f.name for f in dataclasses.fields(cls)}


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
