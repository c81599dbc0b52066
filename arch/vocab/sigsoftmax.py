"""A softmax that no rank binds: p ~ exp(z) sigmoid(z).

  logits(x) = z + log sigmoid(z),  z = x R^T as in arch/vocab/full.py

Kanai et al. 2018, https://arxiv.org/abs/1805.10829, eq. 14. No parameters more.
"""

import jax

from arch.vocab import full

Config = full.Config


class Readout(full.Readout):
  @classmethod
  def logits(cls, cfg, params, held, x):
    z = super().logits(cfg, params, held, x)
    return z + jax.nn.log_sigmoid(z)
