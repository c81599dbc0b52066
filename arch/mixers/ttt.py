"""TTT-Linear: the state is a linear model that is trained on what it reads.

  q, k = conv(u W_qk) (two convolutions),  v = u W_v;  each by the place in its
  mini-batch of n tokens turned: q, k = layers.rotary(q), layers.rotary(k)
  rate = sigmoid(u W_rate + b_rate) / K,  share = max(0, 1 / place + learned)
  z_t = the answer to q_t of W, b after a step on every token of the mini-batch
        so far, rate share d/d(W, b) |norm(k W + b) - (v - k)|^2 / 2 each
  out = (norm_D(q + norm(z)) gelu(u W_gate)) W_out

Sun et al. 2024, https://arxiv.org/abs/2407.04620, sections 2.3 to 2.7, on the
Mamba backbone; parameters and their start as in test-time-training/ttt-lm-jax,
ttt/models/ttt_layer.py (TTTLinear; conv=0, gate=False is TTTLinearBase): W and
matrices normal of deviation 0.02, taps lecun_normal, biases 0. Their blocks add
a short convolution to the residual stream before this layer, which is no part
of it; mini-batches are those of a document, not of the packed text.

B batch  T time  D width  H heads  K head width  n mini-batch
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from arch import config, layers, roles, starts
from arch.law import Aux
from arch.recurrence import ttt


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config.Config):
  """
  Attributes:
    head: K, the width of a head.
    batch: n, tokens of a mini-batch, a power of two.
    conv: taps of the two convolutions of the one projection that q and k then
      share; 0 for a projection each and no convolution.
    gate: whether a gate multiplies the output.
    rate: of the inner step, at most, times K.
  """

  head: int = 64
  batch: int = 16
  conv: int = 4
  gate: bool = True
  rate: float = 1.0

  def __post_init__(self):
    if self.head % 2:
      raise ValueError(f"ttt: head={self.head} must be even, 2 a rotary pair")
    self.power_of_two("batch")
    if self.conv < 0:
      raise ValueError(f"ttt: conv={self.conv} must be at least 0")
    self.divide("dim", "head")

  @property
  def H(self):
    """heads"""
    return self.divide("dim", "head")


class Mixer(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    D, H, K = cfg.dim, cfg.H, cfg.head
    normal = nnx.initializers.normal(0.02)
    kw = dict(init=normal, rngs=rngs)
    self.in_proj = cfg.linear(D, (D, D) if cfg.conv else (D, D, D), **kw)
    if cfg.conv:
      self.conv = layers.ShortConv(
        2 * D, cfg.conv, init=starts.fan_in(), dtype=cfg.compute, rngs=rngs
      )
    self.rate = cfg.linear(D, H, bias=True, **kw)
    self.share = roles.Gate(jnp.zeros(cfg.batch))
    self.W = roles.Matrix(normal(rngs.params(), (H, K, K)))
    self.b = roles.Vector(jnp.zeros((H, K)))
    self.scale = roles.Vector(jnp.ones((H, K)))
    self.bias = roles.Vector(jnp.zeros((H, K)))
    self.norm = layers.LayerNorm(D, eps=1e-6)
    if cfg.gate:
      self.gate = cfg.linear(D, D, **kw)
    self.out_proj = cfg.linear(D, D, **kw)

  def init_state(self, batch, length=None):
    H, K = self.cfg.H, self.cfg.head
    zeros = jnp.zeros((batch, H, K + 1, K))
    state = {"W": zeros, "dW": zeros, "count": jnp.zeros(batch, jnp.int32)}
    if self.cfg.conv:
      state["conv"] = self.conv.init_state(batch)
    return state

  def __call__(self, u, reset, state):
    cfg = self.cfg
    B, T, D = u.shape
    H, K = cfg.H, cfg.head
    state = state or self.init_state(B)
    new = {}

    if cfg.conv:
      qk, v = self.in_proj(u)
      qk = jnp.concatenate([qk, qk], -1)
      qk, new["conv"] = self.conv(qk, reset, state["conv"])
      q, k = jnp.split(qk, 2, -1)
    else:
      q, k, v = self.in_proj(u)
    q, k, v = (t.reshape(B, T, H, K) for t in (q, k, v))
    place = layers.positions(reset, state["count"], T) % cfg.batch
    q, k = (layers.rotary(t, place) for t in (q, k))
    rate = jax.nn.sigmoid(self.rate(u).astype(jnp.float32))
    share = 1 / jnp.arange(1.0, cfg.batch + 1) + self.share[...]
    one = jnp.ones((B, T, H, 1), q.dtype)
    z, (new["W"], new["dW"], new["count"]) = ttt.chunked(
      jnp.concatenate([q, one], -1),
      jnp.concatenate([k, one], -1),
      v - k,
      rate * (cfg.rate / K),
      jnp.maximum(share, 0),
      jnp.concatenate([self.W[...], self.b[...][:, None]], 1),
      self.scale[...],
      self.bias[...],
      reset,
      (state["W"], state["dW"], state["count"]),
    )
    scale, bias = (x[...][None, None] for x in (self.scale, self.bias))
    z = ttt.norm(z.astype(jnp.float32), scale, bias)
    y = self.norm((q.astype(jnp.float32) + z).reshape(B, T, D))
    if cfg.gate:
      y *= jax.nn.gelu(self.gate(u).astype(jnp.float32))
    return self.out_proj(y), new, Aux()
