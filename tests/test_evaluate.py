"""What is scored and drawn from a trained run, against the formula."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import programs
import pytest
from models import build, config, noisy

import arch
from arch import arrays
from train import data, evaluate, generate, tokenizer, workdir
from train.checkpoint import Checkpoints
from train.sharding import Sharding, apart

DOCUMENTS = b"to be or not", b"that is the question, whether tis nobler"
SIZES = 30, 3, 41, 1, 17, 25, 8, 33, 19, 22, 40, 5


def written(path, documents):
  """Data of these documents in every split."""
  path.mkdir(exist_ok=True)
  lines = "\n".join(json.dumps({"text": d.decode()}) for d in documents)
  for split in ("train", "valid", "test"):
    (path / f"{split}.jsonl").write_text(lines)
  return f"text:{path}"


def several(seed=0):
  """Documents of SIZES, most of them shorter than a call."""
  rng = np.random.default_rng(seed)
  return [bytes(rng.integers(97, 123, n, np.uint8)) for n in SIZES]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
  path = tmp_path_factory.mktemp("text")
  for split in ("train", "valid", "test"):
    (path / f"{split}.txt").write_bytes(b"".join(DOCUMENTS))
  return f"text:{path}"


def saved(path, text, name="mamba2_attention", **fields):
  """A run that was never trained, and its model."""
  c = config(name)
  c.model.vocab.size, c.data.name = 256, text
  c.model.update({"length": 64, **fields})
  model = noisy(build(c))
  params, buffers = arrays.pure(model)
  with workdir.Workdir(path) as held, Checkpoints(held) as checkpoints:
    held.record(c)
    checkpoints.save(0, {"params": params, "buffers": buffers})
    tokenizer.Bytes().save(path / tokenizer.FILE)
  return model


def nats(model, targets):
  """Sum of -log p of one document, in one call."""
  tokens = jnp.asarray([256, *targets[:-1]])[None]
  logits, _ = model(tokens)
  rows = jax.nn.log_softmax(logits[0], -1)
  return -sum(float(row[y]) for row, y in zip(rows, targets, strict=True))


def test_a_stream_is_scored_as_one_call(tmp_path, text):
  model = saved(tmp_path, text)
  targets = b"".join(DOCUMENTS)
  score, _, window, lanes = evaluate.whole(tmp_path, chunk=7)
  assert window is None and lanes == 1
  assert score.positions == score.bytes == len(targets)
  assert score.nats == pytest.approx(nats(model, targets), rel=1e-5)


def test_learned_positions_are_scored_in_windows(tmp_path, text):
  model = saved(tmp_path, text, positions=9)
  targets = b"".join(DOCUMENTS)
  score, _, window, lanes = evaluate.whole(tmp_path, chunk=30)
  assert (window, lanes) == (9, 8) and score.positions == len(targets)
  first = nats(model, targets[:9])
  assert np.isfinite(score.nats) and score.nats > first


@pytest.mark.parametrize(
  ("name", "lanes"),
  [("mamba2_attention", {1: 1, 3: 3, None: 4}), ("hnet", {None: 4})],
)
def test_lanes_are_one_stream(tmp_path, name, lanes):
  """Of documents: all by themselves, in one lane, and in several."""
  documents = several()
  model = saved(tmp_path, written(tmp_path / "text", documents), name)
  exact = alone(model, documents)
  for most, count in lanes.items():
    score, *_, found = evaluate.whole(tmp_path, chunk=16, lanes=most)
    assert found == count
    assert score.positions == score.bytes == sum(SIZES)
    assert score.nats == pytest.approx(exact, rel=1e-6)


def alone(model, documents):
  """Sum of -log p of documents, each a row that is fresh."""
  T = max(map(len, documents))
  targets = np.zeros((len(documents), T), np.int32)
  weights = np.zeros(targets.shape, np.float32)
  for row, document in enumerate(documents):
    targets[row, : len(document)] = list(document)
    weights[row, : len(document)] = 1
  tokens = np.pad(targets, ((0, 0), (1, 0)), constant_values=256)[:, :-1]
  graph, weighed = arrays.split(model)
  score = jax.jit(lambda w, *a: arrays.join(graph, w).score(*a)[0])
  return float(np.sum(score(weighed, tokens, targets) * weights, dtype=float))


def test_windows_side_by_side_are_one_after_another(tmp_path):
  text = written(tmp_path / "text", several())
  saved(tmp_path, text, "attention", positions=9)
  one, many = (evaluate.whole(tmp_path, lanes=n) for n in (1, None))
  assert (one[2:], many[2:]) == ((9, 1), (9, 8))
  assert many[0].nats == pytest.approx(one[0].nats, rel=1e-6)
  assert many[0].positions == one[0].positions == sum(SIZES)


def test_a_device_reads_its_own_lanes():
  """An eighth of the products, and no other's states, which stay apart."""
  c = config("mamba2_attention")
  scorer, B, T = evaluate.Lanes(build(c)), 8, 32
  batch = {
    "tokens": np.zeros((B, T), np.int32),
    "targets": np.zeros((B, T), np.int32),
    "weights": np.ones((B, T), np.float32),
    "reset": np.zeros((B, T), bool),
  }
  texts = []
  for devices in (8, 1):
    sharding = Sharding(devices=jax.devices()[:devices])
    weights, state, call = scorer.start(sharding.mesh, B)
    placed = sharding.batch(batch)
    with apart(placed):
      texts.append(call.lower(weights, state, placed).compile().as_text())
    for leaf in jax.tree.leaves(state):
      assert leaf.addressable_shards[0].data.size * devices == leaf.size
  share, whole = map(programs.products, texts)
  assert 8 * share == whole > 0
  assert not programs.gathered(texts[0]) and "all-reduce" not in texts[0]


