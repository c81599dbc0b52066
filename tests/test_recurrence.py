"""Each fast recurrence against its reference: the same function, at the edges.

A case makes inputs whose gates are 0, 1, tiny and strong, in turn.
"""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch import recurrence, target
from arch.recurrence import (
  chunks,
  delta,
  delta_kernel,
  diagonal_kernel,
  gated,
  gated_kernel,
  log_linear,
)

B, K, V = 2, 6, 5
D, N = 4, 3
T, CHUNK = 22, 8


def normal(seed, *shape):
  """numpy: each operation of JAX on a new shape would be compiled."""
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def log_decay(time, *heads):
  """<= 0: ordinary, then one of each edge, then spans of 1 and almost 1."""
  g = np.log(sigmoid(normal(9, B, time, *heads)))
  g[:, 3], g[:, 5:7], g[:, 10] = -np.inf, -50, -1e4
  g[:, 11, ::2] = -np.inf
  g[0, 14:], g[1, 14:] = 0, -1e-6
  return g


def gated_case(time, groups=4, wide=False, read="after", rows=()):
  x = dict(
    q=normal(0, B, time, *rows, groups, K),
    k=normal(1, B, time, *rows, groups, K),
    v=normal(2, B, time, *rows, 4, V),
    g=log_decay(time, 4, K) if wide else log_decay(time, 4),
    state=normal(3, B, 4, K, V),
  )
  if read == "before":
    x["u"] = normal(4, 4, K)
  return x


def delta_case(time, wide=False, a=False):
  b = normal(1, B, time, 3, K)
  b /= np.linalg.norm(b, axis=-1, keepdims=True)
  return dict(
    q=normal(0, B, time, 3, K),
    k=0.8 * b,
    v=normal(2, B, time, 3, V),
    w=log_decay(time, 3, K) if wide else log_decay(time, 3),
    a=-b * sigmoid(normal(4, B, time, 3, K)) if a else None,
    b=b,
    state=normal(3, B, 3, K, V),
  )


def log_linear_case(time, levels=6, erase=False):
  x = gated_case(time, groups=4 if erase else 2)
  if erase:
    b = x["k"] / np.linalg.norm(x["k"], axis=-1, keepdims=True)
    x |= dict(k=0.8 * b, b=b * np.exp(x["g"])[..., None])
  count = np.array([5, 11], np.float32)
  scale = np.exp(normal(5, B, time, 4, levels))
  return x | dict(scale=scale, state=(normal(3, B, 4, K, levels - 1, V), count))


def counted(f):
  """The tokens read, in the state, as a float: jax.grad takes no integer."""

  @functools.wraps(f)
  def call(state, **x):
    if state is not None:
      state = *state[:-1], state[-1].astype(jnp.int32)
    out, (*state, count) = f(state=state, **x)
    return out, (*state, count.astype(jnp.float32))

  return call


def mesa_case(time):
  A = normal(3, B, 3, K, K)
  return dict(
    q=normal(0, B, time, 3, K),
    k=normal(1, B, time, 3, K),
    v=normal(2, B, time, 3, V),
    g=log_decay(time, 3),
    beta=sigmoid(normal(4, B, time, 3)),
    ridge=np.exp(normal(5, 3, K)),
    state=(A @ A.swapaxes(-1, -2), normal(6, B, 3, K, V)),
  )


def ttt_case(time, count=(5, 11)):
  return dict(
    q=normal(0, B, time, 3, K),
    k=normal(1, B, time, 3, K),
    v=normal(2, B, time, 3, V),
    rate=sigmoid(normal(4, B, time, 3)) / 4,
    share=sigmoid(normal(5, CHUNK)),
    W=normal(6, 3, K, V),
    scale=np.exp(normal(7, 3, V)),
    bias=normal(8, 3, V),
    state=(
      normal(3, B, 3, K, V),
      normal(9, B, 3, K, V),
      np.array(count, np.float32),
    ),
  )


