"""The law of what stands at a place: how it is called, and what it answers.

A mixer or channel mixer: (u, reset, state, **reads) -> y, state, Aux
  u, y: B T D in the compute dtype
  reset: B T bool, True at a document's first token, or None
  state: a dict of arrays, batch first, as the last call answered; None for a
    fresh start, which is as a reset at the first token
  reads: what its Config's `reads` names of the stream that crosses layers

A block, as files of arch/wiring make it: (x, state, At) -> x, state, Aux
"""

import dataclasses
from typing import Any, NamedTuple

import jax


class Aux(NamedTuple):
  """What else a call answers.

  Attributes:
    loss: to be added to the training loss.
    statistics: numbers by their name, of which metrics have the mean over the
      layers.
    next: new values of Buffers, nested as they are in the module.
    stream: entries of the stream that it writes.
  """

  loss: Any = 0.0
  statistics: dict = {}
  next: dict = {}
  stream: dict = {}

  def join(self, name: str, other: "Aux") -> "Aux":
    """With that of a part, whose Buffers lie below `name`."""
    return Aux(
      self.loss + other.loss,
      self.statistics | other.statistics,
      self.next | ({name: other.next} if other.next else {}),
      self.stream | other.stream,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class At:
  """Where a block stands in a pass over the model.

  Attributes:
    reset: B T bool, or None.
    stream: what crosses layers, by name: B T D each.
    layer: the block's number, int32.
    key: for dropout, or None for none.
    once: what files of mixers build once a model; see trunk.Once.
    own: what the place has to itself; see trunk.Own.
    progress: the share of training that is done, where a loop asks for it.
  """

  reset: Any = None
  stream: dict = dataclasses.field(default_factory=dict)
  layer: Any = 0
  key: Any = None
  once: Any = None
  own: Any = None
  progress: Any = None

  def replace(self, **fields) -> "At":
    return dataclasses.replace(self, **fields)

  def read(self, part, name: str):
    """What a part reads by that name."""
    if name in self.stream:
      return self.stream[name]
    return getattr(self.once, part.name)(self.layer)
