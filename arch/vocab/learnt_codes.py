"""Rows as of arch/vocab/codes.py, whose codes are learnt beside them.

  E_t = [A_1[c_1(t)], ..., A_M[c_M(t)]],  c_i(t) = argmax_k s_ik,  s_i = Q_i q_t
  embed(t) = E_t,  logits(x) = x E^T

The gradient is that of softmax(s_i) in place of the choice: DPQ-SX, Chen et al.
2020, https://arxiv.org/abs/1908.09756, sec. 2.3. There q_t has D numbers, each
i a part of its own; here r few for all, so that in training, too, there are
fewer parameters than V D: V r + M K r + K D.

D width  V symbols  M pieces  K codes of each  r numbers that choose them
"""

import dataclasses

import jax
import jax.numpy as jnp

from arch import roles, vocab
from arch.roles import Embedding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(vocab.Pieces):
  """Raises ValueError for r below 1, too.

  Attributes:
    query: r.
  """

  query: int = 8

  def __post_init__(self):
    super().__post_init__()
    self.at_least(query=1)


class Rows(vocab.Rows):
  def __init__(self, cfg, std, *, rngs):
    M, K, r = cfg.M, cfg.codes, cfg.query

    def draw(*shape):
      return jax.random.normal(rngs.params(), shape)

    self.pieces = Embedding(std * draw(M, K, cfg.dim // M))
    self.query = Embedding(draw(cfg.size + 1, r))
    self.keys = roles.Table(draw(M, K, r) / jnp.sqrt(r))

  @classmethod
  def of(cls, cfg, arrays, ids):
    q = jnp.take(arrays["query"], ids, axis=0)
    soft = jax.nn.softmax(jnp.einsum("...r,mkr->...mk", q, arrays["keys"]))
    hard = jax.nn.one_hot(jnp.argmax(soft, -1), cfg.codes)
    choice = soft + jax.lax.stop_gradient(hard - soft)
    found = jnp.einsum("...mk,mkd->...md", choice, arrays["pieces"])
    return found.reshape(*ids.shape, cfg.dim)


Table, Readout = vocab.ways(Rows)
