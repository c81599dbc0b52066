"""A model as one file: exact, small, and refused where it is not whole."""

import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import models as shared
import numpy as np
import pytest

from arch import arrays
from train import artefact, evaluate, generate, loop, models, rounding
from train import data as data_lib
from train.step import Step

pytest.importorskip("constriction")
pytestmark = pytest.mark.xdist_group("artefact")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A trained run of experts, a buffer, ternary and plain maps."""
  folder = tmp_path_factory.mktemp("text")
  rng = np.random.default_rng(0)
  words = [b"alpha ", b"beta ", b"gamma\n", b"delta. "]
  for split, n in (("train", 900), ("valid", 60), ("test", 60)):
    picked = rng.integers(0, len(words), n)
    (folder / f"{split}.txt").write_bytes(b"".join(words[i] for i in picked))
  made = {}
  for linear in ("dense", "ternary"):
    c = shared.config("mingru")
    c.model.update(linear=linear, channel="experts", depth=1)
    c.model.vocab.size = 0
    c.train.update(steps=6, warmup=1, eval_every=6, save_every=6)
    c.train.update(eval_bytes=200)
    c.data.name = f"text:{folder}"
    data = data_lib.load(c.data.to_dict())
    made[linear] = tmp_path_factory.mktemp("runs") / linear
    loop.run(loop.resolve(c, data), made[linear], data)
  return made


def exported(path, out, bits):
  found = models.trained(path)
  size = artefact.write(out, found.config, found.tokens, found.model, bits)
  assert size == out.stat().st_size
  return found, models.trained(out), size


@pytest.mark.parametrize(
  ("linear", "bits"),
  [
    ("dense", "16"),
    ("dense", "8"),
    ("dense", "6"),
    ("dense", "4"),
    ("dense", "ternary"),
    ("ternary", "6"),
  ],
)
def test_the_file_is_the_rounded_model(run, tmp_path, linear, bits):
  """Its weights are those that rounding gives, and its score is theirs."""
  found, read, size = exported(run[linear], tmp_path / "a.slm", bits)
  assert read.config == found.config
  texts = (t.encode(b"a\xff").tolist() for t in (read.tokens, found.tokens))
  assert next(texts) == next(texts)
  params, buffers = arrays.pure(found.model)
  own, same = arrays.pure(read.model)
  jax.tree.map(np.testing.assert_array_equal, same, buffers)
  roles = arrays.roles(found.model)

  def expected(x, role):
    if bits in ("16", "ternary") or not rounding.axes(x.shape, role):
      return x.astype(jnp.float16).astype(jnp.float32)
    q, step = rounding.rounded(x, role, int(bits))
    return q * step

  if linear == "dense" and bits != "ternary":
    jax.tree.map(
      np.testing.assert_array_equal, own, jax.tree.map(expected, params, roles)
    )
  block = own["trunk"]["stack_0"]["block_0"]["mingru"]["out_proj"]["weight"]
  if bits in ("4", "ternary") or linear == "ternary":
    few = 15 if (linear, bits) == ("dense", "4") else 3
    assert len(np.unique(block[0, :, 0])) <= few


def test_the_file_is_scored_and_goes_on_with_a_text(run, tmp_path):
  found, read, _ = exported(run["dense"], tmp_path / "a.slm", "4")
  score, *_ = evaluate.whole(tmp_path / "a.slm")
  assert math.isfinite(score.bits_per_byte) and score.bytes > 0

  # a folder that holds these very weights answers as the file does
  text = jnp.asarray(np.arange(11)[None] % 200)
  filled = arrays.fill(found.model, *arrays.pure(read.model))
  call = jax.jit(lambda model: model(text)[0])
  assert np.array_equal(call(filled), call(read.model))
  assert b"".join(generate.stream(tmp_path / "a.slm", b"al", size=3))


def test_ternary_maps_read_what_they_had(run, tmp_path):
  """The map of a ternary weight is the same before and after."""
  found, read, _ = exported(run["ternary"], tmp_path / "a.slm", "8")
  before, after = (
    jax.tree.map(lambda a: a[0], m.trunk.stack_0).block_0
    for m in (found.model, read.model)
  )
  for name in ("out_proj", "input"):
    if hasattr(before.mingru, name):
      pair = (getattr(b.mingru, name).matrix() for b in (before, after))
      old, new = map(np.asarray, pair)
      np.testing.assert_allclose(new, old, rtol=2e-3)
      assert np.array_equal(np.sign(new), np.sign(old))
  old, new = (b.channel.gate.matrix() for b in (before, after))
  np.testing.assert_allclose(new, old, rtol=2e-3)


def test_fewer_bits_are_fewer_bytes(run, tmp_path):
  sizes = [
    exported(run["dense"], tmp_path / bits, bits)[2] for bits in artefact.BITS
  ]
  assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("spread", [1, 6, 40])
def test_the_code_is_near_the_entropy(spread, seed):
  x = np.round(spread * np.random.default_rng(seed).normal(size=20_000 - seed))
  data, about = artefact.coded(x)
  _, counts = np.unique(x, return_counts=True)
  p = counts / x.size
  bits = -np.sum(p * np.log2(p)) * x.size
  assert 8 * about["bytes"] < 1.01 * bits + 64
  read = artefact.decoded(artefact.Reader(data), about, x.size)
  assert np.array_equal(read, x)


def test_one_number_and_extremes_come_back():
  for x in (np.full(5, -3), np.array([7]), np.array([-127, 127, 0])):
    data, about = artefact.coded(x)
    read = artefact.decoded(artefact.Reader(data), about, x.size)
    assert np.array_equal(read, x)


@pytest.mark.parametrize("role", ["Matrix", "Embedding"])
@pytest.mark.parametrize("bits", sorted(rounding.CLIP))
def test_rounding_is_within_a_step_and_noise_is_as_large(role, bits):
  w = jax.random.normal(jax.random.key(0), (64, 48)) * jnp.linspace(
    0.1, 2, 48 if role == "Matrix" else 64
  ).reshape((1, -1) if role == "Matrix" else (-1, 1))
  q, step = rounding.rounded(w, role, bits)
  assert step.shape == ((1, 48) if role == "Matrix" else (64, 1))
  off = np.asarray(jnp.abs(q * step - w) / step)
  clipped = np.abs(np.asarray(q)) == rounding.levels(bits)
  assert off[~clipped].max() <= 0.5 + 1e-4
  moved = rounding.noisy({"a": w}, {"a": role}, bits, jax.random.key(1))["a"]
  noise = (moved - w) / step
  assert np.abs(noise).max() <= 0.5 + 1e-3
  assert abs(jnp.std(noise) - 12**-0.5) < 0.02
  kept = rounding.noisy({"a": w}, {"a": "Gate"}, bits, jax.random.key(1))["a"]
  assert kept is w


@pytest.mark.parametrize("bits", sorted(rounding.CLIP))
@pytest.mark.parametrize(
  ("role", "shape", "steps"),
  [
    ("Embedding", (30, 5, 4, 1), (30, 5, 1, 1)),
    ("Embedding", (30, 2, 2, 1), (30, 1, 1, 1)),
    ("Table", (3, 30, 16), (3, 30, 1)),
    ("Matrix", (3, 30, 16), (3, 1, 16)),
    ("Embedding", (30, 2), None),
    ("Embedding", (30, 1, 3), None),
    ("Matrix", (3, 30), None),
    ("Embedding", (30, 0), None),
    ("Gate", (30, 16), None),
  ],
)
def test_steps_of_short_rows_and_of_numbers_that_are_alike(
  role, shape, steps, bits
):
  """Equal numbers have no spread, and are kept to half a step all the same."""
  w = jnp.linspace(0.7, 0.71, math.prod(shape)).reshape(shape)
  data, about = artefact.put(w, role, str(bits), None)
  assert about["kind"] == (
    "rounded" if steps else "float16" if w.size else "whole"
  )
  if steps:
    assert tuple(about["of"]) == steps
  read = artefact.get(artefact.Reader(data), about, learnt=False)
  half = rounding.CLIP[bits] / rounding.levels(bits) / 2
  assert read.shape == shape
  assert np.all(np.abs(read / w - 1) < (half + 0.02 if steps else 1e-3))


def test_noise_in_training_is_of_the_step_and_the_seed():
  c = shared.config("mingru")
  c.train.noise_bits = 4
  step = Step(c)
  state = step.init((0, 0, 1), (1e-3,) * 3)
  batch = shared.batch(c)
  _, metrics = step.train(state, batch)
  a, b, other = metrics["loss"]
  assert a == b != other
  c.train.noise_bits = 0
  plain = Step(c)
  _, metrics = plain.train(plain.init(0, 1e-3), batch)
  assert metrics["loss"] != a and abs(metrics["loss"] - a) < 0.1


def test_a_file_that_is_not_whole_is_refused(run, tmp_path):
  path = tmp_path / "a.slm"
  exported(run["dense"], path, "6")
  data = path.read_bytes()

  def refused(content, message):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
      models.trained(path)
    assert "\n" not in str(error.value)

  for size in (len(data) - 1, len(data) // 2, artefact.HEAD - 5, 8):
    refused(data[:size], "truncated or damaged")
  flipped = bytearray(data)
  flipped[-9] ^= 1
  refused(bytes(flipped), "truncated or damaged")
  newer = bytearray(data)
  newer[len(artefact.MAGIC)] = 9
  refused(bytes(newer), "format 9, this version reads up to 1")
  refused(b"PK\x03\x04", "is no artefact of launch.export")
  refused(b"", "is no artefact")


def test_the_command_says_what_it_wrote(run, tmp_path):
  out = tmp_path / "a.slm"
  command = [sys.executable, "-m", "launch.export", f"--out={out}"]
  done = subprocess.run(
    [*command, f"--workdir={run['dense']}", "--bits=6"],
    capture_output=True,
    text=True,
    cwd=shared.ROOT,
  )
  assert done.returncode == 0, done.stderr
  said = done.stdout + done.stderr
  assert f"{out.stat().st_size:,} bytes" in said and "bits for each of" in said
  with pytest.raises(ValueError, match="--bits=5: one of 16, 8, 6, 4, tern"):
    exported(run["dense"], out, "5")
