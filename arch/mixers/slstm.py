"""sLSTM: an LSTM with exponential gates, a normaliser and heads that mix.

  u = silu(conv(x))
  i, f = u W_i, u W_f;  z, o = x W_z, x W_o                block-diagonal W
  each of i, f, z, o gets h_{t-1} R + b of its own               R likewise
  m_t = max(logsigmoid(f) + m_{t-1}, i)
  c_t = exp(logsigmoid(f) + m_{t-1} - m_t) c_{t-1} + exp(i - m_t) tanh(z)
  n_t = exp(logsigmoid(f) + m_{t-1} - m_t) n_{t-1} + exp(i - m_t)
  h_t = sigmoid(o) c_t / n_t
  y = (1 + w) (h - mean h) / sqrt(var h + eps)                   over a head

Beck et al. 2024, https://arxiv.org/abs/2405.04517, eq. 8 to 17 and its figure
of the sLSTM block, whose gated MLP is a channel mixer here. h_{t-1} R makes a
scan over single tokens inherent. Parameters and their start as in NX-AI/xlstm,
blocks/slstm: W normal of variance 2 / 5 D, R 0 or uniform, w 0, b 0 but for f,
where a head's bias falls from 5 to -7, the later the higher its layer; the
convolution as torch.nn.Conv1d's.

B batch  T time  D width  H heads  K head width
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from arch import config, layers, roles
from arch.law import Aux
from arch.product import product
from arch.recurrence import chunks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config.Config):
  """
  Attributes:
    heads: H, diagonal blocks of all matrices.
    conv: taps of the short convolution before the gates i and f.
    eps: of the norm.
    recurrent: where R starts: "zeros", or "uniform" in +-1 / sqrt(D).
  """

  heads: int = 4
  conv: int = 4
  eps: float = 1e-5
  recurrent: str = "zeros"

  def __post_init__(self):
    self.positive("conv")
    if self.K < 2:
      raise ValueError(
        f"slstm: heads={self.heads} leave {self.K} of dim={self.dim} each, "
        "which must be at least 2"
      )
    self.among("recurrent", ("zeros", "uniform"))

  @property
  def K(self):
    """head width"""
    return self.divide("dim", "heads")


def run(gates, R, keep, cell):
  """h of all tokens, T B H K, and the last cell. keep: 0 at a reset, else 1."""

  def step(cell, xs):
    gates, keep = xs
    h, c, n = (keep * cell[name] for name in "hcn")
    m = jnp.where(keep > 0, cell["m"], -jnp.inf)
    gates += chunks.dot("bhk,hkj->bhj", h, R)
    i, f, z, o = jnp.split(gates, 4, -1)
    f = jax.nn.log_sigmoid(f) + m
    # h does not depend on m, and so has no gradient through it
    m = jax.lax.stop_gradient(jnp.maximum(f, i))
    f, i = jnp.exp(f - m), jnp.exp(i - m)
    c = f * c + i * jnp.tanh(z)
    n = f * n + i
    h = jax.nn.sigmoid(o) * c / n
    return {"h": h, "c": c, "n": n, "m": m}, h

  cell, h = jax.lax.scan(step, cell, (gates, keep))
  return h, cell


def run_forward(gates, R, keep, cell):
  def run_with(gates, cell):
    return run(gates, R, keep, cell)

  (h, last), back = jax.vjp(run_with, gates, cell)
  before = keep * jnp.concatenate([cell["h"][None], h[:-1]])
  return (h, last), (back, before, keep)


def run_backward(saved, ct):
  back, before, keep = saved
  dgates, dcell = back(ct)
  # one product over all tokens: JAX would add a matrix up at each
  dR = chunks.dot("tbhk,tbhj->hkj", before, dgates)
  return dgates, dR, jnp.zeros_like(keep), dcell


scan = jax.custom_vjp(run)
scan.defvjp(run_forward, run_backward)


class Mixer(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    D, H, K = cfg.dim, cfg.heads, cfg.K
    self.conv = layers.ShortConv(D, cfg.conv, dtype=cfg.compute, rngs=rngs)

    def normal(*shape):
      return jax.random.normal(rngs.params(), shape) * (2 / (5 * D)) ** 0.5

    self.if_proj = roles.Matrix(normal(H, K, 2 * K))
    self.zo_proj = roles.Matrix(normal(H, K, 2 * K))
    bound = D**-0.5 if cfg.recurrent == "uniform" else 0.0
    R = jax.random.uniform(rngs.params(), (H, K, 4 * K), minval=-1, maxval=1)
    self.R = roles.Matrix(bound * R)
    power = 0.3 + 1.3 * layer / max(1, cfg.depth - 1)
    f = 5 - 12 * (jnp.arange(K) / (K - 1)) ** power
    bias = jnp.zeros((H, 4, K)).at[:, 1].set(f[None])
    self.bias = roles.Gate(bias.reshape(H, 4 * K))
    self.norm = roles.Vector(jnp.zeros(D))

  def init_state(self, batch, length=None):
    """m is the logarithm of what c and n are divided by: of nothing yet."""
    zero = jnp.zeros((batch, self.cfg.heads, self.cfg.K))
    m = jnp.full(zero.shape, -jnp.inf, jnp.float32)
    conv = self.conv.init_state(batch)
    return {"conv": conv, "cell": {"h": zero, "c": zero, "n": zero, "m": m}}

  def __call__(self, x, reset, state):
    B, T, D = x.shape
    state = state or self.init_state(B)
    x = x.astype(self.cfg.compute)
    u, conv = self.conv(x, reset, state["conv"])
    gates = self.heads(jax.nn.silu(u), self.if_proj)
    gates = [gates, self.heads(x, self.zo_proj)]
    gates = jnp.concatenate(gates, -1) + self.bias[...][None, None]
    keep = chunks.where_reset(reset, 0, jnp.ones((B, T, 1, 1)))
    gates, keep = gates.swapaxes(0, 1), keep.swapaxes(0, 1)
    h, cell = scan(gates, self.R[...], keep, state["cell"])
    y = layers.standardise(h.swapaxes(0, 1), self.cfg.eps).reshape(B, T, D)
    y *= (1 + self.norm[...])[None, None]
    return y.astype(self.cfg.compute), {"conv": conv, "cell": cell}, Aux()

  def heads(self, x, weight):
    """x W of every head by itself, B T H 2K in float32."""
    H, K, _ = weight.shape
    x = x.reshape(*x.shape[:2], H, K)
    return product("bthk,hkj->bthj", x, weight[...].astype(x.dtype))
