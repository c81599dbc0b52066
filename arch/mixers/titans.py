"""Titans' long-term memory: a network that is trained on what it reads.

  q, k, v = silu(conv(u W_qkv)),  z = u W_z,  r, m, a = u W_gates + b_gates
  q = q / |q|,  k = k / |k|
  rate = top sigmoid(r),  momentum = sigmoid(m),  keep = 1 - sigmoid(a)
  S_t = momentum_t S_{t-1} - rate_t d/dM mean (M(k_t) - v_t)^2
  M_t = keep_t M_{t-1} + S_t,  o_t = M_t(q_t)
  out = (norm(o) silu(z)) W_out,  norm over a head

Behrouz et al. 2025, https://arxiv.org/abs/2501.00663, eq. 8 to 15 and sections
3.2 and 4.4, without persistent tokens: the LMM of its tables. Nothing was
released: M, its loss and all that starts follow lucidrains/titans-pytorch,
neural_memory.py and memory_models.py: gelu between M's layers, M uniform in
+-sqrt(6 / (d_in + d_out)), the rest as torch.nn.Linear; but no norm and no
residual about M, of which the paper has none. recurrence/titans.py says where
gradients are taken.

B batch  T time  D width  H heads  K key and value width  n mini-batch
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from arch import config, layers, roles, starts
from arch.law import Aux
from arch.recurrence import titans


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config.Config):
  """
  Attributes:
    head: K, the width of a head.
    layers: of M; 1 for a matrix.
    expand: width of M's hidden layers over K.
    batch: n, tokens whose gradients are taken at once, a power of two.
    conv: taps of the short convolution.
    top: the highest rate.
  """

  head: int = 64
  layers: int = 2
  expand: int = 4
  batch: int = 16
  conv: int = 4
  top: float = 1.0

  def __post_init__(self):
    self.positive("layers", "expand", "conv")
    self.power_of_two("batch")
    self.divide("dim", "head")

  @property
  def H(self):
    """heads"""
    return self.divide("dim", "head")

  @property
  def shapes(self):
    """Of each head's matrices."""
    K = self.head
    widths = [K, *[self.expand * K] * (self.layers - 1), K]
    return list(zip(widths[:-1], widths[1:], strict=True))


class Mixer(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    D, H = cfg.dim, cfg.H
    kw = dict(init=starts.uniform_fan_in(), rngs=rngs)
    self.in_proj = cfg.linear(D, (3 * D, D), **kw)
    self.conv = layers.ShortConv(
      3 * D, cfg.conv, dtype=cfg.compute, rngs=rngs, bias=False
    )
    self.gates = cfg.linear(D, (H, H, H), bias=starts.uniform(D**-0.5), **kw)
    xavier = starts.xavier_uniform()
    for n, shape in enumerate(cfg.shapes):
      keys = jax.random.split(rngs.params(), H)
      drawn = jax.vmap(lambda key, s=shape: xavier(key, s))(keys)
      setattr(self, f"M_{n}", roles.Matrix(drawn))
    self.norm = layers.RMSNorm(cfg.head)
    self.out_proj = cfg.linear(D, D, **kw)

  def init_state(self, batch, length=None):
    shapes = [(batch, self.cfg.H, *shape) for shape in self.cfg.shapes]
    zeros = tuple(jnp.zeros(shape) for shape in shapes)
    return {
      "conv": self.conv.init_state(batch),
      "start": zeros,
      "M": zeros,
      "S": zeros,
      "count": jnp.zeros(batch, jnp.int32),
    }

  def __call__(self, u, reset, state):
    cfg = self.cfg
    B, T, D = u.shape
    H, K = cfg.H, cfg.head
    state = state or self.init_state(B)
    names = "start", "M", "S", "count"

    qkv, z = self.in_proj(u)
    qkv, conv = self.conv(qkv, reset, state["conv"])
    qkv = jax.nn.silu(qkv).reshape(B, T, 3 * H, K)
    q, k, v = jnp.split(qkv, 3, 2)
    q, k = (layers.unit(t).astype(v.dtype) for t in (q, k))
    r, m, a = (t.astype(jnp.float32) for t in self.gates(u))
    o, new = titans.chunked(
      q,
      k,
      v,
      cfg.top * jax.nn.sigmoid(r),
      jax.nn.log_sigmoid(m),
      jax.nn.log_sigmoid(-a),
      tuple(getattr(self, f"M_{n}")[...] for n in range(cfg.layers)),
      reset,
      tuple(state[name] for name in names),
      size=cfg.batch,
    )
    o = self.norm(o.astype(jnp.float32)).reshape(B, T, D)
    o *= jax.nn.silu(z.astype(jnp.float32))
    new = dict(zip(names, new, strict=True))
    return self.out_proj(o), {"conv": conv, **new}, Aux()
