"""A row per symbol in, a row per symbol out.

  embed(t) = s E_t,  logits(x) = x R^T;  tied: R is E without the start symbol

E starts at unit size, as torch.nn.Embedding does, so that what the first blocks
add does not drown it; R, and a tied E, so that the loss starts near ln V.

B batch  T time  D width  V symbols  C positions in a chunk
"""

import dataclasses

import jax.numpy as jnp

from arch import vocab
from arch.product import product


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(vocab.Config):
  """Raises ValueError for fewer than two symbols, or a softcap below 0.

  Attributes:
    tied: not by default: among 256 bytes the second table is small, and it
      leaves the loss at the start near ln V however little the blocks add to
      the embedding.
    scale: s, that multiplies what is embedded; Gemma's is sqrt(dim).
    softcap: c of the logits, c tanh(logits / c); 0 for none. Gemma 2,
      https://arxiv.org/abs/2408.00118, section 2.
  """

  scale: float = 1.0
  softcap: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    if self.softcap < 0:
      raise ValueError(f"{self.where}: softcap={self.softcap} is negative")


class Table(vocab.Table):
  def __init__(self, cfg, *, rngs):
    self.cfg, self.lends = cfg, f"rows of {cfg.dim} numbers"
    # Tied, the readout sees x of unit size. Where x only holds its own
    # symbol's row, that symbol's logit is std * dim: this keeps it at 1.
    std = min(0.02, 1 / cfg.dim) if cfg.tied else 1.0
    self.rows = vocab.drawn(std, cfg.size + 1, cfg.dim, rngs=rngs)

  def __call__(self, tokens, reset, state):
    rows = jnp.take(self.rows[...], tokens, axis=0)
    return (rows * self.cfg.scale).astype(self.cfg.dtype), {}

  def lent(self):
    return self.rows[...][: self.cfg.size]


class Readout(vocab.Readout):
  def __init__(self, cfg, *, rngs):
    self.wide, self.borrows = cfg.size, f"rows of {cfg.dim} numbers"
    if not cfg.tied:
      self.rows = vocab.drawn(0.02, cfg.size, cfg.dim, rngs=rngs)

  def params(self, lent):
    return self.rows[...] if lent is None else lent

  @classmethod
  def logits(cls, cfg, params, held, x):
    logits = product("cd,vd->cv", x, params.astype(x.dtype))
    cap = cfg.softcap
    return cap * jnp.tanh(logits / cap) if cap else logits
