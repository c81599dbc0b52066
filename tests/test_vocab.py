"""Vocabularies, and the loss that never builds all logits."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend import core
from models import close

from arch import losses, registry
from arch.vocab import full

VOCABS = registry.names("vocab")


def make(name, *, dim=6, size=13, **fields):
  module = registry.find("vocab", name)
  cfg = module.Config(dim=dim, size=size, **fields)
  return module.Vocab(cfg, rngs=nnx.Rngs(0))


def data(B, T, D, V, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(1), 4)
  x = jax.random.normal(keys[0], (B, T, D), dtype)
  targets = jax.random.randint(keys[1], (B, T), 0, V)
  weights = jax.random.uniform(keys[2], (B, T))
  weights = weights * (jax.random.uniform(keys[3], (B, T)) < 0.7)
  return x, targets, weights


def plain(table, x, targets, weights):
  logits = jnp.einsum(
    "btd,vd->btv",
    x,
    table.astype(x.dtype),
    preferred_element_type=jnp.float32,
  )
  logs = jax.nn.log_softmax(logits)
  nll = -jnp.take_along_axis(logs, targets[..., None], -1)[..., 0]
  return jnp.sum(weights * nll) / jnp.sum(weights)


def chunked(table, x, targets, weights, chunk=8):
  return losses.mean_nll(full.read, table, x, targets, weights, chunk)


@pytest.mark.parametrize(
  "B, T, chunk",
  [(1, 1, 8), (3, 7, 1), (3, 7, 1000), (1, 23, 5), (4, 16, 8)],
)
def test_chunked_loss_is_the_plain_one(B, T, chunk):
  x, targets, weights = data(B, T, 6, 13)
  weights = weights + 0.1  # also where there is only one
  table = jax.random.normal(jax.random.key(2), (13, 6))

  def graded(f):
    # twice, so that the gradient's incoming factor is not 1
    return jax.value_and_grad(lambda *a: 2 * f(*a), (0, 1, 3))

  @jax.jit
  def both(*args):
    value = chunked(*args, chunk)
    parts = graded(lambda *a: chunked(*a, chunk))(*args)
    return (value, parts), (plain(*args), graded(plain)(*args))

  close(*both(table, x, targets, weights), 2e-6)


def test_bfloat16_products_with_float32_logits():
  x, targets, weights = data(3, 7, 32, 13, jnp.bfloat16)
  table = jax.random.normal(jax.random.key(2), (13, 32))
  exact = jax.jit(jax.value_and_grad(plain, (0, 1)))(
    table, x.astype(jnp.float32), targets, weights
  )
  with jax.numpy_dtype_promotion("strict"):
    loss, (d_table, d_x) = jax.jit(jax.value_and_grad(chunked, (0, 1)))(
      table, x, targets, weights
    )
  assert (d_table.dtype, d_x.dtype) == (jnp.float32, jnp.bfloat16)
  close((loss, (d_table, d_x)), exact, 2e-2)
  # one operation at a time, or XLA would leave out a rounding to bfloat16
  rounded = table.astype(jnp.bfloat16).astype(jnp.float32)
  flat = x.reshape(21, 32)
  close(full.read(table, flat), flat.astype(jnp.float32) @ rounded.T, 1e-6)


def test_weights_of_zero():
  x, targets, weights = data(3, 7, 6, 13)
  table = jax.random.normal(jax.random.key(2), (13, 6))
  grad = jax.jit(jax.grad(chunked, (0, 1)))
  none = jnp.zeros_like(weights)
  assert chunked(table, x, targets, none) == 0
  assert all(jnp.all(g == 0) for g in grad(table, x, targets, none))
  d_x = grad(table, x, targets, weights)[1]
  assert np.array_equal(np.any(d_x != 0, -1), weights > 0)


def test_replicates_inside_a_checkpointed_scan():
  x, targets, weights = data(3, 7, 6, 13)
  tables = jax.random.normal(jax.random.key(2), (2, 13, 6))

  def steps(loss):
    def step(table, _):
      graded = jax.value_and_grad(jax.checkpoint(loss))
      value, d_table = graded(table, x, targets, weights)
      return table - d_table, value

    return jax.vmap(lambda table: jax.lax.scan(step, table, None, 3))

  close(jax.jit(steps(chunked))(tables), jax.jit(steps(plain))(tables), 1e-5)


def sizes(jaxpr):
  """How many numbers each array of a jaxpr holds."""
  for eqn in jaxpr.eqns:
    yield from (v.aval.size for v in eqn.outvars)
    for value in jax.tree.leaves(list(eqn.params.values())):
      if isinstance(value, core.ClosedJaxpr | core.Jaxpr):
        yield from sizes(getattr(value, "jaxpr", value))


@pytest.mark.parametrize("V", [256, 32_768])
@pytest.mark.parametrize("name", VOCABS)
def test_no_array_holds_all_logits(name, V):
  B, T, D = 8, 512, 16
  vocab = nnx.eval_shape(lambda: make(name, dim=D, size=V))
  x, targets, weights = jax.eval_shape(lambda: data(B, T, D, V))

  def train(vocab, x, targets, weights):
    return jax.value_and_grad(lambda v, x: v.loss(x, targets, weights), (0, 1))(
      vocab, x
    )

  def evaluate(vocab, x, targets, weights):
    return vocab.score(x, targets)

  for f in (train, evaluate):
    jaxpr = jax.make_jaxpr(f)(vocab, x, targets, weights).jaxpr
    assert B * T * V // 2 > max(sizes(jaxpr))
    assert max(sizes(jaxpr)) >= 512 * V  # the walk sees inside the scan


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", VOCABS)
def test_score_and_loss_agree_with_the_logits(name, tied):
  vocab = make(name, tied=tied)
  x, targets, weights = data(3, 7, 6, 13)
  logits = jax.jit(vocab.logits)(x)
  targets = targets.at[0].set(jnp.argmax(logits[0], -1))
  assert (logits.shape, logits.dtype) == ((3, 7, 13), jnp.float32)
  logs = jax.nn.log_softmax(logits)
  nll = -jnp.take_along_axis(logs, targets[..., None], -1)[..., 0]
  nats, right = jax.jit(vocab.score)(x, targets)
  close(nats, nll, 1e-6)
  assert np.array_equal(right, jnp.argmax(logits, -1) == targets)
  assert np.all(right[0]) and not np.all(right)
  loss = jax.jit(vocab.loss)(x, targets, weights)
  close(loss, jnp.sum(weights * nll) / jnp.sum(weights), 1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_lowrank_is_the_product(tied):
  vocab = make("lowrank", tied=tied)
  E, P, Q = (p[...] for p in (vocab.embedding, vocab.widen, vocab.narrow))
  assert (E.shape, P.shape, Q.shape) == ((14, 2), (2, 6), (6, 2))
  R = E[:13] if tied else vocab.readout[...]
  tokens = jnp.arange(14)[None]
  close(vocab.embed(tokens)[0], E @ P, 1e-6)
  x, *_ = data(3, 7, 6, 13)
  close(vocab.logits(x), x @ (Q @ R.T), 1e-6)


@pytest.mark.parametrize("name", VOCABS)
def test_scale_and_softcap(name):
  vocab = make(name, scale=3.0, softcap=0.01)
  plain = make(name)
  close(
    vocab.embed(jnp.arange(14)[None]), 3 * plain.embed(jnp.arange(14)[None])
  )
  x, targets, weights = data(3, 7, 6, 13)
  logits = 0.01 * jnp.tanh(plain.logits(x) / 0.01)
  close(vocab.logits(x), logits)
  nll = -jnp.take_along_axis(
    jax.nn.log_softmax(logits), targets[..., None], -1
  )[..., 0]
  close(vocab.score(x, targets)[0], nll)
  close(
    vocab.loss(x, targets, weights), jnp.sum(weights * nll) / jnp.sum(weights)
  )


@pytest.mark.parametrize("name", VOCABS)
def test_a_tied_table_learns_from_both_uses(name):
  vocab = make(name, tied=True)
  _, targets, weights = data(3, 7, 6, 13)
  tokens = jnp.full((3, 7), 13)  # the start symbol only

  def rows(stop_in, stop_out):
    def loss(vocab):
      x = 10 * vocab.embed(tokens)
      x = jax.lax.stop_gradient(x) if stop_in else x
      out = jax.lax.stop_gradient(vocab) if stop_out else vocab
      return out.loss(x, targets, weights)

    grad = jax.jit(jax.grad(loss))(vocab).embedding[...]
    return np.any(np.asarray(grad) != 0, -1)

  assert np.array_equal(rows(False, True), np.arange(14) == 13)
  assert np.array_equal(rows(True, False), np.arange(14) < 13)
  assert np.all(rows(False, False))


@pytest.mark.parametrize("size", [2, 256])
@pytest.mark.parametrize("dim", [16, 1024])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", VOCABS)
def test_starts_near_uniform_even_without_blocks(name, tied, dim, size):
  vocab = make(name, dim=dim, size=size, tied=tied)
  tokens = jax.random.randint(jax.random.key(3), (4, 64), 0, size)
  targets = jax.random.randint(jax.random.key(4), (4, 64), 0, size)

  @jax.jit
  def loss(vocab):
    x = vocab.embed(tokens)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True))
    return vocab.loss(x, targets, jnp.ones((4, 64)))

  assert abs(loss(vocab) - math.log(size)) < 0.3


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", VOCABS)
def test_the_stream_starts_at_unit_size(name, tied):
  """But that of a table that is the readout, too; see arch/vocab/full.py."""
  vocab = make(name, dim=1024, size=256, tied=tied and name != "full")
  x = vocab.embed(jnp.arange(257)[None])
  assert abs(jnp.mean(x * x) - 1) < 0.1


def test_a_token_that_does_not_exist_is_not_a_number():
  x = make("full").embed(jnp.array([[13, 14]]))
  assert np.array_equal(np.any(np.isnan(x), -1), [[False, True]])


def test_bad_fields():
  with pytest.raises(ValueError, match="size=1"):
    make("full", size=1)
  with pytest.raises(ValueError, match="rank=0"):
    make("lowrank", rank=0)


def test_rank_is_a_quarter_of_the_width_by_default():
  assert make("lowrank", rank=None).embedding.shape == (14, 2)
