"""A few of many networks a token: pairs of both, sorted into blocks.

  y_n = sum_k g_nk f_{e_nk}(x_n),  f_e(x) = (silu(x U_e) * (x V_e)) W_e

Pairs of a token and one of its experts are sorted by expert, and each expert's
are padded to whole blocks of R slots: sum_e ceil(load_e / R) is at most
(pairs + E (R - 1)) / R, so the number of blocks is fixed and always enough. No
token is ever dropped, so that its answer does not depend on the others.
ragged_dot would need no padding, but costs as much as every expert on every
token on a CPU, and does not compile for a TPU under vmap (libtpu 0.0.52).

N tokens  D width  E experts  K chosen a token  M blocks  R slots in a block
W width of an expert
"""

import functools
import math

import jax
import jax.numpy as jnp

from arch import target
from arch.product import is_mixed, matmul, mixed, product


def dispatch(x, choice, weights, load, matrices):
  """Weighted sum over the chosen experts, N D.

  Args:
    x: N D.
    choice: N K, of experts; each of a token's is another.
    weights: N K.
    load: E, how many tokens chose each.
    matrices: U, V, E D W, and W, E W D.
  """
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
  run = batched
  if target.now().one_by_one:
    run = functools.partial(blocked, is_mixed())
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def blocked(rounds, x, shares, gate, up, down, expert):
  """The same, a block at a time: two thirds of the time on a CPU.

  Its pass backward is its own: autodiff would add up the gradients of all
  experts at every block.
  """
  return _forward(rounds, x, shares, gate, up, down, expert)[0]


def _forward(rounds, x, shares, gate, up, down, expert):
  def block(_, at):
    x, shares, e = at
    a = matmul(x, gate[e].astype(x.dtype))
    b = matmul(x, up[e].astype(x.dtype))
    return None, (matmul(hidden(a, b, shares), down[e].astype(x.dtype)), a, b)

  _, (y, a, b) = jax.lax.scan(block, None, (x, shares, expert))
  return y, (x, shares, gate, up, down, expert, a, b)


def _backward(rounds, saved, d_y):
  with mixed(rounds):  # as forward, whose context this is traced out of
    return _pullback(saved, d_y)


def _pullback(saved, d_y):
  x, shares, gate, up, down, expert, a, b = saved

  def turn(rows):  # XLA's product of a transpose that is not made is slower
    return jax.lax.optimization_barrier(rows.T)

  def add(total, e, columns, d_rows):
    own = product("ij,jk->ik", columns, d_rows)
    return jax.lax.dynamic_update_index_in_dim(total, total[e] + own, e, 0)

  def block(totals, at):
    x, shares, e, a, b, d_y = at
    h, pullback = jax.vjp(hidden, a, b, shares)
    d_a, d_b, d_shares = pullback(matmul(d_y, down[e].T.astype(x.dtype)))
    d_x = matmul(d_a, gate[e].T.astype(x.dtype))
    d_x += matmul(d_b, up[e].T.astype(x.dtype))
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
