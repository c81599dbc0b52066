"""y = x W, every number of W stored."""

import dataclasses

from arch import weights
from arch.product import matmul


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weight(weights.Weight):
  def start(self, dense, parts, key):
    return {"weight": dense}

  def product(self, leaves, parts, x):
    return matmul(x, leaves["weight"].astype(x.dtype))

  def matrix(self, leaves, parts, d_in):
    return leaves["weight"]
