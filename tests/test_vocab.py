"""Vocabularies, and the loss that never builds all logits."""

import functools
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend import core
from models import close, config, held

import arch
from arch import losses, quantiser, registry
from arch.product import product
from arch.vocabulary import WAYS, Vocab

VOCABS = registry.names("vocab")
FILES = {
  way: [n for n in VOCABS if hasattr(registry.find("vocab", n), kind)]
  for way, kind in WAYS.items()
}
BOTH = [n for n in VOCABS if all(n in names for names in FILES.values())]
# a way in knows nothing of a way out: each beside `full`, and beside its own
PAIRS = {*((name, "full") for name in FILES["input"])}
PAIRS |= {*(("full", name) for name in FILES["output"])}
PAIRS = sorted(PAIRS | {(name, name) for name in BOTH} | {("ngram", "mixture")})
in_and_out = pytest.mark.parametrize("pair", PAIRS, ids="-".join)


def make(pair, *, dim=6, size=13, positions=0, dtype="float32", **fields):
  """A vocabulary of a file, or of one for the way in and one for that out."""
  ways = pair if isinstance(pair, tuple) else (pair, pair)
  vocab = dict(zip(WAYS, ways, strict=True), size=size, **fields)
  cfg = SimpleNamespace(
    dim=dim, compute=dtype, vocab=vocab, positions=positions
  )
  return Vocab(cfg, rngs=nnx.Rngs(0))


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


def logits_of(table, x):
  return product("cd,vd->cv", x, table.astype(x.dtype))


def nats(table, held, x, targets):
  return losses.nll(logits_of(table, x), targets)


def chunked(table, x, targets, weights, chunk=8):
  return losses.mean(nats, table, (), x, targets, weights, chunk)


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
  close(logits_of(table, flat), flat.astype(jnp.float32) @ rounded.T, 1e-6)


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
@pytest.mark.parametrize("name", FILES["output"])
def test_no_array_holds_all_logits(name, V):
  B, T, D = 32, 512, 16
  vocab = nnx.eval_shape(
    lambda: make(("full", name), dim=D, size=V, tied=False)
  )
  x, targets, weights = jax.eval_shape(lambda: data(B, T, D, V))

  def train(vocab, x, targets, weights):
    def loss(vocab, x):
      return vocab.loss(x, targets, weights)

    return jax.value_and_grad(loss, (0, 1), allow_int=True)(vocab, x)

  def evaluate(vocab, x, targets, weights):
    return vocab.score(x, targets)

  for f in (train, evaluate):
    jaxpr = jax.make_jaxpr(f)(vocab, x, targets, weights).jaxpr
    assert B * T * V // 2 > max(sizes(jaxpr))
    # the walk sees inside the scan; a band has half of the symbols
    assert max(sizes(jaxpr)) >= 512 * V // 2


def test_a_mean_of_anything():
  """Of two given trees, read beside constants, against the plain sum."""
  x, targets, weights = data(3, 7, 6, 13)
  other = jax.random.normal(jax.random.key(3), (3, 7, 6))
  table = jax.random.normal(jax.random.key(2), (13, 6))
  held = jnp.arange(13)[::-1], jnp.float32(0.3)

  def fn(params, held, x, given):
    order, cold = held
    targets, other = given
    logits = logits_of(params[0][order], x) * params[1]
    teacher = jax.nn.softmax(logits_of(params[0], other) * cold)
    return losses.nll(logits, targets) - jnp.sum(teacher * logits, -1)

  def plain(params, x):
    flat = jax.tree.map(
      lambda a: a.reshape(-1, *a.shape[2:]), (x, (targets, other))
    )
    each = fn(params, held, *flat)
    return jnp.sum(weights.ravel() * each) / jnp.sum(weights)

  def by_chunks(params, x):
    return losses.mean(fn, params, held, x, (targets, other), weights, 4)

  args = (table, jnp.float32(0.7)), x
  found, exact = (
    jax.jit(jax.value_and_grad(lambda *a, f=f: 2 * f(*a), (0, 1)))(*args)
    for f in (by_chunks, plain)
  )
  close(found, exact, 2e-6)


def test_nats_have_the_gradient_of_their_formula():
  logits = 3 * jax.random.normal(jax.random.key(0), (5, 13))
  targets, weights = jnp.arange(5) * 3, jnp.arange(5.0)

  def plain(logits):
    logs = jax.nn.log_softmax(logits)
    return -weights @ jnp.take_along_axis(logs, targets[:, None], -1)[:, 0]

  def ours(logits):
    return weights @ losses.nll(logits, targets)

  close(*(jax.value_and_grad(f)(logits) for f in (ours, plain)), 1e-6)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", FILES["output"])
