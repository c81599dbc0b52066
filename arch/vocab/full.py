"""A row per symbol in, a row per symbol out.

  embed(t) = s E_t,  logits(x) = x R^T;  tied: R is E without the start symbol

E starts at unit size, as torch.nn.Embedding does, so that what the first blocks
add does not drown it; R at 0.02, so that the loss starts near ln V. Tied, E
starts as R must.

B batch  T time  D width  V symbols  C positions in a chunk
"""

import dataclasses
import functools

import jax.numpy as jnp
from flax import nnx

from arch import losses
from arch.product import product
from arch.roles import Embedding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Raises ValueError for fewer than two symbols.

  Attributes:
    dim: width of the residual stream.
    size: symbols; `size` itself is the start symbol, never a target.
    tied: whether the readout is the embedding. Not by default: among 256
      bytes the second table is small, and it leaves the loss at the start
      near ln V however little the blocks add to the embedding.
    scale: s, that multiplies what is embedded; Gemma's is sqrt(dim).
    softcap: c of the logits, c tanh(logits / c); 0 for none. Gemma 2,
      https://arxiv.org/abs/2408.00118, section 2.
    dtype: compute dtype; logits are float32.
  """

  dim: int
  size: int
  tied: bool = False
  scale: float = 1.0
  softcap: float = 0.0
  dtype: str = "float32"

  def __post_init__(self):
    if self.size < 2:
      raise ValueError(f"vocabulary full: size={self.size}, needs 2 or more")
    if self.softcap < 0:
      raise ValueError(f"vocabulary full: softcap={self.softcap} is negative")


def read(table, x):
  """C V logits in float32 from C D and V D."""
  return product("cd,vd->cv", x, table.astype(x.dtype))


def capped(read, cap, params, x):
  return cap * jnp.tanh(read(params, x) / cap)


class Vocab(nnx.Module):
  read = staticmethod(read)

  def __init__(self, cfg, *, rngs):
    self.cfg = cfg
    # Tied, the readout sees x of unit size. Where x only holds its own
    # symbol's row, that symbol's logit is std * dim: this keeps it at 1.
    std = min(0.02, 1 / cfg.dim) if cfg.tied else 1.0
    rows = nnx.initializers.normal(std)
    self.embedding = Embedding(rows(rngs.params(), (cfg.size + 1, cfg.dim)))
    if not cfg.tied:
      rows = nnx.initializers.normal(0.02)
      self.readout = Embedding(rows(rngs.params(), (cfg.size, cfg.dim)))

  @property
  def table(self):
    if self.cfg.tied:
      return self.embedding[...][: self.cfg.size]
    return self.readout[...]

  @property
  def params(self):
    """What `read` reads."""
    return self.table

  @property
  def logits_fn(self):
    """(params, C D) -> C V, as arch/losses.py takes it."""
    cap = self.cfg.softcap
    return functools.partial(capped, self.read, cap) if cap else self.read

  def embed(self, tokens):
    """B T D in the compute dtype; NaN for a token that does not exist."""
    rows = jnp.take(self.embedding[...], tokens, axis=0)
    return (rows * self.cfg.scale).astype(self.cfg.dtype)

  def logits(self, x):
    B, T, D = x.shape
    return self.logits_fn(self.params, x.reshape(B * T, D)).reshape(B, T, -1)

  def loss(self, x, targets, weights):
    chunk = losses.chunk_size(self.cfg.size)
    return losses.mean_nll(
      self.logits_fn, self.params, x, targets, weights, chunk
    )

  def score(self, x, targets):
    chunk = losses.chunk_size(self.cfg.size)
    return losses.score(self.logits_fn, self.params, x, targets, chunk)
