"""A block that begins a pass of a loop: what entered the loop comes in again.

  x <- exp(-softplus(p)) x + b e,  then as in arch/wiring/residual.py

e is the stream in front of the loop's first pass. Parcae's input injection
(https://arxiv.org/abs/2604.12946), whose rate is below 1, so that x stays
bounded however many passes there are. It starts as the mean of both, with which
the first pass reads e alone.
"""

import jax
import jax.numpy as jnp

from arch.layers import along
from arch.roles import Gate
from arch.wiring import residual

STREAMS = ("entry",)  # what it keeps in the stream


class Block(residual.Block):
  def __init__(self, place, cfg, *, layer, rngs):
    super().__init__(place, cfg, layer=layer, rngs=rngs)
    self.rate = Gate(jnp.zeros(cfg.dim))
    self.again = Gate(jnp.full(cfg.dim, 0.5))

  def __call__(self, x, state, at):
    begins = at.layer == self.place.enters
    entry = jnp.where(begins, x, at.stream["entry"])
    keep = jnp.exp(-jax.nn.softplus(self.rate[...]))
    both = along(keep, x) * x + along(self.again[...], x) * entry
    x, state, aux = super().__call__(both.astype(x.dtype), state, at)
    return x, state, aux._replace(stream=aux.stream | {"entry": entry})