def test_a_readout_is_a_distribution(name, tied):
  """Nats, score, loss and logits agree, and all nats are one whole."""
  if tied and name not in FILES["input"]:
    pytest.skip("nothing that it could be tied to")
  way_in = name if tied else "full"
  vocab = make((way_in, name), tied=tied)
  x, targets, weights = data(3, 7, 6, 13)
  logits = jax.jit(vocab.logits)(x)
  targets = targets.at[0].set(jnp.argmax(logits[0], -1))
  assert (logits.shape, logits.dtype) == ((3, 7, 13), jnp.float32)
  logs = jax.nn.log_softmax(logits)
  nll = -jnp.take_along_axis(logs, targets[..., None], -1)[..., 0]
  score = jax.jit(vocab.score)
  nats, right = score(x, targets)
  close(nats, nll, 1e-6)
  assert np.array_equal(right, jnp.argmax(logits, -1) == targets)
  assert np.all(right[0]) and not np.all(right)
  loss = jax.jit(vocab.loss)(x, targets, weights)
  close(loss, jnp.sum(weights * nll) / jnp.sum(weights), 1e-6)
  every = [score(x, jnp.full_like(targets, v))[0] for v in range(13)]
  close(sum(jnp.exp(-nats) for nats in every), jnp.ones((3, 7)), 1e-6)


@pytest.mark.parametrize("positions", [0, 11])
@pytest.mark.parametrize("name", FILES["input"])
def test_a_table_is_causal_splits_and_forgets(name, positions):
  vocab = make((name, "full"), tied=False, positions=positions)
  if positions:
    rows = jax.random.normal(jax.random.key(0), (11, 6))
    vocab.positions[...] = rows
  tokens = jax.random.randint(jax.random.key(3), (2, 11), 0, 14)
  reset = jnp.zeros((2, 11), bool).at[0, 4].set(True)
  call = jax.jit(lambda *args: vocab.embed(*args))
  whole, last = call(tokens, reset, vocab.init_state(2))
  assert whole.shape == (2, 11, 6)
  close(call(tokens, reset, None), (whole, last), 1e-6)
  state, pieces = None, []
  for start, end in ((0, 3), (3, 4), (4, 5), (5, 11)):
    now = slice(start, end)
    x, state = call(tokens[:, now], reset[:, now], state)
    pieces.append(x)
  close(jnp.concatenate(pieces, 1), whole, 1e-6)
  close(state, last, 1e-6)
  # what is before a reset, and what is later, changes nothing
  other, _ = call((tokens + 1).at[:, 4:8].set(tokens[:, 4:8]) % 14, reset, None)
  close(other[0, 4:8], whole[0, 4:8], 1e-6)
  alone, _ = call(tokens[:1, 4:], None, None)
  close(alone[0], whole[0, 4:], 1e-6)


def untaught(vocab, targets, weights):
  """The loss of features of 0."""
  x = jnp.zeros((*targets.shape, vocab.cfg.dim))
  return vocab.loss(x, targets, weights)


@pytest.mark.parametrize("name", FILES["output"])
def test_nothing_known_is_uniform(name):
  vocab = make(("full", name), tied=False)
  (logs,) = jax.nn.log_softmax(vocab.logits(jnp.zeros((1, 1, 6))))[0]
  if name == "adaptive":  # a band counts as one symbol, as in torch
    logs_of = [*[-math.log(8)] * 7, *[-math.log(8 * 6)] * 6]
    close(logs, jnp.array(logs_of), 1e-6)
  else:
    close(logs, jnp.full(13, -math.log(13)), 1e-6)


@in_and_out
def test_any_way_in_goes_with_any_way_out(pair):
  """Starts near ln V, and everything that learns gets a gradient."""
  vocab = make(pair, tied=False)
  tokens = jax.random.randint(jax.random.key(3), (4, 9), 0, 14)
  _, targets, weights = data(4, 9, 6, 13)

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True, allow_int=True)
  def graded(vocab):
    x, _ = vocab.embed(tokens)
    nats = vocab.loss(x, targets, weights)
    return nats + vocab.later(x, targets, weights), nats

  (_, loss), gradient = graded(vocab)
  assert abs(loss - untaught(vocab, targets, weights)) < 0.5
  for path, g in jax.tree.leaves_with_path(nnx.state(gradient, nnx.Param)):
    g = np.asarray(g)
    assert np.all(np.isfinite(g)) and np.any(g), jax.tree_util.keystr(path)