def test_long_sums_are_exact():
  """Of 200,000 calls, as float64 has them; float32 is .01 % off."""
  part = np.random.default_rng(0).random((2, 3), np.float32)
  found = evaluate.total(part for _ in range(20_000))
  exact = part.astype(np.float64).sum(0) * 20_000
  np.testing.assert_allclose(found, exact, rtol=1e-9)


def test_no_call_is_waited_for_and_few_are_ahead():
  """An answer is read once AHEAD more were asked for, in their order."""
  events, calls = [], evaluate.AHEAD + 3

  class Answer:
    def __init__(self, i):
      self.i = i
      events.append(("asked", i))

    def copy_to_host_async(self):
      pass

    def __array__(self, dtype=None, copy=None):
      events.append(("read", self.i))
      return np.full((1, 3), self.i)

  found = list(evaluate.behind(map(Answer, range(calls))))
  assert [int(a[0, 0]) for a in found] == [*range(calls)]
  at = {event: n for n, event in enumerate(events)}
  for i in range(calls - evaluate.AHEAD):
    assert at["read", i] == at["asked", i + evaluate.AHEAD] + 1


def made(sizes):
  """Text of documents of these sizes."""
  split = data.corpus.Split.of(b"x" * n for n in sizes)
  splits = dict.fromkeys(data.corpus.SPLITS, split)
  source = data.corpus.Corpus("made", splits, "", "", "")
  return data.Text(source, tokenizer.Bytes(), "", str)


@pytest.mark.parametrize(
  ("sizes", "lanes"),
  [
    ([10] * 64, 8),  # evenly
    ([640], 1),  # one document
    ([320] * 2, 2),
    ([500, *[10] * 14], 1),  # others would wait for the long one
    ([1], 1),
    (SIZES, 4),
  ],
)
def test_lanes_are_of_whole_documents(sizes, lanes):
  """As many as pad little; each symbol is scored once, in its document."""
  batches, B = made(sizes).lanes("test", 16, range(8, 0, -1))
  assert B == lanes
  batch = [np.concatenate(x, 1) for x in zip(*map(rows, batches), strict=True)]
  weights, reset, tokens = batch
  assert weights.sum() == sum(sizes) == batches.bytes
  scored = reset[weights > 0]
  assert np.flatnonzero(scored).tolist() == np.cumsum([0, *sizes[:-1]]).tolist()
  assert reset[:, 0].all() and (tokens[reset] == 256).all()
  assert weights.size <= data.PADDED * -(-sum(sizes) // 16) * 16


def rows(batch):
  return batch["weights"], batch["reset"], batch["tokens"]


def test_a_lane_may_be_empty():
  packed = made([30, 2])._packed("test")
  assert packed.lanes(4, np.array([0, 30])).tolist() == [0, 0, 30, 30, 32]


def test_lanes_are_alike_on_all_devices(monkeypatch):
  scorer = evaluate.Lanes(arch.abstract(config("attention").model))
  few = [*range(7, 0, -1)]
  assert scorer.counts() == scorer.counts(12) == [8, *few]
  assert scorer.counts(3) == [3, 2, 1]
  monkeypatch.setitem(evaluate.MOST, "cpu", 32)
  assert scorer.counts() == [32, 24, 16, 8, *few]
  monkeypatch.setattr(evaluate, "STATES", 1000)  # not even one's
  assert scorer.counts() == [8, *few]


def test_writing_ends_where_learned_positions_do(tmp_path, text, capsys):
  saved(tmp_path, text, positions=9)
  written = b"".join(generate.stream(tmp_path, b"ab", size=100))
  # of 9 tokens the start symbol and two more are given; the last is not read
  assert len(written) == 7
  assert "9 learned positions are full" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("top_p", "drawn"), [(0.0, {2}), (0.7, {1, 2}), (1.0, {0, 1, 2, 3})]
)
def test_draws_are_of_the_likeliest(top_p, drawn):
  logits = jnp.log(jnp.asarray([[0.1, 0.3, 0.5, 0.1]]))
  draw = jax.vmap(lambda key: generate.sample(logits, key, 1.0, top_p)[0])
  found = draw(jax.random.split(jax.random.key(0), 500))
  assert set(found.tolist()) == drawn


def test_temperature_zero_is_the_likeliest_and_one_the_distribution():
  logits = jnp.log(jnp.asarray([[0.1, 0.3, 0.6]]))
  keys = jax.random.split(jax.random.key(0), 2000)
  for temperature, share in ((0.0, 1.0), (1.0, 0.6)):
    draw = jax.vmap(
      lambda key, t=temperature: generate.sample(logits, key, t, 1.0)[0]
    )
    assert np.mean(draw(keys) == 2) == pytest.approx(share, abs=0.05)
