"""mLSTM: a matrix memory with an exponential input gate and a normaliser.

  q, k, v, z = u W_in,  (i, f) = 15 tanh((u W_gates + b) / 15)
  m_t = max(log sigmoid(f_t) + m_{t-1}, i_t)                          m_0 = 0
  S_t = exp(log sigmoid(f_t) + m_{t-1} - m_t) S_{t-1}
        + exp(i_t - m_t) k_t (v_t, 1)^T
  (c_t, n_t) = S_t^T q_t / sqrt(K),  h_t = c_t / (max(|n_t|, exp(-m_t)) + eps)
  out = (norm(h) sigmoid(z)) W_out,  norm over a head

Beck et al. 2024, https://arxiv.org/abs/2405.04517, eq. 19-27, stabilised as in
eq. 15-17, in the block of xLSTM 7B, https://arxiv.org/abs/2503.13427. Sizes and
start as in NX-AI/xlstm-jax, xlstm_parallel/blocks/mlstm/layer_v1.py, and in
transformers: q, k, v normal of variance 2 / (5 dim), W_out of deviation 2 /
(depth sqrt(dim)), z and W_gates 0, their biases -10 and, of f over the heads, 3
to 6. m cancels but for eps: no gradient goes through it.

B batch  T time  D width  H heads  K key width  V value width
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
    heads: H.
    key: K; None for V / 2.
    value: V; None for dim / H.
    cap: bound of the gates' logarithms, 15 in the formula above.
    eps: of the division.
    norm_eps: of the norm; None for as `eps`.
  """

  heads: int = 4
  key: int | None = None
  value: int | None = None
  cap: float = 15.0
  eps: float = 1e-6
  norm_eps: float | None = None

  def __post_init__(self):
    self.positive("heads", "cap", value="V", key="K")

  @property
  def V(self):
    """value width"""
    return self.divide("dim", "heads") if self.value is None else self.value

  @property
  def K(self):
    """key width"""
    return self.V // 2 if self.key is None else self.key

  @property
  def values(self):
    return "in_proj", 2 * self.heads * self.K, self.heads, self.V


def maximum(a, b, m):
  """m_t = max(a_t + m_{t-1}, b_t). a, b: B T H; m: B H, the first before."""

  def join(x, y):
    return x[0] + y[0], jnp.maximum(x[1] + y[0], y[1])

  a, b = jax.lax.associative_scan(join, (a, b), axis=1)
  return jnp.maximum(a + m[:, None], b)


class Mixer(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    D, H = cfg.dim, cfg.heads
    HK, HV = H * cfg.K, H * cfg.V
    normal, zeros = nnx.initializers.normal, nnx.initializers.zeros
    small = normal((2 / (5 * D)) ** 0.5)
    init = starts.columns((small, 2 * HK + HV), (zeros, HV))
    self.in_proj = cfg.linear(D, (HK, HK, HV, HV), init=init, rngs=rngs)
    self.gates = cfg.linear(D, 2 * H, init=zeros, rngs=rngs)
    bias = jnp.full(H, -10.0), jnp.linspace(3, 6, H)
    self.gates_bias = roles.Gate(jnp.concatenate(bias))
    eps = cfg.eps if cfg.norm_eps is None else cfg.norm_eps
    self.norm = layers.HeadNorm(H, cfg.V, eps=eps, bias=False)
    residual = normal(2 / cfg.depth / D**0.5)
    self.out_proj = cfg.linear(HV, D, init=residual, rngs=rngs)

  def init_state(self, batch, length=None):
    H, K, V = self.cfg.heads, self.cfg.K, self.cfg.V
    return {
      "m": jnp.zeros((batch, H)),
      "S": jnp.zeros((batch, H, K, V + 1)),
    }

  def __call__(self, u, reset, state):
    cfg = self.cfg
    B, T, _ = u.shape
    H, K, V = cfg.heads, cfg.K, cfg.V
    state = state or self.init_state(B)

    q, k, v, z = self.in_proj(u)
    q, k = (t.reshape(B, T, H, K) for t in (q * K**-0.5, k))
    gates = self.gates(u).astype(jnp.float32) + self.gates_bias[...][None, None]
    i, f = jnp.split(cfg.cap * jnp.tanh(gates / cfg.cap), 2, -1)  # B T H
    f = jax.nn.log_sigmoid(f)

    m, fall = self.stabiliser(i, f, reset, state["m"])
    k = (k.astype(jnp.float32) * jnp.exp(i - m)[..., None]).astype(k.dtype)
    v = jnp.concatenate([v.reshape(B, T, H, V), jnp.ones_like(q[..., :1])], -1)
    o, S = gated.chunked(q, k, v, f + fall, reset, state["S"])
    c, n = jnp.split(o.astype(jnp.float32), (V,), -1)
    h = c / (jnp.maximum(jnp.abs(n), jnp.exp(-m)[..., None]) + cfg.eps)
    h = self.norm(h).reshape(B, T, H * V) * jax.nn.sigmoid(
      z.astype(jnp.float32)
    )
    return self.out_proj(h), {"m": m[:, -1], "S": S}, Aux()

  @staticmethod
  def stabiliser(i, f, reset, first):
    """m_t, and m_{t-1} - m_t <= -f_t; m is 0 before a document."""
    i, f, first = jax.lax.stop_gradient((i, f, first))
    a, b = f, i
    if reset is not None:
      a = jnp.where(reset[..., None], -jnp.inf, f)
      b = jnp.where(reset[..., None], jnp.maximum(f, i), i)
    m = maximum(a, b, first)
    before = jnp.concatenate([first[:, None], m[:, :-1]], 1)
    # rounding may put it above; where reset, it is not used
    return m, jnp.minimum(before - m, -f)
