"""Log-linear attention: a state for every power of two of the tokens so far.

  S_t = (exp g_t - k_t b_t^T) S_{t-1} + k_t v_t^T       without b: exp g_t alone
  o_t = sum over levels l of scale_t[l] (the part of S_t of level l)^T q_t

Token s is of level l(t, s) at t, the number of binary digits of p_t xor p_s,
with p the position in the document: 0 for t itself, and 1 + n for the 2^n
tokens that digit n of p_t counts (a Fenwick tree). Levels beyond the last one
share it. So S_t is the sum of N = L - 1 states, and a token is an increment of
a binary counter: the states of its trailing ones become one.

  q, k: B T G K, and G groups divide the H heads; v: B T H V, its dtype is that
  of q, k and of o
  g: B T H, <= 0; scale: B T H L; b: B T H K as in delta.py, or None
  reset: B T bool, True at a first token, or None
  state: (S: B H K N V float32, count: B int32, the tokens read), or None: 0

Guo et al. 2025, https://arxiv.org/abs/2506.04761, sections 3.1 to 3.4. Their
chunks stand still where documents move; here levels are those of a document.

A chunk of C tokens reads itself and the C before it as attention, under a mask
of levels. What is older is in states of C tokens and more, which are merged
once a chunk. Smaller states are between two calls only: the first chunk reads
them, the last one writes them. Time and memory are T log T.

B batch, T time, G groups, R heads a group, H = G R heads, K key width,
V value width, L levels, N states, C chunk, m = B H rows
"""

import functools

import jax
import jax.numpy as jnp

from arch.layers import positions, unit
from arch.recurrence import chunks


def reference(q, k, v, g, scale, b=None, reset=None, state=None):
  f32, R, N = jnp.float32, check(q, v, b), scale.shape[-1] - 1
  q, k = (jnp.repeat(x, R, axis=2) for x in (q, k))
  b = jnp.zeros_like(k) if b is None else b
  S, count = state or fresh(k, v, N)
  states = jnp.arange(N)
  keep = chunks.where_reset(reset, False, jnp.ones(v.shape[:2], bool))

  def step(carry, x):
    q, k, v, w, scale, b, keep = x
    S = jnp.where(keep.reshape(-1, 1, 1, 1, 1), carry[0], 0)
    count = jnp.where(keep, carry[1], 0)
    bS = chunks.dot("bhk,bhknv->bhnv", b, S)
    S = w[..., None, None, None] * S - chunks.dot("bhk,bhnv->bhknv", k, bS)
    new = chunks.dot("bhk,bhv->bhkv", k, v)
    parts = jnp.concatenate([new[..., None, :], S], axis=3)
    read = (scale[:, :, None, :, None] * parts).sum(3)
    to = last(count ^ (count + 1), N)
    S = merge(S, to, states) + spread(new, to[:, None, None], states)
    return (S, count + 1), chunks.dot("bhk,bhkv->bhv", q, read)

  xs = [x.astype(f32) for x in (q, k, v, jnp.exp(g.astype(f32)), scale, b)]
  xs = [x.swapaxes(0, 1) for x in (*xs, keep)]
  state, o = jax.lax.scan(step, (S, count), xs)
  return o.swapaxes(0, 1).astype(v.dtype), state


