"""The k rows of n^2 whose keys answer a query highest, found among 2 n.

  s_ab = q_1 . K_1a + q_2 . K_2b,  a, b = 1..n

Lample et al. 2019, https://arxiv.org/abs/1907.05242, sec. 3.2: a pair among the
k largest sums has both its halves among the k largest of theirs, so k^2 sums
are enough and the answer is exact. Their norm of the queries is over the batch,
which shows a token what comes after it; here it is over half a query, as in
lucidrains/product-key-memory.

N tokens  D width  H heads  n keys of each half  d width of a half  k rows
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from arch import layers, roles, starts
from arch.product import product


class Keys(nnx.Module):
  def __init__(self, cfg, *, rngs):
    H, n, d = cfg.heads, cfg.keys, cfg.d
    # in float32, as routers are: near scores choose other rows in bfloat16
    kw = dict(dtype="float32", kind=cfg.weight, rngs=rngs)
    self.query = layers.Linear(cfg.dim, H * 2 * d, **kw)
    self.norm = layers.LayerNorm(d) if cfg.query_norm else None
    draw = starts.uniform(1 / math.sqrt(d))
    self.keys = roles.Table(draw(rngs.params(), (H, 2, n, d)))

  def __call__(self, x):
    """How all keys answer, B T H 2 n in float32."""
    H, _, n, d = self.keys.shape
    q = self.query(x).reshape(-1, H, 2, d)
    if self.norm is not None:
      q = self.norm(q)
    scores = product("nhsd,hskd->nhsk", q, self.keys[...])
    return scores.reshape(*x.shape[:-1], H, 2, n)


def read(k: int, answer, scores, x, *tables):
  """sum_h sum_k of what the chosen rows answer, B T D in x's dtype.

  A head at a time, whose rows are gathered again in the pass backward: what is
  in memory at once is N k D.

  Args:
    answer: (x N D, shares N k that sum to 1, the rows of each table N k D) ->
      N D float32.
  """
  H, _, n = scores.shape[2:]
  tokens = x.reshape(-1, x.shape[-1])
  top, row = largest(scores.reshape(-1, H, 2, n).swapaxes(0, 1), k)

  @jax.checkpoint
  def head(total, at):
    top, row = at
    own = (t[row].astype(x.dtype) for t in tables)
    return total + answer(tokens, jax.nn.softmax(top, -1), *own), None

  start = jnp.zeros(tokens.shape, jnp.float32)
  y, _ = jax.lax.scan(head, start, (top, row))
  return y.astype(x.dtype).reshape(x.shape)


def largest(scores, k: int):
  """The k largest sums ... k of ... 2 n halves, and their a n + b, int32."""
  n = scores.shape[-1]
  half, at = jax.lax.top_k(scores, min(k, n))
  sums = half[..., 0, :, None] + half[..., 1, None, :]
  row = at[..., 0, :, None] * n + at[..., 1, None, :]
  flat = (*sums.shape[:-2], -1)
  top, chosen = jax.lax.top_k(sums.reshape(flat), k)
  return top, jnp.take_along_axis(row.reshape(flat), chosen, -1)
