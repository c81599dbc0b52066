"""How symbols enter a model, and how it answers them: a file each.

A file exports Config, and a Table, symbols in, or a Readout, symbols out, or
both; arch/vocabulary.py joins one of each.

  table(tokens, reset, state) -> x, state     B T int32 -> B T D
  logits(cfg, params, held, x)                C D -> C V float32
  nats(cfg, params, held, x, targets)         C D and C int32 -> C float32
  later(cfg, params, held, x, targets)        C D and C k-1 int32 -> C k-1

A readout's functions are pure: what they read is handed over, so that the loss
can go through C positions at a time (arch/losses.py). A file that makes rows of
fewer numbers has a class Rows, and both ways by `ways`.

B batch  T time  D width  V symbols  C positions in a chunk  k symbols ahead
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import nnx

from arch import config, losses
from arch.product import product
from arch.roles import Buffer, Embedding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Raises ValueError for fewer than two symbols.

  Attributes:
    dim: width of the residual stream.
    size: symbols; `size` itself is the start symbol, never a target.
    tied: whether the readout reads the table's rows.
    dtype: compute dtype; logits are float32.
  """

  dim: int
  size: int
  tied: bool = False
  dtype: str = "float32"

  def __post_init__(self):
    if self.size < 2:
      raise ValueError(f"{self.where}: size={self.size}, needs 2 or more")

  at_least = config.Config.at_least
  among = config.Config.among

  @property
  def name(self):
    """The file's."""
    return type(self).__module__.rpartition(".")[2]

  @property
  def where(self):
    """How an error names the file: `vocabulary full`."""
    return f"vocabulary {self.name}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pieces(Config):
  """Of rows that are M pieces, each one of K.

  Raises ValueError for pieces that do not divide dim, fewer than 2 codes, too.

  Attributes:
    pieces: M; None for the largest of 8, 4, 2, 1 that divides dim.
    codes: K.
  """

  pieces: int | None = None
  codes: int = 32
  tied: bool = True

  def __post_init__(self):
    super().__post_init__()
    self.at_least(pieces=1, codes=2)
    if self.dim % self.M:
      raise ValueError(f"{self.where}: pieces={self.M} of dim={self.dim}")

  @property
  def M(self) -> int:
    """pieces"""
    return self.pieces or next(m for m in (8, 4, 2, 1) if self.dim % m == 0)


class Table(nnx.Module):
  """Symbols in; made as Table(cfg, rngs=rngs).

  Attributes:
    lends: what a tied readout may read, in words, which it has to borrow in
      the same; None for nothing.
  """

  lends = None

  def init_state(self, batch: int) -> dict:
    """Before any token; a dict of arrays, batch first."""
    return {}

  def __call__(self, tokens, reset, state):
    """x B T D in the compute dtype, and the state after the last token; NaN for
    a token that does not exist."""
    raise NotImplementedError

  def lent(self):
    """That."""
    raise NotImplementedError


class Readout(nnx.Module):
  """Symbols out, as a distribution over V; made as Readout(cfg, rngs=rngs).

  Attributes:
    wide: how many numbers a position holds on the way to its nats, which sets
      how many positions a chunk of the loss has.
    borrows: what it reads of a table that it is tied to; None if it cannot be.
    horizon: k, how many symbols ahead training looks; a score is of the next.
    weight: of the mean nats of those after the next in the loss of training.
  """

  borrows = None
  horizon = 1
  weight = 0.0

  def params(self, lent):
    """What the functions read and what learns, a pytree of float arrays.

    Args:
      lent: the table's, if tied; else None.
    """
    raise NotImplementedError

  def held(self, lent):
    """Constants that they read, a pytree of arrays."""
    return ()

  @classmethod
  def logits(cls, cfg, params, held, x):
    """C V float32, of which the softmax is the distribution."""
    raise NotImplementedError

  @classmethod
  def nats(cls, cfg, params, held, x, targets):
    """-log p of the targets, C float32."""
    return losses.nll(cls.logits(cfg, params, held, x), targets)

  @classmethod
  def later(cls, cfg, params, held, x, targets):
    """-log p of the symbols after the next, C k-1 float32; asked for k > 1."""
    raise NotImplementedError


class Rows(nnx.Module):
  """V + 1 rows that are made of fewer numbers; made as
  Rows(cfg, std, rngs=rngs), with rows of about that standard deviation."""

  def arrays(self, role=nnx.Param) -> dict:
    """Its parameters by name, or its variables of another role."""
    found = {k: p for k, p in vars(self).items() if isinstance(p, role)}
    return {name: p[...] for name, p in found.items()}

  def counted(self, counts) -> dict:
    """New values of its buffers that depend on the training text, by name.

    Args:
      counts: () -> how often each symbol follows each, sparse V+1 V+1.
    """
    return {}

  @classmethod
  def of(cls, cfg, arrays, ids):
    """The rows of these symbols, ... -> ... D in float32, of all arrays."""
    raise NotImplementedError

  @classmethod
  def all(cls, cfg, arrays):
    """V D, without the start symbol's."""
    return cls.of(cfg, arrays, jnp.arange(cfg.size))


class MadeTable(Table):
  """Looks up rows of a class `Rows`."""

  def __init__(self, cfg, *, rngs):
    self.cfg, self.lends = cfg, f"rows of {cfg.name}"
    # as in arch/vocab/full.py
    std = min(0.02, 1 / cfg.dim) if cfg.tied else 1.0
    self.rows = self.Rows(cfg, std, rngs=rngs)

  def __call__(self, tokens, reset, state):
    arrays = self.rows.arrays(nnx.Variable)
    rows = self.Rows.of(self.cfg, arrays, tokens)
    there = (tokens >= 0) & (tokens <= self.cfg.size)
    return jnp.where(there[..., None], rows, jnp.nan).astype(self.cfg.dtype), {}

  def lent(self):
    return self.rows


class MadeReadout(Readout):
  """logits(x) = x R^T, R the rows of a class `Rows`: made anew for each chunk,
  so that neither they nor their gradient are kept."""

  def __init__(self, cfg, *, rngs):
    self.wide, self.borrows = cfg.size, f"rows of {cfg.name}"
    if not cfg.tied:
      self.rows = self.Rows(cfg, 0.02, rngs=rngs)

  def params(self, lent):
    return (lent or self.rows).arrays()

  def held(self, lent):
    return (lent or self.rows).arrays(Buffer)

  @classmethod
  def logits(cls, cfg, params, held, x):
    rows = cls.Rows.all(cfg, params | held).astype(x.dtype)
    return product("cd,vd->cv", x, rows)


def drawn(std: float, *shape: int, rngs) -> Embedding:
  """Normal numbers of that standard deviation."""
  return Embedding(nnx.initializers.normal(std)(rngs.params(), shape))


def ways(rows) -> tuple[type[Table], type[Readout]]:
  """The way in and the way out by a class `Rows`."""
  bases = MadeTable, MadeReadout
  told = {"Rows": rows, "__module__": rows.__module__}
  return tuple(type(b.__name__.removeprefix("Made"), (b,), told) for b in bases)


def mixed(x):
  """A bijection of uint32 that scatters near numbers: murmur3's last step."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def hashes(ids, k: int, seed: int, m: int):
  """k fixed hashes below m of each, ... -> ... k int32."""
  seeds = np.random.default_rng(seed).integers(2**32, size=k).astype(np.uint32)
  own = mixed(ids.astype(jnp.uint32))
  return jnp.stack([mixed(own + s) % m for s in seeds], -1).astype(jnp.int32)
