"""A pattern names a model's blocks, and which of them can be stacked.

An entry is "mixer", "mixer+channel", "a|b" (mixers in parallel), or a dict of
`mixer`, `channel`, `wiring`, `share`, `own`, `aside`, and fields that override
those mixers' Configs.
The entries are repeated and cut at the model's depth.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from arch.config import Config, configure
from arch.registry import find


class Part(NamedTuple):
  """One sublayer of a place: a file of arch/mixers or arch/channels, and its
  Config."""

  kind: str
  name: str
  cfg: Config

  @property
  def slot(self) -> str:
    """What a block calls it, its parameters and its state."""
    return self.name if self.kind == "mixers" else "channel"

  @property
  def norm(self) -> str:
    """What a block calls the norm in front of it."""
    return "norm" if self.kind == "mixers" else "channel_norm"

  @property
  def scope(self) -> str:
    return self.kind.removesuffix("s")

  @property
  def width(self) -> int:
    """Numbers of a token that it reads."""
    return self.cfg.dim * (1 + self.cfg.embedding)

  def make(self, *, layer, rngs):
    module = find(self.kind, self.name)
    made = module.Mixer if self.kind == "mixers" else module.Channel
    return made(self.cfg, layer=layer, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class Place:
  """One block of a pattern.

  Attributes:
    mixers: names of files in arch/mixers.
    channel: name of a file in arch/channels, or "none".
    wiring: name of a file in arch/wiring.
    share: places of one such name share weights, not state.
    own: ranks of low-rank maps that a place which shares its weights has to
      itself, by the name of a mixer or "channel".
    after: whether the block before it is one aside.
    fields: what this place overrides in its mixers' Configs.
    parts: its sublayers, once `expand` has resolved them.
    visit: which pass this is over the weights that it shares, from 0 on.
  """

  mixers: tuple[str, ...]
  channel: str
  wiring: str = "residual"
  share: str = ""
  own: tuple[tuple[str, int], ...] = ()
  after: bool = False
  fields: tuple[tuple[str, object], ...] = ()
  parts: tuple[Part, ...] = ()
  visit: int = dataclasses.field(default=0, compare=False)

  @property
  def aside(self) -> bool:
    return self.wiring == "aside"

  @property
  def groups(self) -> list[tuple[Part, ...]]:
    """Parts that read the same, the mixers first."""
    kinds = ("mixers", "channels")
    groups = [tuple(p for p in self.parts if p.kind == kind) for kind in kinds]
    return [group for group in groups if group]

  def alike(self, other) -> bool:
    """Whether the two can share weights."""
    return dataclasses.replace(self, after=other.after) == other

  @classmethod
  def parse(cls, entry, channel: str):
    """From "mixer", "a|b", "mixer+channel" or a dict with overrides."""
    if isinstance(entry, Mapping):
      fields = dict(entry)
      if "mixer" not in fields:
        raise ValueError(f"a pattern's entry needs a mixer: {fields}")
      place = cls.parse(fields.pop("mixer"), channel)
      wiring = "aside" if fields.pop("aside", False) else place.wiring
      return dataclasses.replace(
        place,
        channel=fields.pop("channel", place.channel),
        wiring=fields.pop("wiring", wiring),
        share=fields.pop("share", ""),
        own=tuple(sorted(dict(fields.pop("own", {})).items())),
        fields=tuple(sorted(fields.items())),
      )
    if not isinstance(entry, str):
      raise ValueError(
        f"an entry of a pattern is a name or a dict of fields, not {entry!r}"
      )
    mixers, _, named = entry.partition("+")
    names = tuple(mixers.split("|"))
    wiring = "parallel" if len(names) > 1 else "residual"
    return cls(names, named or channel, wiring)

  def resolve(self, cfg) -> "Place":
    """With its parts, of a model's Config."""
    parts = []
    for name in self.mixers:
      known = find("mixers", name).Config.fields()
      here = {k: v for k, v in self.fields if k in known}
      told = {**cfg.common, **dict(cfg.mixers.get(name, {})), **here}
      config = find("mixers", name).Config
      made = configure(config, f"mixer {name}", **told)
      parts.append(Part("mixers", name, made))
    for field, _ in self.fields:
      if not any(hasattr(part.cfg, field) for part in parts):
        raise ValueError(f"no mixer of {self.mixers} has a field {field!r}")
    if len({part.cfg.embedding for part in parts}) > 1:
      raise ValueError(
        f"of {self.mixers} some read the embedded tokens and some do not"
      )
    if self.wiring == "residual" and len(parts) > 1:
      raise ValueError(
        f"wiring='residual' takes one mixer, not {'|'.join(self.mixers)}: "
        "wiring='parallel' takes several"
      )
    if self.channel != "none":
      told = {**cfg.common, **dict(cfg.channels.get(self.channel, {}))}
      config = find("channels", self.channel).Config
      made = configure(config, f"channel {self.channel}", **told)
      parts.append(Part("channels", self.channel, made))
    find("wiring", self.wiring)
    return dataclasses.replace(self, parts=tuple(parts))