@in_and_out
def test_bfloat16_is_what_a_model_of_it_sees(pair):
  vocab = nnx.eval_shape(lambda: make(pair, tied=False, dtype="bfloat16"))
  tokens = jnp.zeros((4, 9), jnp.int32)
  _, targets, weights = data(4, 9, 6, 13)

  def run(vocab):
    x, _ = vocab.embed(tokens)
    nats, right = vocab.score(x, targets)
    return vocab.loss(x, targets, weights), (x, vocab.logits(x), nats)

  with jax.numpy_dtype_promotion("strict"):
    (loss, found), gradient = jax.eval_shape(
      jax.value_and_grad(run, has_aux=True, allow_int=True), vocab
    )
  assert [a.dtype.name for a in (loss, *found)] == [
    "float32",
    "bfloat16",
    "float32",
    "float32",
  ]
  for path, g in nnx.to_flat_state(nnx.state(gradient, nnx.Param)):
    assert g.dtype == jnp.float32, path


def test_what_cannot_be_tied_is_refused():
  with pytest.raises(
    ValueError, match="lowrank: tied.*rows of 2 .*full has rows of 6"
  ):
    make(("full", "lowrank"), tied=True)
  with pytest.raises(
    ValueError, match="full: tied=True.*rows of 6 .*rows of 2"
  ):
    make(("lowrank", "full"), tied=True)


def test_fields_go_to_the_way_that_knows_them():
  vocab = make(("full", "lowrank"), rank=3, tied=False, scale=2.0)
  assert vocab.embedding.cfg.scale == 2 and vocab.readout.narrow.shape == (6, 3)
  with pytest.raises(ValueError, match="full has no field 'rank'.*Known: "):
    make("full", rank=3)
  with pytest.raises(ValueError, match="full and lowrank has no field 'dim'"):
    Vocab(
      SimpleNamespace(
        dim=6,
        compute="float32",
        positions=0,
        vocab=dict(input="full", output="lowrank", size=13, dim=5),
      ),
      rngs=nnx.Rngs(0),
    )
  with pytest.raises(ValueError, match="full: scale='a' is no number"):
    make("full", scale="a")


@pytest.mark.parametrize("tied", [False, True])
def test_full_is_torchs(tied, record_property):
  """Rows in, logits, nats and their gradients."""
  torch = pytest.importorskip("torch")
  vocab = make("full", tied=tied)
  x, targets, weights = data(3, 7, 6, 13)
  E = torch.tensor(np.asarray(vocab.embedding.rows[...]), requires_grad=True)
  R = E[:13]
  if not tied:
    R = torch.tensor(np.asarray(vocab.readout.rows[...]), requires_grad=True)
  features = torch.tensor(np.asarray(x), requires_grad=True)
  logits = torch.nn.functional.linear(features, R)
  nats = torch.nn.functional.cross_entropy(
    logits.reshape(-1, 13),
    torch.tensor(np.asarray(targets)).ravel().long(),
    reduction="none",
  )
  w = torch.tensor(np.asarray(weights)).ravel()
  (torch.sum(w * nats) / torch.sum(w)).backward()
  embedded = torch.nn.functional.embedding(torch.arange(14), E).detach()

  def loss(vocab, x):
    return vocab.loss(x, targets, weights)

  moved, d_x = jax.jit(jax.grad(loss, (0, 1)))(vocab, x)
  table = moved.embedding if tied else moved.readout
  ours = [rows_of(vocab), vocab.logits(x), d_x, table.rows[...]]
  grad = E.grad if tied else R.grad
  theirs = [embedded, logits.detach(), features.grad, grad]
  theirs = [t.numpy() for t in theirs]
  source, fields = "torch embedding and cross_entropy", {"tied": tied}
  held(record_property, "vocab", "full", source, ours, theirs, fields)


@pytest.mark.parametrize("tied", [False, True])
def test_lowrank_is_the_product(tied, record_property):
  vocab = make("lowrank", tied=tied)
  way_in, way_out = vocab.embedding, vocab.readout
  E, P, Q = (p[...] for p in (way_in.rows, way_in.widen, way_out.narrow))
  assert (E.shape, P.shape, Q.shape) == ((14, 2), (2, 6), (6, 2))
  R = E[:13] if tied else way_out.rows[...]
  tokens = jnp.arange(14)[None]
  x, *_ = data(3, 7, 6, 13)
  ours = vocab.embed(tokens)[0][0], vocab.logits(x)
  theirs = E @ P, x @ (Q @ R.T)
  source, fields = "ALBERT (1909.11942), sec. 3.1, in numpy", {"tied": tied}
  held(record_property, "vocab", "lowrank", source, ours, theirs, fields)