def titans_case(time):
  J = 4
  first, second = normal(6, 3, K, J), normal(7, 3, J, V)
  memory = [
    tuple(normal(s, B, *w.shape) for w in (first, second)) for s in (8, 9, 10)
  ]
  return dict(
    q=normal(0, B, time, 3, K),
    k=normal(1, B, time, 3, K),
    v=normal(2, B, time, 3, V),
    rate=sigmoid(normal(3, B, time, 3)) / 8,
    momentum=np.log(sigmoid(normal(4, B, time, 3))),
    keep=np.log(sigmoid(normal(5, B, time, 3) + 2)),
    first=first,
    second=second,
    state=(*memory, np.array([5, 11], np.float32)),
  )


def two_layers(f):
  """Its W, a tuple, as two arguments."""

  def call(first, second, **x):
    return f(W=(first, second), **x)

  return call


def scan_case(time):
  a = np.tanh(normal(0, B, time, D))
  a[:, 3], a[:, 9:12] = 0, 1
  return dict(a=a, b=normal(1, B, time, D), state=normal(2, B, D))


def pair_case(time):
  log_modulus = np.log(sigmoid(normal(0, 1, 1, D)))
  log_modulus[..., 0], log_modulus[..., 1] = -np.inf, 0
  return dict(
    log_modulus=log_modulus,
    angle=4 * normal(1, 1, 1, D),
    b_re=normal(2, B, time, D),
    b_im=normal(3, B, time, D),
    state=(normal(4, B, D), normal(5, B, D)),
  )


def selective_case(time, negative=False):
  dt = np.exp(normal(1, B, time, D))
  dt[:, 3], dt[:, 9], dt[:, 14:] = 1e4, 0, 1e-6
  return dict(
    x=normal(0, B, time, D),
    dt=dt,
    A=-np.exp(normal(2, D, N)),
    b=normal(3, B, time, N),
    c=normal(4, B, time, N),
    state=normal(5, B, D, N),
  )


def convolve_case(time):
  log_modulus = -np.exp(normal(1, D, N) - 2)
  log_modulus[0], log_modulus[1, 0] = 0, -np.inf
  return dict(
    x=normal(0, B, time, D),
    log_modulus=log_modulus,
    angle=4 * normal(2, D, N),
    c_re=normal(3, D, N),
    c_im=normal(4, D, N),
    state=(normal(5, B, D, N), normal(6, B, D, N)),
  )


def convolution_case(time, length=19):
  return dict(
    k=normal(0, length, D),
    s=normal(1, B, time, D),
    state=normal(2, B, length - 1, D),
  )


def gated_kernels(q, k, v, g, reset=None, state=None, chunk=None):
  """The kernels of a TPU, as functions of arrays here."""
  g = chunks.where_reset(reset, -jnp.inf, g)
  state = gated.fresh(k, v) if state is None else state
  return gated_kernel.chunked(q, k, v, g, state, chunk=chunk, interpret=True)


def delta_kernels(q, k, v, w, a, b, reset=None, state=None, chunk=None):
  w = chunks.where_reset(reset, -jnp.inf, w)
  b = chunks.where_reset(reset, 0, b)
  state = gated.fresh(k, v) if state is None else state
  return delta_kernel.chunked(q, k, v, w, b, state, chunk=chunk, interpret=True)


def diagonal_kernels(a, b, reset=None, state=None, chunk=None):
  a = chunks.where_reset(reset, 0, jnp.broadcast_to(a, b.shape))
  state = jnp.zeros_like(b[:, 0]) if state is None else state
  a, b, state = (jnp.concatenate([x] * 2, -1) for x in (a, b, state))
  h = diagonal_kernel.scan(a, b, state, interpret=True)[..., :D]
  return h, h[:, -1]


