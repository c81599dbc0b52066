"""y = x P L P^T R: two block-diagonal maps and a permutation between them.

  h_{k q} = sum_p x_{k p} R_{k p q},  y_{s l} = sum_r h_{r l} L_{l r s}
  k, l = 1..n,  h read as r n numbers:  about m (d_in + d_out) / n numbers,
  m = min(d_in, d_out) = n q = n r

Dao et al. 2022, https://arxiv.org/abs/2204.00595, eq. 1, rectangular as in
appendix C: every number of y sees every one of x while n^2 <= m. Both start
normal, so that their product is as large as what a mixer draws. What n does not
divide is rounded up: x is filled with zeros, of y the rest is cut.

C tokens  n blocks
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from arch import weights
from arch.product import matmul, product


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weight(weights.Weight):
  """Raises ValueError for fewer than two blocks.

  Attributes:
    blocks: n at most; parts with m < n^2 have fewer, and with m < 4 one, which
      is a map as it was.
  """

  blocks: int = 4

  def __post_init__(self):
    if self.blocks < 2:
      raise ValueError(
        f"weights.monarch.blocks={self.blocks} must be 2 or more"
      )

  def start(self, dense, parts, key):
    leaves, d_in = {}, dense.shape[0]
    for i, w in enumerate(weights.apart(dense, parts)):
      m = min(w.shape)
      n = min(self.blocks, math.isqrt(m))
      if n < 2:
        leaves[f"weight_{i}"] = w
        continue
      keys = jax.random.split(jax.random.fold_in(key, i))
      p, q, s = (-(-size // n) for size in (d_in, m, w.shape[1]))
      right = jax.random.normal(keys[0], (n, p, q)) * p**-0.5
      left = jax.random.normal(keys[1], (n, q, s)) * q**-0.5
      made = multiplied(jnp.eye(d_in), right, left, w.shape[1])
      leaves[f"right_{i}"] = right
      leaves[f"left_{i}"] = left * weights.size(w) / weights.size(made)
    return leaves

  def product(self, leaves, parts, x):
    found = []
    for i, d_out in enumerate(parts):
      if f"weight_{i}" in leaves:
        found.append(matmul(x, leaves[f"weight_{i}"].astype(x.dtype)))
        continue
      both = (
        leaves[f"{side}_{i}"].astype(x.dtype) for side in ("right", "left")
      )
      found.append(multiplied(x, *both, d_out))
    return jnp.concatenate(found, -1)


def multiplied(x, right, left, d_out: int):
  """C d_in -> C d_out."""
  (n, p, _), (_, r, _), C = right.shape, left.shape, x.shape[0]
  x = jnp.pad(x, ((0, 0), (0, n * p - x.shape[1]))).reshape(C, n, p)
  h = product("kcp,kpq->ckq", x.swapaxes(0, 1), right).astype(x.dtype)
  h = h.reshape(C, r, n).transpose(2, 0, 1)
  y = product("lcr,lrs->csl", h, left).astype(x.dtype)
  return y.reshape(C, -1)[:, :d_out]
