"""What is compared, and at what budget. Imports no JAX: flags read it, too."""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path

MANY = {10**9: "G", 10**6: "M", 10**3: "K"}
MORE = ("lrs", "seeds")  # what a comparison may be given more of later
LATER = ("settings", "flops")  # what plans of before they were had not
AMOUNTS = ("params", "flops", "tokens", "length", "batch", "eval_bytes")


@dataclasses.dataclass(frozen=True)
class Plan:
  """The defaults are those of launch.compare.

  Attributes:
    params: parameters of every arm, within 1 %; None for each config's own.
    flops: those a token of every arm's pass forward, within 1 %, in place of
      params.
    tokens: of one run, rounded up to whole steps.
    length: tokens a sequence; None for a task's own, and LENGTH of text.
    batch: sequences a step.
    data: a name that train.data.load knows.
    seeds: how many seeds are trained at an arm's best rate.
    lrs: the grid of peak learning rates.
    eval_bytes: size of the validation and test slices.
    optimizer: of every arm, adamw or muon.
    settings: FIELD=VALUE of every arm, in the order that they are made.
  """

  params: int | None = 100_000
  flops: int | None = None
  tokens: int = 500_000
  length: int | None = None
  batch: int = 8
  data: str = "stdlib"
  seeds: int = 3
  lrs: tuple[float, ...] = (3e-3, 1e-2, 3e-2)
  eval_bytes: int = 64_000
  optimizer: str = "adamw"
  settings: tuple[str, ...] = ()

  def __post_init__(self):
    for name in (*AMOUNTS, "seeds"):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ValueError(f"{name}={value} must be at least 1")
    if self.params and self.flops:
      raise ValueError(
        f"params={self.params} and flops={self.flops}: arms are made equal in "
        "one of them"
      )
    if not self.lrs or not all(0 < lr < math.inf for lr in self.lrs):
      raise ValueError(f"lrs={self.lrs}: name positive learning rates")
    if len(set(self.lrs)) < len(self.lrs):
      raise ValueError(f"lrs={self.lrs} names a rate twice")

  @property
  def steps(self) -> int:
    return -(-self.tokens // (self.batch * self.length))

  @property
  def fixed(self) -> dict:
    """What every run of a comparison has in common, as its config.json."""
    kept = dataclasses.asdict(self)
    for name in MORE:
      del kept[name]
    for name in LATER:
      if not kept[name]:
        del kept[name]
    return kept

  @property
  def folder(self) -> str:
    """A name that tells what is not as by default: compare-book-params2M."""
    words = ["compare"]
    if self.data != Plan.data:
      words.append(short(self.data))
    for name in AMOUNTS:
      told = name != "params" or self.flops is None
      if told and getattr(self, name) != getattr(Plan, name):
        words.append(name + amount(getattr(self, name)))
    if self.optimizer != Plan.optimizer:
      words.append(self.optimizer)
    words += [short(s.removeprefix("model.")) for s in self.settings]
    return "-".join(words)

  def other(self, saved: Mapping) -> list[str]:
    """In words, what a comparison that was saved has otherwise.

    The length is left out where it is not known yet.
    """
    own = self.fixed
    if self.length is None:
      own["length"] = saved.get("length")
    return [
      f"{name} {said(saved.get(name))} there, {said(own.get(name))} here"
      for name in dict.fromkeys([*own, *saved])
      if own.get(name) != saved.get(name)
    ]


def amount(n: int | None) -> str:
  """2_500_000 -> 2500K, by the largest unit that is exact."""
  if n is None:
    return "none"
  for unit, letter in MANY.items():
    if n % unit == 0:
      return f"{n // unit}{letter}"
  return str(n)


def short(text: str) -> str:
  """A data set's or setting's name as part of a folder's."""
  kind, _, rest = text.partition(":")
  if kind in ("text", "bytes") and rest:
    path, *fields = rest.split(",")
    text = "-".join([Path(path).name.partition(".")[0], *fields])
  return re.sub(r"[^A-Za-z0-9_.]+", "-", text.removeprefix("task:")).strip("-.")


def said(value) -> str:
  if isinstance(value, int) and not isinstance(value, bool):
    return f"{value:,}"
  if isinstance(value, tuple | list):
    return " ".join(value)
  return "none" if value is None else str(value)
