"""B sequences  T time  K pairs"""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train import data, tasks
from train.tasks import mqar, words


def named(fields):
  return ",".join(["task:mqar", *(f"{k}={v}" for k, v in fields.items())])


@pytest.mark.parametrize("name", tasks.names())
def test_contract(name):
  """Shapes, ranges, and numbers that depend on (seed, step) alone."""
  task = data.load({"name": f"task:{name}"})
  B, T = 3, task.length
  made = jax.jit(lambda seed, step: task.batch(seed, step, B, T))
  first = made(1, 2)
  assert {k: (v.shape, v.dtype) for k, v in first.items()} == {
    "tokens": ((B, T), jnp.int32),
    "targets": ((B, T), jnp.int32),
    "weights": ((B, T), jnp.float32),
    "reset": ((B, T), jnp.bool_),
  }
  for key in ("tokens", "targets"):
    assert 0 <= first[key].min() and first[key].max() < task.vocab
  assert first["reset"][:, 0].all()
  assert {1} <= set(np.unique(first["weights"])) <= {0, 1}
  jax.tree.map(np.testing.assert_array_equal, first, made(1, 2))
  valid, test = (
    next(iter(task.windows(split, T, batch=B))) for split in ("valid", "test")
  )
  others = [made(2, 1), made(1, 3), made(2, 2), valid, test]
  seen = {other["tokens"].tobytes() for other in [first, *others]}
  assert len(seen) == 6, "two of the streams are one"


