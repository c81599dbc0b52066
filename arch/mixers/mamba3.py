"""Mamba-3: a matrix state that turns, stepped by the trapezoidal rule, with one
input and output a head (SISO) or several (MIMO).

  z, x, B, C, dt, a, lam, angle = u W_in
  dt = softplus(dt + dt_bias),  A = -max(softplus(a), 1e-4)
  lam = sigmoid(lam),  theta_t = theta_{t-1} + pi tanh(angle_t) dt_t
  k = turn(norm(B) + B_bias, theta),  q = turn(norm(C) + C_bias, theta)
  S_t = alpha_t S_{t-1} + alpha_t (1 - lam_t) dt_t k_{t-1} x_{t-1}^T
        + lam_t dt_t k_t x_t^T,  alpha = exp(A dt)
  y_t = S_t^T q_t + D x_t,  out = (y silu(z)) W_out

As many pairs of the N rows turn as there are angles. MIMO: R keys, queries and
values x * mimo_x_r, whose products are added up; out = (sum over r of mimo_o_r
y_r silu(z * mimo_z_r)) W_out.

Lahoti et al. 2026, https://arxiv.org/abs/2603.15569, section 3; sizes,
parameters and their start as in state-spaces/mamba, modules/mamba3.py, and for
W_out / sqrt(2 depth), as there is an MLP, models/mixer_seq_simple.py. Row i is
paired with i + N / 2, as in their MIMO kernel (in SISO with i + 1).

k_j x_j^T enters S at j and again at j + 1, where it decays as S does: to every
later token it is one key, k_j (lam_j dt_j + (1 - lam_{j+1}) dt_{j+1}). So this
is one gated recurrence that reads the past; what a token wrote itself it reads
apart. A call's last key waits in the state for the step after it.

B batch  T time  D width  E inner width  H heads  P head width  N state
G groups of heads that share B and C before their biases  R rank
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from arch import config, layers, roles, starts
from arch.law import Aux
from arch.recurrence import chunks, diagonal, gated


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config.Config):
  """
  Attributes:
    state: N, the rows of a head's state.
    head: P, the width of a head and the columns of its state.
    expand: inner width over dim.
    groups: G.
    rank: R, inputs and outputs of a head's state, at most 64; None for SISO,
      which has none of MIMO's parameters.
    rotary: share of the rows that is turned.
    heavy_tail: A = -(1 + a), and -1 / (1 - a) for a < 0, in place of softplus:
      the authors' code since June 2026.
    eps: of the norms.
  """

  state: int = 128
  head: int = 64
  expand: int = 2
  groups: int = 1
  rank: int | None = None
  rotary: float = 0.5
  heavy_tail: bool = False
  eps: float = 1e-5

  def __post_init__(self):
    if self.state % 2 or not 0 < self.angles <= self.state // 2:
      raise ValueError(
        f"mamba3: state={self.state} must be even, and rotary={self.rotary} "
        f"of it, {self.angles} pairs, at least one and at most half"
      )
    if self.rank is not None and not 1 <= self.rank <= 64:
      raise ValueError(f"mamba3: rank={self.rank} must be between 1 and 64")
    self.divide("H", "groups")

  @property
  def E(self):
    """inner width"""
    return self.expand * self.dim

  @property
  def H(self):
    """heads"""
    return self.divide("E", "head")

  @property
  def R(self):
    """rank"""
    return self.rank or 1

  @property
  def angles(self):
    return int(self.state * self.rotary) // 2

  @property
  def values(self):
    return "in_proj", self.E, self.H, self.head


def heavy_tail(x):
  return jnp.maximum(x, 0) + 1 / (1 - jnp.minimum(x, 0))


def turn(x, angle):
  """Pairs i, i + N/2 of x by angle; those without one stay. x: ... H N."""
  spare = x.shape[-1] // 2 - angle.shape[-1]
  angle = jnp.pad(angle, [(0, 0)] * (angle.ndim - 1) + [(0, spare)])
  sin, cos = jnp.sin(angle), jnp.cos(angle)
  a, b = jnp.split(x, 2, -1)
  return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


class Mixer(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    D, E, H, N, P = cfg.dim, cfg.E, cfg.H, cfg.state, cfg.head
    R, GN = cfg.R, cfg.groups * N
    widths = E, E, R * GN, R * GN, H, H, H, cfg.angles
    uniform = starts.uniform_fan_in()
    self.in_proj = cfg.linear(D, widths, init=uniform, rngs=rngs)
    self.dt_bias = roles.Gate(starts.dt_bias(rngs.params(), (H,)))
    self.B_norm = layers.RMSNorm(N, eps=cfg.eps)
    self.C_norm = layers.RMSNorm(N, eps=cfg.eps)
    self.B_bias = roles.Vector(jnp.ones((R, H, N)))
    self.C_bias = roles.Vector(jnp.ones((R, H, N)))
    if cfg.rank is not None:
      self.mimo_x = roles.Vector(jnp.ones((R, H, P)) / R)
      self.mimo_z = roles.Vector(jnp.ones((R, H, P)))
      self.mimo_o = roles.Vector(jnp.ones((R, H, P)) / R)
    self.D = roles.Gate(jnp.ones(H))
    residual = starts.uniform_fan_in((2 * cfg.depth) ** -0.5)
    self.out_proj = cfg.linear(E, D, init=residual, rngs=rngs)

  def init_state(self, batch, length=None):
    cfg = self.cfg
    H, N, P = cfg.H, cfg.state, cfg.head
    return {
      "angle": jnp.zeros((batch, H * cfg.angles)),
      "S": jnp.zeros((batch, H, N, P)),
      "key": jnp.zeros((batch, cfg.R, H, N)),
      "x": jnp.zeros((batch, H, P), cfg.compute),
    }

  def __call__(self, u, reset, state):
    cfg = self.cfg
    B, T, _ = u.shape
    E, H, N, P, R = cfg.E, cfg.H, cfg.state, cfg.head, cfg.R
    state = state or self.init_state(B)

    z, x, b, c, *gates = self.in_proj(u)  # B T E twice, B T RGN twice
    dt, a, lam, angle = (t.astype(jnp.float32) for t in gates)
    dt = jax.nn.softplus(dt + self.dt_bias[...][None, None])  # B T H
    rate = heavy_tail(a) if cfg.heavy_tail else jax.nn.softplus(a)
    g = -jnp.maximum(rate, 1e-4) * dt
    lam = jax.nn.sigmoid(lam)

    angle = math.pi * jnp.tanh(angle)[:, :, None] * dt[..., None]
    angle, last = diagonal.scan(
      jnp.ones((1, 1, H * cfg.angles)),
      angle.reshape(B, T, -1),
      reset,
      state["angle"],
    )
    angle = angle.reshape(B, T, 1, H, -1)
    k = turn(self.shifted(b, self.B_norm, self.B_bias), angle)  # B T R H N
    q = turn(self.shifted(c, self.C_norm, self.C_bias), angle)
    x = x.reshape(B, T, H, P)
    v = self.values(x)  # B T R H P

    now, then = lam * dt, (1 - lam) * dt  # B T H
    old = self.values(state["x"][:, None])[:, 0].astype(jnp.float32)
    old = chunks.dot("brhn,brhp->bhnp", state["key"], old)  # B H N P
    S = state["S"] + then[:, 0, :, None, None] * old
    both = now + jnp.pad(then[:, 1:], ((0, 0), (0, 1), (0, 0)))
    past = (q * jnp.exp(g)[:, :, None, :, None]).astype(v.dtype)
    write = (k * both[:, :, None, :, None]).astype(v.dtype)
    y, S = gated.chunked(
      past, write, v, g, reset, S, read="past", chunk=64 >> (R - 1).bit_length()
    )
    y = y.astype(jnp.float32)  # B T R H P
    for r in range(R):  # what a token writes it reads with `now` alone
      # of two axes: see layers.normalise
      qk = (q * k[:, :, r : r + 1]).reshape(-1, N).sum(-1)
      qk = now[:, :, None] * qk.reshape(B, T, R, H)
      y += qk[..., None] * v[:, :, r : r + 1].astype(jnp.float32)

    y += self.D[...][None, None, None, :, None] * v.astype(jnp.float32)
    z = z.astype(jnp.float32).reshape(B, T, 1, H, P)
    if cfg.rank is None:
      y *= jax.nn.silu(z)
    else:
      y *= jax.nn.silu(z * self.mimo_z[...][None, None])
      y *= self.mimo_o[...][None, None]
    y = sum(y[:, :, r] for r in range(R)).reshape(B, T, E)
    new = {
      "angle": last - 2 * math.pi * jnp.round(last / (2 * math.pi)),
      "S": S,
      "key": k[:, -1],
      "x": x[:, -1],
    }
    return self.out_proj(y), new, Aux()

  def shifted(self, x, norm, bias):
    """B or C of each head, B T R H N in float32."""
    B, T, _ = x.shape
    R, G, N = self.cfg.R, self.cfg.groups, self.cfg.state
    x = norm(x.astype(jnp.float32).reshape(B, T, R, G, 1, N))
    x = x + bias[...].reshape(1, 1, R, G, -1, N)
    return x.reshape(B, T, R, -1, N)

  def values(self, x):
    """B T H P -> B T R H P."""
    if self.cfg.rank is None:
      return x[:, :, None]
    return x[:, :, None] * self.mimo_x[...].astype(x.dtype)[None, None]
