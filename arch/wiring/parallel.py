"""Mixers beside one another: each normalised, then averaged.

Hymba, https://arxiv.org/abs/2411.13676, eq. 3. They read one norm(x).
"""

from arch.wiring import residual


class Block(residual.Block):
  def __init__(self, place, cfg, *, layer, rngs):
    super().__init__(place, cfg, layer=layer, rngs=rngs)
    mixers = place.groups[0]
    for part in mixers if len(mixers) > 1 else ():
      setattr(self, f"{part.slot}_norm", cfg.normaliser())

  def merge(self, group, ys):
    if len(ys) == 1:
      return super().merge(group, ys)
    norms = [getattr(self, f"{part.slot}_norm") for part in group]
    return sum(norm(y) for norm, y in zip(norms, ys, strict=True)) / len(ys)
