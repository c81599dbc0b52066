"""TTT-Linear: a matrix that each mini-batch of tokens trains by one step.

  e_t = d/dz |norm(z) - v_t|^2 / 2  at  z = k_t W
  dW_t = dW_{t-1} + rate_t k_t^T e_t
  z_t = q_t (W - share_t dW_t)
  norm(z) = scale (z - mean z) / sqrt(var z + 1e-6) + bias

W is that at the start of the token's mini-batch, of n tokens of its document,
and share_t the share of its place there. Where the next one starts, W -=
share_n dW and dW = 0; where a document does, W is the one that is given.

  q, k: B T H K; v, which norm(z) should be, and z: B T H V; all of one dtype
  rate: B T H; share: n; W: H K V; scale, bias: H V
  reset: B T bool, True at a first token, or None
  state: (W, dW: B H K V float32, count: B int32, the tokens read), or None

Sun et al. 2024, https://arxiv.org/abs/2407.04620, sections 2.3 to 2.5 and 2.7;
a last column of ones in q and k makes the last row of W the inner model's bias.

In the dual form a mini-batch is attention, and its W_t do not exist. A chunk of
n tokens need not be a mini-batch: it is cut where its document's meet, once at
most, and where documents do. So it reads the W before the cut, that after it,
and the one documents start from.

B batch, T time, H heads, K key width, V value width, n mini-batch, C chunk,
m = B H rows
"""

import jax
import jax.numpy as jnp

from arch import layers
from arch.layers import positions
from arch.recurrence import chunks
from arch.recurrence.gated import fresh


def norm(z, scale, bias):
  return layers.standardise(z, 1e-6) * scale + bias


def error(z, v, scale, bias):
  """The gradient of |norm(z) - v|^2 / 2."""
  y, back = jax.vjp(lambda z: norm(z, scale, bias), z)
  return back(y - v)[0]


def reference(q, k, v, rate, share, W, scale, bias, reset=None, state=None):
  f32, init = jnp.float32, W[None]
  state, places = begin(k, v, share, W, reset, state)

  def step(carry, x):
    q, k, v, rate, share_t, new, first = x
    W, dW = carry
    new, first, share_t = (
      x[..., None, None, None] for x in (new, first, share_t)
    )
    W = jnp.where(first, init, jnp.where(new, W - share[-1] * dW, W))
    dW = jnp.where(new, 0, dW)
    e = error(chunks.dot("bhk,bhkv->bhv", k, W), v, scale[None], bias[None])
    dW += chunks.dot("bhk,bhv->bhkv", rate[..., None] * k, e)
    return (W, dW), chunks.dot("bhk,bhkv->bhv", q, W - share_t * dW)

  xs = [x.astype(f32) for x in (q, k, v, rate)]
  xs = [x.swapaxes(0, 1) for x in (*xs, *places)]
  carry, z = jax.lax.scan(step, state[:2], xs)
  return z.swapaxes(0, 1).astype(v.dtype), (*carry, state[2])


def chunked(q, k, v, rate, share, W, scale, bias, reset=None, state=None):
  B, T, H, V = v.shape
  f32, C = jnp.float32, chunks.size(T, share.shape[0])
  state, places = begin(k, v, share, W, reset, state)
  places = (jnp.broadcast_to(x[..., None], (B, T, H)) for x in places)
  xs = [x.astype(f32) for x in (q, k, v, rate)]
  xs = [chunks.cut(x, C) for x in (*xs, *places)]  # n m C ...
  init = jnp.tile(W, (B, 1, 1))  # m K V
  scale, bias = (jnp.tile(x, (B, 1))[:, None] for x in (scale, bias))
  causal = jnp.tril(jnp.ones((C, C), bool))[None]

  def read(x, W):
    return chunks.dot("mik,mkv->miv", x, W)

  def write(k, e):
    return chunks.dot("mik,miv->mkv", k, e)

  @jax.checkpoint
  def step(carry, x):
    W, dW = carry  # m K V
    q, k, v, rate, share_t, new, first = x
    share_t, rk = share_t[..., None], rate[..., None] * k
    part = jnp.cumsum(new, 1)  # 0 for the mini-batch from before
    old = (part == 0)[..., None]  # m C 1
    mine = part == part[:, -1:]
    z, past = read(k, W), read(q, W) - share_t * read(q, dW)  # m C V
    if reset is not None:
      begun = (jnp.cumsum(first, 1) > 0)[..., None]
      z = jnp.where(begun, read(k, init), z)
    e = error(z, v, scale, bias)
    after = W - share[-1] * (dW + write(jnp.where(old, rk, 0), e))
    z, now = read(k, after), read(q, after)
    late = error(z, v, scale, bias)
    if reset is not None:
      late = jnp.where(begun, e, late)
      now = jnp.where(begun, read(q, init), now)
      after = jnp.where(begun[:, -1:], init, after)
    e, z = jnp.where(old, e, late), jnp.where(old, past, now)
    same = causal & (part[:, :, None] == part[:, None])  # m C C
    A = jnp.where(same, chunks.dot("mik,mjk->mij", q, rk), 0)
    z -= share_t * chunks.dot("mij,mjv->miv", A, e)
    W = jnp.where(old[:, -1:], W, after)
    dW = jnp.where(old[:, -1:], dW, 0)
    dW += write(jnp.where(mine[..., None], rk, 0), e)
    return (W, dW), z.astype(v.dtype)

  carry = tuple(x.reshape(B * H, *x.shape[2:]) for x in state[:2])
  carry, z = jax.lax.scan(step, carry, xs)
  carry = (x.reshape(B, H, *x.shape[1:]) for x in carry)
  return chunks.merge(z, B, T).astype(q.dtype), (*carry, state[2])


def begin(k, v, share, W, reset, state):
  """The state at the start, but its count at the end; and for each token, B T,
  its share, whether its mini-batch starts, whether its document does."""
  if state is None:
    state = fresh(k, v), fresh(k, v), jnp.zeros(v.shape[0], jnp.int32)
  past, dW, count = state
  at = positions(reset, count, v.shape[1])
  place = at % share.shape[0]
  past = jnp.where((count == 0)[:, None, None, None], W[None], past)
  state = past, dW, at[:, -1] + 1
  return state, (share[place], place == 0, at == 0)


TWINS = {"ttt": {"reference": reference, "chunked": chunked}}


def example(draw, B, T, H, K):
  q, k, v = (draw(B, T, H, K) for _ in range(3))
  x = dict(q=q, k=k, v=v, rate=jax.nn.sigmoid(draw(B, T, H)) / K)
  x |= dict(share=1 / (1 + jnp.arange(16.0)), W=draw(H, K, K) / K**0.5)
  return {"ttt": x | dict(scale=jnp.ones((H, K)), bias=jnp.zeros((H, K)))}
