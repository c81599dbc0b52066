"""What is scored and drawn from a trained run, against the formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import build, config, noisy

from arch import arrays
from train import evaluate, generate, tokenizer, workdir
from train.checkpoint import Checkpoints

DOCUMENTS = b"to be or not", b"that is the question, whether tis nobler"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
  path = tmp_path_factory.mktemp("text")
  for split in ("train", "valid", "test"):
    (path / f"{split}.txt").write_bytes(b"".join(DOCUMENTS))
  return f"text:{path}"


def saved(path, text, **fields):
  """A run that was never trained, and its model."""
  c = config("mamba2_attention")
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
  score, _, window = evaluate.whole(tmp_path, chunk=7)
  assert window is None
  assert score.positions == score.bytes == len(targets)
  assert score.nats == pytest.approx(nats(model, targets), rel=1e-5)


def test_learned_positions_are_scored_in_windows(tmp_path, text):
  model = saved(tmp_path, text, positions=9)
  targets = b"".join(DOCUMENTS)
  score, _, window = evaluate.whole(tmp_path, chunk=30)
  assert window == 9 and score.positions == len(targets)
  first = nats(model, targets[:9])
  assert np.isfinite(score.nats) and score.nats > first


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
