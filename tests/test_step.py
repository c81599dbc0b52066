"""The one training step: replicates, devices, accumulation, the guard."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import programs
import pytest
from models import batch, close, config

from arch import target
from train import evaluate, hosts, optimizer
from train.evaluate import Scorer
from train.sharding import Sharding
from train.step import Step


def trained(c, state, step=None, steps=10):
  step = step or Step(c)
  metrics = []
  for i in range(steps):
    state, found = step.train(state, batch(c, seed=i))
    metrics.append(jax.device_get(found))
  return jax.device_get(state), metrics


def quick(name="mingru", **fields):
  c = config(name)
  c.train.warmup = 2
  c.train.update(fields)
  return c


@pytest.mark.smoke
def test_a_replicate_is_the_run_alone():
  c = quick()
  step = Step(c)
  seeds, lrs = (3, 4, 4), (1e-3, 1e-3, 3e-3)
  together, _ = trained(c, step.init(seeds, lrs), step)
  for i, (seed, lr) in enumerate(zip(seeds, lrs, strict=True)):
    alone, _ = trained(c, step.init(seed, lr), step)
    one = jax.tree.map(lambda x, i=i: x[i], together)
    close(one["params"], alone["params"])
  assert step.train._cache_size() == 2  # of three, and of one


def test_replicates_may_see_their_own_batches():
  c = quick()
  step = Step(c)
  own = [batch(c, seed=s) for s in (5, 6)]
  both = jax.tree.map(lambda *x: jnp.stack(x), *own)
  together, _ = step.train(step.init((0, 0), (1e-3, 1e-3)), both)
  for i in range(2):
    alone, _ = step.train(step.init(0, 1e-3), own[i])
    one = jax.tree.map(lambda x, i=i: x[i], together)
    close(one["params"], alone["params"])


@functools.cache
def on_one_device(replicates):
  """A config, its step, the state before and that after one of it."""
  # Adam's first update is the sign of a gradient: with a small epsilon, what
  # rounding leaves of one that is 0 would be a whole step
  c = quick("experts", batch=8, epsilon=1e-3)
  step = Step(c)
  seeds = np.arange(replicates) if replicates else np.zeros((), int)
  before = jax.device_get(step.init(seeds, np.full(seeds.shape, 1e-3)))
  after, _ = step.train(before, batch(c))
  return c, step, before, jax.device_get(after)


@pytest.mark.xdist_group("devices")
@pytest.mark.parametrize(
  ("replicates", "model"), [(0, 1), (0, 2), (8, 1), (3, 2)]
)
def test_eight_devices_are_one(replicates, model):
  c, step, before, alone = on_one_device(replicates)
  sharding = Sharding(model)
  spread = sharding.state(before, step.layers)
  sizes = [x.sharding.num_devices for x in jax.tree.leaves(spread)]
  assert set(sizes) == {8}
  shared = sharding.batch(batch(c), replicates)
  program = step.train.lower(spread, shared).compile()
  together, _ = program(spread, shared)
  close(jax.device_get(together["params"]), alone["params"])
  if model == 1:
    c = quick("experts", batch=8 if replicates else 1)
    own = programs.expected(step, on_one_device(0)[2], batch(c))
    assert programs.products(program.as_text()) == pytest.approx(own, rel=0.01)


@pytest.mark.parametrize(
  ("name", "platform", "parts"),
  [("mingru", "cpu", 2), ("mingru", "cpu", 8), ("experts", "tpu", 1)],
)
def test_a_device_computes_its_sequences(name, platform, parts):
  c = quick(name, accumulate=parts, batch=8 * parts)
  with target.using(platform):
    step, sharding = Step(c), Sharding()
  state = jax.eval_shape(lambda: step.init(0, 1e-3))
  data = jax.eval_shape(lambda: batch(c))
  placed = (
    sharding.placed(state, sharding.state_specs(state)),
    sharding.placed(data, sharding.batch_specs(data)),
  )
  text = step.train.lower(*placed).compile().as_text()
  c.train.batch, c.train.accumulate = 1, 1
  own = programs.expected(step, state, jax.eval_shape(lambda: batch(c)))
  assert programs.products(text) == pytest.approx(parts * own, rel=0.01)
  assert not programs.gathered(text)


@pytest.mark.parametrize(
  ("model", "size", "replicates", "data"),
  [(1, 8, 0, 8), (1, 12, 0, 6), (1, 3, 4, 4), (1, 7, 0, 7), (2, 3, 0, 3)],
)
def test_no_more_devices_than_can_share(model, size, replicates, data):
  sharding = Sharding.fitting(model, size, replicates)
  assert dict(sharding.mesh.shape) == {"data": data, "model": model}


@pytest.mark.parametrize("model", [0, 3, 16])
def test_devices_a_model_must_divide(model):
  with pytest.raises(ValueError, match=f"{model} devices a model must divide"):
    Sharding.fitting(model, 8)


@pytest.mark.parametrize("replicates", [(), (4,)])
def test_scores_are_shared_by_the_devices(replicates):
  c = quick(batch=8)
  step, scorer = Step(c), Scorer(Step(c).model)
  zero = np.zeros(replicates, int)
  alone = step.init(zero, zero + 1e-3)
  expected = scorer(alone, [batch(c)], 8)
  spread = Sharding.fitting(1, 8, *replicates).state(alone)
  for own, one in zip(scorer(spread, [batch(c)], 8), expected, strict=True):
    assert own.nats == pytest.approx(one.nats, rel=1e-5)
  assert Sharding.of(spread).mesh == Sharding.fitting(1, 8, *replicates).mesh


def test_stacked_layers_are_never_sharded():
  c = quick("mamba2")
  c.model.depth = 8
  step = Step(c)
  state = jax.eval_shape(lambda: step.init(0, 1e-3))
  specs = Sharding(8).state_specs(state, step.layers)
  stacked = specs["params"]["trunk"]["stack_0"]["block_0"]["mamba2"]["in_proj"]
  assert stacked["weight"][0] is None
  assert "model" in tuple(stacked["weight"])
  specs = jax.tree.leaves_with_path(
    specs, is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec)
  )
  for path, spec in specs:
    if any("stack_" in str(key) for key in path) and spec:
      assert spec[0] is None, jax.tree_util.keystr(path)
  with pytest.raises(ValueError, match="8 devices a model: say which axes"):
    Sharding(8).state(state)


def test_accumulated_is_the_whole_batch():
  whole, _ = trained(c := quick(batch=6), Step(c).init(0, 1e-3), steps=3)
  parts, _ = trained(
    c := quick(batch=6, accumulate=3), Step(c).init(0, 1e-3), steps=3
  )
  close(parts["params"], whole["params"], 1e-4)


def test_a_bad_step_keeps_the_state_of_before():
  c = quick()
  step = Step(c)
  before = step.init((0, 1), (1e-3, 1e-3))
  saved = jax.device_get(before)
  # replicate 1 alone meets a batch with an infinite weight
  good, bad = batch(c), batch(c)
  bad["weights"] = bad["weights"].at[0, 0].set(jnp.inf)
  both = jax.tree.map(lambda *x: jnp.stack(x), good, bad)
  state, metrics = step.train(before, both)
  assert metrics["alive"].tolist() == [True, False]
  close(
    jax.tree.map(lambda x: x[1], state["params"]),
    jax.tree.map(lambda x: x[1], saved["params"]),
    0,
  )
  assert state["step"].tolist() == [1, 0]
  state, metrics = step.train(state, good)
  assert metrics["alive"].tolist() == [True, False]
  assert state["step"].tolist() == [2, 0]


def test_weight_decay_and_muon_by_role():
  """With no gradient, a rate of 1 shows what decays: matrices alone."""
  c = quick("mamba2", decay=0.5)
  for name in optimizer.OPTIMIZERS:
    c.train.optimizer = name
    step = Step(c)
    state = step.init(0, 1.0)
    zero = jax.tree.map(jnp.zeros_like, state["params"])
    updates, _ = step.optimizer.update(zero, state["opt"], state["params"])
    flat = jax.tree_util.tree_leaves_with_path(updates)
    decayed = {jax.tree_util.keystr(p[-2:]) for p, u in flat if np.any(u)}
    assert decayed == {"['in_proj']['weight']", "['out_proj']['weight']"}


def test_muon_gives_a_matrix_orthogonal_updates_layer_by_layer():
  c = quick("mamba2", optimizer="muon", decay=0.0)
  step = Step(c)
  state = step.init(0, 1.0)
  noise = jax.tree.map(
    lambda p: jax.random.normal(jax.random.key(p.size), p.shape),
    state["params"],
  )
  updates, _ = step.optimizer.update(noise, state["opt"], state["params"])
  out = updates["trunk"]["stack_0"]["block_0"]["mamba2"]["out_proj"]["weight"]
  for layer in out:
    values = np.linalg.svd(layer, compute_uv=False)
    assert values.max() / values.min() < 2.5


@pytest.mark.parametrize("name", optimizer.SCHEDULES)
def test_schedules(name):
  c = quick(steps=100, warmup=10, schedule=name, final=0.1, cooldown=0.2)
  share = optimizer.schedule(c.train)
  values = np.array([share(s) for s in range(101)])
  assert values[0] == pytest.approx(1 / 11)
  assert np.all(np.diff(values[:10]) > 0)
  assert values[10] == pytest.approx(1)
  assert values[100] == pytest.approx(0.1)
  if name == "wsd":
    assert np.all(values[10:80] == 1)
  else:
    assert values[55] == pytest.approx(0.55)


@pytest.mark.parametrize(
  ("fields", "error"),
  [
    ({"optimizer": "adam"}, "unknown optimizer 'adam'.*'adamw'"),
    ({"schedule": "cosin"}, "unknown schedule 'cosin'.*'cosine'"),
    (
      {"steps": 10, "warmup": 10},
      "warmup=10 must be below train.steps=10.*warmup such as 1",
    ),
  ],
)
def test_a_wrong_setting_is_refused(fields, error):
  with pytest.raises(ValueError, match=error):
    Step(quick(**fields))


@pytest.mark.parametrize("name", optimizer.OPTIMIZERS)
def test_decay_that_falls_is_the_plain_one_times_its_share(name):
  """At the first step, halfway and at the last; of matrices alone."""
  c = quick("mingru", steps=5, decay=0.5, optimizer=name)
  plain = Step(c)
  c.train.decay_final = 0.2
  falls = Step(c)
  state = plain.init(0, 1.0)
  params = state["params"]
  zero = jax.tree.map(jnp.zeros_like, params)
  whole, _ = plain.optimizer.update(zero, state["opt"], params)
  none, _ = falls.optimizer.update(zero, falls.init(0, 1.0)["opt"], params)
  assert not any(map(np.any, jax.tree.leaves(none)))
  for step, share in ((0, 1.0), (2, 0.6), (4, 0.2)):
    own = optimizer.decayed(c.train, falls.roles, none, params, step)
    close(own, jax.tree.map(lambda u, share=share: share * u, whole), 1e-6)


def test_averaged_weights_are_a_loops():
  c = quick(ema=0.9)
  step = Step(c)
  state = step.init((0, 1), (1e-2, 3e-3))
  close(state["ema"], state["params"], 0)
  average, kept = jax.device_get(state["params"]), []
  for i in range(12):
    state, _ = step.train(state, batch(c, seed=i))
    kept.append(min(0.9, (1 + i) / (10 + i)))
    average = jax.tree.map(
      lambda a, p, k=kept[-1]: k * a + (1 - k) * p, average, state["params"]
    )
  assert kept[0] == 0.1 and kept[-1] < 0.9
  close(state["ema"], average, 1e-5)
  scorer, data = Scorer(step.model), [batch(c)]
  averaged, last = (scorer(state, data, 0, last) for last in (False, True))
  swapped = {**state, "params": state["ema"]}
  del swapped["ema"]
  assert scorer(swapped, data, 0) == averaged != last


def test_a_scorer_waits_for_no_window(monkeypatch):
  """A window's answer is read once others were asked for, and none is lost."""
  c = quick()
  step = Step(c)
  state, scorer = step.init((0, 1), (1e-2, 3e-3)), Scorer(step.model)
  windows = [batch(c, seed=i) for i in range(evaluate.AHEAD + 2)]
  alone = [scorer(state, [window], 0) for window in windows]
  events, fetch = [], hosts.fetch

  def asked():
    for window in windows:
      events.append("asked")
      yield window

  def read(answer):
    events.append("read")
    return fetch(answer)

  monkeypatch.setattr(hosts, "fetch", read)
  together = scorer(state, asked(), 0)
  assert events.index("read") == evaluate.AHEAD + 1
  assert events.count("read") == len(windows)
  for i, score in enumerate(together):
    nats = sum(one[i].nats for one in alone)
    assert score.nats == pytest.approx(nats, rel=1e-6)
