"""Properties of every architecture, found by its file. No skip list."""

import functools
import itertools
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import programs
import pytest
from flax.traverse_util import flatten_dict
from models import (
  ALONE,
  CHANNELS,
  CONFIGS,
  DISTINCT,
  MIXERS,
  batch,
  close,
  config,
  noisy,
  tokens,
)

import arch
from arch import arrays, losses
from arch.vocab import adaptive
from train.sharding import Sharding
from train.step import Step


def over(names):
  """One worker an architecture, so that what it compiles is compiled once.

  Of those that are not always shown docs/provenance.json may have what was
  shown of this very code.
  """

  def marks(name):
    yield pytest.mark.xdist_group(name)
    if name not in ALWAYS:
      yield pytest.mark.recorded("configs", name, "properties")

  return pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[*marks(n)]) for n in names]
  )


# on record or not: a cache that grows, pairs, a diagonal and two matrix states
ALWAYS = ("attention", "experts", "gated_deltanet", "mamba", "mamba2")
# one of each file in arch/recurrence, experts, what has none of these
KINDS = [
  "attention",
  "experts",
  "gated_deltanet",
  "hyena",
  "log_linear",
  "mamba",
  "mamba2",
  "mesanet",
  "slstm",
  "titans",
  "ttt",
]
each = over(CONFIGS)
each_alone = over(ALONE)
each_trained = over(DISTINCT)
each_kind = over(KINDS)


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="alone")
@pytest.mark.xdist_group("one")
def test_a_group_stays_on_its_worker(request):
  # without a word, pytest 9.2 beside xdist 3.8 scatters it
  assert request.node.nodeid.endswith("@one")


SEEDS, DEVICES = (0, 1), 3


@functools.cache
def started(name):
  """Step, and the state that it starts with."""
  c = config(name)
  c.train.steps, c.train.warmup, c.train.lr = 60, 5, 1e-2
  step = Step(c)
  return step, jax.device_get(step.init(0, c.train.lr))


@functools.cache
def trained(name):
  """The state and losses after 30 steps on one batch, and what steps: of three
  devices that share the batch, and of one of each kind with two seeds at once.

  It was compiled once: of a state of another type it would raise.
  """
  step, state = started(name)
  together = (len(SEEDS),) if name in KINDS else ()
  if together:
    state = step.init(np.array(SEEDS), np.full(together, step.cfg.train.lr))
  sharding = Sharding(devices=jax.devices()[:DEVICES])
  data = sharding.batch(batch(step.cfg), *together)
  program = step.train.lower(sharding.state(state), data).compile()

  def run(state, steps):
    state, found = sharding.state(state), []
    for _ in range(steps):
      state, metrics = program(state, data)
      found.append(np.asarray(metrics["loss"]).reshape(-1)[0])
    return state, found

  return *run(state, 30), run, program


@functools.cache
def prepared(name):
  """A tiny model with noise, its compiled call, and 1 + T texts, of which text
  1 + t differs from the first at token t, with resets at token 5 of every
  second one."""
  step, state = started(name)
  c = step.cfg
  first = arrays.fill(step.model, state["params"], state["buffers"])
  model = noisy(first)
  graph, leaves = arrays.split(model)

  @jax.jit
  def compiled(leaves, tokens, reset, state):
    with jax.numpy_dtype_promotion("strict"):
      return arrays.join(graph, leaves)(tokens, reset, state)

  def call(*args, noise=True):
    own = leaves if noise else arrays.split(first)[1]
    return compiled(own, *args)

  text = tokens(c, 1)
  T = text.shape[1]
  other = (text + 1) % (c.model.vocab.size + 1)
  texts = jnp.concatenate(
    [text, jnp.where(jnp.eye(T, dtype=bool), other, text)]
  )
  reset = jnp.zeros(texts.shape, bool).at[::2, 5].set(True)
  return model, call, texts, reset


@functools.cache
def whole(name):
  """Logits of all texts in one call, and the state after it."""
  _, call, texts, reset = prepared(name)
  return call(texts, reset, None)


def pieces(name, ends):
  """The same from calls that end at these tokens."""
  model, call, texts, reset = prepared(name)
  state, found = model.init_state(len(texts)), []
  for start, end in itertools.pairwise([0, *ends]):
    now = slice(start, end)
    logits, state = call(texts[:, now], reset[:, now], state)
    found.append(logits)
  return jnp.concatenate(found, 1), state


