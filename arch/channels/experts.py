"""A few of many small SwiGLU networks a token, and one that all tokens share.

  y = shared(x) (sigmoid(x w)) + c sum_{e chosen} g_e expert_e(x)
  s = sigmoid(x R) or softmax(x R),  chosen = the `top` largest of s + b
  g_e = s_e (/ sum_{chosen} s, unless one of several is chosen: R's gradient)
  b_e <- b_e + u sign(mean load - load_e)        after every training step

DeepSeek-V3, https://arxiv.org/abs/2412.19437, eq. 12 to 16, for the layer;
Wang et al. 2024, https://arxiv.org/abs/2408.15664, algorithm 1, for the bias,
which changes the choice and not the weights. No token is ever dropped, so
that a token's answer does not depend on the others.

Pairs of a token and one of its experts are sorted by expert, and each expert's
are padded to whole blocks of R slots: sum_e ceil(load_e / R) is at most
(pairs + E (R - 1)) / R, so the number of blocks is fixed and always enough.
ragged_dot would need no padding, but costs as much as every expert on every
token on a CPU, and does not compile for a TPU under vmap (libtpu 0.0.52).
Where the batch is split over devices each sorts its own tokens: over all of
them, XLA would have every device run every pair.

B batch  T time  N = B T tokens  D width  E experts  K chosen a token
M blocks  R slots in a block  W width of an expert
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from arch import config, rows, target
from arch.channels import swiglu
from arch.law import Aux
from arch.product import product
from arch.roles import Buffer, Matrix
from arch.starts import fan_in


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config.Config):
  """Raises ValueError for sizes below 1, top > experts, an unknown score.

  Attributes:
    experts: how many there are to choose from.
    top: how many of them a token runs.
    width: hidden units of one expert; None for as many, a multiple of 8, as
      make the active width that of `swiglu`.
    shared: hidden units of the expert that every token runs; None for
      `width`, 0 for no such expert.
    balance_rate: u above, a step of the bias; 0 for no balancing.
    score: "sigmoid" (DeepSeek-V3) or "softmax" (before it).
    normalised: whether the weights of a token's experts sum to c.
    scale: c, which DeepSeek-V3 calls its routed scaling factor.
    shared_gate: whether there is w.
  """

  experts: int = 16
  top: int = 2
  width: int | None = None
  shared: int | None = None
  balance_rate: float = 1e-3
  score: str = "sigmoid"
  normalised: bool = True
  scale: float = 1.0
  shared_gate: bool = False

  def __post_init__(self):
    self.positive("experts", "top", "scale", width="W")
    if self.top > self.experts:
      raise ValueError(
        f"channel experts: top={self.top} of experts={self.experts}"
      )
    if self.shared_hidden < 0 or self.balance_rate < 0:
      raise ValueError(
        f"channel experts: shared={self.shared} and balance_rate="
        f"{self.balance_rate} must not be negative"
      )
    if self.shared_gate and not self.shared_hidden:
      raise ValueError("channel experts: shared_gate=True, but shared=0")
    self.among("score", ("sigmoid", "softmax"))

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


class Channel(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    D, E, W = cfg.dim, cfg.experts, cfg.W

    def stack(init, *shape):
      keys = jax.random.split(rngs.params(), E)
      return Matrix(jax.vmap(lambda key: init(key, shape, jnp.float32))(keys))

    self.gate = stack(fan_in(), D, W)
    self.up = stack(fan_in(), D, W)
    self.down = stack(fan_in(1 / math.sqrt(2 * cfg.depth)), W, D)
    # scores as close at the start as in DeepSeek-V3: 0.006 sqrt(7168) = 0.5
    self.router = Matrix(fan_in(0.5)(rngs.params(), (D, E), jnp.float32))
    self.bias = Buffer(jnp.zeros(E))
    if cfg.shared_hidden:
      own = swiglu.Config(
        dim=D,
        depth=cfg.depth,
        length=cfg.length,
        dtype=cfg.dtype,
        width=cfg.shared_hidden,
      )
      self.shared = swiglu.Channel(own, layer=layer, rngs=rngs)
    if cfg.shared_gate:
      self.shared_gate = Matrix(fan_in()(rngs.params(), (D, 1)))

  def init_state(self, batch, length=None):
    return {}

  def idle(self) -> int:
    """Parameters that a token does not use."""
    unused = self.cfg.experts - self.cfg.top
    return sum(
      math.prod(p.shape) // self.cfg.experts * unused
      for p in (self.gate, self.up, self.down)
    )

  def route(self, x):
    """Experts N K of tokens N D, and their weights N K in float32."""
    return route(self.cfg, x, self.router[...], self.bias[...])

  def __call__(self, x, reset, state):
    E, K = self.cfg.experts, self.cfg.top
    matrices = self.gate[...], self.up[...], self.down[...]
    run = functools.partial(routed, self.cfg)
    y, load = rows.apart(run, x, self.router[...], self.bias[...], matrices)
    if self.cfg.shared_hidden:
      own = self.shared(x, reset, None)[0]
      if self.cfg.shared_gate:
        gate = product("btd,dk->btk", x, self.shared_gate[...].astype(x.dtype))
        own = own * jax.nn.sigmoid(gate).astype(own.dtype)
      y = y + own
    pairs = x.shape[0] * x.shape[1] * K
    share = jnp.sum(load, 0).astype(jnp.float32) * (E / pairs)
    bias = self.bias[...] + self.cfg.balance_rate * jnp.sign(1 - share)
    statistics = {"load_violation": jnp.max(share) - 1}
    return y, {}, Aux(statistics=statistics, next={"bias": bias})


def route(cfg, x, router, bias):
  logits = jnp.matmul(
    x.astype(jnp.float32), router, precision=jax.lax.Precision.HIGHEST
  )
  if cfg.score == "sigmoid":
    logs = jax.nn.log_sigmoid(logits)
  else:
    logs = jax.nn.log_softmax(logits, -1)
  scores = jax.lax.stop_gradient(jnp.exp(logs)) + bias[None]
  _, choice = jax.lax.top_k(scores, cfg.top)
  logs = jnp.take_along_axis(logs, choice, -1)
  alone = cfg.top == 1 < cfg.experts
  whole = cfg.normalised and not alone
  weights = jax.nn.softmax(logs, -1) if whole else jnp.exp(logs)
  return choice, cfg.scale * weights


def routed(cfg, x, router, bias, matrices):
  """What the chosen experts add, B T D, and each expert's load, 1 E."""
  B, T, D = x.shape
  tokens = x.reshape(B * T, D)
  choice, weights = route(cfg, tokens, router, bias)
  chosen = choice.reshape(-1, 1) == jnp.arange(cfg.experts)[None]
  load = jnp.sum(chosen, 0, dtype=jnp.int32)
  y = dispatch(tokens, choice, weights, load, matrices)
  return y.reshape(B, T, D), load[None]


