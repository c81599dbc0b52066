"""Log-linear Mamba-2: a state a head for every power of two of the tokens so
far.

  z, xBC, dt = u W_in,  l = u W_l;  x, B, C = silu(conv(xBC))
  dt = softplus(dt + dt_bias),  scale = softplus(L l)
  S_t = exp(-exp(A_log) dt_t) S_{t-1} + B_t (dt_t x_t)^T
  y_t = sum over levels n of scale_t[n] (the part of S_t of level n)^T C_t
  out = norm((y + D x) silu(z)) W_out

recurrence/log_linear.py says what a level is. Guo et al. 2025,
https://arxiv.org/abs/2506.04761, section 3.4; parameters and their start as in
HanGuo97/log-linear-attention, modeling_hattention.py and configs/flame:
matrices and taps normal of deviation 0.006, W_out uniform in +-1 / sqrt(d_in)
over sqrt(2 depth), L = 1, A = 1 ... H. The norm is over all of E, where
mamba2's is over a group's share. It has SwiGLU beside it.

B batch  T time  D width  E inner width  H heads  P head width  N state
G groups  L levels
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from arch import layers, roles, starts
from arch.law import Aux
from arch.mixers import mamba2
from arch.recurrence import log_linear


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(mamba2.Config):
  """
  Attributes:
    levels: L; None for those of `length` tokens. Older ones share the last.
    chunk: tokens that are read at once, a power of two.
    deviation: of the matrices and taps at the start.
  """

  levels: int | None = None
  chunk: int = 64
  deviation: float = 0.006

  def __post_init__(self):
    super().__post_init__()
    self.power_of_two("chunk")
    self.at_least(levels=2)


class Mixer(mamba2.Mixer):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    D, E, H, GN = cfg.dim, cfg.E, cfg.H, cfg.groups * cfg.state
    normal = nnx.initializers.normal(cfg.deviation)
    kw = dict(init=normal, rngs=rngs)
    wide = E + 2 * GN
    self.in_proj = cfg.linear(D, (E, wide, H), **kw)
    self.levels = layers.Levels(cfg, H, rngs=rngs)
    self.conv = layers.ShortConv(wide, cfg.conv, dtype=cfg.compute, **kw)
    self.dt_bias = roles.Gate(starts.dt_bias(rngs.params(), (H,)))
    self.A_log = roles.Gate(jnp.log(jnp.arange(1.0, H + 1)))
    self.D = roles.Gate(jnp.ones(H))
    self.norm = roles.Vector(jnp.ones(E))
    residual = starts.uniform_fan_in((2 * cfg.depth) ** -0.5)
    self.out_proj = cfg.linear(E, D, init=residual, rngs=rngs)

  def init_state(self, batch, length=None):
    cfg = self.cfg
    N = self.levels.L.shape[1] - 1
    return {
      "conv": self.conv.init_state(batch),
      "ssm": jnp.zeros((batch, cfg.H, cfg.state, N, cfg.head)),
      "count": jnp.zeros(batch, jnp.int32),
    }

  def __call__(self, u, reset, state):
    state = state or self.init_state(u.shape[0])
    x, z, conv, (c, b, dt, g) = self.project(u, reset, state["conv"])
    y, (ssm, count) = log_linear.chunked(
      c,
      b,
      x * dt[..., None].astype(x.dtype),
      g,
      self.levels(u),
      reset=reset,
      state=(state["ssm"], state["count"]),
      chunk=self.cfg.chunk,
    )
    y = y.astype(jnp.float32)
    y += self.D[...][None, None, :, None] * x.astype(jnp.float32)
    y = self.output(y, z, groups=1)
    return y, {"conv": conv, "ssm": ssm, "count": count}, Aux()
