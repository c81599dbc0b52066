"""x + mixer(norm(x)), then x + channel(norm(x)).

What a block aside left is added to what the mixer reads, and to nothing else.
A part whose Config has `embedding` reads norm([x, e]), 2 D wide, e being the
embedded tokens.

B batch  T time  D width
"""

import jax
import jax.numpy as jnp
from flax import nnx

from arch.law import Aux


class Block(nnx.Module):
  def __init__(self, place, cfg, *, layer, rngs):
    self.place, self.dropout = place, cfg.dropout
    for group in place.groups:
      setattr(self, group[0].norm, cfg.normaliser(group[0].width))
      for part in group:
        setattr(self, part.slot, part.make(layer=layer, rngs=rngs))

  def init_state(self, batch, length=None):
    return {
      part.slot: getattr(self, part.slot).init_state(batch, length)
      for part in self.place.parts
    }

  def __call__(self, x, state, at):
    new, aux = {}, Aux()
    for i, group in enumerate(self.place.groups):
      read = x + at.stream["aside"] if i == 0 and self.place.after else x
      if group[0].cfg.embedding:
        read = jnp.concatenate([read, at.stream["embedding"]], -1)
      u = getattr(self, group[0].norm)(read)
      ys = []
      for part in group:
        y, new[part.slot], more = self.run(part, u, state, at)
        ys.append(y)
        aux = aux.join(part.slot, more)
      x = self.add(x, self.drop(self.merge(group, ys), at.key, i))
    return x, new, aux

  def run(self, part, u, state, at):
    with jax.named_scope(part.scope):
      reads = {name: at.read(part, name) for name in part.cfg.reads}
      if hasattr(at.own, part.slot):
        reads["own"] = getattr(at.own, part.slot)
      before = None if state is None else state[part.slot]
      return getattr(self, part.slot)(u, at.reset, before, **reads)

  def merge(self, group, ys):
    """One y, of the one part of a group."""
    (y,) = ys
    return y

  def add(self, x, y):
    return x + y

  def drop(self, y, key, which):
    if key is None or not self.dropout:
      return y
    keep = jax.random.bernoulli(
      jax.random.fold_in(key, which), 1 - self.dropout, y.shape
    )
    return jnp.where(keep, y / (1 - self.dropout), 0)
