"""Means over positions of what a vocabulary answers, a few positions at a time.

  nll_i = logsumexp_v l_iv - l_iy,  dnll_i / dl_iv = softmax_v(l_i) - [v = y]

All B T V logits of a training step would outweigh everything else in memory.
The loss is a scalar and its weights are known, so the pass forward that will
be differentiated also takes each chunk's gradient, while that chunk's logits
exist: no product is repeated, and the pass backward only scales. The fused
linear cross-entropy of Liger (https://arxiv.org/abs/2410.10989, sec. 3.2) does
so on a GPU.

A `fn(params, held, x, given)` is pure, closes over no array, and answers C
positions from C D: `params` are float arrays that learn, `held` constants, and
`given` what else a position has, as its target. It works on the positions
[j, n + j, 2 n + j ...] at step j of n, and n divides a sequence, or is of whole
ones, so that a batch split over devices stays where it is.

B batch  T time  D width  V symbols  C positions in a chunk  n chunks
"""

import functools
import math

import jax
import jax.numpy as jnp

# At 256 symbols a chunk's logits then fit a core's cache; at 32,768 the
# products stay large enough to be worth adding up their gradients.
LOGITS = 2**18
POSITIONS = 512


def chunk_size(wide: int) -> int:
  """How many positions a chunk holds, of so many numbers each."""
  return max(POSITIONS, LOGITS // wide)


def mean(fn, params, held, x, given, weights, chunk: int):
  """sum(weights fn) / sum(weights); 0 where all weights are 0.

  Args:
    fn: (params, held, C D, given of C) -> C float32.
    params: a pytree of float arrays, which get a gradient, as x does.
    held: a pytree of arrays, which get none.
    x: B T D.
    given: a pytree of B T ..., which get none.
    weights: B T float32, at least 0.
    chunk: positions that are worked on at a time.
  """
  weights = weights.astype(jnp.float32)
  total = jnp.maximum(jnp.sum(weights), jnp.finfo(jnp.float32).tiny)
  x, given, share = deal((x, given, weights / total), chunk)
  return _weighted(fn, params, held, x, given, share)


def each(fn, params, held, x, given, chunk: int):
  """What fn answers for every position, a pytree of B T."""

  def step(_, at):
    return None, fn(params, held, *at)

  _, found = jax.lax.scan(step, None, deal((x, given), chunk))
  B, T = x.shape[:2]
  _, (_, time) = cuts(B, T, chunk)
  return jax.tree.map(lambda a: a.T.reshape(-1, T + time)[:B, :T], found)


def cuts(B: int, T: int, chunk: int):
  """n, and how many sequences and positions have to be added for it.

  n is within twice what is needed, and at least two where B T > 1. It cuts each
  sequence into as many, or else whole sequences apart, and of such n it is the
  one that adds the least: nothing, if one divides.
  """

  def best(size, need):
    return min(range(need, 2 * need), key=lambda n: -size % n)

  need = max(math.ceil(B * T / chunk), min(B * T, 2))
  if need <= T:
    n = best(T, need)
    return n, (0, -T % n)
  n = best(B, math.ceil(need / T))
  return n * T, (-B % n, 0)


def deal(tree, chunk: int):
  """Each B T ... as n C ..., zeros of weight 0 among them."""
  n, more = cuts(*jax.tree.leaves(tree)[0].shape[:2], chunk)

  def cut(a):
    if any(more):
      a = jnp.pad(a, [(0, m) for m in more] + [(0, 0)] * (a.ndim - 2))
    return a.reshape(-1, n, *a.shape[2:]).swapaxes(0, 1)

  return jax.tree.map(cut, tree)


@jax.custom_vjp
def nll(logits, targets):
  """C nats from C V logits."""
  return _nll_forward(logits, targets)[0]


def _nll_forward(logits, targets):
  chosen = jnp.take_along_axis(logits, targets[:, None], -1)[:, 0]
  total = jax.nn.logsumexp(logits, -1)
  return total - chosen, (logits, targets, total)


def _nll_backward(residuals, g):
  """In one walk over the logits, and without the scatter that the gradient of a
  choice would be."""
  logits, targets, total = residuals
  symbols = jax.lax.broadcasted_iota(targets.dtype, logits.shape, 1)
  hit = jnp.where(symbols == targets[:, None], 1.0, 0.0)
  return g[:, None] * (jnp.exp(logits - total[:, None]) - hit), None


nll.defvjp(_nll_forward, _nll_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted(fn, params, held, x, given, weights):
  """sum(weights fn) over n C positions."""

  def step(total, at):
    x, given, weights = at
    return total + jnp.sum(weights * fn(params, held, x, given)), None

  return jax.lax.scan(step, jnp.float32(0), (x, given, weights))[0]


def _forward(fn, params, held, x, given, weights):
  def step(carry, at):
    total, d_params = carry
    x, given, weights = at
    found, pullback = jax.vjp(lambda p, x: fn(p, held, x, given), params, x)
    own, d_x = pullback(weights)
    d_params = jax.tree.map(jnp.add, d_params, own)
    return (total + jnp.sum(weights * found), d_params), (d_x, found)

  start = jnp.float32(0), jax.tree.map(jnp.zeros_like, params)
  (total, d_params), (d_x, found) = jax.lax.scan(
    step, start, (x, given, weights)
  )
  return total, (d_params, d_x, found)


def _backward(fn, residuals, g):
  def scale(a):
    return (g * a.astype(jnp.float32)).astype(a.dtype)

  d_params, d_x, found = jax.tree.map(scale, residuals)
  return d_params, None, d_x, None, found


_weighted.defvjp(_forward, _backward)
