"""RetNet: retention, a matrix state under a fixed decay that each head has.

  q, k, v, z = u W_in,  q and k turned by rotary positions
  gamma_h = 1 - 2^(-5 - h),  h = 0 .. H - 1
  S_t = gamma_h S_{t-1} + k_t v_t^T,  o_t = S_t^T q_t / sqrt(K)
  out = (norm(o) silu(z)) W_out,  norm over a head

Sun et al. 2023, https://arxiv.org/abs/2307.08621, eq. 5-8: xPos without its
scales. Sizes, the rates of rotation and the norm's weights as in fla-org/
flash-linear-attention, layers/multiscale_retention.py: V = 2 K, no biases. The
start as in microsoft/torchscale, component/multiscale_retention.py: Xavier's
uniform of gain 2^-2.5, in W_out 1/2. The paper's three normalisations of the
scores cancel in the norm.

B batch  T time  D width  H heads  K key width  V value width
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from arch import config, layers, starts
from arch.law import Aux
from arch.recurrence import gated


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config.Config):
  """
  Attributes:
    head: K, the width of a head's query and key.
    expand: V / K.
    eps: of the norm.
  """

  head: int = 256
  expand: int = 2
  eps: float = 1e-6

  def __post_init__(self):
    if self.head % 2 or self.expand < 1:
      raise ValueError(
        f"retnet: head={self.head} must be even, to turn in pairs, and "
        f"expand={self.expand} at least 1"
      )
    self.divide("dim", "head")

  @property
  def H(self):
    """heads"""
    return self.divide("dim", "head")

  @property
  def values(self):
    return "in_proj", 2 * self.dim, self.H, self.expand * self.head


class Mixer(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    D, E = cfg.dim, cfg.expand * cfg.dim
    small, widths = starts.xavier_uniform(2**-2.5), (D, D, E, E)
    init = starts.columns(*((small, width) for width in widths))
    self.in_proj = cfg.linear(D, widths, init=init, rngs=rngs)
    self.norm = layers.RMSNorm(cfg.expand * cfg.head, eps=cfg.eps)
    half = starts.xavier_uniform(0.5)
    self.out_proj = cfg.linear(E, D, init=half, rngs=rngs)

  def init_state(self, batch, length=None):
    H, K = self.cfg.H, self.cfg.head
    return {
      "position": jnp.zeros(batch, jnp.int32),
      "S": jnp.zeros((batch, H, K, self.cfg.expand * K)),
    }

  def __call__(self, u, reset, state):
    B, T, _ = u.shape
    H, K = self.cfg.H, self.cfg.head
    V = self.cfg.expand * K
    state = state or self.init_state(B)

    q, k, v, z = self.in_proj(u)
    q, k = (t.reshape(B, T, H, K) for t in (q, k))
    v = v.reshape(B, T, H, V)
    # only differences of positions count, so that a document may start anywhere
    position = state["position"][:, None] + jnp.arange(T)[None]
    q, k = layers.rotary(q * K**-0.5, position), layers.rotary(k, position)
    g = np.log1p(-(2.0 ** (-5 - np.arange(H)))).astype(np.float32)
    g = jnp.broadcast_to(g[None, None], (B, T, H))
    o, S = gated.chunked(q, k, v, g, reset, state["S"])
    o = self.norm(o.astype(jnp.float32)).reshape(B, T, H * V)
    o *= jax.nn.silu(z.astype(jnp.float32))
    return self.out_proj(o), {"position": position[:, -1] + 1, "S": S}, Aux()