def chunked(q, k, v, g, scale, b=None, reset=None, state=None, chunk=64):
  B, T, H, V = v.shape
  R, N = check(q, v, b), scale.shape[-1] - 1
  C = chunks.size(T, chunk)
  n = -(-T // C)
  low = min(C.bit_length(), N) - 1  # the first state of C tokens or more
  S, count = state or fresh(k, v, N)
  # jaxlib 0.10.2 sums a product with zeros that it sees to garbage on a CPU
  S = jax.lax.optimization_barrier(S)
  at = positions(reset, count, T)
  g = chunks.where_reset(reset, -jnp.inf, g.astype(jnp.float32))
  b = None if b is None else chunks.where_reset(reset, 0, b)
  rows = jnp.broadcast_to(at[..., None], (B, T, H))
  xs = q, k, v, g, scale.astype(jnp.float32), rows, b
  xs = jax.tree.map(lambda x: chunks.cut(x, C), xs)  # n m C ...

  def dot(formula, x, y):
    return chunks.dot(formula, x.astype(v.dtype), y.astype(v.dtype))

  def step(carry, x, first=False, final=False):
    S, past = carry  # m K N V; W m C K, v m C V and at m C of the chunk before
    q, k, v, g, scale, at, b = x
    A, reads, W, through = within(q, k, g, b, R, dot)
    o = dot("mij,mjv->miv", A * select(scale, between(at, at)), v)
    if not first:
      A = dot("mik,mjk->mij", reads, past[0])
      A *= select(scale, between(at, past[2]))
      o += dot("mij,mjv->miv", A, past[1])
    level = jnp.arange(0 if first else low, N)[None, None] + 1
    level = jnp.maximum(level, between(at, at[:, :1]))  # m C N
    parts = dot("mik,mkx->mix", reads, S.reshape(*S.shape[:2], -1))
    parts = parts.reshape(*level.shape, -1)  # m C N V
    o += (select(scale, level)[..., None] * parts).sum(2)

    # what this chunk read and wrote, to the states that it leaves behind
    tokens = T - (n - 1) * C if final else C
    end = at[:, tokens - 1] + 1
    start = jnp.maximum(end - tokens, 0)  # 0 where a document begins here
    if final and not first:
      S = jnp.pad(S, ((0, 0), (0, 0), (low, 0), (0, 0)))
    states = jnp.arange(N - S.shape[2], N)
    carry_to = last(start ^ end, N)

    def write(W, v, at):
      """What tokens add to the states, and those that still wait."""
      to = last(at ^ end[:, None], N)
      if final:
        return dot("mjk,mjnv->mknv", W, spread(v, to, states)), None
      waits = (to < low)[..., None]
      new = dot("mjk,mjv->mkv", jnp.where(waits, 0, W), v)
      new = spread(new, carry_to[:, None], states)
      return new, (jnp.where(waits, W, 0), v, at)

    S = merge(S, carry_to, states)
    if not first:
      S += write(*past)[0]
    new, past = write(W, v, at)
    S = through(S) + new
    if first and not final:
      S = S[:, :, low:]
    return (S, past), o.astype(v.dtype)

  def run(carry, xs, **which):
    return jax.checkpoint(functools.partial(step, **which))(carry, xs)

  def part(i):
    return jax.tree.map(lambda x: x[i], xs)

  carry = S.reshape(B * H, *S.shape[2:]), None
  carry, o = run(carry, part(0), first=True, final=n == 1)
  o = [o[None]]
  if n > 2:
    carry, middle = jax.lax.scan(run, carry, part(slice(1, -1)))
    o.append(middle)
  if n > 1:
    carry, end = run(carry, part(-1), final=True)
    o.append(end[None])
  o = chunks.merge(jnp.concatenate(o), B, T)
  return o, (carry[0].reshape(S.shape), at[:, -1] + 1)


def within(q, k, g, b, R, dot):
  """A chunk by itself.

  Returns:
    A: m C C, o = A v + reads S; W: m C K, what each token has written at the
    end, W^T v; and what becomes of S until then.
  """
  q, k = q.astype(jnp.float32), k.astype(jnp.float32)
  D, P, Q = chunks.decays(g)
  total = P[:, -1:, :, None]
  A = D * jnp.repeat(dot("mik,mjk->mij", q, k), R, axis=0)
  reads, W = P * jnp.repeat(q, R, axis=0), Q * jnp.repeat(k, R, axis=0)
  if b is None:
    return A, reads, W, lambda S: total * S
  inverse = -chunks.later(D, 0) * dot("mik,mjk->mij", b, k)
  inverse = chunks.inverse(inverse)
  b = chunks.later(P, 1) * b.astype(jnp.float32)
  A = dot("mij,mjk->mik", A, inverse)
  reads -= dot("mij,mjk->mik", A, b)
  W = dot("mji,mjk->mik", inverse, W)

  def through(S):
    bS = dot("mik,mkx->mix", b, S.reshape(*S.shape[:2], -1))
    return total * S - dot("mik,mix->mkx", W, bS).reshape(S.shape)

  return A, reads, W, through


def digits(x):
  """How many binary digits x >= 0 has."""
  return 32 - jax.lax.clz(x)


def last(x, N):
  """The state of the last digit of x, of N."""
  return jnp.minimum(digits(x), N) - 1


def between(at, before):
  """The level of each token of `before` at each of `at`."""
  return digits(at[:, :, None] ^ before[:, None])


def select(scale, level):
  """scale: m C L, level: m C J -> m C J."""
  L = scale.shape[-1]
  level = jnp.minimum(level, L - 1)
  parts = (jnp.where(level == n, scale[..., n, None], 0) for n in range(L))
  return sum(parts)


def merge(S, to, states):
  """Those of `states` up to `to` (B, or m) become one. S: B ... n V."""
  states = states.reshape(*[1] * (S.ndim - 2), -1, 1)
  to = to.reshape(-1, *[1] * (S.ndim - 1))
  one = jnp.where(states <= to, S, 0).sum(-2, keepdims=True)
  return jnp.where(states < to, 0, jnp.where(states == to, one, S))


def spread(x, to, states):
  """x: ... J V, each in its state `to` (... J, or one): ... J n V."""
  here = to[..., None] == states.reshape(*[1] * to.ndim, -1)
  return jnp.where(here[..., None], x[..., None, :], 0)


def fresh(k, v, N):
  B, _, H, V = v.shape
  S = jnp.zeros((B, H, k.shape[-1], N, V), jnp.float32)
  return S, jnp.zeros(B, jnp.int32)


def check(q, v, b):
  """Heads a group."""
  H, G = v.shape[2], q.shape[2]
  if H % G or (b is not None and H != G):
    rule = "be" if b is not None else "divide"
    raise ValueError(f"q and k have {G} groups, which must {rule} {H} heads")
  return H // G


TWINS = {"log-linear": {"reference": reference, "chunked": chunked}}


def example(draw, B, T, H, K):
  q, k, v = (draw(B, T, H, K) for _ in range(3))
  k, g = unit(k), jax.nn.log_sigmoid(draw(B, T, H) + 3)
  levels = (T - 1).bit_length() + 1
  scale = jax.nn.softplus(draw(B, T, H, levels))
  x = dict(q=q, k=k, v=v, g=g, scale=scale)
  return {"log-linear": x, "log-linear, b": x | dict(b=k)}
