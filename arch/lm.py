"""The shell: vocabulary + blocks + readout, the same for every architecture.

  x = embed(tokens) (+ position), normalised if asked
  x = x + mixer(norm(x));  x = x + channel(norm(x))      in every block
  logits = readout(norm(x))

A pattern names the blocks. Its longest periodic run is stacked and scanned
over (unrolled on a CPU where it is short), the rest runs one by one.

B batch  T time  D width  V symbols  n repeats of a stack
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from arch import pattern, target
from arch.block import Block, Once, stacked
from arch.config import closest, configure
from arch.layers import NORMS, positions
from arch.registry import find
from arch.roles import Embedding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """The shell's own fields; every one can be set in a config's `model`.

  Attributes:
    dim: width of the residual stream.
    depth: number of blocks.
    length: how far back attention looks from a carried state.
    pattern: blocks, repeated and cut at depth; see arch/pattern.py.
    channel: channel mixer of the entries that name none; "none" for none.
    mixers: fields of each mixer's Config, by its name.
    channels: fields of each channel mixer's Config, by its name.
    vocab: `name` of a file in arch/vocab, `size`, and fields of its Config.
    norm: of the residual stream: "rms", "rms_plus" (its parameter is w - 1),
      "rms_plain" (it has none) or "layer" (with biases).
    norm_eps: what a norm adds to the mean square.
    embed_norm: whether the embedded tokens are normalised, as RWKV's are.
    positions: how many learned positions a document has, added to the embedded
      tokens as in GPT-2; 0 for none.
    dtype: compute dtype, float32 or bfloat16.
    remat: "none", or "block" to recompute each block in the backward pass.
    dropout: share of each block's output that training sets to zero.
  """

  dim: int
  depth: int
  length: int
  pattern: tuple
  vocab: Mapping
  channel: str = "swiglu"
  mixers: Mapping = dataclasses.field(default_factory=dict)
  channels: Mapping = dataclasses.field(default_factory=dict)
  norm: str = "rms"
  norm_eps: float = 1e-6
  embed_norm: bool = False
  positions: int = 0
  dtype: str = "float32"
  remat: str = "none"
  dropout: float = 0.0

  def __post_init__(self):
    for name in ("dim", "depth", "length"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)} must be positive")
    if self.norm not in NORMS:
      raise ValueError(
        f"unknown norm={self.norm!r}: {closest(self.norm, NORMS)}"
      )
    if self.norm_eps <= 0 or self.positions < 0:
      raise ValueError(
        f"norm_eps={self.norm_eps} must be positive and "
        f"positions={self.positions} not negative"
      )
    if self.dtype not in ("float32", "bfloat16"):
      raise ValueError(f"dtype={self.dtype!r}: float32 or bfloat16")
    if self.remat not in ("none", "block"):
      raise ValueError(f"remat={self.remat!r}: none or block")
    if not 0 <= self.dropout < 1:
      raise ValueError(f"dropout={self.dropout} must be in [0, 1)")
    for axis in ("mixers", "channels"):
      for name in getattr(self, axis):
        find(axis, name)

  def normaliser(self, width=None):
    """A norm of the residual stream, or of so many numbers."""
    return NORMS[self.norm](width or self.dim, eps=self.norm_eps)

  def mixer(self, name, **fields):
    """The Config of a mixer, with fields that override this one's."""
    return configure(
      find("mixers", name).Config,
      f"mixer {name}",
      **{**self.common, **dict(self.mixers.get(name, {})), **fields},
    )

  @property
  def common(self):
    """What every mixer and channel mixer is told."""
    return dict(
      dim=self.dim, depth=self.depth, length=self.length, dtype=self.dtype
    )


def build(cfg: Mapping, *, rngs: nnx.Rngs) -> "LM":
  """The model that a config's `model` describes."""
  return LM(configure(Config, "model", **dict(cfg)), rngs=rngs)