def places(pattern, depth: int, channel: str) -> tuple[Place, ...]:
  """The pattern repeated and cut at depth, in names alone."""
  found = [Place.parse(entry, channel) for entry in pattern]
  if not found:
    raise ValueError(
      'an empty pattern: name at least one mixer, as ("mamba2",)'
    )
  if len(found) > depth:
    raise ValueError(f"a pattern of {len(found)} blocks in a depth of {depth}")
  found = [found[i % len(found)] for i in range(depth)]
  for place in found:
    if place.own and not place.share:
      raise ValueError(f"own={dict(place.own)} needs a place with a share")
  if found[-1].aside:
    raise ValueError("the last block is aside: no block reads what it computes")
  before = [False, *(place.aside for place in found[:-1])]
  return tuple(
    dataclasses.replace(place, after=after)
    for place, after in zip(found, before, strict=True)
  )


def expand(cfg) -> tuple[Place, ...]:
  """The resolved places of a model's Config.

  Raises:
    ValueError: of what a place cannot be, or reads and no block before writes.
  """
  found = tuple(
    place.resolve(cfg) for place in places(cfg.pattern, cfg.depth, cfg.channel)
  )
  known = {"embedding"}
  for layer, place in enumerate(found):
    for part in place.parts:
      known.update(part.cfg.writes)
      made = hasattr(find(part.kind, part.name), "Shared")
      for name in part.cfg.reads:
        if name not in known and not made:
          raise ValueError(
            f"block {layer}: {part.cfg.where} reads {name!r}, which no block "
            f"before it writes; known there: {', '.join(sorted(known))}"
          )
  return visited(found)


def visited(places) -> tuple[Place, ...]:
  """With the number of each visit; ValueError where places that share weights
  are not alike."""
  passes, found = {}, []
  for place in places:
    if place.share:
      earlier = passes.setdefault(place.share, [])
      if earlier and not place.alike(earlier[0]):
        raise ValueError(
          f"places that share {place.share!r} must be equal: {place} is not "
          f"{earlier[0]}"
        )
      place = dataclasses.replace(place, visit=len(earlier))
      earlier.append(place)
    found.append(place)
  return tuple(found)


def stacks(places) -> list[tuple[int, tuple[Place, ...]]]:
  """Cuts places into (repeats, period) around their longest periodic run."""
  best = (0, 0, 0, 1)  # blocks in the run, -period, -start, repeats
  for period in range(1, len(places) // 2 + 1):
    for start in range(len(places) - 2 * period + 1):
      end = start + period
      while end < len(places) and places[end] == places[end - period]:
        end += 1
      n = (end - start) // period
      if n > 1:
        best = max(best, (n * period, -period, -start, n))
  size, period, start, n = best[0], -best[1], -best[2], best[3]
  run = (n, places[start : start + period])
  rest = [(1, places[:start]), run, (1, places[start + size :])]
  return [(n, part) for n, part in rest if part]
