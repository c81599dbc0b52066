"""A row is M pieces, each one of K shared ones that the symbol's codes choose.

  E_t = [A_1[c_1(t)], ..., A_M[c_M(t)]],  A_i: K rows of D / M numbers
  embed(t) = E_t,  logits(x) = x E^T

K D parameters in place of V D. The codes, M of log2 K bits, are from:
  learnt         c_i(t) = argmax_k s_ik, s_i = Q_i q_t, q_t of r numbers; the
                 gradient is that of softmax(s_i) in place of the choice
  cooccurrence   groups of like neighbours in the training text; see
                 arch/quantiser.py
  hash           fixed hashes of t
Learnt: DPQ-SX, Chen et al. 2020, https://arxiv.org/abs/1908.09756, sec. 2.3,
whose q_t has D numbers, a part of its own for each i; here r few for all, so
that training, too, has fewer parameters: V r + M K r more.

D width  V symbols  M pieces  K codes of each  r numbers that choose them
"""

import dataclasses

import jax
import jax.numpy as jnp

from arch import quantiser, roles, vocab
from arch.roles import Buffer, Embedding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(vocab.Config):
  """Raises ValueError for pieces that do not divide dim, fewer than 2 codes, an
  unknown source.

  Attributes:
    pieces: M; None for the largest of 8, 4, 2, 1 that divides dim.
    codes: K.
    source: of the codes: "learnt", "cooccurrence" or "hash".
    query: r.
  """

  pieces: int | None = None
  codes: int = 32
  source: str = "learnt"
  query: int = 8
  tied: bool = True

  def __post_init__(self):
    super().__post_init__()
    self.at_least(pieces=1, codes=2, query=1)
    self.among("source", ("learnt", "cooccurrence", "hash"))
    if self.dim % self.M:
      raise ValueError(f"{self.where}: pieces={self.M} of dim={self.dim}")

  @property
  def M(self) -> int:
    """pieces"""
    return self.pieces or next(m for m in (8, 4, 2, 1) if self.dim % m == 0)


class Rows(vocab.Rows):
  def __init__(self, cfg, std, *, rngs):
    self.cfg, M, K, r = cfg, cfg.M, cfg.codes, cfg.query
    draw, ids = jax.random.normal, jnp.arange(cfg.size + 1)
    values = std * draw(rngs.params(), (M, K, cfg.dim // M))
    self.values = Embedding(values)
    if cfg.source == "learnt":
      self.query = Embedding(draw(rngs.params(), (cfg.size + 1, r)))
      self.keys = roles.Table(draw(rngs.params(), (M, K, r)) / jnp.sqrt(r))
    else:
      self.codes = Buffer(vocab.hashes(ids, M, 0, K))

  @classmethod
  def of(cls, cfg, arrays, ids):
    values = arrays["values"]
    if cfg.source == "learnt":
      q = jnp.take(arrays["query"], ids, axis=0)
      soft = jax.nn.softmax(jnp.einsum("...r,mkr->...mk", q, arrays["keys"]))
      hard = jax.nn.one_hot(jnp.argmax(soft, -1), cfg.codes)
      choice = soft + jax.lax.stop_gradient(hard - soft)
      pieces = jnp.einsum("...mk,mkd->...md", choice, values)
    else:
      codes = jnp.take(arrays["codes"], ids, axis=0)
      pieces = values[jnp.arange(cfg.M), codes]
    return pieces.reshape(*ids.shape, cfg.dim)

  def counted(self, counts):
    if self.cfg.source != "cooccurrence":
      return {}
    return {"codes": quantiser.codes(counts(), self.cfg.M, self.cfg.codes)}


class Table(vocab.MadeTable):
  Rows = Rows


class Readout(vocab.MadeReadout):
  Rows = Rows
