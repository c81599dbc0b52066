"""What two mixers or more use: roles of parameters, linear maps, the norm, the
short causal convolution.

B batch  T time  D width  W convolution width
"""

import collections
import dataclasses
import difflib
import functools
import math
import re
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from flax import nnx

from arch import target


class Matrix(nnx.Param):
  """A dense map, d_in x d_out in its last two axes: weight decay, Muon."""


class Embedding(nnx.Param):
  """A row per symbol."""


class Vector(nnx.Param):
  """Acts elementwise: norm weights, biases, depthwise convolutions."""


class Gate(nnx.Param):
  """Sets a decay, a step size, a skip or a mixture, or is a map to one: never
  decayed towards zero."""


class Buffer(nnx.Variable):
  """Saved and restored, written by the step from `aux`; has no gradient."""


ROLES = (Matrix, Embedding, Vector, Gate)


def closest(given: str, known: Iterable[str]) -> str:
  """The tail of an error about an unknown name: what was probably meant."""
  known = sorted(known)
  near = difflib.get_close_matches(given, known, n=3, cutoff=0.5)
  hint = f"did you mean {' or '.join(map(repr, near))}?" if near else ""
  if len(known) > 100:
    return hint or f"none of the {len(known)} known is like it"
  return f"{hint} Known: {', '.join(known)}.".lstrip()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What the shell tells every mixer and channel mixer.

  Attributes:
    dim: width of the residual stream.
    depth: number of blocks, which scales the initialisation of some.
    length: how many tokens back a mixer without a fixed-size memory looks.
    dtype: compute dtype; parameters are float32.
  """

  dim: int
  depth: int
  length: int
  dtype: str = "float32"

  stream = ()  # keys of the dict that crosses layers; see block.Block
  embedding = False  # whether what it reads has the embedded tokens beside it

  @property
  def compute(self):
    return jnp.dtype(self.dtype)

  @property
  def where(self):
    """How an error names the file: `mamba2`, `channel swiglu`."""
    kind, _, name = type(self).__module__.rpartition(".")
    return f"channel {name}" if kind.endswith("channels") else name

  def positive(self, *fields: str, **derived: str):
    """ValueError unless each of these fields that is set is above 0.

    Args:
      derived: the property that says what a field is, given or not, as in
        heads="count".
    """
    for field, own in ({f: f for f in fields} | derived).items():
      given, value = getattr(self, field), getattr(self, own)
      if value is not None and value <= 0:
        means = "" if given == value else f", {value} at dim={self.dim},"
        raise ValueError(
          f"{self.where}: {field}={given}{means} must be positive"
        )

  def power_of_two(self, field: str):
    """ValueError unless a field is one."""
    given = getattr(self, field)
    if given < 1 or given & (given - 1):
      raise ValueError(f"{self.where}: {field}={given} must be a power of two")

  def among(self, field: str, known: Iterable[str]):
    """ValueError unless a field is one of the known names."""
    given = getattr(self, field)
    if given not in known:
      raise ValueError(
        f"{self.where}: unknown {field}={given!r}: {closest(given, known)}"
      )

  def divide(self, whole: str, part: str) -> int:
    """whole / part, both names of fields; ValueError unless it is exact."""
    self.positive(part, whole)
    w, p = getattr(self, whole), getattr(self, part)
    if w % p:
      below, above = w // p * p, w // p * p + p
      near = f"are {below} and {above}" if below else f"is {above}"
      own = whole in {f.name for f in dataclasses.fields(self)}
      raise ValueError(
        f"{self.where}: {part}={p} must divide {whole}={w}"
        f"{'' if own else f' at dim={self.dim}'}; the nearest {whole} "
        f"{near}"
      )
    return w // p


def product(formula, x, y, precision=None):
  """The einsum of two arrays of one dtype, summed and answered in float32.

  Each letter is once in two or three of the formula's parts, with one size, and
  "..." in front of all parts or of none. Reverse-mode gradients only.

  Raises:
    ValueError: another formula.
  """
  parts = re.split(",|->", formula)
  dotted = {part.startswith("...") for part in parts}
  names = [part.removeprefix("...") for part in parts]
  letters = collections.Counter("".join(names))
  if (
    len(names) != 3
    or len(dotted) > 1
    or any(len(set(n)) < len(n) or not n.isalpha() for n in names)
    or min(letters.values()) < 2
  ):
    raise ValueError(
      f"product of {formula!r}: each letter must be once in two or three of "
      "its parts, and ... in front of all or none"
    )
  if target.name() == "cpu":
    # XLA refuses some bfloat16 products with a float32 sum there
    return cpu_product(formula, x.astype(jnp.float32), y.astype(jnp.float32))
  return jnp.einsum(
    formula, x, y, precision=precision, preferred_element_type=jnp.float32
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def cpu_product(formula, x, y):
  """The einsum of float32 arrays, as XLA takes it best on a CPU.

  Of a batch of matrices it has quick products where what is summed is the last
  axis on the left. Others it gives to oneDNN one by one, which allocates 64 KiB
  for each: small ones take up to three times as long, and two devices wait for
  one another. The gradients are products, so they are arranged as well.
  """
  left, right, out = re.split(",|->", formula)
  batch = set(left) & set(right) & set(out)
  rows, columns = (set(a) & set(out) - batch for a in (left, right))
  if batch and rows and columns:
    if [c for c in out if c not in batch][-1] in rows:
      x, y, left, right = y, x, right, left
    summed = [c for c in left if c not in out]
    names = left.replace(".", "")
    axes = [names.index(c) - len(names) for c in summed]
    ends = list(range(-len(summed), 0))
    if axes != ends:
      # or XLA makes the transposition a part of the product again
      x = jax.lax.optimization_barrier(jnp.moveaxis(x, axes, ends))
      left = "".join([c for c in left if c not in summed] + summed)
  return jnp.einsum(f"{left},{right}->{out}", x, y)


def cpu_product_forward(formula, x, y):
  return cpu_product(formula, x, y), (x, y)


def cpu_product_backward(formula, saved, d):
  x, y = saved
  left, right, out = re.split(",|->", formula)
  dx = cpu_product(f"{out},{right}->{left}", d, y)
  return dx, cpu_product(f"{left},{out}->{right}", x, d)


cpu_product.defvjp(cpu_product_forward, cpu_product_backward)


def fan_in(scale: float = 1.0):
  """Normal with standard deviation scale / sqrt(d_in), cut at 2.27 of them."""
  return nnx.initializers.variance_scaling(
    scale**2, "fan_in", "truncated_normal"
  )


def uniform(bound: float):
  """Uniform in +-bound: of 1 / sqrt(d_in), a torch.nn.Linear's bias."""

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


