"""y = (x A) B: each part of a map through fewer numbers than it has.

  A: d_in r,  B: r d_out,  r (d_in + d_out) = share d_in d_out

Hu et al. 2021's factors (https://arxiv.org/abs/2106.09685, eq. 3) without the
matrix beside them. They start as the truncated singular value decomposition of
what a mixer draws, as large as that is: Khodak et al. 2021,
https://arxiv.org/abs/2105.01029, sec. 3.1. Of a matrix of zeros B is zero, and
A by fan-in. A part for which r would be below 1 stays whole.

C tokens
"""

import dataclasses

import jax
import jax.numpy as jnp

from arch import weights
from arch.product import matmul


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weight(weights.Weight):
  """Raises ValueError for a share that is not between 0 and 1.

  Attributes:
    share: of a map's numbers, that its two factors have at most.
  """

  share: float = 0.5

  def __post_init__(self):
    if not 0 < self.share < 1:
      raise ValueError(
        f"weights.lowrank.share={self.share} must be between 0 and 1"
      )

  def rank(self, d_in: int, d_out: int) -> int:
    """0 for a part that stays whole."""
    return int(self.share * d_in * d_out / (d_in + d_out))

  def start(self, dense, parts, key):
    leaves, downs, whole = {}, [], []
    for i, w in enumerate(weights.apart(dense, parts)):
      r = self.rank(*w.shape)
      if not r:
        whole.append(w)
        continue
      u, s, v = svd(w)
      root = jnp.sqrt(s[:r])
      grown = weights.size(w) / jnp.maximum(weights.size(s[:r]), 1e-20)
      grown = jnp.sqrt(grown * jnp.sqrt(w.size / r))
      live = jax.random.normal(jax.random.fold_in(key, i), (w.shape[0], r))
      none = weights.size(w) == 0
      down = u[:, :r] * root[None] * grown
      downs.append(jnp.where(none, live * w.shape[0] ** -0.5, down))
      leaves[f"up_{i}"] = root[:, None] * v[:r] * grown
    if downs:
      leaves["down"] = jnp.concatenate(downs, -1)
    if whole:
      leaves["weight"] = jnp.concatenate(whole, -1)
    return leaves

  def product(self, leaves, parts, x):
    ups = [leaves.get(f"up_{i}") for i in range(len(parts))]
    ranks = [up.shape[0] for up in ups if up is not None]
    whole = [n for n, up in zip(parts, ups, strict=True) if up is None]
    downs, wholes = (
      iter(weights.apart(matmul(x, leaves[name].astype(x.dtype)), widths))
      if widths
      else None
      for name, widths in (("down", ranks), ("weight", whole))
    )
    found = [
      next(wholes) if up is None else matmul(next(downs), up.astype(x.dtype))
      for up in ups
    ]
    return jnp.concatenate(found, -1)


@jax.custom_batching.sequential_vmap
def svd(w):
  """u, s, v of one matrix after another: on a CPU two batches at once wait for
  ever, each for the threads that the other holds (jaxlib 0.10.2)."""
  return jnp.linalg.svd(w, full_matrices=False)
