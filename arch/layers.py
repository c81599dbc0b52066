"""What two mixers or more use: linear maps, norms, positions, the short causal
convolution.

B batch  T time  D width  H heads  K head width  W convolution width  L levels
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from arch import rows, starts, target
from arch.product import matmul
from arch.recurrence import conv_kernel
from arch.roles import Gate, Matrix, Vector
from arch.weights import dense

DENSE = dense.Weight()


class Linear(nnx.Module):
  """y = x W (+ b), W: d_in x d_out, in the compute dtype.

  Starts from `init` and, with `bias`, from 0 or from what that is. `parts`:
  d_out, or a tuple of widths that add up to it, in which y is answered. `role`:
  of what W is stored as, which is the affair of `kind`, a Weight of
  arch/weights.
  """

  def __init__(
    self,
    d_in,
    parts,
    *,
    dtype,
    rngs,
    init=None,
    bias=False,
    role=Matrix,
    kind=DENSE,
  ):
    self.dtype, self.d_in, self.parts, self.kind = dtype, d_in, parts, kind
    init = init or starts.fan_in()
    d_out = sum(self.widths)
    drawn = init(rngs.params(), (d_in, d_out), jnp.float32)
    key = None if kind == DENSE else rngs.params()
    leaves = kind.start(drawn, self.widths, key)
    self.leaves = tuple(leaves)
    for name, leaf in leaves.items():
      setattr(self, name, role(leaf))
    start = jnp.zeros(d_out)
    if callable(bias):
      start = bias(rngs.params(), (d_out,))
    self.bias = Vector(start) if bias else None

  @property
  def widths(self):
    return self.parts if isinstance(self.parts, tuple) else (self.parts,)

  def stored(self) -> dict:
    return {name: getattr(self, name)[...] for name in self.leaves}

  @property
  def own(self):
    """The Difference of a loop's pass, or None."""
    return getattr(self, "difference", None)

  def matrix(self):
    """W, be it made for this."""
    W = self.kind.matrix(self.stored(), self.widths, self.d_in)
    return W if self.own is None else W + self.own.matrix()

  def __call__(self, x):
    # of two axes: a batched product costs XLA half as much again on a CPU
    y = x.astype(self.dtype).reshape(-1, self.d_in)
    more = None if self.own is None else self.own(y)
    y = self.kind.product(self.stored(), self.widths, y)
    if more is not None:
      y += more
    if self.bias is not None:
      y += self.bias[...].astype(self.dtype)[None]
    y = y.reshape(*x.shape[:-1], -1)
    if not isinstance(self.parts, tuple):
      return y
    return tuple(jnp.split(y, np.cumsum(self.parts)[:-1], -1))


class Difference(nnx.Module):
  """x A B, C d_in -> C d_out, B from 0: what a pass of a loop has to itself of
  a map that all passes share."""

  def __init__(self, d_in, d_out, rank, *, rngs):
    self.A = Matrix(starts.fan_in()(rngs.params(), (d_in, rank)))
    self.B = Matrix(jnp.zeros((rank, d_out)))

  def __call__(self, x):
    return (x @ self.A[...].astype(x.dtype)) @ self.B[...].astype(x.dtype)

  def matrix(self):
    return self.A[...] @ self.B[...]


class Linears(nnx.Module):
  """E maps of one shape, each stored as one of `Linear` is."""

  def __init__(self, E, d_in, d_out, *, rngs, init, kind=DENSE):
    self.kind, self.d_in, self.d_out = kind, d_in, d_out

    def start(key):
      drawn = init(key, (d_in, d_out), jnp.float32)
      return kind.start(drawn, (d_out,), jax.random.fold_in(key, 0))

    leaves = jax.vmap(start)(jax.random.split(rngs.params(), E))
    self.leaves = tuple(leaves)
    for name, leaf in leaves.items():
      setattr(self, name, Matrix(leaf))

  def matrix(self):
    """E d_in d_out."""

    def one(leaves):
      return self.kind.matrix(leaves, (self.d_out,), self.d_in)

    return jax.vmap(one)({n: getattr(self, n)[...] for n in self.leaves})


def beside(x, *maps):
  """What maps of one width answer to x: one product, where they are dense, and
  then value and gradient take three quarters of the time."""
  if any(m.kind != DENSE or m.own is not None for m in maps):
    return tuple(m(x) for m in maps)
  y = x.astype(maps[0].dtype).reshape(-1, x.shape[-1])
  wide = jnp.concatenate([m.matrix() for m in maps], 1)
  y = matmul(y, wide.astype(y.dtype)).reshape(*x.shape[:-1], -1)
  return tuple(jnp.split(y, len(maps), -1))


