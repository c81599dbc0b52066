"""A table as a product of three small cores.

  E[(i, j, k), (a, b, c)] = sum_{r, s} F_{i a r} G_{r j b s} H_{s k c}
  embed(t) = E_t,  logits(x) = x E^T;  t = (i n_2 + j) n_3 + k

Khrulkov et al. 2019, https://arxiv.org/abs/1901.10787, eq. 2 and 3: R rank,
V < n_1 n_2 n_3, D = d_1 d_2 d_3, both as even as can be; a core starts at
(std / R)^(1/3) for a row's std (sec. 3.3).

D width  V symbols  R rank
"""

import dataclasses

import jax.numpy as jnp

from arch import vocab


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(vocab.Config):
  """Raises ValueError for a rank below 1.

  Attributes:
    rank: R of both bonds.
  """

  rank: int = 16
  tied: bool = True

  def __post_init__(self):
    super().__post_init__()
    self.at_least(rank=1)

  @property
  def n(self) -> tuple[int, int, int]:
    """n_1 n_2 n_3, the least that are enough for V + 1"""
    side = next(n for n in range(2, self.size + 3) if n**3 > self.size)
    return self.size // side**2 + 1, side, side

  @property
  def d(self) -> tuple[int, int, int]:
    """d_1 d_2 d_3, the divisors of D that are nearest to one another"""
    every = [a for a in range(1, self.dim + 1) if self.dim % a == 0]
    pairs = [(a, b) for a in every for b in every if self.dim % (a * b) == 0]
    return min(((a, b, self.dim // (a * b)) for a, b in pairs), key=max)


class Rows(vocab.Rows):
  def __init__(self, cfg, std, *, rngs):
    R, std = cfg.rank, (std / cfg.rank) ** (1 / 3)
    shapes = zip(cfg.n, (1, R, R), cfg.d, (R, R, 1), strict=True)
    for k, shape in zip("FGH", shapes, strict=True):
      setattr(self, k, vocab.drawn(std, *shape, rngs=rngs))

  @classmethod
  def of(cls, cfg, arrays, ids):
    _, n2, n3 = cfg.n
    at = {"F": ids // (n2 * n3), "G": ids // n3 % n2, "H": ids % n3}
    F, G, H = (jnp.take(arrays[k], i, axis=0) for k, i in at.items())
    rows = jnp.einsum("...uar,...rbs,...scw->...abc", F, G, H)
    return rows.reshape(*ids.shape, cfg.dim)

  @classmethod
  def all(cls, cfg, arrays):
    rows = jnp.einsum("iuar,jrbs,kscw->ijkabc", *(arrays[k] for k in "FGH"))
    return rows.reshape(-1, cfg.dim)[: cfg.size]


Table, Readout = vocab.ways(Rows)
