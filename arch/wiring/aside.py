"""A block that leaves x as it is: a = channel(norm(mixer(norm(x)))) W goes to
the mixer of the next block, and nowhere else.

Zamba, https://arxiv.org/abs/2405.16712, eq. 6. W is its place's own, where the
block's weights are shared; see trunk.Own.
"""

import jax

from arch.wiring import parallel

STREAMS = ("aside",)  # what it keeps in the stream


class Block(parallel.Block):
  def __call__(self, x, state, at):
    y, new, aux = super().__call__(x, state, at)
    with jax.named_scope("mixer"):
      aside = at.own.out(y)
    return x, new, aux._replace(stream=aux.stream | {"aside": aside})

  def add(self, x, y, i):
    return y