@pytest.mark.parametrize("name", ["full", "lowrank"])
def test_scale_and_softcap(name):
  vocab = make(name, scale=3.0, softcap=0.01)
  plain = make(name)
  tokens = jnp.arange(14)[None]
  close(vocab.embed(tokens)[0], 3 * plain.embed(tokens)[0])
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


@pytest.mark.parametrize("name", BOTH)
def test_a_tied_table_learns_from_both_uses(name):
  vocab = make(name, tied=True)
  _, targets, weights = data(3, 7, 6, 13)
  tokens = jnp.full((3, 7), 13)  # the start symbol only

  def moved(stop_in, stop_out):
    """Which rows of each array of the table have a gradient."""

    def loss(vocab):
      x = 10 * vocab.embed(tokens)[0]
      x = jax.lax.stop_gradient(x) if stop_in else x
      out = jax.lax.stop_gradient(vocab) if stop_out else vocab
      return out.loss(x, targets, weights)

    moved = jax.jit(jax.grad(loss, allow_int=True))(vocab)
    grad = nnx.state(moved.embedding, nnx.Param)
    return {
      path: np.any(g[...] != 0, axis=tuple(range(1, g.ndim)))
      for path, g in nnx.to_flat_state(grad)
    }

  way_in, way_out, both = moved(False, True), moved(True, False), moved(0, 0)
  # a row is its symbol's alone
  for path in both:
    if path[-1] in ("rows", "weights"):
      rows = np.arange(len(both[path]))
      last = path[0] in ("rows", "from_7")
      start = (rows == len(rows) - 1) & last
      assert np.array_equal(way_in[path], start), path
      assert np.array_equal(way_out[path], ~start), path
  assert any(map(np.any, way_in.values()))
  assert all(map(np.all, both.values()))


@pytest.mark.parametrize(("dim", "size"), [(16, 256), (1024, 2)])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", BOTH)
def test_starts_near_uniform_even_without_blocks(name, tied, dim, size):
  vocab = make(name, dim=dim, size=size, tied=tied)
  tokens = jax.random.randint(jax.random.key(3), (4, 64), 0, size)
  targets = jax.random.randint(jax.random.key(4), (4, 64), 0, size)

  @jax.jit
  def loss(vocab):
    x, _ = vocab.embed(tokens)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True))
    return vocab.loss(x, targets, jnp.ones((4, 64)))

  assert abs(loss(vocab) - untaught(vocab, targets, jnp.ones((4, 64)))) < 0.3


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", BOTH)
def test_the_stream_starts_at_unit_size(name, tied):
  """But that of a table that is the readout, too; see arch/vocab/full.py."""
  vocab = make(name, dim=1024, size=256, tied=tied and name == "lowrank")
  x, _ = vocab.embed(jnp.arange(257)[None])
  assert abs(jnp.mean(x * x) - 1) < 0.1


def test_a_token_that_does_not_exist_is_not_a_number():
  x, _ = make("full").embed(jnp.array([[13, 14]]))
  assert np.array_equal(np.any(np.isnan(x), -1), [[False, True]])


def test_bad_fields():
  with pytest.raises(ValueError, match="size=1"):
    make("full", size=1)
  with pytest.raises(ValueError, match="rank=0"):
    make("lowrank", rank=0)


def test_rank_is_a_quarter_of_the_width_by_default():
  assert make("lowrank", rank=None).embedding.rows.shape == (14, 2)


def rows_of(vocab):
  """What each symbol enters as, V + 1 D."""
  return np.asarray(vocab.embed(jnp.arange(14)[None])[0][0])


def read(module):
  """A module's parameters as float64, by name."""
  return {
    path[-1]: np.float64(p[...])
    for path, p in nnx.to_flat_state(nnx.state(module))
  }


MADE = ["codes", "learnt_codes", "compositional", "hashed", "tensor_train"]