TWINS = recurrence.twins()
KERNELS = {
  "gated, kernels": gated_kernels,
  "delta, kernels": delta_kernels,
  "diagonal, kernels": diagonal_kernels,
}
before, past = dict(read="before"), dict(read="past")
# what makes the inputs, its arguments, and those of the twins
CASES = {
  "gated": (gated_case, dict(groups=2), {}),
  "gated, before": (gated_case, dict(groups=1), before),
  "gated, past": (gated_case, dict(groups=2), past),
  "gated, 3 a step": (gated_case, dict(groups=2, rows=(3,)), {}),
  "gated, 3 a step, past": (gated_case, dict(rows=(3,)), past),
  "gated, K": (gated_case, dict(wide=True), {}),
  "gated, K, before": (gated_case, dict(groups=2, wide=True), before),
  "gated, kernels": (gated_case, dict(groups=2), {}),
  "delta": (delta_case, {}, {}),
  "delta, kernels": (delta_case, {}, {}),
  "delta, a": (delta_case, dict(a=True), {}),
  "delta, K": (delta_case, dict(wide=True), {}),
  "delta, K, a": (delta_case, dict(wide=True, a=True), {}),
  "log-linear": (log_linear_case, {}, {}),
  "log-linear, b": (log_linear_case, dict(erase=True), {}),
  "log-linear, few levels": (log_linear_case, dict(levels=3, erase=True), {}),
  "mesa": (mesa_case, {}, {}),
  "ttt": (ttt_case, {}, {}),
  "titans": (titans_case, {}, dict(size=CHUNK)),
  "diagonal": (scan_case, {}, {}),
  "diagonal, kernels": (scan_case, {}, {}),
  "pair": (pair_case, {}, {}),
  "selective": (selective_case, {}, {}),
  "selective, negative": (selective_case, {}, dict(negative=True)),
  "convolve": (convolve_case, {}, {}),
  "convolution": (convolution_case, {}, {}),
  "convolution, short": (convolution_case, dict(length=5), {}),
  "convolution, long": (convolution_case, dict(length=40), {}),
}


@functools.cache
def case(label):
  """What makes a case's inputs, the fast twin and the reference."""
  make, fields, options = CASES[label]
  name = label.partition(",")[0]
  functions, _ = TWINS[name]
  if name in ("log-linear", "ttt", "titans"):
    functions = {twin: counted(f) for twin, f in functions.items()}
  if name == "titans":
    functions = {twin: two_layers(f) for twin, f in functions.items()}
  reference, fast = functions["reference"], functions.get("chunked")
  fast = KERNELS.get(label, fast)
  if fast is None:
    fast = functions["scan"]
  elif name not in ("ttt", "titans"):
    fast = functools.partial(fast, chunk=CHUNK)
  own = {k: v for k, v in options.items() if k == "read"}
  return (
    functools.partial(make, **fields, **own),
    functools.partial(fast, **options),
    functools.partial(reference, **options),
  )


def over(names):
  """One worker a case, so that its gradient is compiled once."""
  return pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.xdist_group(n)) for n in names],
  )


each = over(CASES)
ONE_OF_EACH = ["gated", "gated, K", "delta", "delta, K, a", "diagonal"]
ONE_OF_EACH += ["selective", "convolve", "log-linear, b", "mesa", "ttt"]
ONE_OF_EACH += ["titans", "convolution", *KERNELS]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
  "name", ["gated, K, before", "delta, K", "delta, K, a"]
)
def test_whole_chunks_of_decays(name, dtype):
  """As a TPU takes them."""
  make, fast, reference = case(name)
  x, reset = make(T), resets()
  for part in {"q", "k", "v", "a", "b"} & set(x):
    if x[part] is not None:
      x[part] = x[part].astype(dtype)
  with target.using("tpu"):
    a = value_and_gradient(lambda **x: fast(**x), x, reset)
  tolerance = 1e-5 if dtype == "float32" else 4e-2
  close(a, value_and_gradient(reference, x, reset), tolerance)


def resets():
  """A first token, two in a row, at a chunk's edge and inside; B T."""
  reset = np.zeros((B, T), bool)
  reset[0, [0, 4, 5, 18]] = True
  reset[1, [7, 8, 20]] = True
  return reset


