"""A pattern names a model's blocks, and which of them can be stacked.

An entry is "mixer", "mixer+channel", "a|b" (mixers in parallel), or a dict of
`mixer`, `channel`, `share`, `own`, `aside`, and fields that override those
mixers' Configs.
The entries are repeated and cut at the model's depth.
"""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Place:
  """One block of a pattern: its mixers (run in parallel), its channel mixer.

  Attributes:
    mixers: names of files in arch/mixers.
    channel: name of a file in arch/channels, or "none".
    share: places of one such name share weights, not state.
    own: ranks of low-rank maps that a place which shares its weights has to
      itself, by the name of a mixer or "channel".
    aside: whether its output is no part of the residual stream and goes to the
      next block only; see block.Block.
    after: whether it follows an aside one.
    fields: what this place overrides in its mixers' Configs.
  """

  mixers: tuple[str, ...]
  channel: str
  share: str = ""
  own: tuple[tuple[str, int], ...] = ()
  aside: bool = False
  after: bool = False
  fields: tuple[tuple[str, object], ...] = ()

  def alike(self, other):
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
      return dataclasses.replace(
        place,
        channel=fields.pop("channel", place.channel),
        share=fields.pop("share", ""),
        own=tuple(sorted(dict(fields.pop("own", {})).items())),
        aside=fields.pop("aside", False),
        fields=tuple(sorted(fields.items())),
      )
    if not isinstance(entry, str):
      raise ValueError(
        f"an entry of a pattern is a name or a dict of fields, not {entry!r}"
      )
    mixers, _, own = entry.partition("+")
    return cls(tuple(mixers.split("|")), own or channel)


def expand(pattern, depth: int, channel: str) -> tuple[Place, ...]:
  """The pattern repeated and cut at depth."""
  places = [Place.parse(entry, channel) for entry in pattern]
  if not places:
    raise ValueError(
      'an empty pattern: name at least one mixer, as ("mamba2",)'
    )
  if len(places) > depth:
    raise ValueError(f"a pattern of {len(places)} blocks in a depth of {depth}")
  places = [places[i % len(places)] for i in range(depth)]
  for place in places:
    if place.own and not place.share:
      raise ValueError(f"own={dict(place.own)} needs a place with a share")
  if places[-1].aside:
    raise ValueError("the last block is aside: no block reads what it computes")
  before = [False, *(place.aside for place in places[:-1])]
  return tuple(
    dataclasses.replace(place, after=after)
    for place, after in zip(places, before, strict=True)
  )


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
