"""Any mixer with any channel mixer, ways in and out, weight type, wiring,
loop and body: thirty that a fixed seed draws, of every file at least one."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import CHANNELS, MIXERS, batch, build, close, config, noisy, tokens
from test_vocab import FILES

import arch
from arch import arrays, registry
from train.step import Step, overwrite

# what a pattern or a loop has to be made for
OWN = {"aside", "inject", "parallel"}
AXES = {
  "mixer": MIXERS,
  "channel": [*CHANNELS, "none"],
  "input": FILES["input"],
  "output": FILES["output"],
  "linear": registry.names("weights"),
  "wiring": sorted({*registry.names("wiring")} - OWN),
  "times": [1, 1, 2],
  "body": ["flat"] * 6 + registry.names("body"),
}
COUNT = 34  # thirty, and as many as there are mixers


def drawn(count=COUNT, seed=0):
  """Combinations in which every file of every axis is once at least."""
  rng, columns = random.Random(seed), []
  for names in AXES.values():
    column = [*names] * -(-count // len(names))
    column = column[:count]
    rng.shuffle(column)
    columns.append(column)
  return [
    dict(zip(AXES, row, strict=True)) for row in zip(*columns, strict=True)
  ]


def has_values(mixer):
  return registry.find("mixers", mixer).Config.values is not None


def made(mixer, channel, times, linear, wiring, body, **vocab):
  c = config(mixer)

  def entry(given):  # of RWKV-7 the first one differs
    fields = {} if isinstance(given, str) else dict(given)
    return fields | {"mixer": mixer, "channel": channel}

  c.model.pattern = [entry(c.model.pattern[i]) for i in (0, -1)]
  c.model.depth, c.model.loop = 2, dict(times=times, first=1)
  if wiring == "values" and not has_values(mixer):
    wiring = "residual"
  c.model.linear, c.model.wiring = linear, wiring
  size = 256 if body == "spaces" else 17  # bytes
  c.model.vocab = dict(size=size, tied=False, **vocab)
  c.model.body = body
  return c


def label(row):
  return "-".join(map(str, row.values()))


COMBINATIONS = drawn()


def test_every_file_is_drawn():
  for axis, names in AXES.items():
    assert {row[axis] for row in COMBINATIONS} == {*names}
  assert len(COMBINATIONS) >= 30
  rows = [row for row in COMBINATIONS if row["wiring"] == "values"]
  assert any(has_values(row["mixer"]) for row in rows)


@pytest.mark.parametrize("row", COMBINATIONS, ids=label)
def test_a_combination_trains_and_scores(row):
  """By shapes, with no implicit cast."""
  c = made(**row)
  model, data = arch.abstract(c.model), batch(c)
  params, buffers = arrays.pure(model)

  def loss(params, buffers):
    nats, aux = arrays.fill(model, params, buffers).loss(**data)
    return nats + aux.loss, aux.next

  def decoded(params, buffers):
    made = arrays.fill(model, params, buffers)
    state = made.init_state(2)
    logits, new = made(tokens(c, 2, 1), None, state)
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, state)
    return logits

  graded = jax.value_and_grad(loss, has_aux=True)
  with jax.numpy_dtype_promotion("strict"):
    (nats, new), gradient = jax.eval_shape(graded, params, buffers)
    logits = jax.eval_shape(decoded, params, buffers)
  assert (nats.shape, nats.dtype.name) == ((), "float32")
  assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, params)
  assert logits.shape == (2, 1, c.model.vocab.size)
  known = jax.tree.map(jnp.shape, overwrite(buffers, new))
  assert known == jax.tree.map(jnp.shape, buffers)


@pytest.mark.parametrize("row", COMBINATIONS[:1], ids=label)
def test_a_combination_splits_and_learns(row):
  c = made(**row)
  model = noisy(build(c))
  graph, leaves = arrays.split(model)

  @jax.jit
  def call(text, state):
    return arrays.join(graph, leaves)(text, None, state)

  text = tokens(c, 2, 6)
  whole, _ = call(text, model.init_state(2))
  state, steps = model.init_state(2), []
  for t in range(text.shape[1]):
    y, state = call(text[:, t : t + 1], state)
    steps.append(y)
  close(jnp.concatenate(steps, 1), whole, 1e-4)
  step = Step(c)
  state, losses = step.init(0, 3e-3), []
  for _ in range(20):
    state, metrics = step.train(state, batch(c))
    losses.append(float(metrics["loss"]))
  assert np.all(np.isfinite(losses)) and losses[-1] < losses[0]
