"""Tiled attention against the formula, the ring against one call.

B batch  T time  S keys  H heads  G groups  K head width  L ring length
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import close

from arch.count import called, flops
from arch.layers import rotary
from arch.mixers import attention, mla
from arch.recurrence import flash
from arch.recurrence.attend import attend, reference


def inputs(T, S=None, H=2, G=2, K=6, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(T), 3)
  shapes = (2, T, H, K), (2, S or T, G, K), (2, S or T, G, K)
  made = zip(keys, shapes, strict=True)
  return [jax.random.normal(key, shape, dtype) for key, shape in made]


def flat(arrays):
  return np.concatenate([np.ravel(x.astype(jnp.float32)) for x in arrays])


def documents(T, S):
  """A reset now and then in the second row, none in the first."""
  t = np.arange(T) + S - T
  return jnp.asarray(np.stack([0 * t, t - t % 41]), jnp.int32)


def value_and_gradient(fn, q, key, value):
  def loss(q, key, value):
    y = fn(q, key, value).astype(jnp.float32)
    return jnp.sum(jnp.sin(y)), y

  return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(
    q, key, value
  )


@pytest.mark.parametrize(
  "T, S, H, G, window, packed, dtype",
  [
    (1, 1, 2, 2, None, False, "float32"),
    (63, 63, 6, 2, None, True, "float32"),
    (63, 63, 3, 3, 500, False, "float32"),
    (131, 131, 4, 2, None, False, "float32"),
    (257, 257, 4, 1, None, True, "float32"),
    (131, 131, 2, 2, 1, False, "float32"),
    (193, 193, 4, 2, 67, True, "float32"),
    (70, 201, 4, 2, None, True, "float32"),
    (3, 201, 2, 2, 100, False, "float32"),
    (131, 131, 2, 2, None, False, "bfloat16"),
    (193, 200, 4, 2, 67, True, "bfloat16"),
  ],
)
def test_equals_the_formula(T, S, H, G, window, packed, dtype):
  qkv = inputs(T, S, H, G, dtype=dtype)
  first = documents(T, S) if packed else None
  with jax.numpy_dtype_promotion("strict"):
    tiled = functools.partial(attend, first=first, window=window)
    (_, y), gradient = value_and_gradient(tiled, *qkv)
  exact = [x.astype(jnp.float32) for x in qkv]
  first = documents(T, S) * packed
  formula = functools.partial(reference, first=first, window=window)
  (_, expected), expected_gradient = value_and_gradient(formula, *exact)
  tolerance = 1e-5 if dtype == "float32" else 2e-2
  close(y, expected, tolerance)
  close(flat(gradient), flat(expected_gradient), tolerance)
  assert all(g.dtype == dtype for g in gradient)


@pytest.mark.parametrize(
  "T, S, H, G, window, packed, dtype",
  [
    (1, 1, 2, 2, None, False, "float32"),
    (131, 131, 3, 1, None, True, "float32"),
    (131, 131, 2, 2, 1, False, "float32"),
    (600, 1300, 2, 1, 67, True, "float32"),
    (3, 201, 2, 2, 100, False, "bfloat16"),
    (700, 700, 2, 1, None, True, "bfloat16"),
  ],
)
def test_the_kernels_equal_the_formula(T, S, H, G, window, packed, dtype):
  qkv = inputs(T, S, H, G, K=16, dtype=dtype)
  assert not flash.refused(*qkv, None)
  first = documents(T, S) * packed
  seen = first
  if window is not None:
    seen = jnp.maximum(first, (jnp.arange(T) + S - T - window + 1)[None])

  def kernel(q, key, value):
    return flash.flash(q * 0.25, key, value, seen, window, interpret=True)

  with jax.numpy_dtype_promotion("strict"):
    (_, y), gradient = value_and_gradient(kernel, *qkv)
  exact = [x.astype(jnp.float32) for x in qkv]
  formula = functools.partial(reference, first=first, window=window)
  (_, expected), expected_gradient = value_and_gradient(formula, *exact)
  tolerance = 1e-5 if dtype == "float32" else 2e-2
  close(y, expected, tolerance)
  close(flat(gradient), flat(expected_gradient), tolerance)
  assert all(g.dtype == dtype for g in gradient)


def test_what_the_kernels_do_not_take_is_told():
  q, key, value = inputs(4)
  assert "16 must divide" in flash.refused(q, key, value, None)
  q, key, value = inputs(4, K=16)
  assert flash.refused(q, key, value, key) == "a level"
  long = jax.ShapeDtypeStruct((1, 2**20, 1, 64), jnp.bfloat16)
  assert "MiB" in flash.refused(long, long, long, None)


@pytest.mark.parametrize(
  "T, S, H, G, window, packed",
  [
    (1, 1, 2, 2, None, False),
    (131, 131, 4, 2, None, True),
    (193, 200, 6, 2, 67, True),
    (70, 201, 3, 1, None, False),
  ],
)
def test_levels_and_a_scale(T, S, H, G, window, packed):
  q, key, value = inputs(T, S, H, G)
  shape = (2, S, G, H // G)
  forget = jax.random.uniform(jax.random.key(9), shape, minval=0.3)
  first = documents(T, S) * packed

  def gradient(fn):
    def loss(*args):
      *qkv, forget = args
      level = jnp.cumsum(jnp.log(forget), 1)
      y = fn(*qkv, first=first, window=window, level=level, scale=0.3)
      return jnp.sum(jnp.sin(y)), y

    both = jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True)
    return jax.jit(both)(q, key, value, forget)

  with jax.numpy_dtype_promotion("strict"):
    (_, y), found = gradient(attend)
  (_, expected), expected_gradient = gradient(reference)
  close(y, expected)
  close(flat(found), flat(expected_gradient), 2e-5)


def test_large_scores_stay_finite():
  q, key, value = inputs(131)
  (_, y), gradient = value_and_gradient(attend, 1e4 * q, 1e4 * key, value)
  assert all(np.all(np.isfinite(x)) for x in (y, *gradient))


def training(T, **kw):
  """The value and gradient at T tokens, and the shapes of what it takes."""
  shape = jax.ShapeDtypeStruct((1, T, 2, 8), jnp.float32)
  fn = functools.partial(attend, **kw)
  return functools.partial(value_and_gradient, fn), shape, shape, shape


def equations(jaxpr):
  for eqn in jaxpr.eqns:
    yield eqn
    for inner in called(eqn):
      yield from equations(inner)


def trace(T, **kw):
  fn, *shapes = training(T, **kw)
  return list(equations(jax.make_jaxpr(fn)(*shapes).jaxpr))


def test_scores_never_exist_whole():
  for T in (1024, 16384):
    for level in (None, jnp.zeros((1, T, 2, 1))):
      made = [v for eqn in trace(T, level=level) for v in eqn.outvars]
      assert max(v.aval.size for v in made) <= max(T * 2 * 8, 2 * 512**2)


def test_compilation_does_not_grow():
  assert len(trace(512)) == len(trace(16384))


def test_hidden_tiles_are_skipped():
  def share(T, **kw):
    """Operations of the products over those of all T x T scores."""
    ops = flops(*training(T, **kw))
    ops = sum(n for (kind, _), n in ops.items() if kind == "products")
    return ops / (7 * 2 * 2 * 8 * T**2)

  for T in (512, 2048, 16384):
    assert share(T) < 0.65
  for window in (1, 64, 512):
    for T in (2048, 16384):  # so that time is linear in T
      assert share(T, window=window) < 3 * max(64, window) / T


def test_rotary_is_exact_at_a_million():
  x, _, _ = inputs(4, K=8)
  place = np.array([[0, 1, 1_000_003, 2_000_000_011]] * 2)
  rate = 10_000.0 ** (-np.arange(0, 8, 2) / 8)
  turn = np.round(rate / (2 * np.pi) * 2**32) / 2**32 * 2 * np.pi
  np.testing.assert_allclose(turn, rate, rtol=1e-5)
  angle = place[:, :, None, None] * turn
  a, b = np.split(np.asarray(x, np.float64), 2, -1)
  turned = (a + 1j * b) * np.exp(1j * angle)
  close(
    rotary(x, jnp.asarray(place, jnp.int32)),
    np.concatenate([turned.real, turned.imag], -1),
    2e-6,
  )


def mixer(**fields):
  fields = dict(dim=24, depth=2, length=11, head=6, kv_heads=2) | fields
  made = attention.Mixer(
    attention.Config(**fields), layer=jnp.int32(0), rngs=nnx.Rngs(0)
  )
  noise = jax.random.normal(jax.random.key(5), (2, 6))
  if fields.get("qk_norm", True):
    made.q_norm.weight[...] += noise[0]
    made.k_norm.weight[...] += noise[1]
  return made


@functools.partial(jax.jit, static_argnums=3)
def naive(m, x, first, window=None):
  """The mixer, by its formulas."""
  cfg = m.cfg
  B, T, _ = x.shape
  H, G, K = cfg.H, cfg.G, cfg.head
  qkv = x @ m.qkv.weight[...]
  q, k, v = (
    t.reshape(B, T, -1, K) for t in jnp.split(qkv, [H * K, (H + G) * K], -1)
  )
  if cfg.qk_norm:
    q, k = m.q_norm(q), m.k_norm(k)
  place = jnp.arange(T)[None]
  q, k = rotary(q, place, cfg.base), rotary(k, place, cfg.base)
  y = reference(q, k, v, first, window)
  return y.reshape(B, T, H * K) @ m.out_proj.weight[...]


@jax.jit
def call(m, x, reset=None, state=None):
  with jax.numpy_dtype_promotion("strict"):
    return m(x, reset, state)


def stream(T=16):
  """Inputs, resets in the second row, and the first token of t's document."""
  x = jax.random.normal(jax.random.key(3), (2, T, 24))
  t = np.arange(T)
  first = np.stack([0 * t, np.where(t < 3, 0, np.where(t < 10, 3, 10))])
  reset = (first == t) & (t > 0)
  return x, jnp.asarray(reset), jnp.asarray(first, jnp.int32)


