"""Titans' neural memory: a network that is trained on what it reads, by
gradient descent with momentum and weight decay.

  g_t = d/dM |M(k_t) - v_t|^2 / V  at the M where t's mini-batch starts
  S_t = exp(momentum_t) S_{t-1} - rate_t g_t
  M_t = exp(keep_t) M_{t-1} + S_t,  o_t = M_t(q_t)
  M(x) = gelu(... gelu(x M[0]) M[1] ...) M[-1]

A mini-batch is `size` tokens of a document, counted from its first, for which
M is the network that is given, and S = 0.

  q, k: B T H K; v, o: B T H V; all of one dtype
  rate: B T H; momentum, keep: B T H, <= 0
  W: M at the start, a tuple of matrices, H K J, H J J ... H J V
  reset: B T bool, True at a first token, or None
  state: (M where the mini-batch started, M, S, each a tuple as W with B before,
  float32, and count: B int32, the tokens read), or None for a fresh start

Behrouz et al. 2025, https://arxiv.org/abs/2501.00663, eq. 8 to 18.

In a mini-batch the gradients do not depend on one another, and a layer's M_t is
M_0, S_0 and a sum of outer products, so that reading it is attention (Sun et
al. 2024's dual form, a layer at a time). As in ttt.py a chunk of `size` tokens
is cut where mini-batches meet, and where documents do.

B batch, T time, H heads, K key width, J hidden width, V value width, C chunk,
m = B H rows
"""

import jax
import jax.numpy as jnp

from arch.layers import positions, unit
from arch.recurrence import chunks


def network(x, read, depth):
  """M(x), read(n, x) being x M[n], and what each layer was given."""
  given = []
  for n in range(depth):
    given.append(jax.nn.gelu(x, approximate=False) if n else x)
    x = read(n, given[-1])
  return x, given


def gradient(k, v, read, widths):
  """Of each matrix as two factors: what it was given, its answer's error."""
  zeros = [jnp.zeros((*k.shape[:-1], width), k.dtype) for width in widths]

  def run(added):
    return network(k, lambda n, x: read(n, x) + added[n], len(widths))

  out, back, given = jax.vjp(run, zeros, has_aux=True)
  return given, back(2 / v.shape[-1] * (out - v))[0]


def reference(
  q, k, v, rate, momentum, keep, W, reset=None, state=None, size=16
):
  widths = [w.shape[-1] for w in W]
  *state, count = start(W, v, state)
  at = positions(reset, count, v.shape[1])

  def read(M):
    return lambda n, x: chunks.dot("bhj,bhjk->bhk", x, M[n])

  def step(carry, x):
    q, k, v, rate, momentum, keep, at = x
    first, new = (x[:, None, None, None] for x in (at == 0, at % size == 0))
    rate, momentum, keep = (x[..., None, None] for x in (rate, momentum, keep))
    G, M, S = (list(part) for part in carry)
    M = [jnp.where(first, w[None], m) for w, m in zip(W, M, strict=True)]
    G = [jnp.where(new, m, g) for m, g in zip(M, G, strict=True)]
    pairs = zip(*gradient(k, v, read(G), widths), strict=True)
    for n, (x, e) in enumerate(pairs):
      S[n] = momentum * jnp.where(first, 0, S[n])
      S[n] -= rate * chunks.dot("bhj,bhk->bhjk", x, e)
      M[n] = keep * M[n] + S[n]
    return (tuple(G), tuple(M), tuple(S)), network(q, read(M), len(W))[0]

  xs = [x.astype(jnp.float32) for x in (q, k, v, rate)]
  xs += [jnp.exp(x.astype(jnp.float32)) for x in (momentum, keep)]
  xs = [x.swapaxes(0, 1) for x in (*xs, at)]
  state, o = jax.lax.scan(step, tuple(state), xs)
  return o.swapaxes(0, 1).astype(v.dtype), (*state, at[:, -1] + 1)


