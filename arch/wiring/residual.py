"""x + mixer(norm(x)), then x + channel(norm(x)).

What a block aside left is added to what the mixer reads, and to nothing else.
A part whose Config has `embedding` reads norm([x, e]), 2 D wide, e being the
embedded tokens. Norms, and scales of what is added, may be those of a loop's
pass; see pattern.Loop.

B batch  T time  D width
"""

import jax
import jax.numpy as jnp
from flax import nnx

from arch.law import Aux
from arch.layers import along


class Block(nnx.Module):
  def __init__(self, place, cfg, *, layer, rngs):
    self.place, self.dropout = place, cfg.dropout
    for group in place.groups:
      if not place.norms:
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
      read = self.read(x, i)
      if i == 0 and self.place.after:
        read = read + at.stream["aside"]
      if group[0].cfg.embedding:
        read = jnp.concatenate([read, at.stream["embedding"]], -1)
      owner = at.own if self.place.norms else self
      u = getattr(owner, group[0].norm)(read)
      ys = []
      for part in group:
        y, new[part.slot], more = self.run(part, u, state, at)
        ys.append(y)
        aux = aux.join(part.slot, more)
      y = self.merge(group, ys)
      if self.place.scales:
        scale = getattr(at.own, group[0].scale)[...]
        y = (along(scale, y) * y).astype(y.dtype)
      x = self.add(x, self.drop(y, at.key, i), i)
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

  def read(self, x, i):
    """What group i reads of the stream."""
    return x

  def add(self, x, y, i):
    """The stream, with what group i answers."""
    return x + y

  def drop(self, y, key, which):
    if key is None or not self.dropout:
      return y
    keep = jax.random.bernoulli(
      jax.random.fold_in(key, which), 1 - self.dropout, y.shape
    )
    return jnp.where(keep, y / (1 - self.dropout), 0)
