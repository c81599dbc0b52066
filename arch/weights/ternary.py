"""y = x~ W~: three values a weight, eight bits an activation.

  W~ = s clip(round(W / s), -1, 1),  s = mean |W|      of each part
  x~ = clip(round(x / r), -128, 127) r,  r = max |x| / 127      of each token

BitNet b1.58, Ma et al. 2024, https://arxiv.org/abs/2402.17764, eq. 1 to 3; both
gradients go straight through. W is what learns and is kept in training. W~ of a
normal W has .66 of its size: W starts larger by as much, so that a mixer starts
with answers of the size that its authors chose. BitNet's norm in front of each
map is the block's here, and none stands in front of a map out.

C tokens
"""

import dataclasses

import jax.numpy as jnp

from arch import weights
from arch.product import matmul

TINY = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weight(weights.Weight):
  """Raises ValueError for bits that are none of 0 and 2 to 16.

  Attributes:
    activations: their bits; 0 leaves them as they are.
  """

  activations: int = 8

  def __post_init__(self):
    if self.activations != 0 and not 2 <= self.activations <= 16:
      raise ValueError(
        f"weights.ternary.activations={self.activations} must be 0, for none, "
        "or 2 to 16 bits"
      )

  def start(self, dense, parts, key):
    def larger(w):
      return w * weights.size(w) / jnp.maximum(weights.size(ternary(w)), 1e-20)

    grown = [larger(w) for w in weights.apart(dense, parts)]
    return {"weight": jnp.concatenate(grown, -1)}

  def product(self, leaves, parts, x):
    if self.activations:
      x = rounded(x, 2 ** (self.activations - 1) - 1)
    W = self.matrix(leaves, parts, x.shape[-1])
    return matmul(x, W.astype(x.dtype))

  def matrix(self, leaves, parts, d_in):
    w = leaves["weight"]
    whole = [ternary(part) for part in weights.apart(w, parts)]
    return weights.through(w, jnp.concatenate(whole, -1))


def ternary(w):
  s = jnp.maximum(jnp.mean(jnp.abs(w)), TINY)
  return s * jnp.clip(jnp.round(w / s), -1, 1)


def rounded(x, most: int):
  """x~, in x's dtype."""
  x32 = x.astype(jnp.float32)
  r = jnp.maximum(jnp.max(jnp.abs(x32), -1, keepdims=True), TINY) / most
  whole = jnp.clip(jnp.round(x32 / r), -most - 1, most)
  return weights.through(x32, whole * r).astype(x.dtype)
