"""Diagonal recurrences: h_t = a_t h_{t-1} + b_t, each number by itself.

Four functions, each (outputs, state), with `reset` B T bool, True at a first
token, or None, and `state` the one returned before, or None for zeros; all in
float32. Each has its reference, which is the formula.

  scan        a real, of either sign, and given as the multiplier, so that 0
              and 1 are values like any other. RG-LRU, minGRU, minLSTM, HGRN.
  scan_pair   a = exp(log_modulus + i angle), on pairs (re, im). LRU, S5.
  selective   h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t,  y_t = C_t . h_t
              D x N numbers, and B T D N never exists. Mamba (Gu and Dao 2023,
              arXiv 2312.00752, algorithm 2, B discretised as its code does).
              With `negative` 2 exp(dt_t A) - 1 multiplies h_{t-1}, in [-1, 1]
              (Grazzi et al. 2024, arXiv 2411.12537, eq. 2).
  convolve    h_t = a h_{t-1} + x_t,  y_t = Re(c . h_t), a and c constant in t,
              N pairs a channel. S4D (Gu et al. 2022, arXiv 2206.11893).

On CPU a plain scan over T beats associative and blocked ones, and JAX's own
gradient of it is as fast as one by hand. `convolve` is a product of matrices in
chunks, with h carried between them.

B batch, T time, D width, N state, C chunk, M chunks of each of B
"""

import functools

import jax
import jax.numpy as jnp

from arch import rows, target
from arch.recurrence import (
  chunks,
  convolution,
  diagonal_kernel,
  selective_kernel,
)


def reference(a, b, reset=None, state=None):
  a = chunks.where_reset(reset, 0, jnp.broadcast_to(a, b.shape))

  def step(h, ab):
    h = ab[0] * h + ab[1]
    return h, h

  h = jnp.zeros_like(b[:, 0]) if state is None else state
  h, out = jax.lax.scan(step, h, (a.swapaxes(0, 1), b.swapaxes(0, 1)))
  return out.swapaxes(0, 1), h


def scan(a, b, reset=None, state=None):
  """a: B T D or 1 1 D, b: B T D float32 -> h: B T D, state: B D."""
  if target.now().kernels and rows.known(b):
    if not diagonal_kernel.refused(b):
      a = chunks.where_reset(reset, 0, jnp.broadcast_to(a, b.shape))
      h = jnp.zeros_like(b[:, 0]) if state is None else state

      def run_kernel(x):
        return diagonal_kernel.scan(*x)

      h = rows.kernel(run_kernel, (a, b, h))
      return h, h[:, -1]
  state = None if state is None else (state,)
  (h,), (state,) = run((a,), (b,), reset, state)
  return h, state


def reference_pair(log_modulus, angle, b_re, b_im, reset=None, state=None):
  modulus = jnp.exp(log_modulus)
  a = jax.lax.complex(modulus * jnp.cos(angle), modulus * jnp.sin(angle))
  state = None if state is None else jax.lax.complex(*state)
  h, state = reference(a, jax.lax.complex(b_re, b_im), reset, state)
  return (h.real, h.imag), (state.real, state.imag)


def scan_pair(log_modulus, angle, b_re, b_im, reset=None, state=None):
  """As `scan`; log_modulus <= 0, angle in radians; h and state are pairs."""
  return run(polar(log_modulus, angle), (b_re, b_im), reset, state)


def polar(log_modulus, angle):
  modulus = jnp.exp(log_modulus)
  return modulus * jnp.cos(angle), modulus * jnp.sin(angle)


def run(a, b, reset, state):
  if state is None:
    state = jax.tree.map(lambda x: jnp.zeros_like(x[:, 0]), b)
  a = (jnp.broadcast_to(x, b[0].shape) for x in a)
  a = tuple(chunks.where_reset(reset, 0, x).swapaxes(0, 1) for x in a)
  h = linear(a, tuple(x.swapaxes(0, 1) for x in b), state)
  return tuple(x.swapaxes(0, 1) for x in h), tuple(x[-1] for x in h)


def times(x, y):
  """The product of two reals (x,) or two complex numbers (re, im)."""
  if len(x) == 1:
    return (x[0] * y[0],)
  return x[0] * y[0] - x[1] * y[1], x[0] * y[1] + x[1] * y[0]


def plus(x, y):
  return tuple(p + q for p, q in zip(x, y, strict=True))


def linear(a, b, h):
  """All h_t of a_t, b_t: T B D, in tuples as `times` takes them."""

  def step(h, ab):
    h = plus(times(ab[0], h), ab[1])
    return h, h

  return jax.lax.scan(step, h, (a, b))[1]


def reference_selective(x, dt, A, b, c, reset=None, state=None, negative=False):
  a = jnp.exp(chunks.dot("btd,dn->btdn", dt, A))
  a = 2 * a - 1 if negative else a
  b = chunks.dot("btd,btn->btdn", dt * x, b)
  h, state = reference(a, b, reset, state)
  return chunks.dot("btdn,btn->btd", h, c), state


