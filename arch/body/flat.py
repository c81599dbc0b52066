"""The trunk alone, over every token."""

import dataclasses

from arch.trunk import Trunk


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """
  Attributes:
    dim: width of the stream.
  """

  dim: int


class Body(Trunk):
  def __init__(self, cfg, model, *, rngs):
    super().__init__(model, rngs=rngs)

  def __call__(self, x, reset=None, state=None, *, key=None, tokens=None):
    return super().__call__(x, reset, state, key=key)