def timed(x):
  """Names of the inputs that have a time axis."""
  return [k for k, a in x.items() if k != "state" and np.shape(a)[:2] == (B, T)]


def during(x, part):
  """The inputs of some of the T tokens."""
  return x | {k: x[k][:, part] for k in timed(x)}


def weighed(out):
  """A linear loss: it does not magnify what the twins differ by."""

  def total(a):
    weights = np.cos(np.arange(a.size, dtype=np.float32)).reshape(a.shape)
    return (a.astype(jnp.float32) * weights).sum()

  return sum(map(total, jax.tree.leaves(out)))


@functools.cache
def compiled(f):
  """What f answers from token `start` on, and its gradients."""

  def loss(x, reset, start):
    out, state = f(**x, reset=reset)

    def late(o):
      at = jnp.arange(o.shape[1]).reshape(1, -1, *[1] * (o.ndim - 2))
      return jnp.where(at >= start, o, jnp.zeros((), o.dtype))

    out = jax.tree.map(late, out), state
    return weighed(out), out

  return jax.jit(jax.grad(loss, has_aux=True))


def value_and_gradient(f, x, reset, start=0):
  with jax.numpy_dtype_promotion("strict"):
    grad, out = compiled(f)(x, reset, start)
  return dict(out=out, grad=grad)


def close(a, b, tolerance):
  """Leaf by leaf, relative to the largest number of each."""
  for (path, p), q in zip(
    jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True
  ):
    assert p.dtype == q.dtype
    p, q = np.asarray(p, np.float32), np.asarray(q, np.float32)
    assert np.isfinite(p).all(), jax.tree_util.keystr(path)
    np.testing.assert_allclose(
      p,
      q,
      rtol=0,
      atol=tolerance * max(1e-3, np.abs(q).max()),
      err_msg=jax.tree_util.keystr(path),
    )


def test_every_recurrence_has_a_case():
  """But attention, which has a suite of its own."""
  assert {c.partition(",")[0] for c in CASES} == TWINS.keys() - {"attention"}


@pytest.mark.parametrize("name", TWINS)
def test_examples(name):
  """Ordinary inputs, which launch.bench times, and nothing else given."""
  functions, example = TWINS[name]
  seeds = itertools.count()
  for label, x in example(
    lambda *s: normal(next(seeds), *s), B, T, 2, K
  ).items():
    if label.partition(",")[0] == name:
      found = [jax.jit(f)(**x) for f in functions.values()]
      for out in found[1:]:
        close(out, found[0], 1e-5)


@each
def test_twins(name):
  make, fast, reference = case(name)
  x, reset = make(T), resets()
  a, b = (value_and_gradient(f, x, reset) for f in (fast, reference))
  close(a, b, 1e-5)


@over(
  ["gated, before", "gated, K, before", "delta", "delta, K, a", *[*KERNELS][:2]]
)
def test_twins_in_bfloat16(name):
  make, fast, reference = case(name)
  x = make(T)
  for part in {"q", "k", "v", "a", "b"} & set(x):
    if x[part] is not None:
      x[part] = x[part].astype(jnp.bfloat16)
  a, b = (value_and_gradient(f, x, resets()) for f in (fast, reference))
  close(a, b, 4e-2)


@each
def test_split_anywhere(name):
  """No reset and no state; then token by token and in pieces, carrying it."""
  make, fast, reference = case(name)
  x = make(T) | {"state": None}
  whole = jax.jit(fast)(**x)
  close(whole, jax.jit(reference)(**x), 1e-5)
  state, outs = jax.tree.map(np.zeros_like, whole[1]), []
  call = jax.jit(fast)
  for start, stop in ((0, 1), (1, 11), (11, 12), (12, T)):
    piece = during(x, slice(start, stop)) | {"state": state}
    out, state = call(**piece)
    outs.append(out)
  outs = jax.tree.map(lambda *o: np.concatenate(o, axis=1), *outs)
  close((outs, state), whole, 1e-5)


