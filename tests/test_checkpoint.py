"""Checkpoints: bit for bit, whole or not at all, the best and the last kept."""

import contextlib
import errno
import gc
import os
import random
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import models
import numpy as np
import optax
import pytest

from arch import arrays, lm
from train import checkpoint, renames, workdir
from train.checkpoint import Checkpoints
from train.step import Step

BITS = "bits_per_byte"


def make(step, width=5):
  """A state as the step has it, each leaf of each step another."""
  rng = np.random.default_rng(step)
  params = {
    "stack": {"w": jnp.asarray(rng.normal(size=(3, width, 7)), jnp.float32)},
    "odd": jnp.asarray([np.nan, -0.0, np.inf, 1e-40, step], jnp.float32),
    "half": jnp.asarray(rng.normal(size=11), jnp.bfloat16),
  }
  optimizer = optax.chain(
    optax.masked(
      optax.scale_by_adam(), {"stack": True, "odd": False, "half": 0}
    ),
    optax.trace(0.9),
    optax.scale(-1.0),
  )
  opt = optimizer.init(params)
  return {
    "params": params,
    "buffers": {},
    "opt": jax.tree.map(lambda x: (x + step / 7).astype(x.dtype), opt),
    "step": jnp.int32(step),
    "seed": jnp.asarray([step, 2**32 - 1], jnp.uint32),
    "lr": jnp.float32(step / 3),
    "alive": jnp.asarray([True, False]),
  }


def abstract(width=5):
  return jax.eval_shape(lambda: make(0, width))


def texts():
  """A stream of batches, shuffled."""
  data = grain.MapDataset.range(40).seed(3).shuffle().batch(2)
  return iter(data.to_iter_dataset())


def bits(tree):
  return [
    (jax.tree_util.keystr(p), str(x.dtype), x.shape, np.asarray(x).tobytes())
    for p, x in jax.tree_util.tree_leaves_with_path(tree)
  ]


def filled(path, steps=(1, 2), **kwargs):
  """Checkpoints of these steps."""
  with Checkpoints(path, **kwargs) as c:
    for step in steps:
      assert c.save(step, make(step))
  return path / "checkpoints"


def test_restores_bit_for_bit_and_the_stream_goes_on(tmp_path, capfd):
  stream = texts()
  with Checkpoints(tmp_path) as c:
    assert c.restore(abstract()) is None
    assert c.latest() is None and c.best() is None
    for step in (1, 2):
      next(stream)
      assert c.save(step, make(step), stream, {BITS: 2.0})
    assert not c.save(2, make(3), stream)
    c.wait()
    after = [next(stream) for _ in range(3)]
  again = texts()
  with Checkpoints(tmp_path) as c:
    state, step = c.restore(abstract(), again)
  assert step == 2
  assert bits(state) == bits(make(2))
  assert jax.tree.structure(state) == jax.tree.structure(make(2))
  np.testing.assert_array_equal([next(again) for _ in range(3)], after)
  assert capfd.readouterr() == ("", "")


def test_a_step_that_donates_its_state_does_not_change_the_save(tmp_path):
  step = jax.jit(lambda x: x + 1, donate_argnums=0)
  x = step(jnp.zeros((500, 1000)))
  with Checkpoints(tmp_path) as c:
    c.save(1, {"x": x})
    for _ in range(10):
      x = step(x)
    state, _ = c.restore({"x": x})
  assert jnp.all(state["x"] == 1)


@pytest.mark.parametrize(
  "better, scores, best, kept",
  [
    ("min", {1: 3.0, 2: 1.0, 3: 2.0, 4: 4.0, 5: 5.0}, 2, [2, 4, 5]),
    ("max", {1: 3.0, 2: 9.0, 3: 2.0, 4: 4.0, 5: 5.0}, 2, [2, 4, 5]),
    ("min", {1: 2.0, 2: 1.0, 3: 1.0, 4: None, 5: float("nan")}, 3, [3, 4, 5]),
    ("max", {1: 2.0, 2: None, 3: float("inf"), 4: None, 5: 1.0}, 1, [1, 4, 5]),
    ("min", {1: None, 2: None, 3: None}, 3, [2, 3]),
  ],
)
def test_the_last_and_the_best_are_kept(tmp_path, better, scores, best, kept):
  for step, score in scores.items():  # a process each: nothing is remembered
    with Checkpoints(tmp_path, keep=2, metric="x", better=better) as c:
      c.save(step, {"w": jnp.ones(2)}, metrics=score and {"x": score})
      c.wait()
      assert c.latest() == step
  assert c.best() == best
  assert checkpoint.steps(tmp_path) == kept


@pytest.mark.parametrize("kwargs", [{"keep": 0}, {"better": "less"}])
def test_bad_arguments_are_named(tmp_path, kwargs):
  with pytest.raises(ValueError, match="keep=0|better='less'"):
    Checkpoints(tmp_path, **kwargs)


