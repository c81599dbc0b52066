"""A row is a weighted sum of k shared ones, which fixed hashes choose.

  E_t = sum_i p_{t,i} B_{h_i(t)},  h_i(t) = mix(mix(t) + s_i) mod m
  embed(t) = E_t,  logits(x) = x E^T

Svenstrup et al. 2017, https://arxiv.org/abs/1709.03933, eq. 1 to 3: m D + k V
parameters in place of V D. p starts at 1 / sqrt(k), where Bloom embeddings
(Serra and Karatzoglou 2017, https://arxiv.org/abs/1706.03993) leave it but for
the scale; the paper says no start. s_i are of a seed.

D width  V symbols  k hashes  m buckets
"""

import dataclasses
import math

import jax.numpy as jnp

from arch import vocab
from arch.roles import Embedding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(vocab.Config):
  """Raises ValueError for fewer than one hash or bucket.

  Attributes:
    hashes: k.
    buckets: m; None for an eighth of the symbols.
    seed: of the hashes.
  """

  hashes: int = 2
  buckets: int | None = None
  seed: int = 0
  tied: bool = True

  def __post_init__(self):
    super().__post_init__()
    self.at_least(hashes=1, buckets=1, seed=0)

  @property
  def m(self) -> int:
    """buckets"""
    return self.buckets or math.ceil(self.size / 8)


class Rows(vocab.Rows):
  def __init__(self, cfg, std, *, rngs):
    self.buckets, k = vocab.drawn(std, cfg.m, cfg.dim, rngs=rngs), cfg.hashes
    self.weights = Embedding(jnp.full((cfg.size + 1, k), k**-0.5))

  @classmethod
  def of(cls, cfg, arrays, ids):
    places = vocab.hashes(ids, cfg.hashes, cfg.seed, cfg.m)
    weights = jnp.take(arrays["weights"], ids, axis=0)
    rows = 0
    for i in range(cfg.hashes):
      own = jnp.take(arrays["buckets"], places[..., i], axis=0)
      rows += weights[..., i, None] * own
    return rows


Table, Readout = vocab.ways(Rows)