def dispatch(x, choice, weights, load, matrices):
  """Weighted sum over the chosen experts, N D."""
  (N, K), (E,), D = choice.shape, load.shape, x.shape[1]
  # A block costs as much as reading its weights, some 8 rows' worth, and its
  # R rows; the sum over all blocks, padding included, is least here.
  R = min(N, math.ceil(math.sqrt(8 * N * K / E)))
  expert, pair, real, slots = arrange(choice, load, R)
  S = pair.shape[0]
  inputs = spread(x, pair // K, slots)
  shares = spread(weights.reshape(N * K), pair, slots.reshape(N * K, 1))
  shares = jnp.where(real, shares, 0).astype(x.dtype)
  blocks = inputs.reshape(S // R, R, D), shares.reshape(S // R, R)
  run = blocked if target.now().one_by_one else batched
  y = run(*blocks, *matrices, expert).reshape(S, D)
  return collect(y, pair // K, slots)


def arrange(choice, load, R):
  """Slots for the pairs, sorted by expert, each expert's from a whole block.

  Returns:
    expert M: whose each block is. pair S = M R: which pair each slot holds,
    some pair where it holds none; real S: whether it does. slots N K: where
    each pair is.
  """
  N, K = choice.shape
  A, E = N * K, load.shape[0]
  M = min(A, (A + E * (R - 1)) // R)
  owner = choice.reshape(A)
  order = jnp.argsort(owner, stable=True).astype(jnp.int32)
  first = jnp.cumsum(load) - load  # in the order
  blocks = (load + R - 1) // R
  end = jnp.cumsum(blocks)
  start = (end - blocks) * R  # in the slots
  expert = jnp.searchsorted(end, jnp.arange(M), side="right")
  expert = jnp.minimum(expert, E - 1).astype(jnp.int32)
  of_slot = jnp.repeat(expert, R)
  rank = jnp.arange(M * R, dtype=jnp.int32) - start[of_slot]
  pair = order[jnp.minimum(first[of_slot] + rank, A - 1)]
  by_order = owner[order]
  place = jnp.arange(A, dtype=jnp.int32) - first[by_order] + start[by_order]
  slots = jnp.zeros(A, jnp.int32).at[order].set(place, unique_indices=True)
  return expert, pair, rank < load[of_slot], slots.reshape(N, K)


@jax.custom_vjp
def spread(rows, source, slots):
  """rows[source]. Of the gradient, only what `slots` n j name is read.

  Row n is at every slots[n, j]: the transpose is then a sum of gathers, where
  autodiff would scatter.
  """
  return rows[source]


@jax.custom_vjp
def collect(rows, source, slots):
  """sum_j rows[slots[:, j]], which `spread` transposes."""
  return sum(rows[slots[:, j]] for j in range(slots.shape[1]))


spread.defvjp(
  lambda rows, *where: (spread(rows, *where), where),
  lambda where, g: (collect(g, *where), None, None),
)
collect.defvjp(
  lambda rows, *where: (collect(rows, *where), where),
  lambda where, g: (spread(g, *where), None, None),
)


def hidden(gate, up, shares):
  return jax.nn.silu(gate) * up * shares[..., None]


def batched(x, shares, gate, up, down, expert):
  """M R D: block m through expert[m], all at once from copied weights.

  These are copied again in the pass backward: to keep them would take more
  memory than all activations.
  """

  @jax.checkpoint
  def product(x, w):
    return jnp.einsum("mrd,mdw->mrw", x, w[expert].astype(x.dtype))

  return product(hidden(product(x, gate), product(x, up), shares), down)


@jax.custom_vjp
def blocked(x, shares, gate, up, down, expert):
  """The same, a block at a time: two thirds of the time on a CPU.

  Its pass backward is its own: autodiff would add up the gradients of all
  experts at every block.
  """
  return _forward(x, shares, gate, up, down, expert)[0]


def _forward(x, shares, gate, up, down, expert):
  def block(_, at):
    x, shares, e = at
    a = x @ gate[e].astype(x.dtype)
    b = x @ up[e].astype(x.dtype)
    return None, (hidden(a, b, shares) @ down[e].astype(x.dtype), a, b)

  _, (y, a, b) = jax.lax.scan(block, None, (x, shares, expert))
  return y, (x, shares, gate, up, down, expert, a, b)


def _backward(saved, d_y):
  x, shares, gate, up, down, expert, a, b = saved

  def turn(rows):  # XLA's product of a transpose that is not made is slower
    return jax.lax.optimization_barrier(rows.T)

  def add(total, e, columns, d_rows):
    own = product("ij,jk->ik", columns, d_rows)
    return jax.lax.dynamic_update_index_in_dim(total, total[e] + own, e, 0)

  def block(totals, at):
    x, shares, e, a, b, d_y = at
    h, pullback = jax.vjp(hidden, a, b, shares)
    d_a, d_b, d_shares = pullback(d_y @ down[e].T.astype(x.dtype))
    d_x = d_a @ gate[e].T.astype(x.dtype) + d_b @ up[e].T.astype(x.dtype)
    d_gate, d_up, d_down = totals
    columns = turn(x)
    totals = (
      add(d_gate, e, columns, d_a),
      add(d_up, e, columns, d_b),
      add(d_down, e, turn(h), d_y),
    )
    return totals, (d_x, d_shares)

  totals = jax.tree.map(jnp.zeros_like, (gate, up, down))
  totals, (d_x, d_shares) = jax.lax.scan(
    block, totals, (x, shares, expert, a, b, d_y)
  )
  return d_x, d_shares, *totals, None


blocked.defvjp(_forward, _backward)
