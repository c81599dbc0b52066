"""A mixture of softmaxes, whose logarithm no rank binds.

  p = sum_k pi_k softmax(h_k R^T),  pi = softmax(x A),  h_k = tanh(x W_k)

Yang et al. 2018, https://arxiv.org/abs/1711.03953, sec. 2.4. Nats need of each
softmax its normaliser and the target's logit alone. R starts as in
arch/vocab/full.py, W and A by fan-in.

D width  K softmaxes  V symbols  C positions in a chunk
"""

import dataclasses

import jax
import jax.numpy as jnp

from arch.product import product
from arch.roles import Matrix
from arch.starts import fan_in
from arch.vocab import full


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(full.Config):
  """Raises ValueError for fewer than one softmax.

  Attributes:
    softmaxes: K.
  """

  softmaxes: int = 4

  def __post_init__(self):
    super().__post_init__()
    self.at_least(softmaxes=1)


class Readout(full.Readout):
  def __init__(self, cfg, *, rngs):
    super().__init__(cfg, rngs=rngs)
    K, D = cfg.softmaxes, cfg.dim
    self.wide = K * cfg.size
    self.share = Matrix(fan_in()(rngs.params(), (D, K)))
    self.turn = Matrix(fan_in()(rngs.params(), (D, K * D)))

  def params(self, lent):
    return super().params(lent), self.share[...], self.turn[...]

  @classmethod
  def parts(cls, cfg, params, x):
    """log pi, C K, and the logits of each softmax, C K V; float32."""
    rows, share, turn = params
    logs = product("cd,dk->ck", x, share.astype(x.dtype))
    h = jnp.tanh(product("cd,de->ce", x, turn.astype(x.dtype)))
    h = h.astype(x.dtype).reshape(-1, cfg.dim)
    logits = super().logits(cfg, rows, (), h)
    return jax.nn.log_softmax(logs, -1), logits.reshape(*logs.shape, -1)

  @classmethod
  def logits(cls, cfg, params, held, x):
    logs, logits = cls.parts(cfg, params, x)
    own = jax.nn.log_softmax(logits, -1)
    return jax.nn.logsumexp(logs[..., None] + own, 1)

  @classmethod
  def nats(cls, cfg, params, held, x, targets):
    logs, logits = cls.parts(cfg, params, x)
    chosen = jnp.take_along_axis(logits, targets[:, None, None], -1)[..., 0]
    own = chosen - jax.nn.logsumexp(logits, -1)
    return -jax.nn.logsumexp(logs + own, -1)
