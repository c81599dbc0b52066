"""The word problem of a group: what is the product so far?

  g_1 g_2 ... g_n  ->  g_1, g_1 g_2, ..., g_1 g_2 ... g_n

Each g_t is drawn uniformly and is one token; the target at t is the product of
all up to t, the latest on the left, as permutations that act one after the
other. Z_n (n >= 2) is the cyclic group, of which Z2 is parity; S_n the
symmetric group, n! elements in the order of itertools.permutations. S5 is not
solvable, which makes its word problem NC1-complete (Barrington 1989; Merrill et
al. 2024, https://arxiv.org/abs/2404.08819, section 3; Siems et al. 2025,
https://arxiv.org/abs/2502.10297, section 5.1).

A sequence has `low` to `high` elements in training. With `far`, what is scored
is the whole product of `high` to `far` elements, to see whether what was learnt
carries on; without, sequences such as those of training.
"""

import dataclasses
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np

from train.tasks import check_whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Which sequences.

  Attributes:
    group: Z2, Z3, ... or S3, S4, S5.
    low, high: the fewest and the most elements of a training sequence.
    far: the most of one that is scored; 0 for those of training.
    answer: "all" asks for the product at every position, "last" for the whole
      one alone.
    length: tokens of a row; 0 for the longest sequence. A row holds as many
      sequences as fit, with a reset at each.
  """

  group: str = "S3"
  low: int = 32
  high: int = 32
  far: int = 0
  answer: str = "all"
  length: int = 0

  def __post_init__(self):
    check_whole(self, ("low", "high", "far", "length"))
    if not re.fullmatch(r"Z([2-9]|[1-9]\d)|S[345]", str(self.group)):
      raise ValueError(f"group={self.group}: Z2 to Z99, S3, S4 or S5")
    if not 1 <= self.low <= self.high:
      raise ValueError(
        f"low={self.low} must be at least 1 and at most high={self.high}"
      )
    if self.far and self.far < self.high:
      raise ValueError(f"far={self.far} must be 0 or at least high={self.high}")
    if self.answer not in ("all", "last"):
      raise ValueError(f"answer={self.answer!r}: all or last")
    longest = max(self.high, self.far)
    if not self.length:
      object.__setattr__(self, "length", longest)
    if self.length < longest:
      raise ValueError(
        f"length={self.length} must hold a sequence of {longest}"
      )

  @property
  def vocab(self) -> int:
    return len(table(self.group))

  @property
  def note(self) -> str:
    if not self.far:
      return ""
    return (
      f"trained on {self.low} to {self.high} elements, scored on {self.high} "
      f"to {self.far}"
    )

  @property
  def scored(self) -> "Config":
    """The task that valid and test are of."""
    if not self.far:
      return self
    return dataclasses.replace(
      self, low=self.high, high=self.far, far=0, answer="last"
    )


@functools.cache
def table(group: str) -> np.ndarray:
  """product[a, b]: first a, then b."""
  n = int(group[1:])
  if group[0] == "Z":
    return np.add.outer(np.arange(n), np.arange(n)) % n
  elements = list(itertools.permutations(range(n)))
  at = {p: i for i, p in enumerate(elements)}
  return np.array(
    [[at[tuple(b[i] for i in a)] for b in elements] for a in elements]
  )


def batch(cfg: Config, key: jax.Array, batch: int) -> dict[str, jax.Array]:
  """`batch` rows of sequences from slots of `high` tokens, 0 in the rest."""
  product = jnp.asarray(table(cfg.group), jnp.int32)
  slots = cfg.length // cfg.high
  draw, size = jax.random.split(key)
  shape = (batch, slots, cfg.high)
  tokens = jax.random.randint(draw, shape, 0, cfg.vocab)
  n = jax.random.randint(size, (batch, slots, 1), cfg.low, cfg.high + 1)
  at = jnp.arange(cfg.high)[None, None]

  def step(so_far, element):
    now = product[so_far, element]
    return now, now

  # the identity is the first element of each group
  start = jnp.zeros((batch, slots), jnp.int32)
  _, targets = jax.lax.scan(step, start, jnp.moveaxis(tokens, -1, 0))
  targets = jnp.moveaxis(targets, 0, -1)
  scored = at < n if cfg.answer == "all" else at == n - 1

  def row(x):
    x = x.reshape(batch, slots * cfg.high)
    return jnp.pad(x, ((0, 0), (0, cfg.length - x.shape[1])))

  return {
    "tokens": row(jnp.where(at < n, tokens, 0)),
    "targets": row(jnp.where(scored, targets, 0)),
    "weights": row(scored.astype(jnp.float32)),
    "reset": row(jnp.broadcast_to(at == 0, shape)),
  }
