"""A block that mixes the embedded tokens into what it reads and hands on.

  x <- a x + b e,  then as in arch/wiring/residual.py

The x0 connections of modded-nanogpt, per channel: a starts at 1 and b at 0.
"""

import jax.numpy as jnp

from arch.layers import along
from arch.roles import Gate
from arch.wiring import residual

STREAMS = ("embedding",)


class Block(residual.Block):
  def __init__(self, place, cfg, *, layer, rngs):
    super().__init__(place, cfg, layer=layer, rngs=rngs)
    self.keep = Gate(jnp.ones(cfg.dim))
    self.mix = Gate(jnp.zeros(cfg.dim))

  def __call__(self, x, state, at):
    e = at.stream["embedding"]
    both = along(self.keep[...], x) * x + along(self.mix[...], x) * e
    return super().__call__(both.astype(x.dtype), state, at)