def chunked(q, k, v, rate, momentum, keep, W, reset=None, state=None, size=16):
  B, T, H, _ = v.shape
  C, depth = chunks.size(T, size), len(W)
  widths = [w.shape[-1] for w in W]
  *state, count = start(W, v, state)
  at = positions(reset, count, T)
  xs = [x.astype(jnp.float32) for x in (q, k, v, rate, momentum, keep)]
  places = at % size == 0, at == 0, jnp.ones((B, T), bool)
  xs += [jnp.broadcast_to(x[..., None], (B, T, H)) for x in places]
  xs = [chunks.cut(x, C) for x in xs]  # n m C ...
  W = [jnp.tile(w, (B, 1, 1)) for w in W]  # m K J

  def rows(x, M):
    return chunks.dot("mij,mjk->mik", x, M)

  def write(x, e):
    return chunks.dot("mij,mik->mjk", x, e)

  @jax.checkpoint
  def step(carry, x):
    G, M, S = carry  # each a tuple as W, with m before
    q, k, v, rate, momentum, keep, new, first, real = x
    if reset is None:
      first = jnp.zeros_like(first)  # W is in the state
    # of the mini-batch from before; of a document that starts here: m C 1
    old = (jnp.cumsum(new, 1) == 0)[..., None]
    begun = (jnp.cumsum(first, 1) > 0)[..., None]
    # M_i = whole_i M_0 + fresh_i W + push_i S_0 + the sum over j of
    # sums_ij given_j^T step_j, and S_i = slow_i S_0 + that of slows_ij: sums,
    # slows m C C, the others m C 1
    keeps, whole, _ = chunks.decays(jnp.where(first, -jnp.inf, keep))
    slows, slow, _ = chunks.decays(jnp.where(first, -jnp.inf, momentum))
    fresh = rows(keeps, jnp.where(first, jnp.exp(keep), 0)[..., None])
    keeps = jnp.where(real[:, None], keeps, 0)
    push, sums = rows(keeps, slow), rows(keeps, slows)

    def learn(read):
      given, error = gradient(k, v, read, widths)  # m C K, m C J, ...
      return given, [-rate[..., None] * e for e in error]

    def before(n, x):
      y = rows(x, G[n])
      return y if reset is None else jnp.where(begun, rows(x, W[n]), y)

    given, steps = learn(before)
    # M at the end of the mini-batch from before, if the next one starts here
    cut = (new & ~first)[..., None]
    whole_, push_, sums_ = (
      jnp.where(cut, chunks.later(x, x0), 0).sum(1)[..., None]
      for x, x0 in ((whole, 1), (push, 0), (sums, 0))
    )
    middle = [  # m K J, m J J, ...
      whole_ * M[n] + push_ * S[n] + write(given[n], sums_ * steps[n])
      for n in range(depth)
    ]
    late = learn(lambda n, x: rows(x, middle[n]))
    given, steps = jax.tree.map(
      lambda x, y: jnp.where(old | begun, x, y), (given, steps), late
    )

    def after(n, x):
      y = whole * rows(x, M[n]) + push * rows(x, S[n])
      if reset is not None:
        y += fresh * rows(x, W[n])
      seen = sums * chunks.dot("mij,mkj->mik", x, given[n])  # m C C
      return y + rows(seen, steps[n])

    def end(weights, n):
      return write(given[n], weights[:, -1][..., None] * steps[n])

    o, _ = network(q, after, depth)
    old, begun, whole, fresh, push, slow = (  # at the chunk's end: m 1 1
      x[:, -1:] for x in (old, begun, whole, fresh, push, slow)
    )
    new_G, new_M, new_S = [], [], []
    for n in range(depth):
      later = jnp.where(begun, W[n], middle[n])
      new_G.append(jnp.where(old, G[n], later))
      past = whole * M[n] + fresh * W[n] + push * S[n]
      new_M.append(past + end(sums, n))
      new_S.append(slow * S[n] + end(slows, n))
    return tuple(map(tuple, (new_G, new_M, new_S))), o.astype(q.dtype)

  carry = jax.tree.map(lambda x: x.reshape(B * H, *x.shape[2:]), tuple(state))
  carry, o = jax.lax.scan(step, carry, xs)
  carry = jax.tree.map(lambda x: x.reshape(B, H, *x.shape[1:]), carry)
  return chunks.merge(o, B, T), (*carry, at[:, -1] + 1)


def start(W, v, state):
  """The state; of documents that have not begun, W."""
  B = v.shape[0]
  if state is None:
    zeros = tuple(jnp.zeros((B, *w.shape), jnp.float32) for w in W)
    state = zeros, zeros, zeros, jnp.zeros(B, jnp.int32)
  G, M, S, count = state
  none = (count == 0)[:, None, None, None]

  def or_start(M):
    return tuple(jnp.where(none, w[None], m) for w, m in zip(W, M, strict=True))

  return or_start(G), or_start(M), tuple(S), count


TWINS = {"titans": {"reference": reference, "chunked": chunked}}


def example(draw, B, T, H, K):
  q, k, v = (draw(B, T, H, K) for _ in range(3))
  rate, momentum, keep = (draw(B, T, H) for _ in range(3))
  x = dict(q=unit(q), k=unit(k), v=v, rate=jax.nn.sigmoid(rate) / 8)
  x |= dict(momentum=jax.nn.log_sigmoid(momentum))
  x |= dict(keep=jax.nn.log_sigmoid(keep + 3))
  return {"titans": x | dict(W=tuple(draw(H, K, K) / K**0.5 for _ in "12"))}
