"""A softmax of the next symbol, and in training of those after it.

  p(y_{t+1+j} | x_t) = softmax(h_j R^T),  h_0 = x,  h_j = x + silu(x W_j)
  loss = nats_0 + lambda mean_{j = 1..k-1} nats_j

The heads are Medusa's (Cai et al. 2024, https://arxiv.org/abs/2401.10774, sec.
2.1.1) over rows that all share, W_j from 0; the loss is DeepSeek-V3's
(https://arxiv.org/abs/2412.19437, eq. 24 and 25), within a document. Scores and
answers are those of the first head, so that an artefact does without the rest.

D width  V symbols  C positions in a chunk  k symbols ahead
"""

import dataclasses

import jax
import jax.numpy as jnp

from arch import losses
from arch.product import product
from arch.roles import Matrix
from arch.vocab import full


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(full.Config):
  """Raises ValueError for fewer than one symbol ahead, a negative weight.

  Attributes:
    symbols: k, the next one included.
    weight: lambda; DeepSeek-V3 begins with .3.
  """

  symbols: int = 4
  weight: float = 0.3

  def __post_init__(self):
    super().__post_init__()
    self.at_least(symbols=1, weight=0)


class Readout(full.Readout):
  def __init__(self, cfg, *, rngs):
    super().__init__(cfg, rngs=rngs)
    D = cfg.dim
    self.horizon, self.weight = cfg.symbols, cfg.weight
    self.turn = Matrix(jnp.zeros((D, (cfg.symbols - 1) * D)))

  def params(self, lent):
    return super().params(lent), self.turn[...]

  @classmethod
  def logits(cls, cfg, params, held, x):
    rows, _ = params
    return super().logits(cfg, rows, held, x)

  @classmethod
  def later(cls, cfg, params, held, x, targets):
    rows, turn = params
    C, n = targets.shape
    turned = product("cd,de->ce", x, turn.astype(x.dtype))
    h = x[:, None] + jax.nn.silu(turned).astype(x.dtype).reshape(C, n, -1)
    logits = super().logits(cfg, rows, held, h.reshape(C * n, -1))
    return losses.nll(logits, targets.ravel()).reshape(C, n)