def by_definition(rng, vocab, length, pairs):
  """One sequence from the definition, a draw at a time."""
  half = vocab // 2
  keys = rng.choice(np.arange(1, half), pairs, replace=False)
  values = rng.choice(np.arange(half, vocab), pairs, replace=False)
  slot = np.arange(1, (length - 2 * pairs) // 2 + 1)
  p = 0.01 * slot ** (0.01 - 1)
  slots = rng.choice(slot, pairs, replace=False, p=p / p.sum())
  tokens, targets = np.zeros((2, length), int)
  for i in range(pairs):
    tokens[2 * i : 2 * i + 2] = keys[i], values[i]
    query = 2 * pairs + 2 * (slots[i] - 1)
    tokens[query], targets[query] = keys[i], values[i]
  return tokens, targets


def sequences(cfg, count, seed=0):
  made = jax.jit(mqar.batch, static_argnums=(0, 2))(
    cfg, jax.random.key(seed), count
  )
  return {k: np.asarray(v) for k, v in made.items()}


@pytest.mark.parametrize(
  "vocab, length, pairs", [(128, 32, 3), (128, 32, 8), (8192, 64, 4)]
)
def test_mqar_sequence(vocab, length, pairs):
  cfg = mqar.Config(vocab=vocab, length=length, pairs=pairs)
  made = sequences(cfg, 50)
  keys = made["tokens"][:, 0 : 2 * pairs : 2]
  values = made["tokens"][:, 1 : 2 * pairs : 2]
  assert 1 <= keys.min() and keys.max() < vocab // 2
  assert vocab // 2 <= values.min() and values.max() < vocab
  assert all(len(set(row)) == pairs for row in [*keys, *values])
  for b in range(50):
    rest = made["tokens"][b, 2 * pairs :]
    queries = np.flatnonzero(rest)
    assert (queries % 2 == 0).all() and sorted(rest[queries]) == sorted(keys[b])
    scored = np.flatnonzero(made["weights"][b]) - 2 * pairs
    np.testing.assert_array_equal(scored, queries)
    value = dict(zip(keys[b], values[b], strict=True))
    answers = made["targets"][b, 2 * pairs :]
    assert [value[k] for k in rest[queries]] == list(answers[queries])
    assert made["targets"][b].sum() == values[b].sum()


def statistics(tokens, pairs, vocab):
  """Shares of keys, values and slots at each of the K places, and of what
  two of them are together at the first."""
  keys = tokens[:, 0 : 2 * pairs : 2]
  values = tokens[:, 1 : 2 * pairs : 2]
  rest = tokens[:, 2 * pairs :: 2]
  at = (rest[:, None] == keys[:, :, None]).argmax(-1)
  hot = [x[:, :, None] == np.arange(vocab)[None, None] for x in (keys, values)]
  hot.append(at[:, :, None] == np.arange(rest.shape[1])[None, None])
  k, v, s = (x[:, 0].astype(float) for x in hot)
  together = [x.T @ y / len(x) for x, y in ((k, v), (k, s), (v, s))]
  return [x.mean(0) for x in hot] + together


@pytest.mark.parametrize("vocab, length, pairs", [(16, 28, 3), (20, 32, 8)])
def test_mqar_distribution(vocab, length, pairs):
  """Keys, values and slots, each by its place, as the definition draws them."""
  n = 4000
  cfg = mqar.Config(vocab=vocab, length=length, pairs=pairs)
  rng = np.random.default_rng(0)
  plain = [by_definition(rng, vocab, length, pairs)[0] for _ in range(n)]
  ours = statistics(sequences(cfg, n)["tokens"], pairs, vocab)
  theirs = statistics(np.array(plain), pairs, vocab)
  for got, want in zip(ours, theirs, strict=True):
    # 5 standard deviations of the difference of two shares of n
    bound = 5 * np.sqrt(2 * np.maximum(want * (1 - want), 2 / n) / n)
    assert (np.abs(got - want) <= bound).all(), (got - want) / bound


def test_mqar_random_fill():
  zeros = mqar.Config(vocab=64, length=32, pairs=2)
  random = mqar.Config(vocab=64, length=32, pairs=2, random_fill=True)
  a, b = sequences(zeros, 40), sequences(random, 40)
  filler = a["tokens"] == 0
  np.testing.assert_array_equal(a["tokens"][~filler], b["tokens"][~filler])
  np.testing.assert_array_equal(a["targets"], b["targets"])
  assert len(np.unique(b["tokens"][filler])) == 64
  assert "not comparable" in random.note and not zeros.note


def test_mqar_mixture():
  """Shares are of sequences, and a row holds whole sequences."""
  mixture = ((16, 1, 300), (32, 5, 100))
  made = sequences(mqar.Config(vocab=64, length=32, pairs=mixture), 2000)
  short = made["reset"][:, 16]
  starts = np.flatnonzero(made["reset"].any(0))
  np.testing.assert_array_equal(starts, [0, 16])
  assert abs(2 * short.sum() / (2 * short.sum() + (~short).sum()) - 0.75) < 0.03
  scored = made["weights"].reshape(2000, 2, 16).sum(-1)
  assert (scored[short] == 1).all() and (scored[~short].sum(-1) == 5).all()
  halves = made["tokens"].reshape(2000, 2, 16)[short]
  assert (halves[:, 0] != halves[:, 1]).any(-1).mean() > 0.9


def test_mqar_pilot():
  """The published pilot: L 32, K 2 to 8, vocabulary 128; lists as of JSON."""
  pairs = [[32, k, 1] for k in range(2, 9)]
  fields = {"vocab": 128, "length": 32, "pairs": pairs}
  task = data.load({"name": named(fields)})
  batch = jax.jit(lambda: task.batch(0, 0, 256, 32))()
  assert set(np.unique(batch["weights"].sum(1))) == set(range(2, 9))
  fields["pairs"] = tuple(map(tuple, pairs))
  assert task.hash == data.load({"name": named(fields)}).hash
  assert task.hash != data.load({"name": "task:mqar"}).hash
  assert (task.vocab, task.is_task, task.note) == (128, True, "")


@pytest.mark.parametrize(
  "fields, said",
  [
    ({"pairs": 17}, ["pairs=17", "length=64"]),
    ({"length": 63}, ["length=63", "even"]),
    ({"vocab": 8}, ["pairs=4", " vocab=8", "3"]),
    ({"pairs": ((48, 4, 1.0),)}, ["length=48", "the rows' length=64"]),
    ({"pairs": ((64, 4, -1.0),)}, ["share=-1.0"]),
    ({"pairs": "((64,4,1e999),)"}, ["share=inf"]),
    ({"pairs": "4)+f(a=1"}, ["are written as task:mqar,vocab=128"]),
    ({"**{1": "2}"}, ["are written as task:mqar,vocab=128"]),
    ({"pairs": "{[]:1}"}, ["is no number, word or tuple of numbers"]),
    ({"pairs": "(" * 500}, ["are written as task:mqar,vocab=128"]),
    ({"pear": 4}, ["'pear'", "did you mean 'pairs'", "random_fill"]),
    ({"pairs": 2.5}, ["pairs=2.5 is neither a whole number"]),
    ({"pairs": ((64, 4),)}, ["pairs=((64, 4),)", "(length, pairs, share)"]),
    ({"pairs": (("a", 4, 1),)}, ["(length, pairs, share)"]),
    ({"pairs": ((64, 4.0, 1),)}, ["(length, pairs, share)"]),
    ({"pairs": ()}, ["pairs=()"]),
    ({"vocab": 2.5}, ["vocab=2.5 is no whole number"]),
    ({"vocab": "'a'"}, ["vocab='a' is no whole number"]),
    ({"vocab": "abc"}, ["vocab='abc' is no whole number"]),
    ({"length": None}, ["length=None is no whole number"]),
    ({"vocab": True}, ["vocab=True is no whole number"]),
    ({"vocab": 2**31}, [f"vocab={2**31} is no whole number below 2**31"]),
  ],
)
def test_mqar_refuses(fields, said):
  with pytest.raises(ValueError) as error:
    data.load({"name": named(fields)})
  assert all(word in str(error.value) for word in said), error.value
  assert "self." not in str(error.value) and "<" not in str(error.value)


@pytest.mark.parametrize("group", ["Z2", "Z7", "S3", "S5"])
def test_words_are_of_a_group(group):
  product = words.table(group)
  n = len(product)
  assert n == {"Z2": 2, "Z7": 7, "S3": 6, "S5": 120}[group]
  every = np.arange(n)
  np.testing.assert_array_equal(product[0], every)
  np.testing.assert_array_equal(product[:, 0], every)
  assert all(set(row) == set(every) for row in [*product, *product.T])
  a, b, c = np.random.default_rng(0).integers(0, n, (3, 200))
  left, right = product[product[a, b], c], product[a, product[b, c]]
  np.testing.assert_array_equal(left, right)
  assert (product == product.T).all() == group.startswith("Z")


def whole_words(made):
  """tokens, targets and weights of each sequence of a batch."""
  parts = []
  for row in range(len(made["reset"])):
    starts = np.flatnonzero(made["reset"][row])
    for part in np.split(np.arange(made["reset"].shape[1]), starts[1:]):
      parts.append(
        [made[k][row, part] for k in ("tokens", "targets", "weights")]
      )
  return parts


def test_words_are_multiplied():
  """S3 by permuting three things, one element after the other."""
  task = data.load({"name": "task:words,low=5,high=9,length=20"})
  elements = list(itertools.permutations(range(3)))
  made = jax.device_get(task.batch(0, 0, 40, 20))
  sizes = set()
  for tokens, targets, weights in whole_words(made):
    n = int(weights.sum())
    sizes.add(n)
    assert weights[:n].all()
    things = (0, 1, 2)
    for token, target in zip(tokens[:n], targets[:n], strict=True):
      things = tuple(elements[token][i] for i in things)
      assert elements[target] == things
  assert sizes == {5, 6, 7, 8, 9}


@pytest.mark.parametrize("answer", ["last", "all"])
def test_parity_is_scored_at_the_end_and_further_on(answer):
  task = data.load({"name": f"task:parity,high=10,far=24,answer={answer}"})
  assert (task.vocab, task.length) == (
    2,
    24,
  ) and "scored on 10 to 24" in task.note
  train = whole_words(jax.device_get(task.batch(0, 0, 200, 24)))
  test = whole_words(next(iter(task.windows("test", 24, batch=200))))
  for found, low, high in ((train, 3, 10), (test, 10, 24)):
    sizes = set()
    for tokens, targets, weights in found:
      *before, last = np.flatnonzero(weights)
      each = answer == "all" and high == 10
      assert before == list(range(last)) * each
      sizes.add(last + 1)
      assert targets[last] == tokens[: last + 1].sum() % 2
    assert sizes == set(range(low, high + 1))
  assert len(train) == 400 and len(test) == 200


@pytest.mark.parametrize(
  "fields, said",
  [
    ({"group": "A5"}, "group=A5: Z2 to Z99, S3, S4 or S5"),
    ({"group": 3}, "group=3: Z2 to Z99, S3, S4 or S5"),
    ({"low": (1, 2)}, "low=(1, 2) is no whole number"),
    ({"high": 1.5}, "high=1.5 is no whole number"),
    ({"high": 2**31}, f"high={2**31} is no whole number below 2**31"),
    ({"low": 40}, "low=40 must be at least 1 and at most high=32"),
    ({"far": 20}, "far=20 must be 0 or at least high=32"),
    ({"answer": "none"}, "answer='none': all or last"),
    ({"length": 30}, "length=30 must hold a sequence of 32"),
  ],
)
def test_words_refuse(fields, said):
  with pytest.raises(ValueError, match=re.escape(said)):
    words.Config(**fields)


def test_unknown_task():
  with pytest.raises(ValueError, match="'mqra'.*did you mean 'mqar'.*Known: "):
    data.load({"name": "task:mqra"})


def test_other_length():
  with pytest.raises(ValueError, match="of 64, asked for length=32"):
    data.load({"name": "task:mqar"}).batch(0, 0, 2, 32)


@pytest.mark.parametrize("size", [0, -3])
def test_nothing_to_score(size):
  with pytest.raises(ValueError, match=f"{size} tokens to score .eval_bytes"):
    data.load({"name": "task:mqar"}).windows("test", 64, size)


def test_unknown_split():
  with pytest.raises(ValueError, match="'train'.*Known: test, valid"):
    data.load({"name": "task:mqar"}).windows("train", 64)