@each
def test_full_size_is_counted_without_arrays(name):
  c = config(name, "full")
  model = arch.abstract(c.model)
  sizes = arch.count(model, 64)
  assert sizes.params == sum(sizes.groups.values()) >= sizes.active
  assert sizes.embedding <= sizes.groups["vocab"]
  # a token meets each weight once, but for embeddings and experts not chosen
  least = 2 * (sizes.active - sizes.embedding)
  if c.model.body == "flat":  # or it does not: chunks are fewer
    assert least < sizes.forward.total
  assert sizes.forward.total < 6 * c.model.loop.times * sizes.params
  assert sizes.decoding.flops.total > least
  if c.published is not None:  # a start symbol's row is ours
    assert sizes.params - c.model.dim == c.published


@each
def test_loss_at_the_start(name):
  """That of features of 0: ln V, or about it where symbols stand in bands."""
  model, call, texts, reset = prepared(name)
  logits, _ = call(texts, reset, None, noise=False)
  V = logits.shape[-1]
  targets = (jnp.roll(texts, -1, 1) % V).ravel()
  nats = losses.nll(logits.reshape(-1, V), targets)
  nothing = model.vocab.logits(jnp.zeros((1, 1, model.vocab.cfg.dim)))
  even = losses.nll(jnp.broadcast_to(nothing[0], (targets.size, V)), targets)
  assert abs(jnp.mean(nats) - jnp.mean(even)) < 0.3
  banded = isinstance(model.vocab.cfg, adaptive.Config)
  assert abs(jnp.mean(even) - math.log(V)) < (0.5 if banded else 1e-5)


@pytest.mark.smoke
@each_trained
def test_learns_one_batch(name):
  _, (first, *_, last), *_ = trained(name)
  assert last < 0.5 * first


@each
def test_causal_and_connected(name):
  """A token changes every answer from its own on, and none before."""
  _, call, texts, _ = prepared(name)
  logits = np.asarray(call(texts, jnp.zeros(texts.shape, bool), None)[0])
  moved = np.abs(logits[1:] - logits[0]).max(-1)
  past = np.triu(np.ones_like(moved, bool))
  # rows of one product may be rounded apart
  assert np.all(moved[~past] < 1e-6 * np.abs(logits).max())
  assert np.all(moved[past] > 0)


@pytest.mark.smoke
@each
def test_stepping_is_one_call(name):
  """Token by token, from a fresh state that is given."""
  _, _, texts, _ = prepared(name)
  close(pieces(name, range(1, texts.shape[1] + 1)), whole(name))


@each_alone
def test_splitting_changes_nothing(name):
  _, _, texts, _ = prepared(name)
  # of 5, beyond a chunk and not aligned to one, and of 1, as compiled before
  ends = [5, 10, *range(11, texts.shape[1] + 1)]
  close(pieces(name, ends), whole(name))


@each
def test_nothing_before_a_reset_matters(name):
  """Of the texts with a reset, those that differ before it are one, and what
  follows is what a text alone would be."""
  logits, _ = whole(name)
  _, call, texts, _ = prepared(name)
  size = np.abs(logits).max()
  after = np.asarray(logits[2:6:2, 5:])  # differ at tokens 1 and 3
  assert np.abs(after - np.asarray(logits[0, 5:])).max() < 1e-6 * size
  assert np.all(np.any(np.asarray(logits[3, 5:] != logits[1, 5:]), -1))
  none = jnp.zeros(texts.shape, bool)
  alone, _ = call(jnp.roll(texts, -5, 1), none, None)
  close(alone[::2, :-5], logits[::2, 5:])


@each_kind
def test_no_gradient_crosses_a_reset(name):
  """One of each kind of recurrence, whose backward passes are ours."""
  model, _, _, _ = prepared(name)
  params, buffers = arrays.pure(model)
  T, D, cut = 13, 24, 6
  x = jax.random.normal(jax.random.key(2), (1, T, D))
  reset = jnp.zeros((1, T), bool).at[0, cut].set(True)

  @jax.jit
  def pulled(x):
    def forward(params, x):
      return arrays.fill(model, params, buffers).mix(x, reset)[0]

    y, back = jax.vjp(forward, params, x)
    return back(jnp.cos(y).at[:, :cut].set(0.0))

  gradient, dx = pulled(x)
  other, _ = pulled(x.at[:, :cut].add(1.0))
  close(other, gradient)
  size = np.abs(dx).max()
  assert np.abs(dx[:, :cut]).max() < 1e-6 * size and np.all(dx[:, cut:] != 0)