@pytest.mark.parametrize(
  "fields",
  [
    dict(),
    dict(window=5),
    dict(window=1),
    dict(window=40),
    dict(kv_heads=0, qk_norm=False, base=100.0),
  ],
  ids=str,
)
def test_without_a_state_all_of_the_call_is_seen(fields):
  m = mixer(**fields)
  x, reset, first = stream()
  y, *_ = call(m, x, reset)
  close(y, naive(m, x, first, fields.get("window")))
  if not fields:
    y, *_ = call(m, x)
    close(y, naive(m, x, 0 * first))


@pytest.mark.parametrize(
  "fields, length, ring, packed",
  [
    (dict(), None, 11, True),
    (dict(), 4, 4, False),
    (dict(window=5), 4, 5, True),
  ],
)
def test_a_ring_is_a_window_however_the_stream_is_cut(
  fields, length, ring, packed
):
  m = mixer(**fields)
  x, reset, first = stream()
  T = x.shape[1]
  expected = naive(m, x, first * packed, ring)
  last = None
  for cuts in ([], [1, 9], [7, 15], range(1, T)):
    state, ys = m.init_state(2, length), []
    assert state["value"].shape[2] == ring
    edges = [0, *cuts, T]
    for a, b in zip(edges[:-1], edges[1:], strict=True):
      now = reset[:, a:b] if packed else None
      y, state, _ = call(m, x[:, a:b], now, state)
      ys.append(y)
    close(jnp.concatenate(ys, 1), expected)
    last = last or state
    close(state, last)


