"""Hyena: a convolution as long as the text between two gates.

  a, b, v = conv(u W_in + b_in)
  s = b v,  y_t = sum_j k_j s_{t-j} + skip s_t                     j < length
  out = (a y) W_out + b_out
  k_j = exp(-|delta| j / (length - 1)) (f(f(f(z_j W_1)) W_2) W_3) W_4
  f(p) = sin(w p),  biases in W_1 to W_3,  one w for all three

Poli et al. 2023, https://arxiv.org/abs/2302.10866, definition 3.1 with order 2
and section 3.3; parameters and their start as in HazyResearch/safari, models/
sequence/hyena.py and long_conv_lm.py, with the sizes of configs/experiment/
pile/hyena.yaml: normal of 0.02, over sqrt(2 depth) in W_out, biases 0, skip
normal, w 14. z_j, time and the waves exp(-2 pi i f j / length), is a parameter
there and here; delta, spread evenly so that k falls to 1 % within 0.3 to 1.5 of
the length, is fixed. Weight decay leaves all of k's parameters out.

The state is the last length - 1 of s. The convolution is a product with
Toeplitz matrices of chunks: time grows with the square of the length (an FFT
gives rounding for the zeros of the future), memory does not. Where texts are
packed each chunk is masked by document, which costs as many passes over its
diagonal blocks as the fullest of them holds documents.

B batch  T time  D width  L length  F features of a lag  W filter width
C chunk  M chunks of each of B
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from arch import layers
from arch.recurrence import chunks, diagonal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(layers.Config):
  """
  Attributes:
    conv: taps of the short convolution.
    filter: W, hidden units of the network that makes k.
    features: F, of a lag; odd: time, and sines and cosines in pairs.
    frequency: where w starts.
  """

  conv: int = 3
  filter: int = 64
  features: int = 33
  frequency: float = 14.0

  def __post_init__(self):
    self.positive("conv", "filter")
    if self.features < 3 or self.features % 2 == 0:
      raise ValueError(
        f"hyena: features={self.features} must be odd and at least 3"
      )


def waves(L, F):
  """Time in [0, 1], then cosines and negated sines: L F."""
  bands = (F - 1) // 2
  angle = 2 * jnp.pi * jnp.arange(L) / L
  angle = angle[:, None] * jnp.linspace(1e-4, bands - 1, bands)[None]
  time = jnp.linspace(0, 1, L)[:, None]
  return jnp.concatenate([time, jnp.cos(angle), -jnp.sin(angle)], 1)


class Filter(nnx.Module):
  def __init__(self, cfg, *, rngs):
    D, F, W = cfg.dim, cfg.features, cfg.filter
    normal = nnx.initializers.normal(0.02)
    kw = dict(dtype="float32", rngs=rngs, init=normal, role=layers.Gate)
    self.z = layers.Gate(waves(cfg.length, F))
    self.first = layers.Linear(F, W, bias=True, **kw)
    self.second = layers.Linear(W, W, bias=True, **kw)
    self.third = layers.Linear(W, W, bias=True, **kw)
    self.last = layers.Linear(W, D, **kw)
    self.w = layers.Vector(jnp.full(W, cfg.frequency, jnp.float32))

  def __call__(self):
    """k, L D."""
    k = self.z[...]
    # bfloat16 passes, which a TPU takes for float32, would be 14 times as
    # coarse in a sine
    with jax.default_matmul_precision("highest"):
      for layer in (self.first, self.second, self.third):
        k = jnp.sin(self.w[...][None] * layer(k))
      k = self.last(k)
    L, D = k.shape
    fall = -math.log(1e-2)
    delta = jnp.linspace(fall / 1.5, fall / 0.3, D)
    return k * jnp.exp(-jnp.linspace(0, 1, L)[:, None] * delta[None])


class Mixer(nnx.Module):
  def __init__(self, cfg, *, layer, rngs):
    self.cfg = cfg
    D = cfg.dim
    kw = dict(dtype=cfg.compute, rngs=rngs, bias=True)
    normal = nnx.initializers.normal
    self.in_proj = layers.Linear(D, 3 * D, init=normal(0.02), **kw)
    self.conv = layers.ShortConv(3 * D, cfg.conv, **kw)
    self.filter = Filter(cfg, rngs=rngs)
    self.skip = layers.Gate(jax.random.normal(rngs.params(), (D,)))
    residual = normal(0.02 * (2 * cfg.depth) ** -0.5)
    self.out_proj = layers.Linear(D, D, init=residual, **kw)

  def init_state(self, batch, length=None):
    L = min(length or self.cfg.length, self.cfg.length)
    past = jnp.zeros((batch, L - 1, self.cfg.dim), self.cfg.compute)
    return {"conv": self.conv.init_state(batch), "past": past}

  def __call__(self, u, reset, state):
    state = state or {"conv": None, "past": None}
    x, conv = self.conv(self.in_proj(u), reset, state["conv"])
    a, b, v = jnp.split(x, 3, -1)
    s = b * v
    y, past = convolve(self.filter(), s, reset, state["past"])
    y += self.skip[...][None, None] * s.astype(jnp.float32)
    return self.out_proj(a * y.astype(a.dtype)), {"conv": conv, "past": past}


def convolve(k, s, reset, past, chunk=64):
  """y_t = sum_j k_j s_{t-j} inside a document, and the last of s.

  k: L D float32, s: B T D, past: the P of s before it, or None for zeros.
  """
  B, T, D = s.shape
  if past is None:
    past = jnp.zeros((B, len(k) - 1, D), s.dtype)
    seen = 0
  else:
    seen = past.shape[1]
  document = jnp.zeros((B, T), jnp.int32)
  if reset is not None:
    document = jnp.cumsum(reset, 1, dtype=jnp.int32)
  whole = jnp.concatenate([past, s], 1)
  before = jnp.pad(document, ((0, 0), (past.shape[1], 0)))
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
    x = x[:, x.shape[1] - T - seen :]
    x = jnp.pad(x, ((0, 0), (front, 0), (0, 0)))
    x = jnp.pad(x, ((0, 0), (0, end), (0, 0)), mode=mode)
    return x.reshape(B, lags + n, C, -1).transpose(3, 2, 0, 1)

  # B outside the chunks: its shares stay on their devices
  x = by_chunk(whole.astype(jnp.float32))  # D C B M
  blocks = jnp.pad(
    k[: lags * C + C], ((C, max(0, lags * C + C - len(k))), (0, 0))
  )
  blocks = blocks.reshape(lags + 2, C, D).swapaxes(1, 2)
  now = x[..., lags:].reshape(D, C, B * n)
  matrix = diagonal.toeplitz(blocks[1])
  if reset is None:
    y = chunks.dot("dji,djm->dim", matrix, now)
  else:
    document = by_chunk(before[..., None], "edge")  # 1 C B M
    inside = document[..., lags:].reshape(1, C, B * n)
    y = diagonal.segmented(matrix, now, inside - inside[:, :1])
    # of the chunks before, only the document at their ends can reach on
    ends = document[:, -1:]
    x *= (document == ends).astype(x.dtype)

  @jax.checkpoint
  def lag(j, x, blocks):
    matrix = diagonal.toeplitz(blocks[j + 1], blocks[j])
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
