"""Multi-query associative recall (Zoology, 2312.04927, section 4).

  k1 v1 k2 v2 ... kK vK | q . q . . . q .

K keys and as many values are drawn without replacement. After the pairs, each
key stands once more, on the first of one of the L/2 - K slots of two that
follow; slot i = 1, 2, ... is drawn without replacement with p(i) proportional
to i^(a-1), a = 0.01. Only the repeated keys are scored: their target is their
value, which never stands in the input there. All else is filler.

L tokens a sequence  K pairs  T tokens a row
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from train.tasks import check_whole

POWER = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Which sequences.

  Attributes:
    vocab: 0 is the filler; keys are 1 ... vocab//2 - 1, values the rest.
    length: T. A row holds T / L sequences with a reset at each.
    pairs: K, for L = T; or a mixture of (L, K, share of the sequences), where
      shares may be counts.
    random_fill: fillers are random tokens, as in the public code since then.
  """

  vocab: int = 8192
  length: int = 64
  pairs: int | tuple[tuple[int, int, float], ...] = 4
  random_fill: bool = False

  def __post_init__(self):
    check_whole(self, ("vocab", "length"))
    if not isinstance(self.pairs, int):  # lists, where it was read from JSON
      object.__setattr__(self, "pairs", mixed(self.pairs))
    for length, pairs, share in self.mixture:
      where = f"{length=}, {pairs=}, {share=}"
      positive = 0 < share < math.inf
      if length % 2 or pairs < 1 or 4 * pairs > length or not positive:
        raise ValueError(
          f"{where}: length must be even, pairs 1 to length/4, share positive"
        )
      if self.length % length:
        raise ValueError(f"{where}: must divide the rows' length={self.length}")
      if pairs > self.vocab // 2 - 1:
        raise ValueError(
          f"{where}: vocab={self.vocab} has only {self.vocab // 2 - 1} keys"
        )

  @property
  def mixture(self) -> tuple[tuple[int, int, float], ...]:
    if isinstance(self.pairs, int):
      return ((self.length, self.pairs, 1.0),)
    return self.pairs

  @property
  def scored(self) -> "Config":
    return self

  @property
  def note(self) -> str:
    if not self.random_fill:
      return ""
    return "fillers are random tokens: not comparable with the paper's zeros"


def mixed(pairs) -> tuple:
  """A mixture, as tuples; ValueError where it is none."""
  try:
    parts = tuple(tuple(part) for part in pairs)
    fit = bool(parts) and all(
      isinstance(length, int)
      and isinstance(number, int)
      and isinstance(share, int | float)
      for length, number, share in parts
    )
  except (TypeError, ValueError):
    fit = False
  if not fit:
    raise ValueError(
      f"{pairs=} is neither a whole number nor (length, pairs, share), ..."
    )
  return parts


def batch(cfg: Config, key: jax.Array, batch: int) -> dict[str, jax.Array]:
  """`batch` rows; each is of one part of the mixture."""
  rows = [
    functools.partial(_row, cfg, length, pairs)
    for length, pairs, _ in cfg.mixture
  ]
  # a row of short sequences holds more of them
  odds = [share * length for length, _, share in cfg.mixture]
  part_key, bits_key = jax.random.split(key)
  logits = jnp.log(jnp.array(odds, jnp.float32))
  part = jax.random.categorical(part_key, logits, shape=(batch,))
  # all at once: a generator in each part would take seconds to compile
  bits = jax.random.bits(bits_key, (batch, 2, cfg.length))
  return jax.vmap(lambda part, bits: jax.lax.switch(part, rows, bits))(
    part, bits
  )


def _row(cfg: Config, length: int, pairs: int, bits: jax.Array):
  bits = bits.reshape(2, -1, length)
  sequence = functools.partial(_sequence, cfg, length, pairs)
  made = jax.vmap(sequence)(bits[0], bits[1])
  return {name: value.reshape(cfg.length) for name, value in made.items()}


def _sequence(cfg, length: int, pairs: int, bits, fill_bits):
  half = cfg.vocab // 2
  keys = 1 + _choose(bits[:pairs], half - 1)
  values = half + _choose(bits[pairs : 2 * pairs], cfg.vocab - half)
  # of exponential clocks of rates p, those that ring first are draws from p
  # without replacement
  slot = jnp.arange(1, length // 2 - pairs + 1, dtype=jnp.float32)
  uniform = (bits[-slot.size :] >> 8).astype(jnp.float32) + 0.5
  rings = -jnp.log(uniform / 2**24) * slot ** (1 - POWER)
  _, slots = jax.lax.top_k(-rings, pairs)
  queries = 2 * pairs + 2 * slots
  tokens = jnp.zeros(length, jnp.int32)
  tokens = tokens.at[0 : 2 * pairs : 2].set(keys).at[queries].set(keys)
  tokens = tokens.at[1 : 2 * pairs : 2].set(values)
  if cfg.random_fill:
    fill = (fill_bits % cfg.vocab).astype(jnp.int32)
    tokens = jnp.where(tokens == 0, fill, tokens)
  return {
    "tokens": tokens,
    "targets": jnp.zeros(length, jnp.int32).at[queries].set(values),
    "weights": jnp.zeros(length, jnp.float32).at[queries].set(1.0),
    "reset": jnp.arange(length) == 0,
  }


def _choose(bits: jax.Array, n: int) -> jax.Array:
  """One of 0 ... n-1 a word of bits, without replacement.

  Draw i is a rank among what i draws have left, a Lehmer code, decoded from
  its end: whatever follows draw i makes room for it. For 256 rows of 64 of
  4095 this takes less than a hundredth of the time of permutations.
  """
  i = jnp.arange(bits.size)
  ranks = (bits % (n - i).astype(jnp.uint32)).astype(jnp.int32)

  def step(done, drawn):
    at = bits.size - 1 - done
    return jnp.where((i > at) & (drawn >= drawn[at]), drawn + 1, drawn)

  return jax.lax.fori_loop(0, bits.size, step, ranks)
