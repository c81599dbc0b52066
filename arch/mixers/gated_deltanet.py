"""Gated DeltaNet: a matrix state a head that forgets, then corrects one key.

  q, k, v = silu(conv(u W_qkv)),  z = u W_z,  b, a = u W_gates
  q = q / |q| / sqrt(K),  k = k / |k|
  beta = sigmoid(b), or 2 sigmoid(b): eigenvalues from -1, not 0, to 1
  alpha = exp(-exp(A_log) softplus(a + dt_bias))
  S_t = alpha_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T
  o_t = S_t^T q_t
  out = (norm(o) silu(z)) W_out,  norm over a head

Yang, Kautz and Hatamizadeh 2024, https://arxiv.org/abs/2412.06464, eq. 10 and
section 3.4; negative eigenvalues: Grazzi et al. 2024,
https://arxiv.org/abs/2411.12537; sizes, parameters and their start as in
fla-org/flash-linear-attention, layers/gated_deltanet.py: H K near 3/4 dim and
V = 2 K give 6 dim^2 parameters; torch.nn.Linear's start, from which
NVlabs/GatedDeltaNet trains; no biases. One q and k serve H / G heads.

B batch  T time  D width  H heads  G key heads  K key width  V value width
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from arch import config, layers, roles, starts
from arch.law import Aux
from arch.recurrence import delta


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config.Config):
  """
  Attributes:
    head: K, the width of a head's query and key.
    heads: H; None for the number that brings H K nearest to 3/4 dim.
    key_heads: G, heads of queries and keys; None for H.
    expand: V / K.
    conv: taps of the short convolution.
    neg_eigval: whether the state's eigenvalues may be negative.
    eps: of the norm.
  """

  head: int = 64
  heads: int | None = None
  key_heads: int | None = None
  expand: int = 2
  conv: int = 4
  neg_eigval: bool = False
  eps: float = 1e-5

  steps = 1  # n, keys and values of a token
  decay = True  # whether the state decays

  def __post_init__(self):
    self.positive("head", "expand", "conv", heads="H")
    self.divide("H", "G")

  @property
  def H(self):
    """heads"""
    if self.heads is not None:
      return self.heads
    return max(1, round(0.75 * self.dim / self.head))

  @property
  def G(self):
    """key heads"""
    return self.H if self.key_heads is None else self.key_heads

  def starts(self):
    """What the matrices and the taps start from."""
    return starts.uniform_fan_in(), None

  @property
  def values(self):
    first = (1 + self.steps) * self.G * self.head
    return "in_proj", first, self.steps * self.H, self.expand * self.head


class Mixer(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    H, G, K, V = self.sizes
    D, n = cfg.dim, cfg.steps
    inner = (1 + n) * G * K + n * H * V  # q, k, v
    matrices, taps = cfg.starts()
    kw = dict(init=matrices, rngs=rngs)
    self.in_proj = cfg.linear(D, (inner, H * V), **kw)
    self.gates = cfg.linear(D, (n * H, cfg.decay * H), **kw)
    self.conv = layers.ShortConv(
      inner, cfg.conv, init=taps, bias=False, dtype=cfg.compute, rngs=rngs
    )
    if cfg.decay:
      self.dt_bias = roles.Gate(starts.dt_bias(rngs.params(), (H,)))
      self.A_log = roles.Gate(starts.decay_rate(rngs.params(), (H,)))
    self.norm = layers.RMSNorm(V, eps=cfg.eps)
    self.out_proj = cfg.linear(H * V, D, **kw)

  @property
  def sizes(self):
    cfg = self.cfg
    return cfg.H, cfg.G, cfg.head, cfg.expand * cfg.head

  def init_state(self, batch, length=None):
    H, _, K, V = self.sizes
    conv = self.conv.init_state(batch)
    return {"conv": conv, "S": jnp.zeros((batch, H, K, V))}

  def __call__(self, u, reset, state):
    conv, S = (None,) * 2 if state is None else (state["conv"], state["S"])
    q, k, v, z, conv = self.heads(u, reset, conv)
    o, S = delta.corrected(q, k, v, *self.gate(u), reset, S)
    return self.output(o, z), {"conv": conv, "S": S}, Aux()

  def project(self, u, reset, conv):
    """Unit q and k, and v, a head each, z, and the next state of the taps.

    q: B T H K; k: B Tn H K; v: B Tn H V.
    """
    H, G, _, _ = self.sizes
    q, k, *others = self.heads(u, reset, conv)
    q, k = (jnp.repeat(layers.unit(t), H // G, 2) for t in (q, k))
    return q, k, *others

  def heads(self, u, reset, conv):
    """The same, but q and k as the taps leave them, of G heads."""
    _, G, K, V = self.sizes
    qkv, z = self.in_proj(u)
    qkv, conv = self.conv(qkv, reset, conv, silu=True)
    cuts = G * K, (1 + self.cfg.steps) * G * K
    q, k, v = jnp.split(qkv, cuts, -1)
    q, k = (t.reshape(u.shape[0], -1, G, K) for t in (q, k))
    return q, k, v.reshape(u.shape[0], -1, self.cfg.H, V), z, conv

  def gate(self, u):
    """beta and the log of alpha, in float32, the latter B T H."""
    b, a = (t.astype(jnp.float32) for t in self.gates(u))
    a = jax.nn.softplus(a + self.dt_bias[...][None, None])
    log_alpha = -jnp.exp(self.A_log[...])[None, None] * a
    return (1 + self.cfg.neg_eigval) * jax.nn.sigmoid(b), log_alpha

  def output(self, o, z):
    """What the heads answer, normalised and gated."""
    o = self.norm(o.astype(jnp.float32)).reshape(z.shape)
    return self.out_proj(o * jax.nn.silu(z.astype(jnp.float32)))