@over(ONE_OF_EACH)
def test_nothing_before_a_reset_matters(name):
  """Exactly: by a product with 0, not by a difference of equals."""
  make, fast, _ = case(name)
  x, reset, r = make(T), resets(), 13
  reset[:, r] = True

  def after(x):
    return value_and_gradient(fast, x, reset, r)

  out, grad = after(x).values()
  early = {k: grad[k][:, :r] for k in timed(x)} | {"state": grad["state"]}
  for path, a in jax.tree.leaves_with_path(early):
    assert not np.any(a), jax.tree_util.keystr(path)
  late = {k: grad[k][:, r:] for k in timed(x)}
  assert all(map(np.any, jax.tree.leaves(late)))
  for k in timed(x):
    x[k] = np.concatenate([x[k][:, :r] / 2, x[k][:, r:]], axis=1)
  x["state"] = jax.tree.map(np.ones_like, x["state"])
  jax.tree.map(np.testing.assert_array_equal, after(x)["out"], out)


def test_log_linear_in_a_loop_of_layers():
  """From no state, in many rows: as it is trained."""
  rows, time, heads = 14, 5, 4
  q, k = normal(0, rows, time, heads, K), normal(1, rows, time, heads, K)
  v = normal(2, rows, time, heads, 12)
  scale = np.exp(normal(3, rows, time, heads, 4))
  g = np.log(sigmoid(normal(4, rows, time, heads)))

  def last(f):
    def layer(v, weight):
      return v + f(weight * q, k, v, g, scale)[0], None

    return jax.jit(lambda v: jax.lax.scan(layer, v, jnp.ones(3) / 3)[0])(v)

  chunked = functools.partial(log_linear.chunked, chunk=4)
  expected = last(log_linear.reference)
  for _ in range(3):  # memory that was never written to is 0 at first
    close(last(chunked), expected, 1e-5)


@pytest.mark.parametrize("name", ["gated", "gated, K"])
def test_minus_infinity_is_a_reset(name):
  make, fast, _ = case(name)
  x, reset, call = make(T), resets(), jax.jit(fast)
  cut = np.where(reset.reshape(B, T, *[1] * (x["g"].ndim - 2)), -np.inf, x["g"])
  close(call(**x | {"g": cut}), call(**x, reset=reset), 1e-6)


@pytest.mark.parametrize("wide", [False, True])
def test_a_gate_at_zero_has_no_gradient(wide):
  """Not even as rounding; one near 0 has one as small as itself."""
  x = gated_case(64, wide=wide)
  x["g"][:], x["g"][:, ::7] = -40, -np.inf
  grad = value_and_gradient(gated.chunked, x, None)["grad"]["g"]
  assert not np.any(grad[:, ::7])
  assert 0 < np.abs(grad).max() < 1e-15


@pytest.mark.parametrize("wide", [False, True])
def test_decays_keep_their_digits(wide):
  """After many strong decays one near 1 is still seen."""
  x = gated_case(64, wide=wide)
  x["g"][:, :50], x["g"][:, 50:] = -80, -1e-3
  a, b = (jax.jit(f)(**x) for f in (gated.chunked, gated.reference))
  close(a, b, 2e-6)


def test_inverse():
  """Where the powers of x are large: equal keys, written at full strength."""
  x = -np.tril(np.ones((1, 64, 64), np.float32), -1)
  exact = np.eye(64) - np.eye(64, k=-1)
  np.testing.assert_allclose(jax.jit(chunks.inverse)(x)[0], exact, atol=1e-6)


