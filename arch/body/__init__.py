"""What stands between embedded tokens and readout, at which resolution.

A file exports Config and Body(cfg, lm.Config, rngs=rngs), a module:

  body(x, reset, state, key=, tokens=) -> x B T D, state, Aux

`flat` is the trunk alone. The others run it over chunks of tokens:

  x = encoder(x)                            T tokens of D
  which tokens open a chunk                 the file's rule
  y = trunk of the tokens that do           S slots of D'
  x = x and the newest chunk's y            the file's way
  x = decoder(x)

S is fixed: of T tokens at most `burst` + `rate` T open a chunk, by a bucket of
credit. Each token adds `rate`, a chunk takes 1, and what is saved is at most
`burst`; a document starts with none, and is owed its first chunk until it can
pay. So a text's chunks depend on nothing but the document before them, however
it is cut into calls and whatever else is in the batch, every symbol is scored,
and a full bucket costs quality, never causality.

B batch  T time  S slots  D width
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from arch import arrays, config
from arch.law import Aux
from arch.roles import Vector
from arch.trunk import Trunk

COST = 1 << 16  # in whole numbers, so that S is never one too few


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Raises ValueError for fewer blocks than 1, a rate not in (0, 1], a width
  that is no whole number.

  Attributes:
    dim: width of the tokens' stream.
    encoder: blocks in front of the chunks.
    decoder: blocks after them.
    outer: pattern of these; None for the first blocks of the model's.
    rate: chunks a token, at most.
    burst: chunks that may be saved up.
    wider: D' / D, of the chunks' stream.
  """

  dim: int
  encoder: int = 1
  decoder: int = 1
  outer: tuple | None = None
  rate: float = 0.25
  burst: int = 4
  wider: float = 1.0

  def __post_init__(self):
    self.at_least(encoder=1, decoder=1, burst=1, wider=1)
    if self.burst > 10_000:
      raise ValueError(f"{self.where}: burst={self.burst} must be below 10,000")
    if self.W != self.wider * self.dim:
      raise ValueError(
        f"{self.where}: wider={self.wider} makes no whole number of "
        f"dim={self.dim}"
      )
    if not 0 < self.rate <= 1:
      raise ValueError(f"{self.where}: rate={self.rate} must be in (0, 1]")

  at_least = config.Config.at_least

  @property
  def where(self) -> str:
    """How an error names the file: `body spaces`."""
    return f"body {type(self).__module__.rpartition('.')[2]}"

  @property
  def W(self) -> int:
    """width of the chunks' stream"""
    return round(self.wider * self.dim)

  def slots(self, T: int, fresh: bool = False) -> int:
    """S of T tokens; from a fresh start without what may have been saved."""
    most = self.earned * T + (0 if fresh else self.burst * COST)
    return max(1, min(T, most // COST))

  @property
  def earned(self) -> int:
    """What a token adds to the credit, of which a chunk takes COST."""
    return math.ceil(self.rate * COST)


class Chunks(NamedTuple):
  """Which tokens of a call open a chunk, and what of it is in which slot.

  Attributes:
    open: B T bool.
    count: B T int32, how many are open so far.
    known: B T bool, whether the token's document has a chunk.
    at: B S int32, the token of each slot.
    alive: B S bool, whether the slot holds one.
    first: B S bool, whether it is the first of its document.
    refused: B T bool, wanted without credit.
    state: what the next call goes on from.
  """

  open: Any
  count: Any
  known: Any
  at: Any
  alive: Any
  first: Any
  refused: Any
  state: dict


def fresh(batch: int) -> dict:
  return {
    "credit": jnp.zeros(batch, jnp.int32),
    "owed": jnp.ones(batch, bool),
  }


def chunks(cfg, want, reset, state) -> Chunks:
  """Deals slots to the tokens that want a chunk."""
  B, T = want.shape
  S = cfg.slots(T, state is None)
  if reset is None:
    reset = jnp.zeros((B, T), bool)

  def pay(old, xs):
    want, reset = xs
    saved = jnp.where(reset, 0, old["credit"])
    credit = jnp.minimum(saved + cfg.earned, cfg.burst * COST)
    owed = old["owed"] | reset
    open = (want | owed) & (credit >= COST)
    new = {
      "credit": credit - jnp.where(open, COST, 0),
      "owed": owed & ~open,
    }
    return new, (open, open & owed, ~new["owed"], want & ~open)

  new, found = jax.lax.scan(pay, state or fresh(B), (want.T, reset.T))
  open, first, known, refused = (a.T for a in found)
  count = jnp.cumsum(open, 1, dtype=jnp.int32)
  at = jnp.argsort(~open, axis=1, stable=True)[:, :S].astype(jnp.int32)
  alive = jnp.arange(S)[None] < count[:, -1:]
  first = jnp.take_along_axis(first, at, 1) & alive
  return Chunks(open, count, known, at, alive, first, refused, new)


def pick(x, at):
  """x[b, at[b, s]]: B T D and B S -> B S D."""
  return jnp.take_along_axis(x, at[..., None], 1)


class Chunked(nnx.Module):
  """A body of an encoder, a trunk over chunks, and a decoder.

  A file gives
    want(x, tokens, reset, state) -> want B T, what `read` is told, state
    read(x, y, chunks, told, state) -> x B T D, state, Aux
  with y B S D of the slots; the states are dicts of arrays, batch first.
  """

  def __init__(self, cfg, model, *, rngs):
    self.cfg = cfg

    def outer(depth):
      pattern = cfg.outer or tuple(model.pattern)[:depth]
      own = {"depth": depth, "pattern": pattern, "loop": {}}
      return Trunk(dataclasses.replace(model, **own), rngs=rngs)

    self.encoder, self.decoder = outer(cfg.encoder), outer(cfg.decoder)
    length = cfg.slots(model.length)
    inner = dataclasses.replace(model, dim=cfg.W, length=length)
    self.inner = Trunk(inner, rngs=rngs)
    self.pad = Vector(jnp.zeros(cfg.W - cfg.dim)) if cfg.W > cfg.dim else None
    arrays.mark(self.pad, group="mixer")

  def init_state(self, batch: int, length: int | None = None):
    slots = None if length is None else self.cfg.slots(length)
    return {
      "encoder": self.encoder.init_state(batch, length),
      "inner": self.inner.init_state(batch, slots),
      "decoder": self.decoder.init_state(batch, length),
      "chunks": fresh(batch),
      "own": self.init_own(batch),
    }

  def init_own(self, batch: int) -> dict:
    """What `want` and `read` go on from, before any token."""
    raise NotImplementedError

  def want(self, x, tokens, reset, state):
    raise NotImplementedError

  def read(self, x, y, found, told, state):
    raise NotImplementedError

  def __call__(self, x, reset=None, state=None, *, key=None, tokens=None):
    old = state or {}
    keys = [None] * 3 if key is None else jax.random.split(key, 3)
    x, encoder, aux = self.encoder(x, reset, old.get("encoder"), key=keys[0])
    own = old.get("own", self.init_own(len(x)))
    want, told, own = self.want(x, tokens, reset, own)
    found = chunks(self.cfg, want, reset, old.get("chunks"))
    y, inner, more = self.inside(x, found, old.get("inner"), keys[1])
    x, own, read = self.read(x, y, found, told, own)
    x, decoder, last = self.decoder(x, reset, old.get("decoder"), key=keys[2])
    every = jnp.maximum(jnp.mean(jnp.where(found.open, 1.0, 0.0)), 1e-9)
    refused = jnp.mean(jnp.where(found.refused, 1.0, 0.0))
    seen = {"tokens_a_chunk": 1 / every, "refused_chunks": refused}
    aux = Aux().join("encoder", aux).join("decoder", last)
    aux = aux.join("inner", more).join("own", read)
    aux = aux._replace(statistics=aux.statistics | seen)
    new = {"encoder": encoder, "inner": inner, "decoder": decoder}
    return x, new | {"chunks": found.state, "own": own}, aux

  def inside(self, x, found, state, key):
    """The trunk over slots: y B S D, the state after the live ones, Aux.

    Live slots come first, so that they see no dead one. What the trunk carries
    on from a call of several slots is found one by one, since rows have
    different numbers of them; where nothing reads it the compiler drops that.
    """
    u = pick(x, found.at)
    if self.pad is not None:
      pad = jnp.broadcast_to(self.pad[...], (*u.shape[:2], self.pad.size))
      u = jnp.concatenate([u, pad.astype(u.dtype)], -1)
    y, new, aux = self.inner(u, found.first, state, key=key)
    if state is None:
      state = self.inner.init_state(len(x))

    def keep(new, old, alive):  # stacks have an axis of repeats before B
      def of(a, b):
        return jnp.where(alive.reshape(1, -1, *[1] * (a.ndim - 2)), a, b)

      return jax.tree.map(of, new, old)

    def step(state, xs):
      u, first, alive = xs
      _, new, _ = self.inner(u[:, None], first[:, None], state)
      return keep(new, state, alive), None

    if u.shape[1] == 1:
      new = keep(new, state, found.alive[:, 0])
    else:
      xs = u.swapaxes(0, 1), found.first.T, found.alive.T
      new, _ = jax.lax.scan(step, state, xs)
    return y[..., : self.cfg.dim], new, aux
