"""The loop: resume, signals, refusals, divergence."""

import functools
import json
import os
import re
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from models import config

from arch import arrays, quantiser
from train import checkpoint, loop, metrics, models, workdir
from train import data as data_lib
from train.step import Step

pytestmark = pytest.mark.xdist_group("loop")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
  """A small corpus of three documents."""
  folder = tmp_path_factory.mktemp("text")
  rng = np.random.default_rng(0)
  words = [b"alpha ", b"beta ", b"gamma\n", b"delta. "]
  for split, n in (("train", 900), ("valid", 100), ("test", 100)):
    picked = rng.integers(0, len(words), n)
    (folder / f"{split}.txt").write_bytes(b"".join(words[i] for i in picked))
  return data_lib.load({"name": f"text:{folder}"})


def prepared(data, name="mingru", **fields):
  c = config(name)
  c.model.vocab.size = 0
  c.train.update(
    steps=12,
    warmup=2,
    eval_every=6,
    save_every=3,
    log_every=1,
    eval_bytes=300,
  )
  c.train.update(fields)
  return loop.resolve(c, data)


def numbers(path):
  """metrics.jsonl without its clock."""
  return [
    {k: v for k, v in line.items() if k != "seconds"}
    for line in metrics.read(path)
  ]


class Killed(BaseException):
  """Leaves the loop as kill -9 would: at once, past every handler."""


def killed():
  raise Killed


def terminated():
  os.kill(os.getpid(), signal.SIGTERM)


def struck(compiled, step, blow):
  """The compiled training step, but that `step` begins with a blow."""

  def train(state, batch):
    if int(state["step"]) == step:
      blow()
    return compiled(state, batch)

  train._cache_size = compiled._cache_size
  return train


@pytest.fixture(scope="module")
def never_stopped(text, tmp_path_factory):
  c = prepared(text)
  path = tmp_path_factory.mktemp("runs") / "whole"
  step = Step(c)
  result = loop.run(c, path, text, step=step)
  assert result.done and result.step == 12
  return c, step, jax.device_get(result.state), numbers(path)


@pytest.mark.smoke
@pytest.mark.parametrize("kills", [(1,), (4, 5), (7, 9, 11)])
def test_kill_and_resume_is_never_stopped(
  kills, text, never_stopped, tmp_path, monkeypatch
):
  c, step, state, lines = never_stopped
  compiled = step.train
  for kill in kills:
    monkeypatch.setattr(step, "train", struck(compiled, kill, killed))
    with pytest.raises(Killed):
      loop.run(c, tmp_path / "run", text, step=step)
  monkeypatch.setattr(step, "train", compiled)
  result = loop.run(c, tmp_path / "run", text, step=step)
  jax.tree.map(
    np.testing.assert_array_equal, jax.device_get(result.state), state
  )
  assert numbers(tmp_path / "run") == lines


def test_a_signal_saves_and_the_same_call_goes_on(
  text, never_stopped, tmp_path, monkeypatch
):
  c, step, state, lines = never_stopped
  compiled = step.train
  monkeypatch.setattr(step, "train", struck(compiled, 7, terminated))
  result = loop.run(c, tmp_path / "run", text, step=step)
  assert not result.done and result.step == 8 and result.stopped == "SIGTERM"
  monkeypatch.setattr(step, "train", compiled)
  result = loop.run(c, tmp_path / "run", text, step=step)
  jax.tree.map(
    np.testing.assert_array_equal, jax.device_get(result.state), state
  )
  assert numbers(tmp_path / "run") == lines


def test_a_time_that_is_up_saves_and_the_same_call_goes_on(
  text, never_stopped, tmp_path, monkeypatch
):
  c, step, state, lines = never_stopped
  compiled = step.train
  with loop.Signals(3600) as asked:

    def late():
      asked.end = 0

    monkeypatch.setattr(step, "train", struck(compiled, 7, late))
    result = loop.run(c, tmp_path / "run", text, step=step, signals=asked)
  assert (result.done, result.step, result.stopped) == (False, 8, "until")
  monkeypatch.setattr(step, "train", compiled)
  with loop.Signals(3600) as asked:
    result = loop.run(c, tmp_path / "run", text, step=step, signals=asked)
  jax.tree.map(
    np.testing.assert_array_equal, jax.device_get(result.state), state
  )
  assert numbers(tmp_path / "run") == lines and not asked.name


