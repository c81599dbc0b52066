"""HGRN2: HGRN with a matrix state, whose keys are what its gates do not keep.

  bound = the row of this layer in cumsum(softmax(bounds)) - softmax(bounds)_0
  q = silu(x W_q),  f = bound + (1 - bound) sigmoid(x W_f),  v = x W_v
  S_t = diag(f_t) S_{t-1} + (1 - f_t) v_t^T,  o_t = S_t^T q_t / sqrt(K)
  out = norm(o) W_out,  norm over all heads

Qin et al. 2024, https://arxiv.org/abs/2404.07904, section 3; as in fla-org/
flash-linear-attention (by one of the authors), layers/hgrn2.py and, for the
bounds and the start, models/hgrn2/modeling_hgrn2.py: normal of 0.02, bounds 0,
no biases. `bounds`, one row a layer, is one parameter of the model, as HGRN's.

B batch  T time  D width  H heads  K width of a head
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from arch import config, layers
from arch.law import Aux
from arch.mixers import hgrn
from arch.recurrence import gated

Shared = hgrn.Shared


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config.Config):
  """
  Attributes:
    head: K, the width of a head's query, gate and value.
    eps: of the norm.
  """

  head: int = 128
  eps: float = 1e-5

  reads = ("bounds",)

  def __post_init__(self):
    self.divide("dim", "head")

  @property
  def E(self):
    """bounds of a layer"""
    return self.dim

  @property
  def H(self):
    """heads"""
    return self.divide("dim", "head")

  @property
  def values(self):
    return "in_proj", 2 * self.dim, self.H, self.head


class Mixer(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    D = cfg.dim
    init = nnx.initializers.normal(0.02)
    self.in_proj = cfg.linear(D, (D, D, D), init=init, rngs=rngs)
    self.norm = layers.RMSNorm(D, eps=cfg.eps)
    self.out_proj = cfg.linear(D, D, init=init, rngs=rngs)

  def init_state(self, batch, length=None):
    H, K = self.cfg.H, self.cfg.head
    return {"S": jnp.zeros((batch, H, K, K))}

  def __call__(self, x, reset, state, bounds):
    state = state or self.init_state(x.shape[0])
    B, T, D = x.shape
    q, f, v = self.in_proj(x)
    f, bound = f.astype(jnp.float32), bounds[None, None]
    # 1 - f and log f, exact where the gate is nearly open or shut
    k = (1 - bound) * jax.nn.sigmoid(-f)
    floor = jnp.log(jnp.maximum(bound, 1e-30))
    g = jax.nn.log_sigmoid(f) + jax.nn.softplus(floor - f)
    q, k = jax.nn.silu(q) * self.cfg.head**-0.5, k.astype(v.dtype)
    q, k, v, g = (t.reshape(B, T, -1, self.cfg.head) for t in (q, k, v, g))
    o, S = gated.chunked(q, k, v, g, reset, state["S"])
    o = self.norm(o.reshape(B, T, D).astype(jnp.float32))
    return self.out_proj(o), {"S": S}, Aux()
