"""Many small SwiGLU networks, of which a token runs a few, and one for all.

  y = shared(x) (sigmoid(x w)) + sum_k g_k expert_{e_k}(x)

Which ones, how they weigh and what keeps their load even is the affair of the
channel mixer that has this for its base, in three methods:

  choose(cfg, logits, held) -> e, g, seen   N E and what the module holds ->
                                            N K int32, N K float32 (0: not run),
                                            what else the batch has means of
  held() -> arrays                          that the choice reads, as Buffers
  learn(load, seen) -> Aux                  from load E, of a token of the batch

Where the batch is split over devices each sorts its own tokens: over all of
them, XLA would have every device run every pair. See arch/dispatch.py.

B batch  T time  N = B T tokens  D width  E experts  K run by a token at most
W width of an expert
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from arch import config, rows
from arch.channels import swiglu
from arch.dispatch import dispatch
from arch.product import product
from arch.roles import Matrix
from arch.starts import fan_in


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config.Config):
  """Raises ValueError for sizes below 1, top > experts.

  Attributes:
    experts: how many there are to choose from.
    top: how many of them a token runs.
    width: hidden units of one expert; None for as many, a multiple of 8, as
      make the active width that of `swiglu`.
    shared: hidden units of the expert that every token runs; None for
      `width`, 0 for no such expert.
    shared_gate: whether there is w.
  """

  experts: int = 16
  top: int = 2
  width: int | None = None
  shared: int | None = None
  shared_gate: bool = False

  def __post_init__(self):
    self.positive("experts", "top", width="W")
    if self.top > self.experts:
      raise ValueError(
        f"{self.where}: top={self.top} of experts={self.experts}"
      )
    if self.shared_hidden < 0:
      raise ValueError(
        f"{self.where}: shared={self.shared} must not be negative"
      )
    if self.shared_gate and not self.shared_hidden:
      raise ValueError(f"{self.where}: shared_gate=True, but shared=0")

  @property
  def W(self) -> int:
    """hidden units of an expert"""
    if self.width is not None:
      return self.width
    parts = self.top if self.shared == 0 else self.top + 1
    return max(8, 8 * round(self.dim / (3 * parts)))

  @property
  def shared_hidden(self) -> int:
    return self.W if self.shared is None else self.shared

  @property
  def K(self) -> int:
    """how many experts a token has slots for"""
    return self.top


@dataclasses.dataclass(frozen=True, kw_only=True)
class Varying(Config):
  """Where tokens run more of them or fewer.

  Raises ValueError for more slots than experts, fewer than top, too.

  Attributes:
    most: experts that a token has slots for; None for twice `top`.
  """

  most: int | None = None

  def __post_init__(self):
    super().__post_init__()
    self.at_least(most=self.top)
    if self.K > self.experts:
      raise ValueError(
        f"{self.where}: most={self.most} of experts={self.experts}"
      )

  @property
  def K(self) -> int:
    return self.most or min(2 * self.top, self.experts)


class Channel(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    D, E, W = cfg.dim, cfg.experts, cfg.W
    small = fan_in(1 / math.sqrt(2 * cfg.depth))
    self.gate = cfg.linears(E, D, W, init=fan_in(), rngs=rngs)
    self.up = cfg.linears(E, D, W, init=fan_in(), rngs=rngs)
    self.down = cfg.linears(E, W, D, init=small, rngs=rngs)
    # scores as close at the start as in DeepSeek-V3: 0.006 sqrt(7168) = 0.5
    self.router = Matrix(fan_in(0.5)(rngs.params(), (D, E), jnp.float32))
    if cfg.shared_hidden:
      told = {f.name for f in dataclasses.fields(config.Config)}
      told = {name: getattr(cfg, name) for name in told}
      own = swiglu.Config(**told, width=cfg.shared_hidden)
      self.shared = swiglu.Channel(own, layer=layer, rngs=rngs)
    if cfg.shared_gate:
      self.shared_gate = Matrix(fan_in()(rngs.params(), (D, 1)))

  def init_state(self, batch, length=None):
    return {}

  def idle(self) -> int:
    """Parameters that a token does not use, be all its slots full."""
    unused = self.cfg.experts - self.cfg.K
    maps = nnx.state((self.gate, self.up, self.down), Matrix)
    return sum(
      math.prod(p.shape) // self.cfg.experts * unused
      for p in jax.tree.leaves(maps)
    )

  def route(self, x):
    """Experts N K of tokens N D, and their weights N K in float32."""
    logits = scored(x, self.router[...])
    return self.choose(self.cfg, logits, self.held())[:2]

  def __call__(self, x, reset, state):
    matrices = tuple(m.matrix() for m in (self.gate, self.up, self.down))
    run = functools.partial(routed, self.cfg, self.choose)
    y, load, seen = rows.apart(run, x, self.router[...], self.held(), matrices)
    if self.cfg.shared_hidden:
      own = self.shared(x, reset, None)[0]
      if self.cfg.shared_gate:
        gate = product("btd,dk->btk", x, self.shared_gate[...].astype(x.dtype))
        own = own * jax.nn.sigmoid(gate).astype(own.dtype)
      y = y + own
    # each device's are of as many tokens
    load, seen = jax.tree.map(lambda a: jnp.mean(a, 0), (load, seen))
    return y, {}, self.learn(load, seen)


def scored(x, router):
  """Logits N E in float32."""
  x = x.astype(jnp.float32)
  return jnp.matmul(x, router, precision=jax.lax.Precision.HIGHEST)


def routed(cfg, choose, x, router, held, matrices):
  """What the chosen experts add, B T D; each one's load, 1 E; what was seen."""
  B, T, D = x.shape
  tokens = x.reshape(B * T, D)
  choice, weights, seen = choose(cfg, scored(tokens, router), held)
  chosen = choice[..., None] == jnp.arange(cfg.experts)[None, None]
  run = chosen & (weights != 0)[..., None]
  slots, load = (jnp.sum(c, (0, 1), dtype=jnp.int32) for c in (chosen, run))
  y = dispatch(tokens, choice, weights, slots, matrices)
  load = load.astype(jnp.float32) / (B * T)
  return y.reshape(B, T, D), load[None], jax.tree.map(lambda a: a[None], seen)


def statistics(load) -> dict:
  """Of the load of E experts: how far the largest is above the mean; the
  entropy, 1 where it is even; and the share of experts that nothing chose."""
  E = load.shape[0]
  share = load / jnp.maximum(jnp.sum(load), 1e-12)
  logs = jnp.log(jnp.maximum(share, 1e-12))
  return {
    "load_violation": E * jnp.max(share) - 1,
    "load_entropy": -jnp.sum(share * logs) / math.log(max(E, 2)),
    "dead_experts": jnp.mean(jnp.where(load == 0, 1.0, 0.0)),
  }
