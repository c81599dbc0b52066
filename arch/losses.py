"""Cross-entropy over a vocabulary, a few positions at a time.

  nll_i = logsumexp_v l_iv - l_iy,  dnll_i / dl_iv = softmax_v(l_i) - [v = y]

All B T V logits of a training step would outweigh everything else in memory.
The loss is a scalar and its weights are known, so the pass forward that will
be differentiated also takes each chunk's gradient, while that chunk's logits
exist: no product is repeated, and the pass backward only scales. The fused
linear cross-entropy of Liger (https://arxiv.org/abs/2410.10989, sec. 3.2) does
so on a GPU.

A `logits_fn(params, x)` is pure, closes over no array, and turns C D into
C V in float32. It works on the positions [j, n + j, 2 n + j ...] at step j of
n, and n divides a sequence, or is of whole ones, so that a batch split over
devices stays where it is.

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


def chunk_size(size: int) -> int:
  """How many positions a chunk holds with this many symbols."""
  return max(POSITIONS, LOGITS // size)


def mean_nll(logits_fn, params, x, targets, weights, chunk: int):
  """sum(weights nll) / sum(weights), nats; 0 where all weights are 0.

  Args:
    params: what `logits_fn` reads, a pytree of float arrays.
    x: B T D.
    targets: B T int32.
    weights: B T float32, at least 0.
    chunk: positions that are worked on at a time.
  """
  weights = weights.astype(jnp.float32)
  total = jnp.maximum(jnp.sum(weights), jnp.finfo(jnp.float32).tiny)
  x, targets, share = deal((x, targets, weights / total), chunk)
  return _weighted(logits_fn, params, x, targets, share)


def score(logits_fn, params, x, targets, chunk: int):
  """nats B T in float32, and whether the likeliest symbol was right, B T."""

  def step(_, at):
    x, targets = at
    logits = logits_fn(params, x)
    right = jnp.argmax(logits, -1) == targets
    return None, (nll(logits, targets), right)

  _, found = jax.lax.scan(step, None, deal((x, targets), chunk))
  B, T = targets.shape
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


def deal(arrays, chunk: int):
  """Each B T ... as n C ..., zeros of weight 0 among them."""
  n, more = cuts(*arrays[0].shape[:2], chunk)

  def cut(a):
    if any(more):
      a = jnp.pad(a, [(0, m) for m in more] + [(0, 0)] * (a.ndim - 2))
    return a.reshape(-1, n, *a.shape[2:]).swapaxes(0, 1)

  return tuple(cut(a) for a in arrays)


def nll(logits, targets):
  """C nats from C V logits."""
  chosen = jnp.take_along_axis(logits, targets[:, None], -1)[:, 0]
  return jax.nn.logsumexp(logits, -1) - chosen


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted(logits_fn, params, x, targets, weights):
  """sum(weights nll) over n C positions."""

  def step(total, at):
    x, targets, weights = at
    losses = nll(logits_fn(params, x), targets)
    return total + jnp.sum(weights * losses), None

  return jax.lax.scan(step, jnp.float32(0), (x, targets, weights))[0]


def _forward(logits_fn, params, x, targets, weights):
  def step(carry, at):
    total, d_params = carry
    x, targets, weights = at
    logits, pullback = jax.vjp(logits_fn, params, x)
    losses = nll(logits, targets)
    symbols = jax.lax.broadcasted_iota(targets.dtype, logits.shape, 1)
    hit = jnp.where(symbols == targets[:, None], 1.0, 0.0)
    d_logits = weights[:, None] * (jax.nn.softmax(logits, -1) - hit)
    own, d_x = pullback(d_logits)
    d_params = jax.tree.map(jnp.add, d_params, own)
    return (total + jnp.sum(weights * losses), d_params), (d_x, losses)

  start = jnp.float32(0), jax.tree.map(jnp.zeros_like, params)
  (total, d_params), (d_x, losses) = jax.lax.scan(
    step, start, (x, targets, weights)
  )
  return total, (d_params, d_x, losses)


def _backward(logits_fn, residuals, g):
  def scale(a):
    return (g * a.astype(jnp.float32)).astype(a.dtype)

  d_params, d_x, losses = jax.tree.map(scale, residuals)
  return d_params, d_x, None, losses


_weighted.defvjp(_forward, _backward)