def selective(x, dt, A, b, c, reset=None, state=None, negative=False, chunk=16):
  """x, dt: B T D, A: D N <= 0, b, c: B T N -> y: B T D, state: B D N.

  A chunk's states exist one chunk at a time, forwards and backwards; between
  the two passes only the states at the chunks' starts are kept.
  """
  B, T, D = x.shape
  C = min(chunk, T)
  if state is None:
    state = jnp.zeros((B, D, A.shape[1]), x.dtype)
  keep = chunks.where_reset(reset, 0, jnp.ones((B, T, 1), x.dtype))
  if target.now().kernels and rows.known(x):
    if not selective_kernel.refused(x):

      def run_kernel(held, A):
        x, dt, b, c, keep, state = held
        return selective_kernel.selective(
          x, dt, A, b, c, keep[..., 0], state, negative
        )

      return rows.kernel(run_kernel, (x, dt, b, c, keep, state), A)

  def by_chunk(x, fill=0):
    x = jnp.pad(x, ((0, 0), (0, -T % C), (0, 0)), constant_values=fill)
    return x.swapaxes(0, 1).reshape(-1, C, B, x.shape[2])

  xs = *map(by_chunk, (x, dt)), A.T, *map(by_chunk, (b, c)), by_chunk(keep, 1)
  y, h = select(*xs, state.swapaxes(1, 2), negative)
  return y.reshape(-1, B, D)[:T].swapaxes(0, 1), h.swapaxes(1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(7,))
def select(x, dt, A, b, c, keep, h, negative):
  return select_forward(x, dt, A, b, c, keep, h, negative)[0]


def expand(A, x, dt, b, keep, negative):
  """a, its slope in dt A, and b of one chunk, C B N D: D last, where sums over
  N are fast."""
  keep = keep[..., None]
  slope = jnp.exp(dt[:, :, None] * A[None, None]) * keep
  if negative:
    slope *= 2
  a = slope - keep if negative else slope
  return a, slope, b[..., None] * (dt * x)[:, :, None]


def select_forward(x, dt, A, b, c, keep, h, negative):
  def step(start, z):
    x, dt, b, c, keep = z
    a, _, bx = expand(A, x, dt, b, keep, negative)
    (h,) = linear((a,), (bx,), (start,))
    return h[-1], (chunks.dot("tbnd,tbn->tbd", h, c), start)

  h, (y, starts) = jax.lax.scan(step, h, (x, dt, b, c, keep))
  return (y, h), (x, dt, A, b, c, keep, starts)


def select_backward(negative, saved, ct):
  x, dt, A, b, c, keep, starts = saved
  dy, dh = ct

  def step(carry, z):
    later, dA = carry
    x, dt, b, c, keep, start, dy = z
    a, slope, bx = expand(A, x, dt, b, keep, negative)
    (h,) = linear((a,), (bx,), (start,))

    def back(later, z):
      a, c, dy = z
      d = later + c[..., None] * dy[:, None]
      return a * d, d

    later, d = jax.lax.scan(back, later, (a, c, dy), reverse=True)
    if negative:
      dlog = d * slope * jnp.concatenate([start[None], h[:-1]])
    else:
      dlog = d * (h - bx)  # h - bx is a h_{t-1}
    dbx = chunks.dot("tbnd,tbn->tbd", d, b)
    ddt = dlog * A[None, None]
    if ddt.shape[1] == 1:  # see chunks.cut; rows of a batch stay apart
      ddt = ddt[:, 0]
    ddt = ddt.sum(-2).reshape(x.shape) + dbx * x
    dA += (dlog * dt[:, :, None]).sum((0, 1))
    db = chunks.dot("tbnd,tbd->tbn", d, dt * x)
    dc = chunks.dot("tbnd,tbd->tbn", h, dy)
    return (later, dA), (dbx * dt, ddt, db, dc)

  carry = dh, jnp.zeros_like(A)
  xs = (x, dt, b, c, keep, starts, dy)
  (dh, dA), (dx, ddt, db, dc) = jax.lax.scan(step, carry, xs, reverse=True)
  return dx, ddt, dA, db, dc, jnp.zeros_like(keep), dh


select.defvjp(select_forward, select_backward)


def reference_convolve(
  x, log_modulus, angle, c_re, c_im, reset=None, state=None
):
  B, T, D = x.shape
  N = angle.shape[1]
  a = (t.reshape(1, 1, D * N) for t in (log_modulus, angle))
  b = jnp.repeat(x, N, axis=2)
  if state is not None:
    state = tuple(t.reshape(B, D * N) for t in state)
  h, state = reference_pair(*a, b, jnp.zeros_like(b), reset, state)
  re, im = (t.reshape(B, T, D, N) for t in h)
  y = (re * c_re[None, None] - im * c_im[None, None]).sum(-1)
  return y, tuple(t.reshape(B, D, N) for t in state)


