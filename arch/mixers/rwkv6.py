"""RWKV-6 (Finch): a matrix state whose decays depend on the data; what enters
each map is mixed with the token before, and by how much depends on the data.

  d_t = x_{t-1} - x_t,  l = tanh((x + d m_x) W_1) in 5 parts         x_{-1} = 0
  x_i = x + d (m_i + l_i W_2i)                      for i in w, k, v, r, g
  k, v, r, g = x_k W_k, x_v W_v, x_r W_r, x_g W_g
  w_t = exp(-exp(decay + tanh(x_w W_3) W_4))
  o_t = S_{t-1}^T r_t + (r_t . u k_t) v_t
  S_t = diag(w_t) S_{t-1} + k_t v_t^T
  out = (norm(o) silu(g)) W_out,  norm over a head, with weights and biases

Peng et al. 2024, https://arxiv.org/abs/2404.05892, section 4.2, eq. 14-22.
Ranks, parameters and their start as in BlinkDL/RWKV-LM, RWKV-v5/src/model.py,
RWKV_Tmix_x060 and generate_init_weight; weight decay leaves the low-rank maps
out. The state is the last token and S. A config pairs it with channel="rwkv"
and its receptance.

B batch  T time  D width  H heads  K width of a head  R rank
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from arch import config, layers, roles, starts
from arch.law import Aux
from arch.recurrence import gated


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config.Config):
  """
  Attributes:
    head: K, the width of a head.
    mix_rank: R of the five mixtures.
    decay_rank: R of the decays.
    eps: of the norm; the authors' 1e-5 times 8^2.
  """

  head: int = 64
  mix_rank: int = 32
  decay_rank: int = 64
  eps: float = 64e-5

  def __post_init__(self):
    self.positive("mix_rank", "decay_rank")
    self.divide("dim", "head")

  @property
  def H(self):
    """heads"""
    return self.divide("dim", "head")

  @property
  def values(self):
    return "value", 0, self.H, self.head


class Mixer(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    D, H, K, R = cfg.dim, cfg.H, cfg.head, cfg.mix_rank
    along = jnp.arange(D) / max(D - 1, 1)
    place = jnp.arange(D) / D
    high = layer / max(cfg.depth - 1, 1)  # 0 in the first layer, 1 in the last
    low = 1 - layer / cfg.depth

    def narrow(shape):
      return roles.Gate(starts.uniform(0.01)(rngs.params(), shape))

    self.mix_x = roles.Vector(1 - place**low)
    slow, fast = place**low, place ** (0.5 * low)
    mix = jnp.stack([slow, slow, slow + 0.3 * high, fast, fast])
    self.mix = roles.Vector(1 - mix)  # w, k, v, r, g
    self.mix_down = roles.Gate(jnp.zeros((D, 5 * R)))
    self.mix_up = narrow((5, R, D))
    self.decay = roles.Gate(-6 + 5 * along ** (0.7 + 1.3 * high))
    self.decay_down = roles.Gate(jnp.zeros((D, cfg.decay_rank)))
    self.decay_up = narrow((cfg.decay_rank, D))
    zigzag = ((jnp.arange(D) + 1) % 3 - 1) * 0.1
    self.u = roles.Gate((high * (1 - along) + zigzag).reshape(H, K))

    def linear(init):
      return cfg.linear(D, D, init=init, rngs=rngs)

    orthogonal, zeros = nnx.initializers.orthogonal, nnx.initializers.zeros
    self.receptance, self.key = linear(orthogonal(1)), linear(orthogonal(0.1))
    self.value, self.gate = linear(orthogonal(1)), linear(orthogonal(0.1))
    self.norm = layers.HeadNorm(H, K, eps=cfg.eps)
    weight = jnp.full((H, K), ((1 + layer) / cfg.depth) ** 0.7)
    self.norm.weight = roles.Vector(weight)
    self.out_proj = linear(zeros)

  def init_state(self, batch, length=None):
    cfg = self.cfg
    return {
      "x": jnp.zeros((batch, cfg.dim), cfg.compute),
      "S": jnp.zeros((batch, cfg.H, cfg.head, cfg.head)),
    }

  def __call__(self, x, reset, state):
    cfg = self.cfg
    B, T, D = x.shape
    x = x.astype(cfg.compute)
    state = state or self.init_state(B)

    d = layers.shift(x, reset, state["x"]) - x

    def to(matrix):
      return matrix[...].astype(x.dtype)

    low = jnp.tanh((x + d * to(self.mix_x)[None, None]) @ to(self.mix_down))
    low = low.reshape(B, T, 5, -1)
    own = jnp.einsum("btir,ird->ibtd", low, to(self.mix_up))
    own += to(self.mix)[:, None, None]
    x_w, x_k, x_v, x_r, x_g = x[None] + d[None] * own
    w = jnp.tanh(x_w @ to(self.decay_down)) @ to(self.decay_up)
    w = -jnp.exp(self.decay[...][None, None] + w.astype(jnp.float32))
    r, k, v = self.receptance(x_r), self.key(x_k), self.value(x_v)
    r, k, v, w = (t.reshape(B, T, -1, cfg.head) for t in (r, k, v, w))
    o, S = gated.chunked(
      r, k, v, w, reset, state["S"], read="before", u=self.u[...]
    )
    o = self.norm(o.astype(jnp.float32)).reshape(B, T, D)
    o *= jax.nn.silu(self.gate(x_g).astype(jnp.float32))
    return self.out_proj(o), {"x": x[:, -1], "S": S}, Aux()
