"""B sequences  T time"""

import gzip
import hashlib
import importlib
import lzma
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from train import builders, corpus, data, tokenizer

TEXT = "".join(f"x{i} = {i * i} # line ☃ {i}\n" for i in range(400)).encode()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("LAB_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache"


def folder(path, train=TEXT, valid=TEXT[:5000], test=TEXT[-4001:]):
  path.mkdir(exist_ok=True)
  for name, text in (("train", train), ("valid", valid), ("test", test)):
    if text is not None:
      (path / f"{name}.txt").write_bytes(text)
  return f"text:{path}"


def text_of(documents):
  split = corpus.Split.of(documents)
  source = corpus.Corpus.of("made", dict.fromkeys(corpus.SPLITS, split), "")
  return data.Text(source, tokenizer.Bytes(), "", print)


def scored(batches):
  return np.concatenate([b["targets"][b["weights"] > 0] for b in batches])


def whole(text, split):
  """A split as one sequence."""
  batches = text.windows(split, length=text.bytes_of(split), batch=1)
  (only,) = batches
  scored = np.flatnonzero(only["weights"][0])
  return {k: v[:, scored] for k, v in only.items()}


def same(a, b):
  for key in ("tokens", "targets", "weights", "reset"):
    np.testing.assert_array_equal(a[key], b[key], key)


def test_packing():
  """n bytes are n targets, each document after its start symbol, reset there.

  An empty document is none."""
  stream = whole(text_of([b"ab", b"", b"cde", b"f", b""]), "test")
  assert bytes(stream["targets"][0].tolist()) == b"abcdef"
  a, c, d = b"acd"
  assert stream["tokens"].tolist() == [[256, a, 256, c, d, 256]]
  assert np.flatnonzero(stream["reset"]).tolist() == [0, 2, 5]
  assert (stream["weights"] == 1).all()


def test_joined_documents():
  split = corpus.Split.of([b"ab", b"cde"])
  joined = split.joined()
  assert joined.first.tolist() == [True, False, False, False, False]
  assert list(joined.documents()) == [b"abcde"]
  source = corpus.Corpus.of("made", dict.fromkeys(corpus.SPLITS, split), "")
  assert source.joined().hash != source.hash


@pytest.mark.parametrize("kind", tokenizer.KINDS)
@pytest.mark.parametrize("length, batch", [(7, 3), (64, 8), (6000, 2)])
@pytest.mark.parametrize("size", [1, 1004, 4999, 5000, None])
def test_windows_score_each_byte_once(loaded, kind, length, batch, size):
  """Whatever the window, the batch and the tokeniser: the same text."""
  windows = loaded[kind].windows("valid", length, size, batch)
  made = list(windows)
  text = TEXT[: min(size or 5000, 5000)]
  if size == 1004:  # ends inside a snowman
    text = text[:1002]
  assert loaded[kind].decode(scored(made)) == text
  assert windows.bytes == len(text) and len(windows) == len(made)
  assert {b["tokens"].shape for b in made} == {(batch, length)}
  same(made[-1], list(windows)[-1])  # it can be read again
  inputs = np.concatenate([b["tokens"][b["weights"] > 0] for b in made])
  start = loaded[kind].vocab
  np.testing.assert_array_equal(inputs, [start, *scored(made)[:-1]])


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
  path = tmp_path_factory.mktemp("text")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("LAB_CACHE", str(path / "cache"))
    fields = {"name": folder(path / "three"), "vocab": 300}
    return {k: data.load({**fields, "tokenizer": k}) for k in tokenizer.KINDS}


@pytest.mark.parametrize("kind", tokenizer.KINDS)
def test_one_window_is_the_split(loaded, kind):
  text = loaded[kind]
  stream = whole(text, "test")
  assert text.decode(stream["targets"][0]) == TEXT[-4001:]
  assert text.bytes_of("test") == 4001
  assert stream["reset"].sum() == 1 and stream["reset"][0, 0]


def test_cut_keeps_symbols_whole():
  text = np.frombuffer("aé☃😀".encode(), np.uint8)
  ends = [corpus.cut(text, size) for size in range(12)]
  assert ends == [0, 1, 1, 3, 3, 3, 6, 6, 6, 6, 10, 10]
  broken = np.frombuffer(b"aa" + b"\x80" * 7, np.uint8)
  assert corpus.cut(broken, 7) == 7


def test_epochs():
  """An epoch has each position once, at an offset and order of its own."""
  it = text_of([bytes(range(200))]).train(batch=5, length=10, seed=3)
  epochs = [[next(it) for _ in range(4)] for _ in range(6)]
  offsets, orders = set(), set()
  for epoch in epochs:
    targets = np.concatenate([b["targets"] for b in epoch])
    assert sorted(targets.ravel()) == list(range(200))
    assert ((targets[:, 1:] - targets[:, :-1]) % 200 == 1).all()
    offsets |= {int(t) % 10 for t in targets[:, 0]}
    orders.add(tuple(targets[:, 0] // 10))
  assert len(offsets) > 3 and len(orders) == 6


def test_training_windows_of_documents():
  """The input is the symbol before, or the start symbol with a reset."""
  documents = [bytes([i] * (i % 5 + 1)) for i in range(1, 100)]
  text = text_of(documents)
  packed = whole(text, "train")
  symbols, first = packed["targets"][0], packed["reset"][0]
  it = text.train(batch=4, length=13, seed=0)
  for _ in range(20):
    b = next(it)
    assert [b[k].dtype for k in ("tokens", "targets", "weights", "reset")] == [
      np.int32, np.int32, np.float32, bool,
    ]  # fmt: skip
    assert (b["weights"] == 1).all()
    assert ((b["tokens"] == 256) == b["reset"]).all()
    later = ~b["reset"][:, 1:]
    assert (b["tokens"][:, 1:] == b["targets"][:, :-1])[later].all()
    for row in range(4):
      at = next(
        i for i in range(len(symbols))
        if (np.roll(symbols, -i)[:13] == b["targets"][row]).all()
        and (np.roll(first, -i)[:13] == b["reset"][row]).all()
      )  # fmt: skip
      assert b["reset"][row, 0] or b["tokens"][row, 0] == symbols[at - 1]


def test_seeds():
  """The seed alone decides the offset of the windows and their order."""
  text = text_of([bytes(range(200))])

  def starts(seed):
    it = text.train(batch=20, length=10, seed=seed)
    return next(it)["targets"][:, 0]

  seeds = [starts(seed) for seed in range(8)]
  for seed in range(8):
    np.testing.assert_array_equal(seeds[seed], starts(seed))
  assert len({int(start[0]) % 10 for start in seeds}) > 2
  assert len({tuple(np.diff(start) % 200) for start in seeds}) == 8


@pytest.mark.parametrize("kind", tokenizer.KINDS)
def test_resumes_from_one_number(loaded, kind, tmp_path):
  """Bit for bit, over the end of an epoch, through an Orbax checkpoint."""
  import grain
  import orbax.checkpoint as ocp

  it = loaded[kind].train(batch=4, length=997, seed=1)
  for _ in range(3):
    next(it)
  with ocp.CheckpointManager(tmp_path / "checkpoint") as manager:
    save = grain.checkpoint.CheckpointSave(it)
    manager.save(0, args=ocp.args.Composite(data=save))
    manager.wait_until_finished()
    assert it.get_state() == {"next_index": 3}
    expected = [next(it) for _ in range(9)]
    again = loaded[kind].train(batch=4, length=997, seed=1)
    restore = grain.checkpoint.CheckpointRestore(again)
    manager.restore(0, args=ocp.args.Composite(data=restore))
  for batch in expected:
    same(batch, next(again))


def test_file(tmp_path):
  (tmp_path / "a.txt").write_bytes(TEXT)
  text = data.load({"name": f"text:{tmp_path}/a.txt"})
  train, test = (bytes(text.corpus.splits[k].bytes) for k in ("train", "test"))
  assert train + test == TEXT
  assert 0 <= len(TEXT) * 9 // 10 - len(train) < 4
  assert "valid and test are one" in text.note and "last 10 %" in text.note
  assert text.bytes_of("valid") == text.bytes_of("test") == len(test)
  assert not text.is_task and text.vocab == 256


def test_folder(tmp_path):
  text = data.load({"name": folder(tmp_path / "three")})
  assert text.note == ""
  assert [text.bytes_of(s) for s in corpus.SPLITS] == [len(TEXT), 5000, 4001]


@pytest.mark.parametrize(
  "missing, other", [("valid", "test"), ("test", "valid")]
)
def test_folder_with_one_held_out(tmp_path, missing, other):
  text = data.load({"name": folder(tmp_path / "two", **{missing: None})})
  assert text.note == f"valid and test are one: {other}.txt"
  assert text.bytes_of(missing) == text.bytes_of(other)


@pytest.mark.parametrize("pack, ending", [(gzip, ".gz"), (lzma, ".xz")])
def test_packed_files(tmp_path, pack, ending):
  plain = data.load({"name": folder(tmp_path / "three")})
  for split in corpus.SPLITS:
    file = tmp_path / "three" / f"{split}.txt"
    file.with_name(file.name + ending).write_bytes(
      pack.compress(file.read_bytes())
    )
    file.unlink()
  assert data.load({"name": plain.name}).hash == plain.hash
  file = tmp_path / "three" / f"train.txt{ending}"
  assert data.load({"name": f"text:{file}"}).bytes_of("train") > 0
  packed = file.read_bytes()
  for damaged in (packed[:-9], packed[:40] + b"\xff" * 40 + packed[80:]):
    file.write_bytes(damaged)
    with pytest.raises(
      ValueError, match=f"train.txt{ending} cannot be unpacked"
    ):
      data.load({"name": f"text:{file}"})


def test_hash_is_of_the_text(tmp_path):
  name = folder(tmp_path / "a")
  text = data.load({"name": name})
  assert re.fullmatch("[0-9a-f]{64}", text.hash)
  bpe = data.load({"name": name, "tokenizer": "bpe", "vocab": 256})
  assert bpe.hash == text.hash
  other = TEXT[:-1] + b"!"
  assert data.load({"name": folder(tmp_path / "a", other)}).hash != text.hash
  a, b = text_of([b"ab", b"c"]), text_of([b"a", b"bc"])
  assert a.hash != b.hash


@pytest.mark.parametrize(
  "fields, said",
  [
    ({"name": "stdlb"}, ["'stdlb'", "did you mean 'stdlib'", "task:mqar"]),
    ({"name": "mqar"}, ["'mqar'", "did you mean 'task:mqar'", "text:PATH"]),
    ({"name": "text:"}, ["tfds:NAME[/CONFIG]"]),
    ({"name": "stdlib:x"}, ["did you mean 'stdlib'"]),
    ({"tokenizer": "bep"}, ["'bep'", "did you mean 'bpe'", "bytes"]),
    ({"tokenizer": "bpe", "vocab": 99}, ["vocab=99: ", "256"]),
    ({"tokenizer": "bpe", "vocab": 70_000}, ["vocab=70000", "65536"]),
    ({"tokeniser": "bpe"}, ["'tokeniser'", "'tokenizer'", "documents"]),
    ({"name": "tfds:tiny_shakespear"}, ["did you mean 'tiny_shakespeare'"]),
    ({"name": "tfds:qqqqqqqq"}, ["'qqqqqqqq': none of the ", " is like it"]),
    ({"name": "tfds:lm1b/foo"}, ["tfds:lm1b/foo: ", "BuilderConfig foo not"]),
  ],
)
def test_unknown_names(fields, said):
  with pytest.raises(ValueError) as error:
    data.load(fields)
  assert all(word in str(error.value) for word in said), error.value
  assert "self." not in str(error.value)
  assert len(str(error.value)) < 500 and "\n" not in str(error.value)


def test_unknown_split(loaded):
  with pytest.raises(ValueError, match="'dev'.*Known: test, train, valid"):
    loaded["bytes"].windows("dev", 8)


def test_missing_files(tmp_path):
  with pytest.raises(ValueError, match=f"{tmp_path}/no.txt: no such file"):
    data.load({"name": f"text:{tmp_path}/no.txt"})
  name = folder(tmp_path / "one", valid=None, test=None)
  with pytest.raises(ValueError, match="no valid.txt, no test.txt.*at least"):
    data.load({"name": name})
  file = tmp_path / "one" / "input.txt"
  (tmp_path / "one" / "train.txt").rename(file)
  with pytest.raises(ValueError, match=f"one file is named as text:{file}"):
    data.load({"name": name})
  name = folder(tmp_path / "none", train=None)
  with pytest.raises(ValueError, match="no train.txt"):
    data.load({"name": name})


def test_empty_files(tmp_path):
  (tmp_path / "a.txt").touch()
  with pytest.raises(ValueError, match=r"a.txt: the train split is empty \(0"):
    data.load({"name": f"text:{tmp_path}/a.txt"})
  with pytest.raises(ValueError, match="the test split is empty"):
    data.load({"name": folder(tmp_path / "three", test=b"")})


def test_not_utf8(tmp_path):
  name = folder(tmp_path / "latin", train=b"caf\xe9 " * 400)
  assert data.load({"name": name}).bytes_of("train") == 2000
  with pytest.raises(ValueError, match="byte 3 .* UTF-8 .*'bytes' takes any"):
    data.load({"name": name, "tokenizer": "bpe"})


def test_text_shorter_than_a_window(tmp_path):
  text = data.load({"name": folder(tmp_path / "three", train=b"abc" * 21)})
  next(text.train(batch=2, length=63, seed=0))
  with pytest.raises(ValueError, match="has 63 tokens.*length=64"):
    text.train(batch=2, length=64, seed=0)


def test_bpe_is_exact(loaded, tmp_path):
  bpe = loaded["bpe"]
  assert bpe.vocab == bpe.tokenizer.vocab == 300
  odd = "é ☃\r\n\n\n \t\0 naïve\u00a0x  \x7f\u2028 </s> <unk> 'll".encode()
  points = (
    *range(0x800),
    *range(0x800, 0xD800, 99),
    *range(0xE000, 1 << 20, 999),
  )
  every = "".join(map(chr, points)).encode()  # every byte that UTF-8 has
  for text in (b"", b"x1 = 1 # line", odd, every):
    assert bpe.decode(bpe.encode(text)) == text
  assert len(bpe.encode(TEXT)) < len(TEXT) * 0.6
  bpe.tokenizer.save(tmp_path / "tokenizer.json")
  again = tokenizer.load(tmp_path / "tokenizer.json")
  assert again.hash == bpe.tokenizer.hash
  np.testing.assert_array_equal(again.encode(odd), bpe.encode(odd))


def test_bpe_is_cached(tmp_path):
  fields = {"name": folder(tmp_path / "a"), "tokenizer": "bpe", "vocab": 280}
  said = []
  first = data.load(fields, progress=said.append)
  packed = whole(first, "train")
  assert ["BPE of 280" in said[0], "encoding the train" in said[1]] == [1, 1]
  again = data.load(fields, progress=said.append)
  same(whole(again, "train"), packed)
  assert len(said) == 2


def test_given_tokenizer(loaded, tmp_path):
  """Other text can be read with a trained model's tokeniser."""
  name = folder(tmp_path / "other", train=TEXT[::-1].replace(b"\x83", b""))
  other = data.load({"name": name}, tokens=loaded["bpe"].tokenizer)
  assert other.vocab == 300 and other.decode(other.encode(TEXT)) == TEXT


def test_short_text_yields_fewer_symbols(tmp_path):
  name = folder(tmp_path / "a", train=b"abab " * 30)
  text = data.load({"name": name, "tokenizer": "bpe", "vocab": 5000})
  assert text.vocab < 270 and f"{text.vocab} of 5000" in text.note


@pytest.fixture
def small_stdlib(tmp_path, monkeypatch):
  root = tmp_path / "python"
  for i in range(60):
    name = f"module{i}.py" if i % 2 else f"package/module{i}.py"
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(f"value = {i} # caf".encode() + b"\xe9")
  for left_out in ("test", "a/tests", "idlelib", "site-packages/x", "b/test/c"):
    (root / left_out).mkdir(parents=True)
    (root / left_out / "secret.py").write_text("secret")
  (root / "package" / "__init__.py").touch()
  (root / "data.txt").write_text("secret")
  monkeypatch.setattr(builders, "stdlib_folder", lambda: root)
  return root


def test_stdlib_files(small_stdlib):
  said = []
  text = data.load({"name": "stdlib"}, progress=said.append)
  assert "60 files" in said[1]
  found = []
  for key, split in text.corpus.splits.items():
    tfds_name = "validation" if key == "valid" else key
    documents = list(split.documents())
    found += documents
    assert sorted(documents) == sorted(
      content
      for name, content in builders.stdlib_files().items()
      if builders.split_of(name) == tfds_name
    )
  assert len(found) == 60 and not any(b"secret" in d for d in found)


def test_stdlib_is_prepared_once_for_a_content(small_stdlib, cache):
  said = []
  first = data.load({"name": "stdlib"}, progress=said.append)
  again = data.load({"name": "stdlib"}, progress=said.append)
  assert [line.startswith("preparing") for line in said] == [0, 1, 0]
  assert first.hash == again.hash
  (small_stdlib / "module1.py").write_text("changed")
  changed = data.load({"name": "stdlib"}, progress=said.append)
  assert changed.hash != first.hash and "preparing" in said[-1]
  assert not list(cache.glob("making-*"))


def test_stdlib_split_is_by_name():
  """Fixed for good: another hash would move files between splits."""
  names = [f"module{i}.py" for i in range(2000)]
  splits = [builders.split_of(name) for name in names]
  assert splits.count("train") == 1791 and splits.count("test") == 99
  assert builders.split_of("json/decoder.py") == "validation"


def test_stdlib():
  """The real one."""
  text = data.load({"name": "stdlib"})
  sizes = [text.bytes_of(split) for split in corpus.SPLITS]
  files = builders.stdlib_files()
  assert sum(sizes) == sum(map(len, files.values())) > 5_000_000
  assert min(sizes) > 256_000
  windows = text.windows("valid", 512, 256_000)
  head = bytes(text.corpus.splits["valid"].bytes[:256_000])
  assert text.decode(scored(windows)) == head[: windows.bytes]
  assert windows.bytes > 255_990
  batch = next(text.train(batch=8, length=512, seed=0))
  assert batch["tokens"].shape == (8, 512)


def test_cache_is_whole_or_absent(cache):
  def fail(folder):
    (folder / "half").write_text("half")
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    corpus.cached("a", fail)
  assert list(cache.iterdir()) == []

  def second(folder):  # another process finishes while this one works
    (folder / "who").write_text("second")
    corpus.cached("a", lambda f: (f / "who").write_text("first"))

  assert (corpus.cached("a", second) / "who").read_text() == "first"
  assert [p.name for p in cache.iterdir()] == ["a"]


def test_cache_place(monkeypatch, tmp_path):
  assert corpus.cache() == tmp_path / "cache"
  monkeypatch.delenv("LAB_CACHE")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  assert corpus.cache() == tmp_path / "small-lm-lab"
  monkeypatch.delenv("XDG_CACHE_HOME")
  monkeypatch.setenv("HOME", str(tmp_path))
  assert corpus.cache() == tmp_path / ".cache" / "small-lm-lab"


def test_cache_that_cannot_be_written(monkeypatch, tmp_path):
  (tmp_path / "file").touch()
  monkeypatch.setenv("LAB_CACHE", str(tmp_path / "file" / "cache"))
  with pytest.raises(OSError, match="cannot write the data cache.*LAB_CACHE"):
    corpus.cached("a", lambda folder: None)


@pytest.fixture
def tfds_folder(tmp_path, monkeypatch):
  monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "tfds"))
  return tmp_path / "tfds"


@pytest.fixture
def small_shakespeare(tmp_path, monkeypatch):
  file = tmp_path / "input.txt"
  file.write_bytes(TEXT)
  digest = hashlib.sha256(TEXT).hexdigest()
  monkeypatch.setattr(builders, "SHAKESPEARE", file.as_uri())
  monkeypatch.setattr(builders, "SHAKESPEARE_SHA256", digest)
  return file


def test_tiny_shakespeare(tfds_folder, small_shakespeare):
  text = data.load({"name": "tfds:tiny_shakespeare"})
  a, b = len(TEXT) * 90 // 100, len(TEXT) * 95 // 100
  assert [bytes(s.bytes) for s in text.corpus.splits.values()] == [
    TEXT[:a], TEXT[a:b], TEXT[b:],
  ]  # fmt: skip
  small_shakespeare.unlink()  # prepared: no download
  said = []
  again = data.load({"name": "tfds:tiny_shakespeare"}, progress=said.append)
  assert again.hash == text.hash and len(said) == 1
  stock = importlib.import_module(
    "tensorflow_datasets.datasets.tiny_shakespeare"
    ".tiny_shakespeare_dataset_builder"
  ).Builder()  # TFDS's own reads what was written
  assert stock.as_data_source("test")[0]["text"] == TEXT[b:]


def test_another_download(tfds_folder, small_shakespeare):
  small_shakespeare.write_bytes(b"not found")
  with pytest.raises(ValueError, match="has SHA-256 .*, expected"):
    data.load({"name": "tfds:tiny_shakespeare"})


def test_prepared_for_tensorflow(tfds_folder, small_shakespeare):
  text = data.load({"name": "tfds:tiny_shakespeare"})
  info = tfds_folder / "tiny_shakespeare" / "1.0.0" / "dataset_info.json"
  info.write_text(info.read_text().replace("array_record", "tfrecord"))
  with pytest.raises(ValueError, match="as tfrecord.*TFDS_DATA_DIR"):
    data.load({"name": text.name})


def test_no_network(tfds_folder, tmp_path, monkeypatch):
  gone = (tmp_path / "gone.txt").as_uri()
  monkeypatch.setattr(builders, "SHAKESPEARE", gone)
  with pytest.raises(ValueError, match="not prepared in .*gone.txt"):
    data.load({"name": "tfds:tiny_shakespeare"})


def test_needs_tensorflow(tfds_folder, monkeypatch):
  """One line says what to install."""

  def generate(self, dl_manager):
    raise ModuleNotFoundError("No module named 'x'", name="tensorflow")

  monkeypatch.setattr(builders.TinyShakespeare, "_split_generators", generate)
  with pytest.raises(
    ValueError, match="tiny_.*pip install tensorflow"
  ) as error:
    data.load({"name": "tfds:tiny_shakespeare"})
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "known, splits, note",
  [
    (["train", "validation", "test"], ["train", "validation", "test"], ""),
    (["train", "test"], ["train", "test", "test"], "one: test"),
    (["train", "valid"], ["train", "valid", "valid"], "one: valid"),
    (["train"], ["train[:90%]"] + ["train[90%:]"] * 2, "last 10 % of train"),
  ],
)
def test_tfds_splits(known, splits, note):
  names, said = corpus._splits("tfds:a", known)
  assert list(names) == list(corpus.SPLITS)
  assert list(names.values()) == splits and said.endswith(note)


def test_tfds_without_train():
  with pytest.raises(ValueError, match="no split 'train'; it has all"):
    corpus._splits("tfds:a", ["all"])


def test_tfds_without_text(tfds_folder):
  with pytest.raises(ValueError, match="no feature 'text'.*image, label"):
    data.load({"name": "tfds:mnist"})


def test_import_is_light():
  """What only some data needs is imported when it is needed."""
  code = "import sys, train.data; print(*sys.modules)"
  run = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  heavy = {"grain", "tensorflow_datasets", "tokenizers"}
  assert heavy.isdisjoint(run.stdout.split())
