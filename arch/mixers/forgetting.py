"""Forgetting attention (FoX): softmax attention whose scores fall by what was
forgotten since.

  q, k, v = x W,  f = sigmoid(x W_f + b_f), one number a head
  y_t = sum_s softmax_s(q_t . k_s / sqrt(K) + sum_{s < l <= t} log f_l) v_s
  out = y W_out

Lin et al. 2025, https://arxiv.org/abs/2503.02130, section 3: the block that it
calls LLaMA, without positions. Of what the Pro block has beside it, `gate` is
attention's, and so is `qk_norm`, whose weights the heads share; its shift of
keys and values and its norm of each head's output are not here. Parameters
and their start as in zhixuan-lin/forgetting-transformer,
modeling_forgetting_transformer.py: normal of deviation 0.02, b_f = 0.

Everything else, and what a token can see, is as in attention.py. The state
holds what was forgotten since each of its tokens, too.

B batch  T time  G groups  R heads a group
"""

import dataclasses

import jax
import jax.numpy as jnp

from arch import roles
from arch.mixers import attention


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(attention.Config):
  rotary: float = 0.0
  qk_norm: bool = False
  std: float | None = 0.02


class Mixer(attention.Mixer):
  def __init__(self, cfg, *, layer, rngs):
    super().__init__(cfg, layer=layer, rngs=rngs)
    first, _ = cfg.starts()
    self.forget = cfg.linear(cfg.seen, cfg.H, init=first, rngs=rngs)
    self.forget_bias = roles.Gate(jnp.zeros(cfg.H))

  def init_state(self, batch, length=None):
    state = super().init_state(batch, length)
    G, L = state["value"].shape[1:3]
    level = jnp.zeros((batch, G, L, self.cfg.H // G))
    return state | {"level": level}

  def beside(self, x):
    B, T, _ = x.shape
    f = self.forget(x).astype(jnp.float32) + self.forget_bias[...][None, None]
    level = jnp.cumsum(jax.nn.log_sigmoid(f), 1)
    return {"level": level.reshape(B, T, self.cfg.G, -1)}