@each_trained
def test_every_parameter_gets_a_gradient(name):
  (step, _), (state, *_) = started(name), trained(name)
  # Adam's second moment is 0 only where every gradient was
  for path, nu in flatten_dict(optax.tree.get(state["opt"], "nu")).items():
    assert np.all(np.isfinite(nu)), path
    each_layer = state["step"].ndim + step.layers.get(path, 0)
    nu = np.asarray(nu)
    assert np.min(np.max(nu, axis=tuple(range(each_layer, nu.ndim)))) > 0, path


@each_trained
def test_a_device_has_its_share(name):
  """A third of the products, and no other's activations."""
  (step, state), (*_, program) = started(name), trained(name)
  text = program.as_text()
  whole = programs.expected(step, state, batch(step.cfg))
  together = len(SEEDS) if name in KINDS else 1
  share = DEVICES * programs.products(text) / together / whole
  # fewer tokens leave more of the experts' blocks empty, and what is computed
  # of weights alone, as hyena's filter, every device needs; a reset of titans
  # and ttt reads the network that documents start from, which is not counted
  assert 0.9 < share < 1.25
  assert not programs.gathered(text)


@each_kind
def test_replicates_that_share_devices_are_apart(name):
  """Whoever is beside it, one becomes the same; see test_step for alone."""
  (step, _), (*_, run, _) = started(name), trained(name)
  own, other, third = (step.init(s, 1e-3 * (1 + s)) for s in range(3))

  def beside(*runs):
    both, _ = run(jax.tree.map(lambda *x: np.stack(x), *runs), 3)
    assert both["step"].sharding.num_devices == DEVICES
    return jax.device_get(both["params"])

  before, after = beside(third, own), beside(own, other)
  close(
    jax.tree.map(lambda x: x[1], before), jax.tree.map(lambda x: x[0], after)
  )
  apart = jax.tree.map(lambda x: np.abs(x[0] - x[1]).max(), after)
  assert max(jax.tree.leaves(apart)) > 1e-3


@pytest.mark.parametrize("dtype", ["bfloat16", "mixed"])
@each_alone
def test_fewer_bits_are_finite_and_close(name, dtype):
  """The loss; and of one of each kind its gradient, too."""
  model, _, texts, reset = prepared(name)
  params, buffers = arrays.pure(model)
  low = config(name).model
  targets = jnp.roll(texts, -1, 1) % low.vocab.size
  rows = jax.nn.log_softmax(whole(name)[0], -1)
  exact = -jnp.mean(jnp.take_along_axis(rows, targets[..., None], -1))
  low.dtype = dtype
  low = arch.abstract(low)

  def loss(params):
    with jax.numpy_dtype_promotion("strict"):
      model = arrays.fill(low, params, buffers)
      return model.loss(texts, targets, jnp.ones(texts.shape), reset)[0]

  graded = (
    jax.value_and_grad if name in KINDS else lambda f: lambda x: (f(x), {})
  )
  nats, gradient = jax.jit(graded(loss))(params)
  assert abs(nats - exact) < 0.05 * exact
  for path, g in jax.tree.leaves_with_path(gradient):
    assert np.all(np.isfinite(g)), jax.tree_util.keystr(path)


def mixed(mixer, channels):
  """Shapes of what a mixer and these channel mixers make of some tokens."""
  c = config(mixer)
  entry = c.model.pattern[0]  # RWKV-7's first block differs
  entry = {"mixer": entry} if isinstance(entry, str) else dict(entry)
  c.model.pattern = [entry | {"channel": name} for name in channels]
  c.model.depth = len(channels)
  x = jnp.zeros((2, 5, c.model.dim))
  y, _, _ = jax.eval_shape(lambda m: m.mix(x), arch.abstract(c.model))
  return x.shape, y.shape


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_takes_another_channel(mixer):
  given, answered = mixed(mixer, ["rwkv", "none"])
  assert answered == given


def test_a_mixer_takes_every_channel():
  given, answered = mixed("mingru", [*CHANNELS, "none"])
  assert answered == given
