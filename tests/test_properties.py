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
  MIXERS,
  SYMBOLS,
  batch,
  close,
  config,
  noisy,
  tokens,
)

import arch
from arch import arrays
from train.sharding import Sharding
from train.step import Step


def over(names):
  """One worker an architecture, so that what it compiles is compiled once."""
  return pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.xdist_group(n)) for n in names],
  )


each = over(CONFIGS)
each_alone = over(ALONE)


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="alone")
@pytest.mark.xdist_group("one")
def test_a_group_stays_on_its_worker(request):
  # without a word, pytest 9.2 beside xdist 3.8 scatters it
  assert request.node.nodeid.endswith("@one")


@functools.cache
def trained(name):
  """Step, its state and losses after 60 steps on one batch, and how often it
  was compiled."""
  c = config(name)
  c.train.steps, c.train.warmup, c.train.lr = 60, 5, 1e-2
  step = Step(c)
  state, losses = step.init(0, c.train.lr), []
  for _ in range(60):
    state, metrics = step.train(state, batch(c))
    losses.append(float(metrics["loss"]))
  return step, state, losses, step.train._cache_size()


@functools.cache
def prepared(name):
  """A noisy tiny model and its compiled call, shared by the properties."""
  step, _, _, _ = trained(name)
  state = step.init(0, step.cfg.train.lr)
  model = noisy(arrays.fill(step.model, state["params"], state["buffers"]))
  graph, leaves = arrays.split(model)

  @jax.jit
  def call(leaves, tokens, reset, state):
    with jax.numpy_dtype_promotion("strict"):
      return arrays.join(graph, leaves)(tokens, reset, state)

  return step.cfg, model, functools.partial(call, leaves)


@functools.cache
def pull(name):
  """Inputs 1 T D of the blocks, and a function of them, reset and a cotangent:
  what comes out, and the gradients of the parameters and of the inputs."""
  c, model, _ = prepared(name)
  params, buffers = arrays.pure(model)

  @jax.jit
  def pulled(x, reset, cotangent):
    def forward(params, x):
      return arrays.fill(model, params, buffers).mix(x, reset)[0]

    y, back = jax.vjp(forward, params, x)
    return y, *back(cotangent)

  shape = (1, c.train.length, c.model.dim)
  return jax.random.normal(jax.random.key(2), shape), pulled


@each
def test_full_size_is_counted_without_arrays(name):
  c = config(name, "full")
  model = arch.abstract(c.model)
  sizes = arch.count(model, 64)
  assert sizes.params == sum(sizes.groups.values()) >= sizes.active
  assert sizes.embedding <= sizes.groups["vocab"]
  # a token meets each weight once, but for embeddings and experts not chosen
  least = 2 * (sizes.active - sizes.embedding)
  assert least < sizes.forward.total < 6 * sizes.params
  assert sizes.decoding.flops.total > least
  if c.published is not None:  # a start symbol's row is ours
    assert sizes.params - c.model.dim == c.published


@each
def test_loss_at_the_start(name):
  _, _, losses, _ = trained(name)
  assert abs(losses[0] - math.log(SYMBOLS)) < 0.3


@pytest.mark.smoke
@each
def test_learns_one_batch_and_compiles_once(name):
  _, _, losses, compiled = trained(name)
  assert losses[-1] < 0.5 * losses[0]
  assert compiled == 1


@each
def test_causal_and_connected(name):
  x, pulled = pull(name)
  T, D = x.shape[1:]
  probe = jax.random.normal(jax.random.key(1), (D,))
  reach = []
  for t in range(T):
    cotangent = jnp.zeros_like(x).at[0, t].set(probe)
    _, _, dx = pulled(x, jnp.zeros((1, T), bool), cotangent)
    reach.append(np.linalg.norm(dx[0], axis=-1))
  reach, past = np.stack(reach), np.tril(np.ones((T, T), bool))
  assert np.all(reach[~past] == 0)
  assert np.all(reach[past] > 0)


@pytest.mark.smoke
@each
def test_stepping_is_one_call(name):
  c, model, call = prepared(name)
  text = tokens(c)
  reset = jnp.zeros(text.shape, bool).at[0, 5].set(True)
  whole, last = call(text, reset, model.init_state(2))
  fresh, after = call(text, reset, None)
  close(fresh, whole)
  close(after, last)
  state, steps = model.init_state(2), []
  for t in range(text.shape[1]):
    now = slice(t, t + 1)
    logits, state = call(text[:, now], reset[:, now], state)
    steps.append(logits)
  close(jnp.concatenate(steps, 1), whole)
  close(state, last)


