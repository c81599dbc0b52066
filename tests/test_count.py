"""Every formula of arch.count, and the whole against XLA's own count."""

import jax
import jax.numpy as jnp
import models
import pytest
from flax import nnx
from jax.experimental import pallas

import arch
from arch import layers, registry, target
from arch.count import Flops, decoding, flops

f32 = jnp.float32


def shaped(*shape, dtype=f32):
  return jax.ShapeDtypeStruct(shape, dtype)


def repeated(body):
  return lambda x, w: jax.lax.scan(lambda x, _: (body(x, w), None), x, None, 7)[
    0
  ]


@jax.custom_vjp
def product(x, w):
  return x @ w


product.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, g: saved)


def branches(x, w):
  return jax.lax.cond(x[0, 0] > 0, lambda x: x @ w @ w, lambda x: x @ w, x)


def loop(x, w):
  return jax.lax.fori_loop(0, 7, lambda _, x: x @ w, x)


def kernel(x, w):
  def body(x, w, y):
    y[...] = x[...] @ w[...]

  row = pallas.BlockSpec((1, 5), lambda i: (i, 0))
  whole = pallas.BlockSpec((5, 5), lambda i: (0, 0))
  shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
  call = pallas.pallas_call(
    body, shape, grid=(3,), in_specs=[row, whole], out_specs=row, interpret=True
  )
  return call(x, w)


X, W = shaped(3, 5), shaped(5, 5)
ONE = 2 * 3 * 5 * 5  # X W

