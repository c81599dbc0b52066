"""A softmax of bands by frequency, behind rows of bands (arch/bands.py).

  log p(t) = h_t in the first band,  h_{band i} + g_i[t] in band i
  h = log softmax(x [R_0; U]^T),  g_i = log softmax((x Q_i) R_i^T)

Grave et al. 2017, https://arxiv.org/abs/1609.04309, sec. 4.3, as in torch's
AdaptiveLogSoftmaxWithLoss. Q_i is not the table's P_i, and tied R_i is E_i.

D width  V symbols  C positions in a chunk
"""

import jax
import jax.numpy as jnp

from arch import bands, losses, vocab
from arch.product import product
from arch.vocab import lowrank

Table = bands.Table


class Config(bands.Config):
  __doc__ = bands.Config.__doc__


class Readout(vocab.Readout):
  def __init__(self, cfg, *, rngs):
    self.cfg, self.wide, self.borrows = cfg, cfg.size, cfg.lends
    bands = len(cfg.ends) - 1
    self.bands = vocab.drawn(lowrank.SMALL, bands, cfg.dim, rngs=rngs)
    for a, file, own in cfg.bands():
      setattr(self, f"from_{a}", file.Readout(own, rngs=rngs))

  def params(self, lent):
    lent = lent or [None] * len(self.cfg.ends)
    bands = zip(self.cfg.bands(), lent, strict=True)
    own = [getattr(self, f"from_{a}").params(rows) for (a, *_), rows in bands]
    return self.bands[...], own

  @classmethod
  def parts(cls, cfg, params, x):
    """Logits of the first band and of the others, and of each of theirs."""
    bands, own = params
    each = zip(cfg.bands(), own, strict=True)
    first, *rest = (f.Readout.logits(c, p, (), x) for (_, f, c), p in each)
    others = product("cd,vd->cv", x, bands.astype(x.dtype))
    return jnp.concatenate([first, others], -1), rest

  @classmethod
  def logits(cls, cfg, params, held, x):
    head, rest = cls.parts(cfg, params, x)
    head, n = jax.nn.log_softmax(head, -1), cfg.ends[0]
    rest = [jax.nn.log_softmax(own, -1) for own in rest]
    rest = [head[:, n + i, None] + own for i, own in enumerate(rest)]
    return jnp.concatenate([head[:, :n], *rest], -1)

  @classmethod
  def nats(cls, cfg, params, held, x, targets):
    (head, rest), (_, *bands) = cls.parts(cfg, params, x), cfg.bands()
    choice, total = targets, 0
    for i, ((a, _, own), logits) in enumerate(zip(bands, rest, strict=True)):
      there = (targets >= a) & (targets < a + own.size)
      nats = losses.nll(logits, jnp.where(there, targets - a, 0))
      total += jnp.where(there, nats, 0)
      choice = jnp.where(there, cfg.ends[0] + i, choice)
    return losses.nll(head, choice) + total