def truncate(file):
  data = file.read_bytes()
  file.write_bytes(data[: len(data) // 2])


def garble(file):
  file.write_bytes(bytes(255 - b for b in file.read_bytes()))


def empty(file):
  file.write_bytes(b"")


DAMAGES = [truncate, garble, empty, Path.unlink]


def test_every_kind_of_damage_to_every_file_is_seen(tmp_path):
  folder = filled(tmp_path, [1]) / "1"
  files = [f for f in folder.rglob("*") if f.is_file()]
  own = [f for f in files if f.parent == folder and f.name != "seal"]
  assert len(files) - len(own) > 8 and folder / "seal" in files
  for file in set(files) - set(own):
    data = file.read_bytes()
    for damage in DAMAGES:
      damage(file)
      assert checkpoint.damage(folder), (file, damage)
      file.write_bytes(data)
      assert checkpoint.damage(folder) is None


def test_a_file_that_cannot_be_read_is_damage(tmp_path, monkeypatch):
  folder = filled(tmp_path, [1]) / "1"

  def fail(*args):
    raise OSError(errno.EIO, os.strerror(errno.EIO))

  monkeypatch.setattr(checkpoint, "open", fail, raising=False)
  assert "Input/output error" in checkpoint.damage(folder)


def test_every_flipped_bit_is_seen(tmp_path):
  folder = filled(tmp_path, [1]) / "1"
  files = [f for f in folder.glob("*/**/*") if f.is_file()]
  rng = random.Random(0)
  for file in [*files * 15, *[folder / "seal"] * 100]:
    data = file.read_bytes()
    at = rng.randrange(len(data))
    flipped = data[at] ^ (1 << rng.randrange(8))
    file.write_bytes(data[:at] + bytes([flipped]) + data[at + 1 :])
    assert checkpoint.damage(folder), (file, at)
    file.write_bytes(data)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["state/manifest.ocdbt", "seal"])
def test_a_damaged_checkpoint_is_moved_aside_and_the_one_before_used(
  tmp_path, damage, name, capfd
):
  folder = filled(tmp_path, [1, 2, 3], keep=3)
  damage(folder / "3" / name)
  damage(folder / "2" / name)
  left = {f.name: f.read_bytes() for f in (folder / "3").rglob("*.ocdbt")}
  with Checkpoints(tmp_path) as c:
    state, step = c.restore(abstract())
    assert step == 1 and bits(state) == bits(make(1))
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    for n, line in zip((3, 2), lines, strict=True):
      aside = tmp_path / "damaged" / f"{n}.{3 - n}"
      assert str(aside) in line and Path(name).name in line
      assert "going on from step 1" in line
    aside = tmp_path / "damaged" / "3.0"
    assert {f.name: f.read_bytes() for f in aside.rglob("*.ocdbt")} == left
    assert c.save(2, make(2)) and c.save(3, make(3))
  with Checkpoints(tmp_path) as c:
    assert c.restore(abstract())[1] == 3
  assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_orbax_notes_for_itself_is_not_needed(tmp_path, damage, capfd):
  folder = filled(tmp_path, [1, 2])
  for step in ("1", "2"):
    for file in (folder / step).iterdir():
      if file.is_file() and file.name != "seal":
        damage(file)
  with Checkpoints(tmp_path, keep=2) as c:
    state, step = c.restore(abstract())
    assert step == 2 and bits(state) == bits(make(2))
    c.save(3, make(3))
  assert checkpoint.steps(tmp_path) == [2, 3]
  assert capfd.readouterr() == ("", "")


def test_with_nothing_whole_it_says_that_it_starts_over(tmp_path, capfd):
  empty(filled(tmp_path, [1]) / "1" / "seal")
  with Checkpoints(tmp_path) as c:
    assert c.restore(abstract()) is None
    assert "starting over" in capfd.readouterr().err
    assert c.save(1, make(1)) and c.save(2, make(2))
    c.wait()
    empty(tmp_path / "checkpoints" / "2" / "seal")
    assert c.restore(abstract())[1] == 1
    assert c.save(2, make(2))
    assert c.restore(abstract())[1] == 2


VICTIM = """
import os, signal, sys
import numpy as np
from train.checkpoint import Checkpoints
path, moment = sys.argv[1:]
seal = Checkpoints._seal

def state(step):
  return {"x": np.random.default_rng(step).normal(size=300_000).astype("f")}

def kill(*args):
  os.kill(os.getpid(), signal.SIGKILL)

def killing(self):
  seal(self)
  if self._step == 3 and moment == "sealed":
    kill()

Checkpoints._seal = killing
c = Checkpoints(path, keep=1)
for step in (1, 2):
  c.save(step, state(step))
c.wait()
c.save(3, state(3))
if moment == "writing":
  kill()
if moment == "committed":  # not yet: the older one is still to be deleted
  c._manager._checkpoint_deleter.delete_steps = kill
c.wait()
print("alive")
"""

MOMENTS = {"writing": 2, "sealed": 2, "committed": 3}


@pytest.fixture(scope="module")
def victims(tmp_path_factory):
  """Folders whose process was killed while it saved step 3."""
  folders = {m: tmp_path_factory.mktemp(m) for m in MOMENTS}
  running = [
    subprocess.Popen(
      [sys.executable, "-c", VICTIM, folder, moment],
      cwd=models.ROOT,
      stdout=subprocess.PIPE,
    )
    for moment, folder in folders.items()
  ]
  for process in running:
    out, _ = process.communicate(timeout=60)
    assert process.returncode == -9 and b"alive" not in out
  return folders


@pytest.mark.parametrize("moment, step", MOMENTS.items())
def test_kill_9_leaves_a_whole_checkpoint(victims, moment, step, capfd):
  path = victims[moment]
  with Checkpoints(path, keep=1) as c:
    state, found = c.restore({"x": jnp.zeros(300_000)})
    wanted = np.random.default_rng(step).normal(size=300_000).astype("f")
    assert found == step and np.array_equal(state["x"], wanted)
    c.save(9, make(9))
  assert capfd.readouterr() == ("", "")
  assert os.listdir(path / "checkpoints") == ["9"]
  assert not (path / "damaged").exists()


@contextlib.contextmanager
def refused(path, capfd, caplog):
  """A save that the disk does not take, and, after the body, two that it does.

  Yields the error's line.
  """
  with Checkpoints(path, keep=1) as c:
    with pytest.raises(OSError) as e:
      c.save(7, make(7, 50_000))
      c.wait()
    assert "\n" not in str(e.value)
    assert str(path / "checkpoints" / "7") in str(e.value)
    assert os.listdir(path / "checkpoints") == ["1"]
    state, step = Checkpoints(path).restore(abstract())
    assert step == 1 and bits(state) == bits(make(1))
    yield str(e.value)
    assert c.save(7, make(7)) and c.save(8, make(8))
  assert os.listdir(path / "checkpoints") == ["8"]
  # a thread that still waits keeps the process from ending
  assert not [t for t in threading.enumerate() if "Signaling" in repr(t)]
  gc.collect()  # what other threads could still have to say
  assert not caplog.records
  assert capfd.readouterr() == ("", "")


def test_a_file_limit_says_so_and_loses_nothing(tmp_path, capfd, caplog):
  filled(tmp_path, [1])
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
  try:
    with refused(tmp_path, capfd, caplog) as line:
      assert "ulimit" in line
      resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def disk(tmp_path):
  """A file system of 2 MB, and a function that mounts it in another way."""

  def mount(options, *device):
    command = ["mount", "-t", "tmpfs", "-o", options, *device, tmp_path]
    return subprocess.run(command).returncode == 0

  if shutil.which("mount") is None or not mount("size=2m", "tmpfs"):
    pytest.skip("cannot mount a small file system here")
  yield tmp_path, lambda options: mount(f"remount,{options}")
  subprocess.run(["umount", tmp_path], check=True)


def test_a_full_disk_says_so_and_loses_nothing(disk, capfd, caplog):
  path, remount = disk
  filled(path / "run", [1])
  with refused(path / "run", capfd, caplog) as line:
    assert "No space left" in line
    assert remount("size=50m")


def test_a_read_only_disk_says_so_and_can_be_read(disk, capfd, caplog):
  path, remount = disk
  filled(path / "run", [1])
  assert remount("ro")
  with pytest.raises(OSError, match="lock: .*writable"):
    workdir.Workdir(path / "run")
  with refused(path / "run", capfd, caplog) as line:
    assert "writable" in line
    assert remount("rw")


def test_arrays_come_back_where_they_are_asked_for(tmp_path):
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
  four = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  two = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("a", "b"))
  cross = jax.sharding.NamedSharding(two, jax.sharding.PartitionSpec("b", "a"))
  x = jnp.arange(96.0).reshape(8, 12)
  with Checkpoints(tmp_path) as c:
    c.save(1, {"x": jax.device_put(x, four), "n": np.float32(2)})
    for sharding in (four, cross, None):
      spec = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
      target = {"x": spec, "n": jax.ShapeDtypeStruct((), jnp.float32)}
      state, _ = c.restore(target)
      np.testing.assert_array_equal(state["x"], x)
      first = jax.sharding.SingleDeviceSharding(jax.devices()[0])
      assert state["x"].sharding == (sharding or first)
      assert state["n"] == 2 and state["n"].sharding == first


