"""A row is M pieces, each one of K shared ones that the symbol's codes choose.

  E_t = [A_1[c_1(t)], ..., A_M[c_M(t)]],  A_i: K rows of D / M numbers
  embed(t) = E_t,  logits(x) = x E^T

K D parameters in place of V D, and V M constants of log2 K bits: groups of
symbols with like neighbours in the training text (arch/quantiser.py), or fixed
hashes. A product quantiser's rows, Jegou et al. 2011 (PAMI 33, sec. II); codes
that are learnt beside the rows are arch/vocab/learnt_codes.py.

D width  V symbols  M pieces  K codes of each
"""

import dataclasses

import jax
import jax.numpy as jnp

from arch import quantiser, vocab
from arch.roles import Buffer, Embedding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(vocab.Pieces):
  """Raises ValueError for an unknown source, too.

  Attributes:
    source: of the codes: "cooccurrence", which training fills in, or "hash".
  """

  source: str = "cooccurrence"

  def __post_init__(self):
    super().__post_init__()
    self.among("source", ("cooccurrence", "hash"))


class Rows(vocab.Rows):
  def __init__(self, cfg, std, *, rngs):
    self.cfg, shape = cfg, (cfg.M, cfg.codes, cfg.dim // cfg.M)
    self.pieces = Embedding(std * jax.random.normal(rngs.params(), shape))
    ids = jnp.arange(cfg.size + 1)
    self.codes = Buffer(vocab.hashes(ids, cfg.M, 0, cfg.codes))

  @classmethod
  def of(cls, cfg, arrays, ids):
    codes = jnp.take(arrays["codes"], ids, axis=0)
    found = arrays["pieces"][jnp.arange(cfg.M), codes]
    return found.reshape(*ids.shape, cfg.dim)

  def counted(self, counts):
    if self.cfg.source == "hash":
      return {}
    return {"codes": quantiser.codes(counts(), self.cfg.M, self.cfg.codes)}


Table, Readout = vocab.ways(Rows)
