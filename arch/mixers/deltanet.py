"""DeltaNet: a matrix state a head that corrects what it answers to one key.

  q, k, v = silu(conv(u W_qkv)),  q = q / |q| / sqrt(K),  k = k / |k|
  beta = sigmoid(u W_beta), or twice that: eigenvalues from -1, not 0, to 1
  S_t = (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T
  o_t = S_t^T q_t
  out = norm(o) W_out,  norm over a head

Schlag, Irie and Schmidhuber 2021, https://arxiv.org/abs/2102.11174, section
4.2, in the layer of Yang et al. 2024, https://arxiv.org/abs/2406.06484, section
3; negative eigenvalues: Grazzi et al. 2024, https://arxiv.org/abs/2411.12537.
Sizes, parameters and their start as in fla-org/flash-linear-attention,
layers/delta_net.py and models/delta_net: H K = dim; normal(0.02), the taps of
the convolution too; no biases.

B batch  T time  D width  H heads  K width of a head's key and value
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from arch import config, layers
from arch.law import Aux
from arch.recurrence import delta


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config.Config):
  """
  Attributes:
    head: K, which divides dim.
    conv: taps of the short convolution.
    neg_eigval: whether the state's eigenvalues may be negative.
    eps: of the norm.
  """

  head: int = 128
  conv: int = 4
  neg_eigval: bool = False
  eps: float = 1e-5

  def __post_init__(self):
    self.positive("conv")
    self.divide("dim", "head")

  @property
  def H(self):
    """heads"""
    return self.dim // self.head

  @property
  def values(self):
    return "qkv", 2 * self.dim, self.H, self.head


class Mixer(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    D = cfg.dim
    init = nnx.initializers.normal(0.02)
    kw = dict(init=init, bias=False, rngs=rngs)
    self.qkv = cfg.linear(D, 3 * D, **kw)
    self.beta = cfg.linear(D, cfg.H, **kw)
    self.conv = layers.ShortConv(3 * D, cfg.conv, dtype=cfg.compute, **kw)
    self.norm = layers.RMSNorm(cfg.head, eps=cfg.eps)
    self.out_proj = cfg.linear(D, D, **kw)

  def init_state(self, batch, length=None):
    shape = (batch, self.cfg.H, self.cfg.head, self.cfg.head)
    return {"conv": self.conv.init_state(batch), "S": jnp.zeros(shape)}

  def __call__(self, u, reset, state):
    B, T, D = u.shape
    H, K = self.cfg.H, self.cfg.head
    state = state or self.init_state(u.shape[0])

    qkv, conv = self.conv(self.qkv(u), reset, state["conv"])
    qkv = jax.nn.silu(qkv).reshape(B, T, 3, H, K)
    q, k, v = (qkv[:, :, i] for i in range(3))
    q, k = layers.unit(q) * K**-0.5, layers.unit(k)
    beta = jax.nn.sigmoid(self.beta(u).astype(jnp.float32))
    beta *= 1 + self.cfg.neg_eigval
    q, write, k = (t.astype(v.dtype) for t in (q, k * beta[..., None], k))
    keep = jnp.zeros((B, T, H))  # the log of a decay of 1
    o, S = delta.chunked(q, write, v, keep, None, k, reset, state["S"])
    return (
      self.out_proj(self.norm(o).reshape(B, T, D)),
      {"conv": conv, "S": S},
      Aux(),
    )