def test_a_call_without_a_state_leaves_one():
  m = mixer()
  x, reset, _ = stream()
  for T in (1, 7, 16):
    _, fresh, _ = call(m, x[:, :T], reset[:, :T])
    _, carried, _ = call(m, x[:, :T], reset[:, :T], m.init_state(2))
    close(fresh, carried)


def test_rows_of_a_stream_may_differ_in_position():
  m = mixer()
  x, reset, _ = stream()
  _, ahead, _ = call(m, x[:, :8], reset[:, :8], m.init_state(2))
  _, behind, _ = call(m, x[:, :1], reset[:, :1], m.init_state(2))
  mixed = jax.tree.map(lambda a, b: jnp.stack([a[0], b[1]]), ahead, behind)
  for T in (1, 8):
    now = x[:, 8 : 8 + T], jnp.zeros((2, T), bool)
    y, *_ = call(m, *now, mixed)
    old, *_ = call(m, *now, ahead)
    new, *_ = call(m, *now, behind)
    close(y, jnp.stack([old[0], new[1]]))


def test_decoding_writes_in_place():
  m = mixer(length=4096)
  state = m.init_state(2)
  x = jnp.zeros((2, 1, 24))
  step = jax.jit(lambda x, state: m(x, None, state), donate_argnums=1)
  memory = step.lower(x, state).compile().memory_analysis()
  ring = state["key"].nbytes
  assert memory.alias_size_in_bytes >= 2 * ring
  assert memory.temp_size_in_bytes < ring


@pytest.mark.parametrize(
  "fields, message",
  [
    (dict(head=5), "rotary=1.0 turns 5, which must be even"),
    (dict(head=10), "head=10 must divide dim=24"),
    (dict(kv_heads=3), "kv_heads=3 must divide heads H=4"),
    (dict(window=-1), "window=-1 is negative"),
    (dict(base=1.0), "base=1.0 must exceed 1"),
    (dict(std=0.0), "std=0.0 must be positive"),
    (dict(norm="rsm"), "unknown norm='rsm': did you mean 'rms'"),
  ],
)
def test_bad_fields(fields, message):
  with pytest.raises(ValueError, match=message):
    mixer(**fields)


@pytest.mark.parametrize(
  "fields, message",
  [
    (dict(rotary=3), "rotary=3 must be even"),
    (dict(rank=0), "rank=0 must be positive"),
    (dict(head=10), "head=10 must divide dim=24"),
    (dict(base=1.0), "base=1.0 must exceed 1"),
  ],
)
def test_bad_fields_of_latent_attention(fields, message):
  with pytest.raises(ValueError, match=message):
    mla.Config(**dict(dim=24, depth=2, length=11, head=6) | fields)
