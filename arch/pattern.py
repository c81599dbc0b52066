"""A pattern names a model's blocks, and which of them can be stacked.

An entry is "mixer", "mixer+channel", "a|b" (mixers in parallel), a dict of
`mixer`, `channel`, `wiring`, `share`, `own`, `aside`, and fields that override
those mixers' Configs, or a dict of `loop`, entries that are run again with the
same weights, and the fields of a Loop.
The entries are repeated and cut at the model's depth, in which the blocks of a
loop count once.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import NamedTuple

from arch.config import Config, closest, configure
from arch.registry import find

LAYOUT = ("pattern", "depth", "channel", "wiring", "loops")  # see places


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
  def scale(self) -> str:
    """What a pass of a loop calls the scale of what it adds."""
    return self.norm.replace("norm", "scale")

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loop:
  """Blocks that are run several times, each time from a state of their own.

  What a pass has to itself beside the weights that all share are norms, scales
  of what each sublayer adds (per channel, from 1), and low-rank differences of
  the maps that `cfg.linear` makes, x A B with B from 0: Bae et al. 2024,
  https://arxiv.org/abs/2410.20672, sec. 2.2. Raises ValueError for what is not
  so.

  Attributes:
    times: passes; 1 is the plain model.
    first: blocks in front of the loop, with weights of their own.
    last: blocks behind it.
    order: "cyclic", a b a b, or "immediate", a a b b (MobileLLM, Liu et al.
      2024, https://arxiv.org/abs/2402.14905, sec. 2.3).
    norms: whether a pass has its own.
    scales: whether a pass has its own.
    rank: of the differences; 0 for none.
    inject: whether each pass begins with what entered the loop; see
      arch/wiring/inject.py.
    start: share of training from which on there is more than the first pass;
      FLOPs are those from there on.
  """

  times: int = 1
  first: int = 0
  last: int = 0
  order: str = "cyclic"
  norms: bool = False
  scales: bool = False
  rank: int = 0
  inject: bool = False
  start: float = 0.0

  def __post_init__(self):
    for name, least in dict(times=1, first=0, last=0, rank=0).items():
      if getattr(self, name) < least:
        raise ValueError(
          f"loop: {name}={getattr(self, name)} must be at least {least}"
        )
    if self.order not in ORDERS:
      raise ValueError(
        f"loop: unknown order={self.order!r}: {closest(self.order, ORDERS)}"
      )
    if not 0 <= self.start < 1:
      raise ValueError(
        f"loop: start={self.start} must be a share of training, from 0 to "
        "below 1"
      )
    if self.inject and self.order != "cyclic":
      raise ValueError("loop: inject=True wants order='cyclic'")

  def passes(self, blocks, number: int, layer: int) -> list["Place"]:
    """These blocks as often as they are run.

    Args:
      number: tells the loops of a model apart.
      layer: the first one's.
    """
    if self.times == 1:
      return list(blocks)
    if any(block.share for block in blocks):
      raise ValueError("a block of a loop cannot name a share")
    made = [
      dataclasses.replace(
        block,
        share=f"loop_{number}_{i}",
        norms=self.norms,
        scales=self.scales,
        rank=self.rank,
      )
      for i, block in enumerate(blocks)
    ]
    if self.inject:
      if made[0].wiring != "residual":
        raise ValueError(
          "loop: inject=True wants a first block of wiring='residual', not "
          f"{made[0].wiring!r}"
        )
      made[0] = dataclasses.replace(made[0], wiring="inject", enters=layer)
    late = [dataclasses.replace(block, late=self.start) for block in made]
    more = self.times - 1
    if self.order == "cyclic":
      return made + late * more
    pairs = zip(made, late, strict=True)
    return [block for own, after in pairs for block in (own, *[after] * more)]


ORDERS = ("cyclic", "immediate")


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
    norms, scales, rank: what a pass of a loop has to itself; see Loop.
    enters: the number of the block at which its loop begins.
    late: the share of training before which it is passed by.
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
  norms: bool = False
  scales: bool = False
  rank: int = 0
  enters: int = 0
  late: float = 0.0
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
    there = dict(after=other.after, late=other.late)
    return dataclasses.replace(self, **there) == other

  @property
  def apart(self) -> bool:
    """Whether it has something to itself beside weights that it shares."""
    own = self.aside or self.own or self.norms or self.scales or self.rank
    return bool(own)

  @classmethod
  def parse(cls, entry, channel: str, wiring: str = "residual"):
    """From "mixer", "a|b", "mixer+channel" or a dict with overrides."""
    if isinstance(entry, Mapping):
      fields = dict(entry)
      if "mixer" not in fields:
        raise ValueError(f"a pattern's entry needs a mixer: {fields}")
      place = cls.parse(fields.pop("mixer"), channel, wiring)
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
    wiring = "parallel" if len(names) > 1 else wiring
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
    if self.wiring not in ("parallel", "aside") and len(self.mixers) > 1:
      raise ValueError(
        f"wiring={self.wiring!r} takes one mixer, not {'|'.join(self.mixers)}: "
        "wiring='parallel' takes several"
      )
    if self.channel != "none":
      told = {**cfg.common, **dict(cfg.channels.get(self.channel, {}))}
      config = find("channels", self.channel).Config
      made = configure(config, f"channel {self.channel}", **told)
      parts.append(Part("channels", self.channel, made))
    find("wiring", self.wiring)
    return dataclasses.replace(self, parts=tuple(parts))


def places(
  pattern,
  depth: int,
  channel: str,
  wiring: str = "residual",
  loop: Loop | None = None,
) -> tuple[Place, ...]:
  """The pattern repeated and cut at depth, in names alone, and then its loops.

  Args:
    channel, wiring: of entries that name none.
    loop: of all blocks but its first and last ones.
  """
  entries = [parsed(entry, channel, wiring) for entry in pattern]
  if not entries:
    raise ValueError(
      'an empty pattern: name at least one mixer, as ("mamba2",)'
    )
  size = sum(len(blocks) for _, blocks in entries)
  if size > depth:
    raise ValueError(f"a pattern of {size} blocks in a depth of {depth}")
  runs, left = [], depth
  for own, blocks in itertools.cycle(entries):
    if left < len(blocks):
      raise ValueError(f"depth={depth} cuts a loop of {len(blocks)} blocks")
    runs.append((own, blocks))
    left -= len(blocks)
    if not left:
      break
  if loop is not None and loop.times > 1:
    if any(own.times > 1 for own, _ in runs):
      raise ValueError(f"loop.times={loop.times}, but the pattern has a loop")
    blocks = [block for _, own in runs for block in own]
    end = depth - loop.last
    if loop.first >= end:
      raise ValueError(
        f"loop.first={loop.first} and loop.last={loop.last} leave no block of "
        f"depth={depth} for the loop"
      )
    plain = Loop()
    runs = [
      (plain, blocks[: loop.first]),
      (loop, blocks[loop.first : end]),
      (plain, blocks[end:]),
    ]
  found = []
  runs = [(own, blocks) for own, blocks in runs if blocks]
  for number, (own, blocks) in enumerate(runs):
    found += own.passes(blocks, number, len(found))
  for place in found:
    if place.own and not place.share:
      raise ValueError(f"own={dict(place.own)} needs a place with a share")
  if any(place.late and place.aside for place in found):
    raise ValueError("a loop with a start cannot have a block aside")
  streams = getattr(find("wiring", found[-1].wiring), "STREAMS", ())
  if found[-1].late and {*streams} - {"embedding"}:
    raise ValueError(
      f"loop: start={found[-1].late} with wiring={found[-1].wiring!r}, whose "
      "last block has to be run: give loop.last=1"
    )
  if found[-1].aside:
    raise ValueError("the last block is aside: no block reads what it computes")
  before = [False, *(place.aside for place in found[:-1])]
  return tuple(
    dataclasses.replace(place, after=after)
    for place, after in zip(found, before, strict=True)
  )


def parsed(entry, channel: str, wiring: str) -> tuple[Loop, list[Place]]:
  """An entry's loop, and its blocks."""
  if not (isinstance(entry, Mapping) and "loop" in entry):
    return Loop(), [Place.parse(entry, channel, wiring)]
  fields = dict(entry)
  blocks = fields.pop("loop")
  for name in ("first", "last"):
    if name in fields:
      raise ValueError(
        f"a pattern's loop has no {name!r}: other entries stand around it"
      )
  own = configure(Loop, "a pattern's loop", **fields)
  if isinstance(blocks, str) or not blocks:
    raise ValueError(f"a pattern's loop needs entries: {blocks!r}")
  return own, [Place.parse(block, channel, wiring) for block in blocks]


def expand(cfg) -> tuple[Place, ...]:
  """The resolved places of a model's Config.

  Raises:
    ValueError: of what a place cannot be, or reads and no block before writes.
  """
  found = tuple(
    place.resolve(cfg)
    for place in places(*(getattr(cfg, name) for name in LAYOUT))
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
