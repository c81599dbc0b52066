"""A convolution as long as the text, as products with Toeplitz matrices.

  y_t = sum over j < L of k_j s_{t-j},  s_{t-j} being of t's document

  k: L D float32; s: B T D; y: B T D float32
  reset: B T bool, True at a first token, or None
  state: the last P of s before, B P D, or None for zeros; what is answered has
  as many

Time grows with the square of the length (an FFT gives rounding for the zeros of
the future), memory does not. Where texts are packed each chunk is masked by
document, which costs as many passes over its diagonal blocks as the fullest of
them holds documents.

B batch  T time  D width  L length  C chunk  n chunks  M = B n
"""

import jax
import jax.numpy as jnp

from arch.recurrence import chunks


def reference(k, s, reset=None, state=None):
  B, T, D = s.shape
  past = jnp.zeros((B, len(k) - 1, D), s.dtype) if state is None else state
  P = past.shape[1]
  document = jnp.zeros((B, T), jnp.int32)
  if reset is not None:
    document = jnp.cumsum(reset, 1, dtype=jnp.int32)
  before = jnp.pad(document, ((0, 0), (P, 0)))
  whole = jnp.concatenate([past, s], 1)
  lag = P + jnp.arange(T)[:, None] - jnp.arange(P + T)[None]  # T S
  inside = (lag >= 0) & (lag < len(k))
  kernel = jnp.where(inside[..., None], k[jnp.clip(lag, 0, len(k) - 1)], 0)
  same = document[:, :, None] == before[:, None]  # B T S
  same, f32 = same.astype(k.dtype), whole.astype(k.dtype)
  y = jnp.einsum("bts,tsd,bsd->btd", same, kernel, f32)
  kept = jnp.where((before == document[:, -1:])[..., None], whole, 0)
  return y, kept[:, T:]


def chunked(k, s, reset=None, state=None, chunk=64):
  B, T, D = s.shape
  past = state
  if past is None:
    past = jnp.zeros((B, len(k) - 1, D), s.dtype)
    seen = 0
  else:
    seen = past.shape[1]
  document = jnp.zeros((B, T), jnp.int32)
  if reset is not None:
    document = jnp.cumsum(reset, 1, dtype=jnp.int32)
  whole = jnp.concatenate([past, s], 1)  # B P+T D
  before = jnp.pad(document, ((0, 0), (past.shape[1], 0)))  # B P+T
  last = before == document[:, -1:]
  last = jnp.where(last[..., None], whole, jnp.zeros((), s.dtype))
  new = last[:, T:]
  if T == 1:
    kernel = k[: whole.shape[1]][::-1]
    y = chunks.dot("bld,ld->bd", last.astype(jnp.float32), kernel)
    return y[:, None], new
  C = chunks.size(T, chunk)
  n = -(-T // C)
  lags = min(-(-(len(k) - 1) // C), -(-seen // C) + n - 1)
  front, end = lags * C - seen, n * C - T

  def by_chunk(x, mode="constant"):
    """B P+T D -> D C B lags+n; D may be 1."""
    x = x[:, x.shape[1] - T - seen :]
    x = jnp.pad(x, ((0, 0), (front, 0), (0, 0)))
    x = jnp.pad(x, ((0, 0), (0, end), (0, 0)), mode=mode)
    return x.reshape(B, lags + n, C, -1).transpose(3, 2, 0, 1)

  # B outside the chunks: its shares stay on their devices
  x = by_chunk(whole.astype(jnp.float32))
  blocks = jnp.pad(
    k[: lags * C + C], ((C, max(0, lags * C + C - len(k))), (0, 0))
  )
  blocks = blocks.reshape(lags + 2, C, D).swapaxes(1, 2)  # lags+2 D C
  now = x[..., lags:].reshape(D, C, B * n)  # D C M
  matrix = toeplitz(blocks[1])  # D C C
  if reset is None:
    y = chunks.dot("dji,djm->dim", matrix, now)
  else:
    document = by_chunk(before[..., None], "edge")
    inside = document[..., lags:].reshape(1, C, B * n)  # 1 C M
    y = segmented(matrix, now, inside - inside[:, :1])
    # of the chunks before, only the document at their ends can reach on
    ends = document[:, -1:]  # 1 1 B lags+n
    x *= (document == ends).astype(x.dtype)

  @jax.checkpoint
  def lag(j, x, blocks):
    matrix = toeplitz(blocks[j + 1], blocks[j])
    past = jax.lax.dynamic_slice_in_dim(x, lags - j, n, 3)
    y = chunks.dot("dji,djm->dim", matrix, past.reshape(D, C, B * n))
    if reset is None:
      return y
    end = jax.lax.dynamic_slice_in_dim(ends, lags - j, n, 3)
    return y * (inside == end.reshape(1, 1, B * n)).astype(y.dtype)

  def add(y, j):
    return y + lag(j, x, blocks), None

  y, _ = jax.lax.scan(add, y, jnp.arange(1, lags + 1))
  y = y.reshape(D, C, B, n).transpose(2, 3, 1, 0).reshape(B, n * C, D)
  return y[:, :T], new


def toeplitz(kernel, before=None):
  """D C -> D C C, [j, i] = kernel[i - j], for i < j before[C + i - j] or 0."""
  D, C = kernel.shape
  before = jnp.zeros_like(kernel) if before is None else before
  ring = jnp.concatenate([kernel, before], 1)
  ring = jnp.broadcast_to(ring[:, None], (D, C, 2 * C)).reshape(D, -1)
  # rows one shorter than the ring start one earlier in it each
  return ring[:, : C * (2 * C - 1)].reshape(D, C, 2 * C - 1)[..., :C]


@jax.custom_vjp
def segmented(matrix, x, segment):
  """matrix^T x inside each segment of a chunk: as many passes as segments."""

  def step(s, y):
    keep = (segment == s).astype(x.dtype)
    return y + keep * chunks.dot("dji,djm->dim", matrix, keep * x)

  return jax.lax.fori_loop(0, segment.max() + 1, step, jnp.zeros_like(x))


def segmented_forward(matrix, x, segment):
  return segmented(matrix, x, segment), (matrix, x, segment)


def segmented_backward(saved, dy):
  matrix, x, segment = saved

  def step(s, d):
    dmatrix, dx = d
    keep = (segment == s).astype(x.dtype)
    dmatrix += chunks.dot("djm,dim->dji", keep * x, keep * dy)
    dx += keep * chunks.dot("dji,dim->djm", matrix, keep * dy)
    return dmatrix, dx

  zero = jnp.zeros_like(matrix), jnp.zeros_like(x)
  return *jax.lax.fori_loop(0, segment.max() + 1, step, zero), None


segmented.defvjp(segmented_forward, segmented_backward)


TWINS = {"convolution": {"reference": reference, "chunked": chunked}}


def example(draw, B, T, H, K):
  fall = jnp.exp(-jnp.arange(T) / T)[:, None]
  return {"convolution": dict(k=draw(T, H * K) * fall, s=draw(B, T, H * K))}