def test_a_run_goes_on_on_any_devices(text, tmp_path, monkeypatch):
  """Eight with a model each, two or four that share one, one alone."""
  c = prepared(text, batch=8, log_every=100)
  step, fitting, path = Step(c), loop.Sharding.fitting, tmp_path / "run"

  def stands(devices, model, steps):
    """Where it stands after so many steps more, and on which mesh."""
    on = functools.partial(fitting, devices=jax.devices()[:devices])
    monkeypatch.setattr(loop.Sharding, "fitting", on)
    c.train.model_devices = model
    with loop.Signals() as asked:
      stop = struck(step.train, saved + steps - 1, terminated)
      asked.name = "" if steps else "SIGTERM"
      with monkeypatch.context() as patch:
        patch.setattr(step, "train", stop)
        result = loop.run(c, path, text, step=step, signals=asked)
    mesh = result.state["step"].sharding.mesh.shape
    assert (mesh["model"], mesh["data"]) == (model, devices // model)
    sharded = [
      "model" in x.sharding.spec for x in jax.tree.leaves(result.state["opt"])
    ]
    assert any(sharded) == (model > 1)
    return jax.device_get(result.state), result.step

  saved = 0
  for layout in ((8, 1), (8, 2), (1, 1)):
    state, saved = stands(*layout, steps=1)
    assert saved == int(state["step"])
    for other in ((8, 4), (1, 1), (8, 1)):
      again, found = stands(*other, steps=0)
      assert found == saved
      jax.tree.map(np.testing.assert_array_equal, again, state)
  assert saved == 3
  assert workdir.read(path)["config"]["train"]["model_devices"] == 1


def test_the_clock_is_saved_with_the_step(
  text, never_stopped, tmp_path, monkeypatch
):
  c, step, _, _ = never_stopped
  c = c.copy_and_resolve_references()
  c.train.log_every = 100
  compiled = step.train
  monkeypatch.setattr(step, "train", struck(compiled, 4, killed))
  with pytest.raises(Killed):
    loop.run(c, tmp_path / "run", text, step=step)
  (line,) = metrics.read(tmp_path / "run")
  assert line["step"] == 3 and line["seconds"] > 0
  monkeypatch.setattr(step, "train", compiled)
  result = loop.run(c, tmp_path / "run", text, step=step)
  assert result.seconds > line["seconds"]


def test_another_config_is_refused_with_the_difference(
  text, never_stopped, tmp_path
):
  c, step, *_ = never_stopped
  loop.run(c, tmp_path / "run", text, step=step)
  other = prepared(text, lr=1e-4)
  with pytest.raises(ValueError, match=r"train.lr: saved 0.003, given 0.0001"):
    loop.run(other, tmp_path / "run", text)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(
  text, tmp_path, monkeypatch
):
  c = prepared(text)
  step = Step(c)
  compiled = step.train

  def train(state, batch):
    if int(state["step"]) == 7:
      batch = {**batch, "weights": batch["weights"] * np.inf}
    return compiled(state, batch)

  train._cache_size = compiled._cache_size
  monkeypatch.setattr(step, "train", train)
  with pytest.raises(loop.Diverged, match="step 8: .*checkpoint is of step 6"):
    loop.run(c, tmp_path / "run", text, step=step)
  monkeypatch.setattr(step, "train", compiled)
  assert loop.run(c, tmp_path / "run", text, step=step).done


def test_replicates_are_the_runs_alone(text, never_stopped, tmp_path):
  c, step, _, lines = never_stopped
  result = loop.run(
    c,
    tmp_path / "run",
    text,
    step=step,
    replicates=[(0, c.train.lr), (1, c.train.lr)],
  )
  assert len(result.scores) == 2 and result.alive == [True, True]
  together = numbers(tmp_path / "run")
  ours = [line["loss_0"] for line in together if "loss_0" in line]
  alone = [line["loss"] for line in lines if "loss" in line]
  np.testing.assert_allclose(ours, alone, rtol=1e-4)
  assert result.scores[0].bits_per_byte == pytest.approx(
    lines[-1]["bits_per_byte"], rel=1e-4
  )


def test_the_wrong_number_of_symbols_is_refused(text):
  c = config("mamba2")
  with pytest.raises(ValueError, match="size=17, but text:.* has 256 symbols"):
    loop.resolve(c, text)


@pytest.mark.parametrize(
  ("fields", "error"),
  [
    ({"batch": 0}, "train.batch=0 must be at least 1"),
    ({"log_every": 0}, "train.log_every=0 must be"),
    ({"eval_every": 0}, "train.eval_every=0 must be"),
    ({"save_every": 0}, "train.save_every=0 must be"),
    ({"eval_bytes": 0}, "train.eval_bytes=0 must be"),
    ({"batch": 3, "accumulate": 2}, "accumulate=2 must divide train.batch=3"),
    ({"lr": -1e-3}, "train.lr=-0.001 must be positive and finite"),
    ({"lr": float("nan")}, "train.lr=nan must be"),
    ({"clip": -1.0}, "train.clip=-1.0 must be 0 or a number above"),
    ({"seed": -1}, "train.seed=-1 must be from 0"),
  ],
)
def test_a_run_that_cannot_be_is_refused(text, fields, error):
  with pytest.raises(ValueError, match=error):
    prepared(text, **fields)


def test_a_refused_run_may_be_corrected(text, never_stopped, tmp_path):
  c, step, *_ = never_stopped
  for fields in ({"optimizer": "adam"}, {"keep": 0}, {"length": 10**6}):
    with pytest.raises(ValueError):
      loop.run(prepared(text, **fields), tmp_path / "run", text)
    assert not (tmp_path / "run" / "config.json").exists()
  with pytest.raises(ValueError, match="mqar makes sequences of 64.*length=64"):
    prepared(data_lib.load({"name": "task:mqar"}))


def test_what_cannot_be_called_leaves_no_folder(text, never_stopped, tmp_path):
  c, step, *_ = never_stopped
  for replicates in ([], [(0, 1e-3), (1,)]):
    with pytest.raises(ValueError):
      loop.run(c, tmp_path / "run", text, step=step, replicates=replicates)
  with pytest.raises(ValueError, match="unknown optimizer"):
    loop.run(prepared(text, optimizer="adam"), tmp_path / "run", text)
  assert not (tmp_path / "run").exists()


def test_a_stop_before_the_first_step_saves_nothing(
  text, never_stopped, tmp_path
):
  c, step, *_ = never_stopped
  with loop.Signals() as signals:
    signals.name = "SIGTERM"
    result = loop.run(c, tmp_path / "run", text, step=step, signals=signals)
  assert (result.step, result.done, result.scores) == (0, False, [])
  assert not checkpoint.steps(tmp_path / "run")


def test_a_loss_that_is_never_finite_says_that_nothing_was_saved(
  text, tmp_path
):
  c = prepared(text, lr=1e30)
  with pytest.raises(loop.Diverged, match="nothing was saved yet"):
    loop.run(c, tmp_path / "run", text)


def test_config_json_can_be_read(text, never_stopped, tmp_path):
  c, step, *_ = never_stopped
  loop.run(c, tmp_path / "run", text, step=step)
  saved = json.loads((tmp_path / "run" / "config.json").read_text())
  assert saved["format"] == 1 and saved["data"] == text.hash
  assert saved["config"]["model"]["vocab"]["size"] == 256


def test_a_run_begins_with_anothers_parameters(text, never_stopped, tmp_path):
  c, step, state, _ = never_stopped
  first, second = tmp_path / "first", tmp_path / "second"
  loop.run(c, first, text, step=step)
  with loop.Signals() as signals:
    signals.name = "SIGTERM"
    result = loop.run(
      c, second, text, step=step, signals=signals, init=str(first)
    )
  jax.tree.map(
    np.testing.assert_array_equal, result.state["params"], state["params"]
  )
  assert result.step == 0 and int(result.state["step"]) == 0
  assert not np.any(jax.tree.leaves(result.state["opt"])[-1])
  loop.run(c, second, text, step=step, init=str(first))
  for folder in (second / "checkpoints").iterdir():  # none reads back
    for file in filter(Path.is_file, list(folder.rglob("*"))):
      file.unlink()
  with signals:
    signals.name = "SIGTERM"
    again = loop.run(
      c, second, text, step=step, signals=signals, init=str(first)
    )
  assert again.step == 0
  jax.tree.map(
    np.testing.assert_array_equal, again.state["params"], state["params"]
  )
  wide = prepared(text, "rglru")
  with pytest.raises(ValueError, match="another model: .* there, .* here") as e:
    loop.run(wide, tmp_path / "third", text, init=str(first))
  assert "\n" not in str(e.value)


def test_averaged_weights_are_the_runs(text, tmp_path):
  """They are scored, kept, loaded and begun with; the last stand beside."""
  c = prepared(text, ema=0.9)
  step, path = Step(c), tmp_path / "run"
  result = loop.run(c, path, text, step=step)
  last = numbers(path)[-1]
  assert last["bits_per_byte"] == result.scores[0].bits_per_byte
  assert last["last_bits_per_byte"] != last["bits_per_byte"]
  own, _ = arrays.pure(models.load(path, "last"))
  jax.tree.map(np.testing.assert_array_equal, own, result.state["ema"])
  with loop.Signals() as signals:
    signals.name = "SIGTERM"
    other = loop.run(
      c,
      tmp_path / "other",
      text,
      step=step,
      signals=signals,
      init=str(path),
    )
  for name in ("params", "ema"):
    jax.tree.map(np.testing.assert_array_equal, other.state[name], own)
  assert not loop.run(c, tmp_path / "other", text, step=step).stopped


def test_parameters_of_other_symbols_are_refused(
  text, never_stopped, tmp_path, monkeypatch
):
  c, step, *_ = never_stopped
  loop.run(c, tmp_path / "first", text, step=step)
  monkeypatch.setattr(
    loop.tokenizer, "of_run", lambda _: type("BPE", (), {"vocab": 256})()
  )
  with pytest.raises(ValueError, match="symbols of another tokeniser"):
    loop.run(
      c, tmp_path / "second", text, step=step, init=str(tmp_path / "first")
    )


def test_stages_are_shown(text, never_stopped, tmp_path, capfd, monkeypatch):
  """And once how long it took to the first step."""
  monkeypatch.setattr(loop, "started", False)
  monkeypatch.setattr(loop.platform, "START", time.perf_counter() - 100)
  c, _, *_ = never_stopped
  c = c.copy_and_resolve_references()
  c.train.update(steps=1, warmup=0)
  result = loop.run(c, tmp_path / "run", text)
  shown = capfd.readouterr().err
  assert "compiling" in shown and "scoring" in shown
  assert f"valid {result.scores[0].bits_per_byte:.4f}" in shown
  assert max(map(len, shown.splitlines())) <= 80
  assert re.search(r"the first step was made after 1(\d\d)\.\d s, \d", shown)
  loop.run(c, tmp_path / "again", text)
  assert "the first step" not in capfd.readouterr().err


def test_codes_are_those_of_the_training_text(text, tmp_path):
  c = prepared(text, steps=2, warmup=1, eval_every=2, save_every=2)
  c.unlock()
  c.model.vocab = dict(
    name="codes", source="cooccurrence", size=256, pieces=2, codes=8
  )
  result = loop.run(c, tmp_path / "run", text, replicates=[(0, 1e-3)] * 2)
  codes = result.state["buffers"]["vocab"]["embedding"]["rows"]["codes"]
  exact = quantiser.codes(text.counts(), 2, 8)
  assert codes.shape == (2, 257, 2) and np.all(codes == exact[None])
  c.data.name = "task:mqar"
  task = data_lib.load(c.data.to_dict())
  c.train.length = task.length
  c.model.vocab.size = task.vocab
  with pytest.raises(ValueError, match="task:mqar has no training text"):
    loop.run(loop.resolve(c, task), tmp_path / "task", task)
  assert not (tmp_path / "task").exists()