CASES = {
  "product": (lambda x, w: x @ w, (X, W), ONE, 0),
  "einsum": (
    lambda q, k: jnp.einsum("bihk,bjhk->bhij", q, k),
    (shaped(2, 5, 3, 7), shaped(2, 11, 3, 7)),
    2 * (2 * 3) * 5 * 11 * 7,
    0,
  ),
  "scan": (repeated(lambda x, w: x @ w), (X, W), 7 * ONE, 0),
  "scan in a scan": (
    repeated(repeated(lambda x, w: x @ w)),
    (X, W),
    49 * ONE,
    0,
  ),
  "recurrence": (repeated(lambda x, w: 0.5 * x + w), (X, X), 0, 7 * 2 * 15),
  "loop": (loop, (X, W), 7 * ONE, 0),
  "branches": (branches, (X, W), 2 * ONE, 0),
  "jit": (jax.jit(lambda x, w: x @ w), (X, W), ONE, 0),
  "remat": (jax.checkpoint(lambda x, w: x @ w), (X, W), ONE, 0),
  "custom gradient": (product, (X, W), ONE, 0),
  "vmap": (jax.vmap(product), (shaped(4, 3, 5), shaped(4, 5, 5)), 4 * ONE, 0),
  "kernel": (kernel, (X, W), ONE, 0),
  "ragged": (
    jax.lax.ragged_dot,
    (shaped(6, 5), shaped(4, 5, 3), shaped(4, dtype=jnp.int32)),
    2 * 6 * 5 * 3,
    0,
  ),
  "convolution": (
    lambda x, w: jax.lax.conv_general_dilated(
      x, w, (1,), "VALID", feature_group_count=2
    ),
    (shaped(2, 6, 10), shaped(8, 3, 4)),
    2 * (2 * 8 * 7) * 3 * 4,
    0,
  ),
  "triangular solve": (
    lambda a, b: jax.lax.linalg.triangular_solve(
      a, b, left_side=True, lower=True
    ),
    (W, shaped(5, 3)),
    5 * 5 * 3,
    0,
  ),
  "outer product": (
    lambda k, v: jnp.einsum("bk,bv->bkv", k, v),
    (X, shaped(3, 7)),
    0,
    3 * 5 * 7,
  ),
  "reduction": (lambda x: jnp.sum(jnp.exp(x), 1), (X,), 0, 15 + 15),
  "scatter": (
    lambda x, i, y: x.at[i].add(y),
    (shaped(9, 5), shaped(3, dtype=jnp.int32), X),
    0,
    15,
  ),
  "window": (
    lambda x: jax.lax.reduce_window(
      x, 0.0, jax.lax.add, (1, 3), (1, 1), "VALID"
    ),
    (X,),
    0,
    3 * 3 * 3,
  ),
  "scaled scatter": (
    lambda x, i, y: x.at[i].multiply(y),
    (shaped(9, 5), shaped(3, dtype=jnp.int32), X),
    0,
    15,
  ),
  "transform": (
    lambda x: jnp.fft.fft(x),
    (shaped(3, 16, dtype=jnp.complex64),),
    0,
    3 * 5 * 16 * 4,
  ),
  "integers": (lambda x: x + x * x, (shaped(3, 5, dtype=jnp.int32),), 0, 0),
  "movement": (lambda x: jnp.where(x > 0, x, 0).T.reshape(-1)[::2], (X,), 0, 0),
  "unread": (lambda x, w: (x @ w, x)[1], (X, W), 0, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_formula(case):
  function, args, products, elementwise = CASES[case]
  ops = flops(function, *args)
  assert ops["products", "norm"] == products
  assert ops["elementwise", "norm"] == elementwise


def test_outermost_scope_is_the_group():
  @jax.jit
  def inner(x, w):
    with jax.named_scope("channel"):
      return x @ w

  def function(x, w):
    with jax.named_scope("mixer"):
      x = jax.vmap(inner, in_axes=(0, None))(x[:, None], w)[:, 0]
    return inner(x, w) @ w

  ops = flops(function, X, W)
  groups = {group: n for (kind, group), n in ops.items() if kind == "products"}
  assert groups == {"mixer": ONE, "channel": ONE, "norm": ONE}


def test_while_is_refused():
  def function(x):
    return jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x + x, x)

  with pytest.raises(ValueError, match="while loop"):
    flops(function, X)


@pytest.mark.parametrize(
  "name, function",
  {
    "qr|geqrf|householder_product": jnp.linalg.qr,
    "svd": jnp.linalg.svd,
    "cholesky": jnp.linalg.cholesky,
    "eigh": jnp.linalg.eigh,
    "custom_linear_solve|lu": jnp.linalg.inv,
    "pure_callback": lambda x: jax.pure_callback(lambda x: x @ x, x, x),
  }.items(),
)
def test_what_has_no_formula_is_refused(name, function):
  with pytest.raises(ValueError, match=f"the cost of '({name})' is not known"):
    flops(function, W)


def test_the_machine_that_counts_does_not_matter():
  c = models.config("gated_deltanet")
  found = []
  for platform in ("cpu", "tpu"):
    with target.using(platform):
      found.append(arch.count(arch.abstract(c.model), 64))
  assert found[0] == found[1]


def test_agrees_with_xla():
  def block(x, up, gate, down):
    q, k = x @ up, x @ gate
    a = jax.nn.softmax(jnp.tril(q @ k.T), -1)
    return x + (jax.nn.silu(a @ q) * k) @ down

  args = shaped(67, 64), shaped(64, 96), shaped(64, 96), shaped(96, 64)
  xla = jax.jit(block).lower(*args).compile().cost_analysis()
  ours = sum(flops(block, *args).values())
  assert ours == pytest.approx(xla["flops"] + xla["transcendentals"], rel=0.02)


def mixed():
  """Shared, parallel and stacked blocks, both channel-less and not."""
  c = models.config("mamba2")
  c.model.depth = 6
  first = {"mixer": "mamba2", "share": "a", "channel": "swiglu"}
  c.model.pattern = (first, "mamba2|mamba", "mamba2+swiglu")
  return c


def test_groups_of_a_mixed_model():
  model = arch.abstract(mixed().model)
  sizes = arch.count(model, 7)
  leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
  assert sizes.params == sum(leaf.size for leaf in leaves)
  assert sizes.embedding == sizes.groups["vocab"]
  dim = 24
  # one shared block, two of two mixers in parallel, two plain, the readout's
  assert sizes.groups["norm"] == dim * (2 + 2 * 3 + 2 * 2 + 1)
  assert min(sizes.forward.groups.values()) > 0


def test_state_and_its_cost():
  c = models.config("mamba2_attention")
  c.model.depth, c.model.pattern = 2, ("mamba2", "attention")
  model = models.build(c)
  short, long = decoding(model, 5), decoding(model, 64)
  for length, its in (5, short), (64, long):
    leaves = jax.tree.leaves(model.init_state(1, length))
    assert its.bytes == sum(leaf.nbytes for leaf in leaves)
    assert its.bytes == its.state["mixer"]
  assert long.bytes > short.bytes
  assert long.flops.total > short.flops.total

  c.model.pattern = ("mamba2",)
  model = arch.abstract(c.model)
  assert decoding(model, 5) == decoding(model, 64)


def test_same_scanned_or_unrolled(monkeypatch):
  model = arch.abstract(mixed().model)
  scanned = arch.count(model, 11)
  models.unrolled(monkeypatch, 16)
  assert arch.count(model, 11) == scanned


def test_idle_parameters_are_not_active(monkeypatch):
  c = mixed()
  channel = registry.find("channels", "swiglu").Channel
  monkeypatch.setattr(channel, "idle", lambda self: 5, raising=False)
  sizes = arch.count(arch.abstract(c.model), 7)
  assert sizes.params - sizes.active == 2 * 5  # a shared one, a stack


def test_parameter_of_no_group():
  model = arch.abstract(mixed().model)
  model.adapter = layers.Linear(2, 3, dtype="float32", rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="adapter.weight is of no group.* None"):
    arch.count(model, 7)


def test_total():
  ops = Flops(
    {"vocab": 1.0, "mixer": 2.0, "channel": 4.0, "norm": 8.0},
    {"vocab": 16.0, "mixer": 32.0, "channel": 64.0, "norm": 128.0},
  )
  assert ops.total == 255