@pytest.mark.parametrize(
  "change, line",
  [
    ({"lr": jnp.zeros(2)}, "lr: saved float32[], expected float32[2]"),
    ({"lr": jnp.int32(0)}, "lr: saved float32[], expected int32[]"),
    ({"new": jnp.int32(0)}, "new: saved None, expected int32[]"),
    ({"opt": ()}, "opt.1.trace.odd: saved float32[5], expected None"),
  ],
)
def test_another_model_is_refused_and_nothing_moved(
  tmp_path, change, line, capfd
):
  filled(tmp_path)
  with Checkpoints(tmp_path) as c:
    with pytest.raises(ValueError) as e:
      c.restore({**make(0), **change})
    assert f"\n  {line}" in str(e.value)
    with pytest.raises(ValueError, match="iterator: saved False, expected T"):
      c.restore(make(0), texts())
  assert checkpoint.steps(tmp_path) == [1, 2]
  assert capfd.readouterr() == ("", "")


def trained(c, seed):
  """A model of the config with other numbers in every array."""
  rng = np.random.default_rng(seed)
  model = lm.abstract(c.model)
  params, buffers = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), arrays.pure(model)
  )
  return {"params": params, "buffers": buffers}


@pytest.fixture
def run(tmp_path):
  """A run whose best checkpoint is its first."""
  c = models.config("experts")
  assert trained(c, 0)["buffers"]
  with workdir.Workdir(tmp_path) as w, Checkpoints(w) as saved:
    w.record(c)
    for step, score in ((1, 2.0), (2, 3.0)):
      state = {**trained(c, step), "opt": make(0)["opt"]}
      saved.save(step, state, metrics={BITS: score})
  return tmp_path, c