def normalise(x, eps: float):
  """x / sqrt(mean x^2 + eps) over the last axis, in float32."""
  # of two axes: XLA's reductions on a CPU take ten times as long over a shape
  # with an axis of one
  flat = x.astype(jnp.float32).reshape(-1, x.shape[-1])
  power = jnp.mean(flat * flat, -1, keepdims=True)
  return (flat * jax.lax.rsqrt(power + eps)).reshape(x.shape)


def unit(x):
  """x / sqrt(|x|^2 + 1e-6) over the last axis, in float32."""
  K = x.shape[-1]
  return normalise(x, 1e-6 / K) * K**-0.5


def shift(x, reset, first):
  """x of the token before: `first` (B D) for the first, 0 at a reset."""
  before = jnp.concatenate([first[:, None], x[:, :-1]], 1)
  if reset is None:
    return before
  return jnp.where(reset[..., None], jnp.zeros((), x.dtype), before)


def positions(reset, before, time):
  """B T, the tokens of its document before each. before: B, the first's."""
  t = jnp.arange(time)[None]
  first = jnp.broadcast_to(-before[:, None], (before.shape[0], time))
  if reset is not None:
    first = jax.lax.cummax(jnp.where(reset, t, first), 1)
  return t - first


def rotary(x, position, base=10_000.0):
  """Turns the pairs (x_i, x_{i + K/2}) by position * base^(-2i / K).

  Su et al. 2021, https://arxiv.org/abs/2104.09864, eq. 34, in the halves
  layout of GPT-NeoX and Llama. Angles are int32 in units of 2^-32 turns, which
  wrap as turns do: 1e-6 off at any position, where a float32 product is 0.03
  off at a million. The rates are rounded to such a unit a token.

  Args:
    x: B T H K with even K.
    position: B T int32.
  """
  K = x.shape[-1]
  turn = base ** (-np.arange(0, K, 2) / K) / (2 * np.pi)
  turn = jnp.asarray(np.round(turn * 2**32), jnp.int32)
  angle = (position[..., None] * turn[None, None]).astype(jnp.float32)
  angle = angle[:, :, None] * (2 * np.pi / 2**32)  # B T 1 K/2
  sin, cos = jnp.sin(angle), jnp.cos(angle)
  if target.now().halves:
    a, b = (h.astype(jnp.float32) for h in jnp.split(x, 2, -1))
    turned = a * cos - b * sin, b * cos + a * sin
    return jnp.concatenate([h.astype(x.dtype) for h in turned], -1)
  sin, cos = jnp.concatenate([-sin, sin], -1), jnp.concatenate([cos, cos], -1)
  x32 = x.astype(jnp.float32)
  return (x32 * cos + jnp.roll(x32, K // 2, -1) * sin).astype(x.dtype)


def along(vector, x):
  """The vector on x's last axis, its other axes written out."""
  return vector.reshape(*[1] * (x.ndim - 1), -1)


class RMSNorm(nnx.Module):
  """w x / sqrt(mean x^2 + eps), in float32, answered in x's dtype.

  Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467, eq. 4. With `plus`
  the parameter is w - 1, as in Gemma; a `plain` one has none, w = 1.
  """

  def __init__(self, dim, *, eps=1e-6, plus=False, plain=False):
    self.eps, self.plus = eps, plus
    start = jnp.zeros(dim) if plus else jnp.ones(dim)
    self.weight = None if plain else Vector(start)

  def __call__(self, x):
    y = normalise(x, self.eps)
    if self.weight is not None:
      weight = self.weight[...] + 1 if self.plus else self.weight[...]
      y = y * along(weight, x)
    return y.astype(x.dtype)


def standardise(x, eps: float):
  """(x - mean x) / sqrt(var x + eps) over the last axis, in float32."""
  flat = x.astype(jnp.float32).reshape(-1, x.shape[-1])  # see normalise
  centred = flat - jnp.mean(flat, -1, keepdims=True)
  return normalise(centred, eps).reshape(x.shape)


class LayerNorm(nnx.Module):
  """w (x - mean x) / sqrt(var x + eps) + b, in float32, answered in x's dtype.

  Ba, Kiros and Hinton 2016, https://arxiv.org/abs/1607.06450, eq. 3.
  """

  def __init__(self, dim, *, eps=1e-5):
    self.eps = eps
    self.weight, self.bias = Vector(jnp.ones(dim)), Vector(jnp.zeros(dim))

  def __call__(self, x):
    y = standardise(x, self.eps) * along(self.weight[...], x)
    return (y + along(self.bias[...], x)).astype(x.dtype)


class HeadNorm(nnx.Module):
  """LayerNorm of each head by itself, ... H V -> ... H V, in float32.

  Wu and He 2018, https://arxiv.org/abs/1803.08494: group normalisation, with
  statistics of one token.
  """

  def __init__(self, heads, dim, *, eps=1e-5, bias=True):
    self.eps = eps
    self.weight = Vector(jnp.ones((heads, dim)))
    self.bias = Vector(jnp.zeros((heads, dim))) if bias else None

  def __call__(self, x):
    wide = (1,) * (x.ndim - 2)
    y = standardise(x, self.eps) * self.weight[...].reshape(
      *wide, *x.shape[-2:]
    )
    if self.bias is not None:
      y += self.bias[...].reshape(*wide, *x.shape[-2:])
    return y.astype(x.dtype)


NORMS = {
  "rms": RMSNorm,
  "rms_plus": functools.partial(RMSNorm, plus=True),
  "rms_plain": functools.partial(RMSNorm, plain=True),
  "layer": LayerNorm,
}


class ShortConv(nnx.Module):
  """Depthwise causal convolution y_t = sum_j w_j x_{t-W+1+j} (+ b).

  Never reaches across a document's first token. Starts as torch.nn.Conv1d
  does, both uniform in +-1 / sqrt(W), or w as `init` has it, W D, and b at 0.
  The state is the last W - 1 inputs, zero where they belong to an earlier
  document.
  """

  def __init__(self, dim, width, *, dtype, rngs, init=None, bias=True):
    self.dim, self.width, self.dtype = dim, width, jnp.dtype(dtype)
    start = init or starts.uniform(1 / math.sqrt(width))
    self.weight = Vector(start(rngs.params(), (width, dim), jnp.float32))
    if bias:
      b = jnp.zeros(dim) if init else start(rngs.params(), (dim,), jnp.float32)
    self.bias = Vector(b) if bias else None

  def init_state(self, batch):
    return jnp.zeros((batch, self.width - 1, self.dim), self.dtype)

  def __call__(self, x, reset, state, silu=False):
    """y, or its SiLU, and the state after x; None is a fresh one."""
    B, T, _ = x.shape
    W = self.width
    if state is None and target.now().kernels and rows.known(x):
      if not conv_kernel.refused(x, W):
        return self.kernels(x.astype(self.dtype), reset, silu)
    if state is None:
      state = self.init_state(B)
    x = jnp.concatenate([state, x.astype(self.dtype)], 1)  # B W-1+T D
    weight = self.weight[...].astype(self.dtype)
    if reset is None:
      taps = (x[:, j : j + T] for j in range(W))
      kept = x[:, T:]
    else:
      document = jnp.cumsum(reset, 1, dtype=jnp.int32)
      document = jnp.pad(document, ((0, 0), (W - 1, 0)))
      now = document[:, W - 1 :]

      def same(past, present):  # zero what an earlier document left
        part = jnp.where(document[:, past] == present, 1, 0)
        return x[:, past] * part[..., None].astype(self.dtype)

      taps = (same(slice(j, j + T), now) for j in range(W))
      kept = same(slice(T, None), now[:, -1:])
    y = sum(tap * weight[j][None, None] for j, tap in enumerate(taps))
    if self.bias is not None:
      y = y + self.bias[...].astype(self.dtype)[None, None]
    return jax.nn.silu(y) if silu else y, kept

  def kernels(self, x, reset, silu):
    weight = self.weight[...].astype(self.dtype)
    bias = 0 * weight[0]
    if self.bias is not None:
      bias = self.bias[...].astype(self.dtype)
    document = jnp.zeros(x.shape[:2], jnp.int32)
    if reset is not None:
      document = jnp.cumsum(reset, 1, dtype=jnp.int32)
    last = 1 - self.width
    same = jnp.where(document[:, last:] == document[:, -1:], 1, 0)

    def run(x, weight, bias):
      return conv_kernel.convolved(x[0], weight, bias, x[1], silu)

    y = rows.kernel(run, (x, document), weight, bias)
    return y, x[:, last:] * same[..., None].astype(x.dtype)


class Levels(nnx.Module):
  """softplus(L l), l = u W: B T H L in float32."""

  def __init__(self, cfg, heads, *, rngs):
    levels = cfg.levels or max(2, math.ceil(math.log2(cfg.length)) + 1)
    init = nnx.initializers.normal(cfg.deviation)
    self.proj = cfg.linear(cfg.dim, heads * levels, init=init, rngs=rngs)
    self.L = Gate(jnp.ones((heads, levels)))

  def __call__(self, u):
    x = self.proj(u).astype(jnp.float32).reshape(*u.shape[:2], *self.L.shape)
    return jax.nn.softplus(self.L[...][None, None] * x)
