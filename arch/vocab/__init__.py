"""How symbols enter a model, and how it answers them: a file each.

A file exports Config, and a Table, symbols in, or a Readout, symbols out, or
both; arch/vocabulary.py joins one of each.

  table(tokens, reset, state) -> x, state     B T int32 -> B T D
  logits(cfg, params, held, x)                C D -> C V float32
  nats(cfg, params, held, x, targets)         C D and C int32 -> C float32

A readout's functions are pure: what they read is handed over, so that the loss
can go through C positions at a time (arch/losses.py).

B batch  T time  D width  V symbols  C positions in a chunk
"""

import dataclasses

from flax import nnx

from arch import losses


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

  @property
  def where(self):
    """How an error names the file: `vocabulary full`."""
    return f"vocabulary {type(self).__module__.rpartition('.')[2]}"


class Table(nnx.Module):
  """Symbols in; made as Table(cfg, rngs=rngs).

  Attributes:
    rows: V + 1 rows, an array of role Embedding, which a tied readout reads;
      None where there are none that it could.
  """

  rows = None

  def init_state(self, batch: int) -> dict:
    """Before any token; a dict of arrays, batch first."""
    return {}

  def __call__(self, tokens, reset, state):
    """x B T D in the compute dtype, and the state after the last token; NaN for
    a token that does not exist."""
    raise NotImplementedError


class Readout(nnx.Module):
  """Symbols out, as a distribution over V; made as Readout(cfg, rngs=rngs).

  Attributes:
    held: constants that the functions read, a pytree of arrays.
    wide: how many numbers a position holds on the way to its nats, which sets
      how many positions a chunk of the loss has.
    tied_to: width of the rows of a table that it can read; None for none.
  """

  held = ()
  tied_to = None

  def params(self, rows):
    """What the functions read and what learns, a pytree of float arrays.

    Args:
      rows: the table's, without the start symbol's, if tied; else None.
    """
    raise NotImplementedError

  @classmethod
  def logits(cls, cfg, params, held, x):
    """C V float32, of which the softmax is the distribution."""
    raise NotImplementedError

  @classmethod
  def nats(cls, cfg, params, held, x, targets):
    """-log p of the targets, C float32."""
    return losses.nll(cls.logits(cfg, params, held, x), targets)