class LM(nnx.Module):
  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    places = pattern.expand(cfg.pattern, cfg.depth, cfg.channel)
    self.length, self.remat = cfg.length, cfg.remat
    vocab = dict(cfg.vocab)
    name = vocab.pop("name")
    module = find("vocab", name)
    vocab = configure(
      module.Config, f"vocabulary {name}", dim=cfg.dim, dtype=cfg.dtype, **vocab
    )
    self.vocab = module.Vocab(vocab, rngs=rngs)

    first = {}
    for layer, place in enumerate(places):
      if place.share and place.share not in first:
        first[place.share] = place
        block = Block(place, cfg, layer=jnp.int32(layer), rngs=rngs)
        setattr(self, f"shared_{place.share}", block)
      elif place.share and not place.alike(first[place.share]):
        raise ValueError(
          f"places that share {place.share!r} must be equal: {place} is not "
          f"{first[place.share]}"
        )
    self.shares = tuple(first)
    self.once = Once(places, cfg, rngs=rngs)

    start = 0
    self.repeats = ()
    for i, (n, period) in enumerate(pattern.stacks(places)):
      keys = jax.random.split(rngs.params(), n)
      layers = start + len(period) * jnp.arange(n, dtype=jnp.int32)
      setattr(self, f"stack_{i}", stacked(period, cfg, keys, layers))
      self.repeats += (n,)
      start += n * len(period)
    self.norm = cfg.normaliser()
    self.embed_norm = cfg.normaliser() if cfg.embed_norm else None
    rows = nnx.initializers.normal(0.02)
    self.positions = (
      Embedding(rows(rngs.params(), (cfg.positions, cfg.dim)))
      if cfg.positions
      else None
    )
    self.streams = self._streams(places)

  def _streams(self, places):
    configs = [getattr(m, "cfg", None) for _, m in nnx.iter_graph(self)]
    names = {k for c in configs for k in getattr(c, "stream", ())}
    if any(getattr(c, "embedding", False) for c in configs):
      names.add("embedding")
    if any(place.aside for place in places):
      names.add("aside")
    return tuple(sorted(names))

  @property
  def shared(self):
    return {name: getattr(self, f"shared_{name}") for name in self.shares}

  def init_state(self, batch: int, length: int | None = None):
    """A fresh state; a ring of `length` keys where memory is not fixed."""

    def stack_state(stack):
      return stack.init_state(self.shared, batch, length)

    state = {
      f"stack_{i}": jax.vmap(stack_state, axis_size=n)(
        getattr(self, f"stack_{i}")
      )
      for i, n in enumerate(self.repeats)
    }
    if self.positions is not None:
      state["position"] = jnp.zeros(batch, jnp.int32)
    return state

  def features(self, tokens, reset=None, state=None, *, key=None):
    """What the readout sees.

    Args:
      tokens: B T int32.
      reset: B T bool, True at a document's first token, or None.
      state: what an earlier call returned, or None for a fresh start.
      key: for dropout; None for none.

    Returns:
      x B T D; the state after the last token; aux, a dict of `loss` (to be
      added to the training loss), `statistics` (means over the layers) and
      `next` (new values of the Buffers, nested as they are in the model).
    """
    with jax.named_scope("vocab"):
      x = self.vocab.embed(tokens)
      if self.positions is not None:
        at, after = self.place(*tokens.shape, reset, state)
        # NaN beyond the last position, as for a token that does not exist
        rows = jnp.take(self.positions[...], at, axis=0)
        x += rows.astype(x.dtype)
    if self.embed_norm is not None:
      x = self.embed_norm(x)
    x, new, aux = self.mix(x, reset, state, key=key)
    if self.positions is not None:
      new["position"] = after
    return x, new, aux

  def place(self, B, T, reset, state):
    """Positions B T in their documents, and the next token's, B.

    Raises:
      ValueError: T tokens have more positions than there are.
    """
    known = self.positions.shape[0]
    if T > known:
      raise ValueError(
        f"{T} tokens at once, but the model has {known} learned positions: "
        "shorten the context"
      )
    before = jnp.zeros(B, jnp.int32) if state is None else state["position"]
    at = positions(reset, before, T)
    return at, at[:, -1] + 1

  def mix(self, x, reset=None, state=None, *, key=None):
    """As `features`, from the embedded tokens x, B T D."""
    stream = {
      name: x if name == "embedding" else jnp.zeros_like(x)
      for name in self.streams
    }
    new, aux = {}, {}
    shared = self.shared

    def run(block, *args):
      return block(*args)

    if self.remat == "block":
      run = jax.checkpoint(run)

    def body(carry, xs):
      x, stream = carry
      stack, state, layer = xs
      k = None if key is None else jax.random.fold_in(key, layer)
      x, stream, state, aux = stack(
        x, stream, reset, state, k, shared, self.once, layer, run
      )
      return (x, stream), (state, aux)

    layer = 0
    for i, n in enumerate(self.repeats):
      name = f"stack_{i}"
      stack = getattr(self, name)
      period = len(stack.places)
      xs = (
        stack,
        None if state is None else state[name],
        layer + period * jnp.arange(n, dtype=jnp.int32),
      )
      layer += n * period
      if n <= target.now().unroll:
        carry, ys = (x, stream), []
        for part in unstack(xs, n):
          carry, y = body(carry, part)
          ys.append(y)
        (x, stream), (new[name], aux[name]) = carry, restack(ys)
      else:
        (x, stream), (new[name], aux[name]) = jax.lax.scan(
          body, (x, stream), xs
        )
    return self.norm(x), new, self._collect(aux)

  def _collect(self, aux):
    """One dict from the stacked dicts of every channel mixer."""
    loss, statistics, new = jnp.float32(0), {}, {}
    shared = {}
    for i in range(len(self.repeats)):
      name = f"stack_{i}"
      for j, place in enumerate(getattr(self, name).places):
        block = f"block_{j}"
        own = dict(aux[name][block])
        loss += jnp.sum(own.pop("loss", jnp.float32(0)))
        after = own.pop("next", {})
        if after and place.share:
          shared.setdefault(place.share, []).append(after)
        elif after:
          new.setdefault(name, {})[block] = {"channel": after}
        for key, value in own.items():
          statistics.setdefault(key, []).append(jnp.mean(value))
    for name, several in shared.items():
      # every place that shares a buffer proposes a value: their mean is taken
      mean = jax.tree.map(lambda *a: jnp.mean(jnp.concatenate(a), 0), *several)
      new[f"shared_{name}"] = {"channel": mean}
    statistics = {k: sum(v) / len(v) for k, v in statistics.items()}
    return {"loss": loss, "statistics": statistics, "next": new}

  def __call__(self, tokens, reset=None, state=None):
    """Logits B T V in float32, and the carried state."""
    x, state, _ = self.features(tokens, reset, state)
    with jax.named_scope("vocab"):
      return self.vocab.logits(x), state

  def loss(self, tokens, targets, weights, reset=None, *, key=None):
    """Mean nats a weighted position, and aux; B T V is never built."""
    x, _, aux = self.features(tokens, reset, key=key)
    with jax.named_scope("vocab"):
      return self.vocab.loss(x, targets, weights), aux


def unstack(tree, n: int):
  """n trees from one with a leading axis n; the gradient is one copy."""
  leaves, structure = jax.tree.flatten(tree)
  parts = [jax.lax.split(leaf, (1,) * n) for leaf in leaves]
  return [
    jax.tree.unflatten(structure, [jnp.squeeze(p[i], 0) for p in parts])
    for i in range(n)
  ]


def restack(trees):
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def abstract(cfg: Mapping) -> LM:
  """The model with shapes in place of arrays."""
  return nnx.eval_shape(lambda: build(cfg, rngs=nnx.Rngs(0)))