def uniform_fan_in(scale: float = 1.0):
  """Uniform in +-scale / sqrt(d_in): what torch.nn.Linear starts from."""
  return nnx.initializers.variance_scaling(
    scale**2 / 3, "fan_in", "uniform", in_axis=-2, out_axis=-1
  )


def xavier_uniform(gain: float = 1.0):
  """Uniform in +-gain sqrt(6 / (d_in + d_out)), as torch.nn.init has it."""
  return nnx.initializers.variance_scaling(gain**2, "fan_avg", "uniform")


def columns(*parts):
  """Maps that are one product start each by itself: pairs (init, d_out)."""

  def init(key, shape, dtype=jnp.float32):
    keys = jax.random.split(key, len(parts))
    return jnp.concatenate(
      [
        own(key, (*shape[:-1], width), dtype)
        for key, (own, width) in zip(keys, parts, strict=True)
      ],
      -1,
    )

  return init


class Linear(nnx.Module):
  """y = x W (+ b), W: d_in x d_out, in the compute dtype.

  Starts from `init` and, with `bias`, from 0 or from what that is. `role`: of
  W.
  """

  def __init__(
    self, d_in, d_out, *, dtype, rngs, init=None, bias=False, role=Matrix
  ):
    self.dtype = jnp.dtype(dtype)
    init = init or fan_in()
    self.weight = role(init(rngs.params(), (d_in, d_out), jnp.float32))
    start = jnp.zeros(d_out)
    if callable(bias):
      start = bias(rngs.params(), (d_out,))
    self.bias = Vector(start) if bias else None

  def __call__(self, x):
    # of two axes: a batched product costs XLA half as much again on a CPU
    y = x.astype(self.dtype).reshape(-1, x.shape[-1])
    y = y @ self.weight[...].astype(self.dtype)
    if self.bias is not None:
      y += self.bias[...].astype(self.dtype)[None]
    return y.reshape(*x.shape[:-1], -1)


def normalise(x, eps: float):
  """x / sqrt(mean x^2 + eps) over the last axis, in float32."""
  # of two axes: XLA's reductions on a CPU take ten times as long over a shape
  # with an axis of one
  flat = x.astype(jnp.float32).reshape(-1, x.shape[-1])
  power = jnp.mean(flat * flat, -1, keepdims=True)
  return (flat * jax.lax.rsqrt(power + eps)).reshape(x.shape)


def shift(x, reset, first):
  """x of the token before: `first` (B D) for the first, 0 at a reset."""
  before = jnp.concatenate([first[:, None], x[:, :-1]], 1)
  if reset is None:
    return before
  return jnp.where(reset[..., None], jnp.zeros((), x.dtype), before)


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
    start = init or uniform(1 / math.sqrt(width))
    self.weight = Vector(start(rngs.params(), (width, dim), jnp.float32))
    if bias:
      b = jnp.zeros(dim) if init else start(rngs.params(), (dim,), jnp.float32)
    self.bias = Vector(b) if bias else None

  def init_state(self, batch):
    return jnp.zeros((batch, self.width - 1, self.dim), self.dtype)

  def __call__(self, x, reset, state):
    B, T, _ = x.shape
    W = self.width
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
    return y, kept