@each_alone
def test_splitting_changes_nothing(name):
  c, model, call = prepared(name)
  text = tokens(c)
  reset = jnp.zeros(text.shape, bool).at[1, 5].set(True)
  whole, last = call(text, reset, model.init_state(2))
  # of 5, beyond a chunk and not aligned to one, and of 1, as compiled before
  ends = [5, 10, *range(11, text.shape[1] + 1)]
  state, pieces = model.init_state(2), []
  for start, end in itertools.pairwise([0, *ends]):
    piece = slice(start, end)
    logits, state = call(text[:, piece], reset[:, piece], state)
    pieces.append(logits)
  close(jnp.concatenate(pieces, 1), whole)
  close(state, last)


@each
def test_nothing_before_a_reset_matters(name):
  x, pulled = pull(name)
  T, cut = x.shape[1], 6
  none = jnp.zeros((1, T), bool)
  reset = none.at[0, cut].set(True)
  cotangent = jnp.cos(x).at[:, :cut].set(0.0)
  y, gradient, dx = pulled(x, reset, cotangent)
  other = x.at[:, :cut].add(1.0)
  changed, other_gradient, _ = pulled(other, reset, cotangent)
  close(changed[:, cut:], y[:, cut:], 1e-6)
  close(other_gradient, gradient)
  size = np.abs(dx).max()
  assert np.abs(dx[:, :cut]).max() < 1e-6 * size and np.all(dx[:, cut:] != 0)
  alone, _, _ = pulled(jnp.roll(x, -cut, 1), none, cotangent)
  close(alone[:, : T - cut], y[:, cut:])


@each
def test_every_parameter_gets_a_gradient(name):
  step, state, _, _ = trained(name)
  # Adam's second moment is 0 only where every gradient was
  for path, nu in flatten_dict(optax.tree.get(state["opt"], "nu")).items():
    assert np.all(np.isfinite(nu)), path
    layers = range(step.layers.get(path, 0))
    of_each = np.max(nu, axis=tuple(range(len(layers), nu.ndim)))
    assert np.min(of_each) > 0, path


@each_alone
def test_bfloat16_is_finite_and_close(name):
  c, model, call = prepared(name)
  params, buffers = arrays.pure(model)
  data = jax.tree.map(lambda x: x[:2], batch(c))
  logits, _ = call(data["tokens"], data["reset"], None)
  rows = jax.nn.log_softmax(logits, -1)
  chosen = jnp.take_along_axis(rows, data["targets"][..., None], -1)[..., 0]
  exact = -jnp.average(chosen, weights=data["weights"])

  low = config(name).model
  low.dtype = "bfloat16"
  low = arch.abstract(low)

  @jax.jit
  def run(params, batch):
    def loss(params):
      with jax.numpy_dtype_promotion("strict"):
        return arrays.fill(low, params, buffers).loss(**batch)[0]

    return jax.value_and_grad(loss)(params)

  nats, gradient = run(params, data)
  assert abs(nats - exact) < 0.05 * exact
  for path, g in jax.tree.leaves_with_path(gradient):
    assert np.all(np.isfinite(g)), jax.tree_util.keystr(path)


@each_alone
def test_replicates_that_share_devices_are_runs_alone(name):
  """In values, and a device has a third of their products and no other's
  activations."""
  step, _, _, _ = trained(name)
  data = batch(step.cfg)
  runs = [step.init(seed, 1e-3 * (1 + seed)) for seed in range(2)]
  sharding = Sharding(devices=jax.devices()[:3])
  together = sharding.state(jax.tree.map(lambda *x: np.stack(x), *runs))
  shared = sharding.batch(data, 2)
  program = step.train.lower(together, shared).compile()
  alone = runs[1]
  whole = step.train.lower(alone, data).compile().as_text()
  for _ in range(3):
    together, _ = program(together, shared)
    alone, _ = step.train(alone, data)
  assert together["step"].sharding.num_devices == 3
  own = jax.tree.map(lambda x: x[1], jax.device_get(together["params"]))
  # Adam's first updates show the rounding of a gradient that is nearly 0
  close(own, alone["params"], 1e-3)

  part = programs.products(program.as_text()) / 2
  share = 3 * part / programs.products(whole)
  # fewer tokens leave more of the experts' blocks empty, and what is computed
  # of weights alone, as hyena's filter, every device needs
  assert 0.9 < share < 1.15
  assert not programs.gathered(program.as_text())


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_with_every_channel(mixer):
  c = config(mixer)
  entry = c.model.pattern[0]  # RWKV-7's first block differs
  entry = {"mixer": entry} if isinstance(entry, str) else dict(entry)
  c.model.pattern = [entry | {"channel": n} for n in [*CHANNELS, "none"]]
  c.model.depth = len(c.model.pattern)
  x = jnp.zeros((2, 5, c.model.dim))
  y, _, _ = jax.eval_shape(lambda m: m.mix(x), arch.abstract(c.model))
  assert y.shape == x.shape