@pytest.mark.parametrize("name", MADE)
def test_made_rows_are_read_and_answered(name):
  vocab = make(name, tied=True)
  x, *_ = data(3, 7, 6, 13)
  close(vocab.logits(x), x @ rows_of(vocab)[:13].T, 1e-6)
  apart = make(name, tied=False)
  assert {*read(apart.embedding)} == {*read(apart.readout)}
  missing = apart.embed(jnp.array([[-1, 13, 14]]))[0]
  assert np.array_equal(np.isnan(missing).all(-1), [[True, False, True]])


@pytest.mark.parametrize("operation", ["product", "sum"])
def test_compositional_is_its_formula(operation, record_property):
  vocab = make("compositional", operation=operation, remainders=5)
  q, r = read(vocab.embedding).values()
  assert q.shape == (3, 6) and r.shape == (5, 6)
  pairs = [(q[t // 5], r[t % 5]) for t in range(14)]
  whole = [np.prod(p, 0) if operation == "product" else sum(p) for p in pairs]
  source = "1909.02107, sec. 4, in numpy"
  held(
    record_property,
    "vocab",
    "compositional",
    source,
    rows_of(vocab),
    np.stack(whole),
    {"operation": operation},
  )


def mix(x):
  x = (x ^ x >> 16) * 0x85EBCA6B % 2**32
  x = (x ^ x >> 13) * 0xC2B2AE35 % 2**32
  return x ^ x >> 16


def test_hashed_is_its_formula(record_property):
  vocab = make("hashed", hashes=3, buckets=4, size=13)
  own = read(vocab.embedding)
  weights = np.random.default_rng(0).normal(size=(14, 3))
  vocab.embedding.rows.weights[...] = jnp.asarray(weights, jnp.float32)

  seeds = np.random.default_rng(0).integers(2**32, size=3)
  chosen = [
    [mix((mix(t) + int(s)) % 2**32) % 4 for s in seeds] for t in range(14)
  ]
  assert {i for row in chosen for i in row} == {0, 1, 2, 3}
  whole = [
    w @ own["buckets"][at] for w, at in zip(weights, chosen, strict=True)
  ]
  source = "1709.03933, eq. 1 to 3, in numpy"
  whole = np.stack(whole)
  held(record_property, "vocab", "hashed", source, rows_of(vocab), whole)


def test_hashes_tell_symbols_apart():
  """Of 4,096 symbols in 512 buckets hardly more pairs share both than by
  chance, 32, and all buckets are used."""
  vocab = nnx.eval_shape(lambda: make("hashed", size=4096, dim=1))
  arrays = {"buckets": jnp.arange(512.0)[:, None]}
  found = []
  for i in range(2):
    arrays["weights"] = jnp.zeros((4097, 2)).at[:, i].set(1)
    rows = vocab.readout.Rows.of(vocab.cfg, arrays, jnp.arange(4096))
    found.append(rows[:, 0])
  assert all(len(np.unique(f)) > 505 for f in found)
  _, same = np.unique(np.stack(found), axis=1, return_counts=True)
  assert np.sum(same * (same - 1) / 2) < 60


def test_tensor_train_is_its_formula(record_property):
  vocab = make("tensor_train", rank=3, dim=12)
  own = read(vocab.embedding)
  F, G, H = (own[k] for k in "FGH")
  (n1, n2, n3), (d1, d2, d3) = vocab.cfg.n, vocab.cfg.d
  assert (n1, n2, n3) == (2, 3, 3) and sorted((d1, d2, d3)) == [2, 2, 3]
  rows = rows_of(vocab)
  exact = np.zeros(rows.shape)
  for t, n in np.ndindex(rows.shape):
    i, j, k = t // 9, t // 3 % 3, t % 3
    a, b, c = n // (d2 * d3), n // d3 % d2, n % d3
    exact[t, n] = F[i, 0, a] @ G[j, :, b] @ H[k, :, c, 0]
  source = "the product of three cores in numpy"
  held(record_property, "vocab", "tensor_train", source, rows, exact)


def test_mixture_is_its_formula(record_property):
  vocab = make(("full", "mixture"), tied=False, softmaxes=3)
  own = read(vocab.readout)
  x, targets, _ = data(3, 7, 6, 13)
  share = jax.nn.softmax(x @ own["share"])
  total = 0
  for k in range(3):
    h = np.tanh(x @ own["turn"][:, 6 * k : 6 * k + 6])
    total += share[..., k, None] * jax.nn.softmax(h @ own["rows"].T)
  chosen = np.take_along_axis(total, np.asarray(targets)[..., None], -1)[..., 0]
  ours = jax.nn.softmax(vocab.logits(x)), vocab.score(x, targets)[0]
  source = "1711.03953, sec. 2.4, in numpy"
  theirs = total, -np.log(chosen)
  held(record_property, "vocab", "mixture", source, ours, theirs)


def test_one_softmax_of_a_mixture_is_a_softmax_of_its_turn():
  vocab = make(("full", "mixture"), tied=False, softmaxes=1)
  x, *_ = data(3, 7, 6, 13)
  own = read(vocab.readout)
  logits = np.tanh(x @ own["turn"]) @ own["rows"].T
  close(vocab.logits(x), jax.nn.log_softmax(logits), 1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_later_symbols_are_those_of_a_loop(dtype, record_property):
  """Within a document, at most k - 1 positions on; and their weights'."""
  vocab = make(
    ("full", "ahead"), tied=False, symbols=3, weight=0.7, dtype=dtype
  )
  assert not np.any(vocab.readout.turn[...])  # all heads begin as the first
  turn = jax.random.normal(jax.random.key(2), (6, 12))
  vocab.readout.turn[...] = turn
  x, targets, weights = data(2, 5, 6, 13, jnp.dtype(dtype))
  reset = jnp.zeros((2, 5), bool).at[0, 2].set(True).at[1, 0].set(True)
  rows = read(vocab.readout)["rows"]
  own, total, whole = np.float64(x), 0.0, 0.0
  for b, t, j in np.ndindex(2, 5, 2):
    at = t + j + 1
    if at > 4 or np.any(reset[b, t + 1 : at + 1]):
      continue
    h = own[b, t] @ np.float64(turn[:, 6 * j : 6 * j + 6])
    logits = (own[b, t] + h / (1 + np.exp(-h))) @ rows.T
    nats = np.log(np.sum(np.exp(logits))) - logits[targets[b, at]]
    total, whole = total + weights[b, at] * nats, whole + weights[b, at]
  with jax.numpy_dtype_promotion("strict"):
    found = jax.jit(vocab.later)(x, targets, weights, reset)
  if dtype == "float32":
    source = "2401.10774 and 2412.19437, eq. 24 and 25, in numpy"
    exact = np.float32(0.7 * total / whole)
    held(record_property, "vocab", "ahead", source, found, exact)
  close(found, 0.7 * total / whole, 2e-2)
  assert found.dtype == jnp.float32
  # scores are of the first head
  close(vocab.score(x, targets)[0], untied(vocab, x, targets), 1e-5)
  one = jax.jit(vocab.later)(x[:, :1], targets[:, :1], weights[:, :1])
  assert one == 0


def untied(vocab, x, targets):
  logits = vocab.logits(x)
  chosen = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
  return jax.nn.logsumexp(logits, -1) - chosen


def test_training_costs_what_only_training_asks_for():
  def counted(**vocab):
    c = config("mingru")
    c.model.vocab = dict(name="full", size=17) | vocab
    return arch.count(arch.abstract(c.model), 13)

  plain = counted()
  assert plain.training == 3 * plain.forward.total
  D, k = 24, 4
  more = counted(output="ahead", symbols=k)
  assert more.forward == plain.forward
  products = (k - 1) * (2 * D * D + 2 * D * 17)
  extra = (more.training - plain.training) / 3
  assert products < extra < 1.5 * products


def test_sigsoftmax_is_its_formula(record_property):
  vocab = make(("full", "sigsoftmax"), tied=False)
  x, *_ = data(3, 7, 6, 13)
  z = 50 * x @ read(vocab.readout)["rows"].T
  p = jnp.exp(z) * jax.nn.sigmoid(z)
  p = p / jnp.sum(p, -1, keepdims=True)
  ours, source = jax.nn.softmax(vocab.logits(50 * x)), "1805.10829, eq. 15"
  held(record_property, "vocab", "sigsoftmax", source, ours, p)


@pytest.mark.parametrize("width", [None, 4])
def test_ngrams_are_those_of_a_loop(width, record_property):
  vocab = make(
    ("ngram", "full"), tied=False, order=3, buckets=50, width=width, size=13
  )
  for n in (2, 3):
    grams = getattr(vocab.embedding, f"grams_{n}")
    assert not np.any(grams[...])
    grams[...] = jax.random.normal(jax.random.key(n), grams.shape)
  own = read(vocab.embedding)
  tokens = np.array([[3, 3, 5, 3, 3, 5, 0], [1, 2, 3, 4, 5, 3, 3]])
  reset = np.zeros((2, 7), bool)
  reset[1, 4] = True

  x, state = vocab.embed(jnp.asarray(tokens), jnp.asarray(reset))
  whole = np.zeros(x.shape)
  for b, text in enumerate(tokens):
    begin = 0
    for t, symbol in enumerate(text):
      begin = t if reset[b, t] else begin
      row, key = own["rows"][symbol].copy(), int(symbol)
      for n in (2, 3):
        at = t - n + 1
        key = (mix(key) + (int(text[at]) if at >= begin else 13)) % 2**32
        gram = own[f"grams_{n}"][mix(key) % 50]
        row += gram @ own[f"widen_{n}"] if width else gram
      whole[b, t] = row
  source = "a loop over hashed n-grams in numpy"
  held(record_property, "vocab", "ngram", source, x, whole, {"width": width})
  assert np.array_equal(state["last"], tokens[:, -2:])


@pytest.mark.parametrize("name", ["codes", "learnt_codes"])
def test_codes_are_their_formula(name, record_property):
  vocab = make(name, pieces=3, codes=4)
  own = read(vocab.embedding)
  if name == "codes":
    codes = np.asarray(vocab.embedding.rows.codes[...])
  else:
    scores = np.einsum("tr,mkr->tmk", own["query"], own["keys"])
    codes = np.argmax(scores, -1)
  assert np.array_equal(np.unique(codes), np.arange(4))
  pieces = [[own["pieces"][i, c] for i, c in enumerate(row)] for row in codes]
  rows = np.stack([np.concatenate(row) for row in pieces])
  x, *_ = data(3, 7, 6, 13)
  ours = rows_of(vocab), vocab.logits(x)
  theirs = rows, np.asarray(x) @ rows[:13].T
  source = "1908.09756, sec. 2.3, in numpy"
  held(record_property, "vocab", name, source, ours, theirs)


def test_learnt_codes_have_the_gradient_of_a_softmax():
  """Values that of the choice, what chooses that of the softmax."""
  vocab = make("learnt_codes", pieces=3, codes=4, query=5)
  g = jax.random.normal(jax.random.key(4), (14, 6))
  own = vocab.embedding.rows.arrays()

  def ours(arrays):
    rows = vocab.embedding.Rows.of(vocab.embedding.cfg, arrays, jnp.arange(14))
    return jnp.sum(g * rows)

  def chosen(arrays, soft):
    scores = jnp.einsum("tr,mkr->tmk", arrays["query"], arrays["keys"])
    choice = (
      jax.nn.softmax(scores) if soft else scores == scores.max(-1)[..., None]
    )
    return jnp.sum(
      g.reshape(14, 3, 2)
      * jnp.einsum("tmk,mkd->tmd", choice.astype(jnp.float32), arrays["pieces"])
    )

  soft = jax.grad(chosen)(own, True)
  hard = jax.grad(chosen)(own, False)
  found = jax.grad(ours)(own)
  close(found, soft | {"pieces": hard["pieces"]})


def test_symbols_of_like_neighbours_share_codes():
  """Of four words, each spelt in three ways, at random."""
  rng = np.random.default_rng(0)
  words = np.tile([0, 1, 0, 2, 3, 1, 2, 3], 500)
  symbols = 3 * words + rng.integers(0, 3, len(words))
  first = np.zeros(len(words), bool)
  counts = quantiser.pairs(symbols, first, 13)
  assert counts.sum() == len(words) - 1 and counts[0:3, 3:6].sum() > 0
  found = quantiser.codes(counts, 1, 5)
  assert (found.shape, found.dtype) == ((13, 1), np.int32)
  ways = found[:12].reshape(4, 3)
  assert np.all(ways == ways[:, :1])
  assert len(np.unique(ways)) == 4


def test_pairs_are_counted_within_documents():
  counts = quantiser.pairs([2, 0, 1, 0, 1], [1, 0, 0, 1, 0], 3)
  close(counts.toarray(), [[0, 2, 0], [0, 0, 0], [1, 0, 0]])


def test_what_has_too_few_symbols_for_its_codes():
  counts = quantiser.pairs([0, 1, 0], [1, 0, 0], 3)
  with pytest.raises(ValueError, match="3 symbols are too few for 4 codes"):
    quantiser.codes(counts, 1, 4)


def test_a_band_reads_its_own_symbols():
  """Three, of which each is asked for the symbols of the others."""
  vocab = make(
    ("adaptive", "full"), dim=8, size=40, cutoffs=(3, 15), tied=False
  )
  tables = [getattr(vocab.embedding, f"from_{a}") for a in (0, 3, 15)]
  assert [t.rows.shape for t in tables] == [(3, 8), (12, 2), (26, 1)]
  first, *rest = (t.rows[...] for t in tables)
  rows = [r @ t.widen[...] for r, t in zip(rest, tables[1:], strict=True)]
  tokens = jnp.arange(-1, 42)[None]
  x = vocab.embed(tokens)[0][0]
  close(x[1:-1], jnp.concatenate([first, *rows]), 1e-6)
  assert np.all(np.isnan(x[np.array([0, -1])]))

  def total(vocab):
    return jnp.sum(jnp.sin(vocab.embed(tokens[:, 1:-1])[0]))

  for path, g in nnx.to_flat_state(nnx.state(jax.grad(total)(vocab).embedding)):
    assert np.all(np.isfinite(g[...])) and np.any(g[...]), path


@pytest.mark.parametrize("factor", [2, 4])
def test_adaptive_is_torchs(factor, record_property):
  torch = pytest.importorskip("torch")
  vocab = make(
    ("full", "adaptive"),
    dim=16,
    size=31,
    cutoffs=(5, 14),
    factor=factor,
    tied=False,
  )
  theirs = torch.nn.AdaptiveLogSoftmaxWithLoss(16, 31, [5, 14], factor)
  own = vocab.readout
  weights = [np.concatenate([own.from_0.rows[...], own.bands[...]])]
  for band in (own.from_5, own.from_14):
    weights += [band.narrow[...].T, band.rows[...]]
  with torch.no_grad():
    for p, w in zip(theirs.parameters(), weights, strict=True):
      p.copy_(torch.tensor(np.asarray(w)))
  x, targets, _ = data(4, 16, 16, 31)
  flat = torch.tensor(np.asarray(x).reshape(-1, 16), requires_grad=True)
  exact = theirs.log_prob(flat).detach().numpy()
  labels = torch.tensor(np.asarray(targets).ravel()).long()
  loss = theirs(flat, labels).loss
  loss.backward()

  def mean(x):
    return vocab.loss(x, targets, jnp.ones(targets.shape))

  nats, gradient = jax.value_and_grad(mean)(x)
  ours = vocab.logits(x).reshape(-1, 31), nats, gradient.reshape(-1, 16)
  theirs = exact, np.float32(loss.item()), flat.grad.numpy()
  source, fields = "torch AdaptiveLogSoftmaxWithLoss", {"factor": factor}
  held(record_property, "vocab", "adaptive", source, ours, theirs, fields)


@pytest.mark.parametrize(
  ("name", "fields", "message"),
  [
    ("compositional", {"remainders": 0}, "remainders=0 must be at least 1"),
    ("compositional", {"operation": "mult"}, "operation='mult'.*product"),
    ("codes", {"pieces": 4}, "pieces=4 of dim=6"),
    ("codes", {"codes": 1}, "codes=1 must be at least 2"),
    ("codes", {"source": "huffman"}, "source='huffman'.*hash"),
    ("hashed", {"hashes": 0}, "hashes=0 must be at least 1"),
    ("tensor_train", {"rank": 0}, "rank=0 must be at least 1"),
    (
      "adaptive",
      {"cutoffs": (5, 7)},
      r"cutoffs=\(5, 7\) must .* cut the 13 sym",
    ),
    ("adaptive", {"cutoffs": (13,)}, r"cutoffs=\(13,\) must .* of 3 or more"),
    ("adaptive", {"cutoffs": 5}, "cutoffs=5 must be whole numbers that cut"),
    ("adaptive", {"cutoffs": (5, "b")}, "'b'.* must be whole numbers"),
    ("adaptive", {"cutoffs": (5.5,)}, "must be whole numbers"),
    (("full", "mixture"), {"softmaxes": 0}, "softmaxes=0 must be at least 1"),
    (("ngram", "full"), {"order": 1}, "order=1 must be at least 2"),
    (("full", "ahead"), {"symbols": 0}, "symbols=0 must be at least 1"),
    (("full", "ahead"), {"weight": -1.0}, "weight=-1.0 must be at least 0"),
  ],
)
def test_what_does_not_fit_is_refused(name, fields, message):
  with pytest.raises(ValueError, match=message):
    make(name, **fields)


def test_a_table_that_lends_nothing():
  with pytest.raises(ValueError, match="rows of hashed.*has rows of 6 numbers"):
    make(("full", "hashed"), tied=True)
  make(("ngram", "mixture"), tied=True)  # both are rows of D numbers
