"""A block whose mixer's values have the embedded tokens added, by a map of its
own.

  v_h <- v_h + 2 sigmoid(n u_h) (rms(e) W)_h

The rest is as in arch/wiring/residual.py. h is a head of the values, which one
map of the mixer answers (`values` of its Config, before any convolution), e the
embedded tokens, and n the first 32 numbers of what the mixer reads. Value
embeddings without their tables: NanoGPT Slowrun's projections of x0,
https://github.com/qlabs-eng/slowrun. As there u starts at 0, a gate of 1, and W
as other maps do.

B batch  T time  D width  H heads  V width of a head's values
"""

import jax
import jax.numpy as jnp
from flax import nnx

from arch import arrays, registry
from arch.config import closest
from arch.layers import Linear, normalise
from arch.wiring import residual

STREAMS = ("embedding",)
SEEN = 32  # numbers of n that a gate reads


class Block(residual.Block):
  """Raises ValueError for a mixer whose Config does not say where its values
  are."""

  def __init__(self, place, cfg, *, layer, rngs):
    super().__init__(place, cfg, layer=layer, rngs=rngs)
    (mixer,) = place.groups[0]
    if mixer.cfg.values is None:
      every = (
        (m, registry.find("mixers", m)) for m in registry.names("mixers")
      )
      known = [name for name, module in every if module.Config.values]
      raise ValueError(
        f"wiring='values': {mixer.name} has no values to which one could add. "
        + closest(mixer.name, known)
      )
    _, _, H, V = mixer.cfg.values
    kw = dict(dtype=cfg.compute, rngs=rngs)
    self.again = Linear(cfg.dim, H * V, kind=cfg.weight, **kw)
    start = nnx.initializers.zeros
    self.gate = Linear(min(SEEN, cfg.dim), H, init=start, **kw)
    for made in (self.again, self.gate):
      arrays.mark(made, group="mixer")

  def run(self, part, u, state, at):
    if part.kind != "mixers":
      return super().run(part, u, state, at)
    name, first, H, V = part.cfg.values
    B, T, _ = u.shape
    with jax.named_scope(part.scope):
      gate = jax.nn.sigmoid(self.gate(u[..., :SEEN]).astype(jnp.float32))
      more = self.again(normalise(at.stream["embedding"], 1e-6))
      more = more.reshape(B, T, H, V) * (2 * gate[..., None]).astype(u.dtype)
    block = nnx.merge(*nnx.split(self))
    linear = getattr(getattr(block, part.slot), name)
    linear.difference = Added(linear, more.reshape(B * T, H * V), first)
    return super(Block, block).run(part, u, state, at)


class Added:
  """What a map has beside it: columns that are added to what it answers."""

  def __init__(self, linear, columns, first):
    self.before, self.columns = linear.own, columns
    last = sum(linear.widths) - first - columns.shape[1]
    self.pad = (0, 0), (first, last)

  def __call__(self, x):
    y = jnp.pad(self.columns, self.pad).astype(x.dtype)
    return y if self.before is None else y + self.before(x)