@pytest.mark.parametrize("which, step", [("best", 1), ("last", 2)])
def test_a_model_is_loaded_from_its_folder_alone(run, which, step, capfd):
  path, c = run
  model = checkpoint.load_model(path, which)
  assert isinstance(model, lm.LM)
  assert bits(arrays.pure(model)) == bits(tuple(trained(c, step).values()))
  assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("rename", [None, "whole_vocab", "without_trunk"])
@pytest.mark.parametrize("vocab", ["full", "lowrank"])
def test_names_of_before_are_read(tmp_path, rename, vocab, capfd):
  """Of a model's arrays, and of Adam's means."""
  c = models.config("experts")
  c.model.vocab.name, c.model.positions = vocab, c.train.length
  step = Step(c)
  state = step.init(0, 1e-3)

  def before(path):
    path = renames.bare_maps(path)
    return getattr(renames, rename)(path) if rename else path

  old = renames.older(state, before)
  assert "positions" in state["params"]["vocab"]
  assert ("positions" in old["params"]) == bool(rename)
  assert ("trunk" in old["params"]) == (rename != "without_trunk")
  block = old["params"].get("trunk", old["params"])["stack_0"]["block_0"]
  assert block["channel"]["gate"].ndim == 4
  assert block["channel"]["shared"]["down"].ndim == 3
  with workdir.Workdir(tmp_path) as w, Checkpoints(w) as saved:
    w.record(c)
    saved.save(1, old, metrics={BITS: 1.0})
    found, at = saved.restore(jax.eval_shape(lambda: step.init(0, 1e-3)))
  assert at == 1 and bits(found) == bits(state)
  model = checkpoint.load_model(tmp_path)
  assert bits(arrays.pure(model)) == bits((state["params"], state["buffers"]))
  assert capfd.readouterr() == ("", "")


def test_a_damaged_best_is_named_and_the_next_loaded(run, capfd):
  path, c = run
  garble(path / "checkpoints" / "1" / "seal")
  model = checkpoint.load_model(path)
  assert bits(arrays.pure(model)) == bits(tuple(trained(c, 2).values()))
  said = capfd.readouterr().err
  assert f"{path}/checkpoints/1 is damaged" in said
  assert f"{path}: the checkpoint of step 2 is used" in said
  assert checkpoint.steps(path) == [1, 2]


def test_a_folder_without_a_model_says_what_is_missing(tmp_path):
  with pytest.raises(ValueError, match="which='first'"):
    checkpoint.load_model(tmp_path, "first")
  with pytest.raises(ValueError, match="there is no .*config.json"):
    checkpoint.load_model(tmp_path)
  with workdir.Workdir(tmp_path) as w:
    w.record(models.config("experts"))
  with pytest.raises(ValueError, match="holds no whole checkpoint"):
    checkpoint.load_model(tmp_path)


def test_orbax_is_imported_when_something_is_saved():
  code = (
    "import sys; from train import checkpoint; checkpoint.Checkpoints('none')"
    ".restore({}); assert not [m for m in sys.modules if 'orbax' in m]"
  )
  subprocess.run([sys.executable, "-c", code], cwd=models.ROOT, check=True)