def convolve(
  x, log_modulus, angle, c_re, c_im, reset=None, state=None, chunk=64
):
  """x: B T D; the rest D N -> y: B T D, state: (re, im), each B D N.

  In a chunk y is x times the Toeplitz matrix of the kernel Re(c a^i).
  """
  B, T, D = x.shape
  N = angle.shape[1]
  C = chunks.size(T, chunk)
  n = -(-T // C)
  M, pad = B * n, n * C - T  # B outside: its shares stay on their devices
  if state is None:
    state = (jnp.zeros((B, D, N), x.dtype),) * 2
  state = tuple(h.transpose(1, 2, 0) for h in state)  # D N B
  a = tuple(t[..., None] for t in polar(log_modulus, angle))
  c = c_re[..., None], c_im[..., None]
  power = powers(a, C)  # a^0 ... a^(C - 1): D N C
  later = times(a, power)

  def by_chunk(x):
    """B T D -> D C M; D may be 1."""
    x = jnp.pad(x, ((0, 0), (0, pad), (0, 0)))
    return x.reshape(B, n, C, -1).transpose(3, 2, 0, 1).reshape(-1, C, M)

  x = by_chunk(x)
  matrix = convolution.toeplitz(times(c, power)[0].sum(1))  # D C C
  if reset is None:
    first = last = jnp.ones((1, C, M), x.dtype)
    y = chunks.dot("dji,djm->dim", matrix, x)
  else:
    segment = jnp.cumsum(by_chunk(reset[..., None]), axis=1)  # 1 C M
    first = (segment == 0).astype(x.dtype)
    last = (segment == segment[:, -1:]).astype(x.dtype)
    y = convolution.segmented(matrix, x, segment)
  # the last token of the last chunk may be padding: move it to the front
  x = (x * last).reshape(D, C, B, n)
  x = jnp.concatenate([x[..., :-1], jnp.roll(x[..., -1:], pad, 1)], axis=3)
  x = x.reshape(D, C, M)
  write = jnp.concatenate(power, axis=1)[..., ::-1]  # D 2N C
  add = chunks.dot("dnc,dcm->dnm", write, x)
  add = add.reshape(D, 2 * N, B, n).transpose(3, 0, 1, 2)  # n D 2N B
  passed = first[0, -1].reshape(B, n).T[:, None, None]

  def step(h, z, a):
    add, passed = z
    h = (passed * t for t in times(a, h))
    return plus(tuple(h), (add[:, :N], add[:, N:]))

  whole = tuple(t[..., -1:] for t in later)
  part = tuple(t[..., C - pad - 1, None] for t in later)

  def full(h, z):
    return step(h, z, whole), jnp.concatenate(h, axis=1)

  h, past = jax.lax.scan(full, state, (add[:-1], passed[:-1]))
  past = jnp.concatenate([past, jnp.concatenate(h, axis=1)[None]])
  past = past.transpose(1, 2, 3, 0).reshape(D, 2 * N, M)  # what chunks read
  state = step(h, (add[-1], passed[-1]), part)
  read = times(c, later)
  read = jnp.concatenate([read[0], -read[1]], axis=1)  # D 2N C
  y += first * chunks.dot("dnc,dnm->dcm", read, past)
  y = y.reshape(D, C, B, n).transpose(2, 3, 1, 0).reshape(B, n * C, D)
  return y[:, :T], tuple(h.transpose(2, 0, 1) for h in state)


def powers(a, count):
  """a^0 ... a^(count - 1) on the last axis, by doubling. a: D N 1."""
  p = jnp.ones_like(a[0]), jnp.zeros_like(a[1])
  while p[0].shape[-1] < count:
    p = tuple(map(lambda *x: jnp.concatenate(x, -1), p, times(p, a)))
    a = times(a, a)
  return p


def hold(dt, real, imag):
  """Zero-order hold of A = real + i imag: dt A and (exp(dt A) - 1) / A.

  Both are pairs (re, im), and the second loses no digits for small steps.
  """
  x, angle = dt * real, dt * imag
  p = jnp.expm1(x) * jnp.cos(angle) - 2 * jnp.sin(angle / 2) ** 2
  q = jnp.exp(x) * jnp.sin(angle)
  size = real**2 + imag**2
  p, q = (p * real + q * imag) / size, (q * real - p * imag) / size
  return (x, angle), (p, q)


TWINS = {
  "diagonal": {"reference": reference, "scan": scan},
  "pair": {"reference": reference_pair, "scan": scan_pair},
  "selective": {"reference": reference_selective, "chunked": selective},
  "convolve": {"reference": reference_convolve, "chunked": convolve},
}


def example(draw, B, T, H, K):
  D, N = H * K, 16
  x, y, n = (draw(B, T, D) for _ in range(3))
  log_modulus, angle = -jnp.exp(draw(D, N) - 3), draw(D, N)
  pole = dict(log_modulus=log_modulus, angle=angle)
  one = {name: a[None, None, :, 0] for name, a in pole.items()}
  return {
    "diagonal": dict(a=jax.nn.sigmoid(n + 3), b=x),
    "pair": one | dict(b_re=x, b_im=y),
    "selective": dict(
      x=x,
      dt=jax.nn.softplus(n),
      A=-jnp.broadcast_to(jnp.arange(1.0, N + 1)[None], (D, N)),
      b=draw(B, T, N),
      c=draw(B, T, N),
    ),
    "convolve": pole | dict(x=x, c_re=draw(D, N), c_im=draw(D, N)),
  }
