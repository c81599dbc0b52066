"""Lightning attention: a matrix state under a decay fixed by head and layer.

  q, k, v = silu(u W_qkv),  z = u W_z
  s_h = 2^(-8 (h + 1) / H) (1 - layer / (depth - 1) + 1e-5),  h = 0 .. H - 1
  S_t = exp(-s_h) S_{t-1} + k_t v_t^T,  o_t = S_t^T q_t
  out = (norm(o) sigmoid(z)) W_out,  norm over all heads

Qin et al. 2024, Lightning Attention-2, https://arxiv.org/abs/2401.04658, in the
layer of MiniMax-01, https://arxiv.org/abs/2501.08313: the slopes of ALiBi,
https://arxiv.org/abs/2108.12409, by TransNormerLLM's factor of the layer,
https://arxiv.org/abs/2307.14995: the last layer hardly forgets.
Parameters and slopes as in MiniMax-Text-01's release, transformers' minimax: no
biases, maps normal of deviation 0.02. There is no position but the decay.

B batch  T time  D width  H heads  K width of a head  E = H K
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from arch import config, layers, roles
from arch.law import Aux
from arch.recurrence import gated


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config.Config):
  """
  Attributes:
    head: K, the width of a head's query, key and value.
    heads: H; None for dim / head.
    eps: of the norm.
  """

  head: int = 64
  heads: int | None = None
  eps: float = 1e-6

  def __post_init__(self):
    if self.heads is None:
      self.divide("dim", "head")
    else:
      self.positive("heads", "head")

  @property
  def H(self):
    """heads"""
    return self.heads or self.divide("dim", "head")

  @property
  def values(self):
    return "in_proj", 2 * self.H * self.head, self.H, self.head


def slopes(heads, layer, depth):
  """-log of the decay of each head, H float32."""
  rate = 2.0 ** (-8 / heads * (1 + jnp.arange(heads)))
  # transformers' guard against depth 1, and no difference of two near numbers
  left = (depth - 1 - layer + 1e-5) / (depth - 1 + 1e-5)
  return rate * (left + 1e-5)


class Mixer(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    D, E = cfg.dim, cfg.H * cfg.head
    init = nnx.initializers.normal(0.02)
    self.in_proj = cfg.linear(D, (3 * E, E), init=init, rngs=rngs)
    self.slopes = roles.Buffer(slopes(cfg.H, layer, cfg.depth))
    self.norm = layers.RMSNorm(E, eps=cfg.eps)
    self.out_proj = cfg.linear(E, D, init=init, rngs=rngs)

  def init_state(self, batch, length=None):
    H, K = self.cfg.H, self.cfg.head
    return {"S": jnp.zeros((batch, H, K, K))}

  def __call__(self, u, reset, state):
    state = state or self.init_state(u.shape[0])
    B, T, _ = u.shape
    H, K = self.cfg.H, self.cfg.head
    qkv, z = self.in_proj(u)
    qkv = jax.nn.silu(qkv).reshape(B, T, 3, H, K)
    q, k, v = (qkv[:, :, i] for i in range(3))
    g = jnp.broadcast_to(-self.slopes[...][None, None], (B, T, H))
    o, S = gated.chunked(q, k, v, g, reset, state["S"])
    o = self.norm(o.astype(jnp.float32).reshape(B, T, H * K))
    return (
      self.out_proj(o * jax.nn.sigmoid(z.astype(jnp.float32))),
      {"S": S},
      Aux(),
    )