@pytest.mark.parametrize(
  "formula",
  [
    "mik,mkj->mij",
    "mik,mjk->mij",
    "mki,mkj->mij",
    "mkj,mki->mij",
    "...ki,...kj->...ij",
    "bkih,hkj->bihj",
    "tbhi,tbhj->hij",
    "mck,mrcv->mrkv",
    "mik,mrkv->mriv",
    "bhk,bhknv->bhnv",
    "bhi,bhj->bhij",
    "ki,kj->ij",
  ],
)
def test_product(formula):
  """However a CPU arranges it, it is the einsum, and so are its gradients."""
  left, right, _ = formula.replace("...", "mn").replace("->", ",").split(",")
  sizes = dict(zip("bchijkmnrtv", range(2, 13), strict=True))
  x, y = (normal(n, *map(sizes.get, a)) for n, a in enumerate((left, right)))

  def both(f):
    return jax.grad(lambda x, y: weighed(f(formula, x, y)), (0, 1))(x, y)

  exact = functools.partial(jnp.einsum, precision="highest")
  close(chunks.dot(formula, x, y), exact(formula, x, y), 1e-6)
  close(both(chunks.dot), both(exact), 1e-6)


@pytest.mark.parametrize(
  "formula",
  ["ij,jk->k", "ii,ij->j", "...ij,jk->...ik", "k...i,kj->...ij", "i->i"],
)
def test_other_products_are_refused(formula):
  with pytest.raises(ValueError, match="each letter must be once in two"):
    chunks.dot(formula, jnp.ones((2, 2)), jnp.ones((2, 2)))


@pytest.mark.parametrize(
  ("fast", "case"),
  [
    (gated.chunked, gated_case(64)),
    (gated.chunked, gated_case(64, wide=True)),
    (delta.chunked, delta_case(64)),
    (delta.chunked, delta_case(64, wide=True, a=True)),
  ],
  ids=["gated", "gated, K", "delta", "delta, K, a"],
)
def test_products_are_quick_ones(fast, case):
  """What a batch of matrices sums is last on the left; see cpu_product."""
  call = functools.partial(value_and_gradient, fast, reset=None)
  text = jax.jit(call).lower(case).compile().as_text()
  dots = re.findall(
    r"dot\(.*lhs_batch_dims={([\d,]+)}, lhs_contracting_dims={(\d+)}", text
  )
  assert len(dots) > 10
  assert all(int(last) == batch.count(",") + 2 for batch, last in dots)


def test_replicates():
  """vmap over texts whose resets differ in number."""
  make, fast, _ = case("convolve")
  call = jax.jit(functools.partial(value_and_gradient, fast, make(T)))
  reset = np.stack([resets(), np.zeros_like(resets())])
  alone = jax.tree.map(lambda *a: np.stack(a), *map(call, reset))
  close(jax.vmap(call)(reset), alone, 1e-5)


def equations(jaxpr):
  """All that a jaxpr runs, the bodies of loops once."""
  for eqn in jaxpr.eqns:
    yield eqn
    for part in jax.tree.leaves(
      list(eqn.params.values()), is_leaf=lambda p: hasattr(p, "eqns")
    ):
      part = getattr(part, "jaxpr", part)
      if hasattr(part, "eqns"):
        yield from equations(part)


def traced(name, time):
  """How many equations value and gradient have, and the largest array."""
  make, fast, _ = case(name)
  call = functools.partial(value_and_gradient, fast, reset=None)
  found = list(equations(jax.make_jaxpr(call)(make(time)).jaxpr))
  return len(found), max(v.aval.size for e in found for v in e.outvars)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_linear_in_time(name):
  few, small = traced(name, 128)
  many, large = traced(name, 512)
  assert many == few, "the program, and so its compile time, grows with T"
  # log-linear takes two chunks apart, and scans over the others
  assert large <= 4.5 * small


def test_selective_never_expands_its_state():
  assert traced("selective", 512)[1] <= B * 512 * D * N / 2


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(chunk=48), "chunk=48 must be a power of two"),
    (dict(q=normal(0, B, 8, 3, K)), "3 groups.*4 heads"),
    (dict(read="before"), "needs one"),
    (dict(u=normal(0, 4, K)), "takes no u"),
    (dict(read="now"), "read='now'"),
    (
      gated_case(16, wide=True, rows=(3,)),
      "3 tokens in a step need one decay a head",
    ),
  ],
)
def test_refused(change, message):
  with pytest.raises(ValueError, match=message):
    gated.chunked(**gated_case(16) | change)
