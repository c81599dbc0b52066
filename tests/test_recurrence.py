"""Each fast recurrence against its reference: the same function, at the edges.

A case makes inputs whose gates are 0, 1, tiny and strong, in turn.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch.recurrence import chunks, delta, diagonal, gated

B, K, V = 2, 6, 5
D, N = 4, 3


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def unit(x):
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def log_decay(T, *heads):
  """<= 0: ordinary, then one of each edge, then spans of 1 and almost 1."""
  g = -jax.nn.softplus(normal(9, B, T, *heads))
  g = g.at[:, 4].set(-jnp.inf).at[:, 9:11].set(-50.0).at[:, 12].set(-1e4)
  g = g.at[:, 13, ::2].set(-jnp.inf)
  return g.at[0, 18:].set(0.0).at[1, 18:].set(-1e-6)


def gated_case(T, groups=4, heads=4, wide=False, read="after"):
  x = dict(
    q=normal(0, B, T, groups, K),
    k=normal(1, B, T, groups, K),
    v=normal(2, B, T, heads, V),
    g=log_decay(T, heads, K) if wide else log_decay(T, heads),
    state=normal(3, B, heads, K, V),
  )
  if read == "before":
    x["u"] = normal(4, heads, K)
  return x


def delta_case(T, wide=False, a=False):
  w = log_decay(T, 3, K) if wide else log_decay(T, 3)
  b = unit(normal(1, B, T, 3, K))
  return dict(
    q=normal(0, B, T, 3, K),
    k=0.8 * b,
    v=normal(2, B, T, 3, V),
    w=w,
    a=-b * jax.nn.sigmoid(normal(4, B, T, 3, K)) if a else None,
    b=b,
    state=normal(3, B, 3, K, V),
  )


def scan_case(T):
  a = jnp.tanh(normal(0, B, T, D)).at[:, 4].set(0.0).at[:, 9:12].set(1.0)
  return dict(a=a, b=normal(1, B, T, D), state=normal(2, B, D))


def pair_case(T, constant=False):
  shape = (1, 1, D) if constant else (B, T, D)
  modulus = jax.nn.sigmoid(normal(0, *shape))
  modulus = modulus.at[:, 4].set(0.0).at[:, 9:12].set(1.0)
  return dict(
    log_modulus=jnp.log(modulus),
    angle=4 * normal(1, *shape),
    b_re=normal(2, B, T, D),
    b_im=normal(3, B, T, D),
    state=(normal(4, B, D), normal(5, B, D)),
  )


def selective_case(T):
  dt = jax.nn.softplus(normal(1, B, T, D)).at[:, 4].set(1e4).at[:, 9].set(0.0)
  return dict(
    x=normal(0, B, T, D),
    dt=dt.at[:, 18:].set(1e-6),
    A=-jnp.exp(normal(2, D, N)),
    b=normal(3, B, T, N),
    c=normal(4, B, T, N),
    state=normal(5, B, D, N),
  )


def convolve_case(T):
  return dict(
    x=normal(0, B, T, D),
    log_modulus=-jnp.exp(normal(1, D, N) - 2).at[0].set(0.0),
    angle=4 * normal(2, D, N),
    c_re=normal(3, D, N),
    c_im=normal(4, D, N),
    state=(normal(5, B, D, N), normal(6, B, D, N)),
  )


def matrix(module, case, **fields):
  make = functools.partial(case, **fields)
  fast = functools.partial(module.chunked, chunk=16)
  if "read" in fields:
    fast = functools.partial(fast, read=fields["read"])
    return make, fast, functools.partial(module.reference, read="before")
  return make, fast, module.reference


selective = functools.partial(diagonal.selective, chunk=4)
convolve = functools.partial(diagonal.convolve, chunk=16)
MATRIX = {
  "gated": matrix(gated, gated_case),
  "gated, groups": matrix(gated, gated_case, groups=2),
  "gated, before": matrix(gated, gated_case, groups=1, read="before"),
  "gated, K": matrix(gated, gated_case, wide=True),
  "gated, K, before": matrix(
    gated, gated_case, groups=2, wide=True, read="before"
  ),
  "delta": matrix(delta, delta_case),
  "delta, a": matrix(delta, delta_case, a=True),
  "delta, K": matrix(delta, delta_case, wide=True),
  "delta, K, a": matrix(delta, delta_case, wide=True, a=True),
}
CASES = MATRIX | {
  "scan": (scan_case, diagonal.scan, diagonal.reference),
  "pair": (pair_case, diagonal.scan_pair, diagonal.reference_pair),
  "pair, constant": (
    functools.partial(pair_case, constant=True),
    diagonal.scan_pair,
    diagonal.reference_pair,
  ),
  "selective": (selective_case, selective, diagonal.reference_selective),
  "convolve": (convolve_case, convolve, diagonal.reference_convolve),
}
each = pytest.mark.parametrize("name", CASES)
RESETS = {0: (0, 6, 7, 20), 1: (15, 16, 30)}


def resets(T):
  reset = np.zeros((B, T), bool)
  for row, at in RESETS.items():
    reset[row, [t for t in at if t < T]] = True
  return jnp.asarray(reset)


def along_time(x, T, part):
  """The inputs of some of the T tokens."""

  def cut(a):
    return a[:, part] if a.ndim > 2 and a.shape[1] == T else a

  return {k: a if k == "state" else jax.tree.map(cut, a) for k, a in x.items()}


def weighed(out):
  """A linear loss, so that it does not magnify what the twins differ by."""

  def total(a):
    weights = jnp.cos(jnp.arange(a.size, dtype=jnp.float32))
    return (a.astype(jnp.float32) * weights.reshape(a.shape)).sum()

  return sum(map(total, jax.tree.leaves(out)))


def value_and_gradient(f, x, reset):
  def loss(x):
    out = f(**x, reset=reset)
    return weighed(out), out

  with jax.numpy_dtype_promotion("strict"):
    grad, out = jax.jit(jax.grad(loss, has_aux=True))(x)
  return dict(out=out, grad=grad)


def close(a, b, tolerance):
  """Leaf by leaf, relative to the largest number of each."""
  for (path, p), q in zip(
    jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True
  ):
    p, q = np.asarray(p, np.float32), np.asarray(q, np.float32)
    assert np.isfinite(p).all(), jax.tree_util.keystr(path)
    atol = tolerance * max(1e-3, np.abs(q).max())
    np.testing.assert_allclose(
      p, q, rtol=0, atol=atol, err_msg=jax.tree_util.keystr(path)
    )


@each
def test_twins(name):
  make, fast, reference = CASES[name]
  x = make(37)
  a, b = (value_and_gradient(f, x, resets(37)) for f in (fast, reference))
  close(a, b, 2e-5)


@each
def test_twins_without_reset_or_state(name):
  make, fast, reference = CASES[name]
  x = make(19) | {"state": None}
  close(jax.jit(fast)(**x), jax.jit(reference)(**x), 1e-5)


@pytest.mark.parametrize("name", MATRIX)
def test_twins_in_bfloat16(name):
  make, fast, reference = CASES[name]
  x = make(37)
  for part in "qkvab":
    if x.get(part) is not None:
      x[part] = x[part].astype(jnp.bfloat16)
  a, b = (value_and_gradient(f, x, resets(37)) for f in (fast, reference))
  assert jax.tree.map(jnp.dtype, a) == jax.tree.map(jnp.dtype, b)
  close(a, b, 4e-2)


@each
def test_split_anywhere(name):
  make, fast, _ = CASES[name]
  T, reset = 23, resets(23)
  x = make(T)
  whole, last = jax.jit(fast)(**x, reset=reset)
  state, outs = x["state"], []
  for part in (slice(0, 1), slice(1, 18), slice(18, 19), slice(19, T)):
    piece = along_time(x, T, part) | {"state": state}
    out, state = jax.jit(fast)(**piece, reset=reset[:, part])
    outs.append(out)
  outs = jax.tree.map(lambda *o: jnp.concatenate(o, axis=1), *outs)
  close((outs, state), (whole, last), 1e-5)


@each
def test_nothing_before_a_reset_matters(name):
  """Exactly: a product with 0, not a difference of equals."""
  make, fast, _ = CASES[name]
  T, r = 27, 21
  x = make(T)
  reset = resets(T).at[:, r].set(True)
  before = along_time(x, T, slice(0, r))
  timed = {k for k in x if k == "state" or before[k] is not x[k]}

  @jax.jit
  def after(x):
    out, state = fast(**x, reset=reset)
    return jax.tree.map(lambda o: o[:, r:], out), state

  grad = jax.jit(jax.grad(lambda x: weighed(after(x))))(x)
  for k in timed - {"state"}:
    early = jax.tree.leaves(along_time(grad, T, slice(0, r))[k])
    assert all((a == 0).all() for a in early), k
  assert all((a == 0).all() for a in jax.tree.leaves(grad["state"]))
  other = x | {
    k: jax.tree.map(lambda a: a.at[:, :r].multiply(0.5), x[k])
    for k in timed - {"state"}
  }
  other["state"] = jax.tree.map(jnp.ones_like, x["state"])
  jax.tree.map(np.testing.assert_array_equal, after(other), after(x))


@pytest.mark.parametrize("name", ["gated", "gated, K"])
def test_minus_infinity_is_a_reset(name):
  make, fast, _ = CASES[name]
  x, reset = make(37), resets(37)
  cut = x | {"g": chunks.where_reset(reset, -jnp.inf, x["g"])}
  a, b = value_and_gradient(fast, cut, None), value_and_gradient(fast, x, reset)
  close(a, b, 1e-6)


def test_decays_keep_their_digits():
  """After many strong gates, a gate near 1 is still seen."""
  g = jnp.full((1, 64, 1), -80.0).at[:, 50:].set(-1e-3)
  x = gated_case(64, 1, 1) | {"g": jnp.broadcast_to(g, (B, 64, 1))}
  close(gated.chunked(**x), gated.reference(**x), 5e-5)
  x["g"] = jnp.broadcast_to(x["g"][..., None], (B, 64, 1, K))
  close(gated.chunked(**x), gated.reference(**x), 2e-6)


def test_inverse():
  """Where the powers of x are large: equal keys, written at full strength."""
  x = -jnp.tril(jnp.ones((1, 64, 64)), -1)
  exact = np.eye(64) - np.eye(64, k=-1)
  np.testing.assert_allclose(chunks.inverse(x)[0], exact, atol=1e-6)


def test_replicates():
  """vmap over texts whose resets differ in number."""
  x = convolve_case(37)
  reset = jnp.stack([resets(37), jnp.zeros((B, 37), bool)])
  run = functools.partial(value_and_gradient, convolve, x)
  both = jax.vmap(run)(reset)
  alone = jax.tree.map(lambda *a: jnp.stack(a), *map(run, reset))
  close(both, alone, 1e-5)


def equations(jaxpr):
  """All that a jaxpr runs, the bodies of loops once."""
  for eqn in jaxpr.eqns:
    yield eqn
    for sub in jax.tree.leaves(
      list(eqn.params.values()), is_leaf=lambda p: hasattr(p, "eqns")
    ):
      sub = getattr(sub, "jaxpr", sub)
      if hasattr(sub, "eqns"):
        yield from equations(sub)


def traced(name, T):
  """How many equations value and gradient have, and the largest array."""
  make, fast, _ = CASES[name]
  found = list(
    equations(
      jax.make_jaxpr(lambda x: value_and_gradient(fast, x, None))(make(T)).jaxpr
    )
  )
  return len(found), max(v.aval.size for e in found for v in e.outvars)


@each
def test_linear_in_time(name):
  few, small = traced(name, 128)
  many, large = traced(name, 512)
  assert many == few, "the program, and its compile time, grow with T"
  assert large <= 4 * small


def test_selective_never_expands_its_state():
  T = 512
  assert traced("selective", T)[1] <= B * T * D * N / 2


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(chunk=48), "chunk=48 must be a power of two"),
    (
      dict(q=normal(0, B, 8, 3, K), k=normal(0, B, 8, 3, K)),
      "3 groups.*4 heads",
    ),
    (dict(read="before"), "needs one"),
    (dict(u=normal(0, 4, K)), "takes no u"),
    (dict(read="now"), "read='now'"),
  ],
)
def test_refused(change, message):
  with pytest.raises(ValueError, match=message):
    gated.chunked(**gated_case(8) | change)
