"""Learning from another model's answers, beside the text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import batch, build, close, config, noisy
from test_vocab import FILES, make

from arch import arrays, lm
from train import data as data_lib
from train import loop, models
from train.sharding import Sharding
from train.step import Step


@pytest.mark.parametrize("name", FILES["output"])
def test_the_distance_is_that_of_whole_distributions(name):
  """Of any readout to another, by chunks, value and gradients."""
  own, other = make(("full", name), tied=False), make("full", dim=4)
  keys = jax.random.split(jax.random.key(0), 3)
  x, theirs = (
    20 * jax.random.normal(k, (3, 7, d))
    for k, d in zip(keys, (6, 4), strict=False)
  )
  weights = jax.random.uniform(keys[2], (3, 7))

  def plain(own, x, other, theirs):
    p, q = (
      jax.nn.log_softmax(v.logits(y) / 1.7)
      for v, y in ((other, theirs), (own, x))
    )
    kl = jnp.sum(jnp.exp(p) * (p - q), -1)
    return jnp.sum(kl * weights) / jnp.sum(weights)

  def ours(own, x, other, theirs):
    return own.apart(x, other, theirs, weights, 1.7)

  (found, moved), (exact, wanted) = (
    jax.jit(jax.value_and_grad(f, (0, 1, 2, 3), allow_int=True))(
      own, x, other, theirs
    )
    for f in (ours, plain)
  )
  assert exact > 0.01
  close(found, exact, 1e-5)
  close(nnx.state(moved[0], nnx.Param), nnx.state(wanted[0], nnx.Param), 1e-5)
  close(moved[1], wanted[1], 1e-5)
  still = jax.tree.leaves((nnx.state(moved[2]), moved[3]))
  assert not any(map(np.any, still))  # a teacher does not learn


def test_a_model_is_its_own_best_pupil():
  """No distance, and of it no gradient."""
  vocab = make("full", dim=6)
  x = jax.random.normal(jax.random.key(0), (2, 5, 6))

  def kl(x):
    return vocab.apart(
      x, vocab, jax.lax.stop_gradient(x), jnp.ones((2, 5)), 2.0
    )

  value, gradient = jax.value_and_grad(kl)(x)
  assert abs(value) < 1e-6 and np.abs(gradient).max() < 1e-6


def test_what_is_learnt_is_text_and_teacher_in_their_shares():
  c = config("mingru")
  pupil, data = build(c), batch(c)
  teacher = noisy(build(config("attention"), 1))

  @jax.jit
  def learnt(weight, T=2.0):
    told = lm.Teacher(teacher, weight, T)
    nats, aux = pupil.loss(**data, teacher=told)
    return nats, nats + aux.loss, aux.statistics["teacher_kl"]

  plain, _ = jax.jit(lambda: pupil.loss(**data))()
  nats, all_text, kl = learnt(0.0)
  close((nats, all_text), (plain, plain), 1e-6)
  for weight in (0.3, 1.0):
    nats, both, again = learnt(weight)
    close((nats, again), (plain, kl), 1e-6)
    close(both, (1 - weight) * plain + weight * 4 * kl, 1e-6)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
  """Data, a trained teacher's folder, and the config of a pupil."""
  folder = tmp_path_factory.mktemp("text")
  for split, n in (("train", 400), ("valid", 60), ("test", 60)):
    (folder / f"{split}.txt").write_bytes(b"alpha beta gamma\n" * n)
  c = config("attention")
  c.model.vocab.size, c.data.name = 0, f"text:{folder}"
  c.train.update(steps=4, warmup=1, eval_every=4, save_every=4, eval_bytes=99)
  data = data_lib.load(c.data.to_dict())
  path = tmp_path_factory.mktemp("runs") / "teacher"
  loop.run(loop.resolve(c, data), path, data)
  pupil = config("mingru")
  pupil.model.vocab.size, pupil.data = 0, c.data
  pupil.train.update(
    steps=4, warmup=1, eval_every=4, save_every=4, eval_bytes=99
  )
  pupil.train.teacher = str(path)
  return data, path, pupil


def test_a_run_learns_from_a_teacher(taught, tmp_path):
  data, path, c = taught
  cfg = loop.resolve(c, data)
  step = Step(cfg)
  result = loop.run(cfg, tmp_path / "pupil", data, step=step)
  assert result.done and result.curve[0]["teacher_kl"] > 0
  keys = {*arrays.pure(models.load(tmp_path / "pupil"))[0]}
  assert keys == {"vocab", "trunk", "norm"}  # of a teacher nothing is kept

  # two devices and a replicate beside it change nothing
  state = step.init((0, 1), (1e-3, 1e-3))
  text = batch(c_sized(c, data))
  alone, metrics = step.train(step.init(0, 1e-3), text)
  sharding = Sharding(devices=jax.devices()[:3])
  both, more = step.train(sharding.state(state), sharding.batch(text, 2))
  close(more["teacher_kl"][0], metrics["teacher_kl"], 1e-5)
  one = jax.tree.map(lambda a: a[0], both["params"])
  close(one, alone["params"], 1e-4)


def c_sized(c, data):
  c = c.copy_and_resolve_references().unlock()
  c.model.vocab.size = data.vocab
  return c


def test_a_teacher_of_other_symbols_is_refused_with_both(taught, tmp_path):
  data, path, c = taught
  other = data_lib.load({**c.data.to_dict(), "tokenizer": "bpe", "vocab": 270})
  with pytest.raises(ValueError, match="train.teacher=.* Bytes 256.* BPE 269 "):
    loop.resolve(c, other)
  c = c.copy_and_resolve_references().unlock()
  c.train.teacher = str(tmp_path / "none")
  with pytest.raises(ValueError, match="none"):
    loop.resolve(c, data)
  c.train.update(teacher=str(path), teacher_weight=1.5)
  with pytest.raises(ValueError, match="teacher_weight=1.5 must be from 0 to"):
    loop.resolve(c, data)
