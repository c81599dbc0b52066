"""B sequences  T time"""

import gzip
import hashlib
import importlib
import json
import lzma
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from train import builders, corpus, data, sources, tokenizer

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
  assert joined.starts.tolist() == [0]
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
  snow = np.frombuffer("☃".encode(), np.uint8)
  assert [corpus.cut(snow, size) for size in range(4)] == [0, 0, 0, 3]
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


def parts(text):
  return [bytes(text.corpus.splits[key].bytes) for key in corpus.SPLITS]


def test_file(tmp_path):
  """90, 5 and 5 % of the bytes, at symbols."""
  (tmp_path / "a.txt").write_bytes(TEXT)
  text = data.load({"name": f"text:{tmp_path}/a.txt"})
  assert b"".join(parts(text)) == TEXT and text.note == ""
  sizes = np.cumsum([*map(len, parts(text))])
  for share, size in zip((90, 95), sizes, strict=False):
    assert 0 <= len(TEXT) * share // 100 - size < 4
  assert all(part.decode() for part in parts(text))
  assert not text.is_task and text.vocab == 256


def test_valid_and_test_are_one_where_that_is_said(tmp_path):
  (tmp_path / "a,b=c.txt").write_bytes(TEXT)
  text = data.load({"name": f"text:{tmp_path}/a,b=c.txt,valid=test"})
  train, valid, test = parts(text)
  assert train + test == TEXT and valid == test
  assert 0 <= len(TEXT) * 9 // 10 - len(train) < 4
  assert text.note == "valid and test are one: the last 10 % of the file"


def test_folder(tmp_path):
  text = data.load({"name": folder(tmp_path / "three")})
  assert text.note == ""
  assert [text.bytes_of(s) for s in corpus.SPLITS] == [len(TEXT), 5000, 4001]


@pytest.mark.parametrize("missing", ["valid", "test"])
def test_folder_with_one_held_out(tmp_path, missing):
  name = folder(tmp_path / "two", **{missing: None})
  held = TEXT[:5000] if missing == "test" else TEXT[-4001:]
  text = data.load({"name": name})
  train, valid, test = parts(text)
  assert train == TEXT and valid + test == held
  assert abs(len(valid) - len(test)) < 5 and valid.decode()
  assert text.note == "valid and test are halves of the held-out text"
  one = data.load({"name": f"{name},valid=test"})
  assert parts(one) == [TEXT, held, held] and "are one" in one.note


def test_folder_with_both_held_out_has_no_one(tmp_path):
  with pytest.raises(ValueError, match="valid=test is for one"):
    data.load({"name": folder(tmp_path / "three") + ",valid=test"})


def test_what_a_folder_has_besides_is_said(tmp_path):
  name = folder(tmp_path / "two", valid=None, test=None)
  (tmp_path / "two" / "val.txt").write_bytes(TEXT[:5000])
  (tmp_path / "two" / "README.txt").write_bytes(TEXT)
  text = data.load({"name": name})
  assert b"".join(parts(text)[1:]) == TEXT[:5000]
  assert "1 other files of the folder are not read: README.txt" in text.note


def test_documents_of_unequal_size_are_not_dealt_out(tmp_path):
  names = [f"{i}.txt" for i in range(99)]
  by_split = {corpus.split_of(n.encode()): n for n in names}
  for name in names:
    large = name == by_split["valid"]
    (tmp_path / name).write_bytes(TEXT if large else TEXT[:99])
  text = data.load({"name": f"text:{tmp_path}"})
  assert "99 documents are too few or too unequal to deal out" in text.note
  sizes = [text.bytes_of(split) for split in corpus.SPLITS]
  assert sizes[0] > 0.85 * sum(sizes) and min(sizes) > 0.04 * sum(sizes)


def test_a_name_without_a_path():
  with pytest.raises(ValueError, match="text:,field=x names no file"):
    data.load({"name": "text:,field=x"})


def documents_of(text, split):
  return [*text.corpus.splits[split].documents()]


STORIES = [f"A story of {i} é.\r\n" * (1 + i % 3) for i in range(80)]


def write_lines(file, field, texts):
  lines = [json.dumps({"n": 1, field: text}) for text in texts]
  pack = {".gz": gzip.open, ".xz": lzma.open}.get(file.suffix, open)
  with pack(file, "wt", encoding="utf-8") as stream:
    stream.write("\n\n".join(lines))


def write_rows(file, field, texts):
  pyarrow = pytest.importorskip("pyarrow")
  from pyarrow import parquet

  parquet.write_table(
    pyarrow.table({"n": [1] * len(texts), field: texts}), file
  )


KINDS = [
  (".jsonl", write_lines),
  (".jsonl.gz", write_lines),
  (".jsonl.xz", write_lines),
  (".parquet", write_rows),
]


@pytest.mark.parametrize("ending, write", KINDS)
@pytest.mark.parametrize("field", ["text", "body"])
def test_documents_of_a_file(tmp_path, ending, write, field):
  """Dealt out by their text: of two that are the same both are in one split."""
  file = tmp_path / f"a{ending}"
  write(file, field, [*STORIES, "", *STORIES])
  name = f"text:{file}" + f",field={field}" * (field != "text")
  text = data.load({"name": name})
  for split in corpus.SPLITS:
    expected = [d for d in STORIES if corpus.split_of(d.encode()) == split]
    assert documents_of(text, split) == [d.encode() for d in expected * 2]
    assert text.bytes_of(split) > 0
  assert text.note == ""
  one = data.load({"name": f"{name},valid=test"})
  held = documents_of(text, "valid") + documents_of(text, "test")
  assert documents_of(one, "valid") == documents_of(one, "test") == held
  assert "10 % of the documents" in one.note


@pytest.mark.parametrize("ending, write", KINDS)
def test_splits_of_documents(tmp_path, ending, write):
  write(tmp_path / f"train-00000-of-00002{ending}", "text", STORIES[:30])
  write(tmp_path / f"train-00001-of-00002{ending}", "text", STORIES[30:])
  write(tmp_path / f"validation{ending}", "text", STORIES[:3])
  write(tmp_path / f"test{ending}", "text", STORIES[3:9])
  text = data.load({"name": f"text:{tmp_path}"})
  expected = STORIES, STORIES[:3], STORIES[3:9]
  for split, documents in zip(corpus.SPLITS, expected, strict=True):
    assert documents_of(text, split) == [d.encode() for d in documents]


def test_a_folder_of_documents(tmp_path):
  """By a hash of the name; what is hidden or of another kind is left out."""
  files = {f"{i % 2}/{i}.txt": text.encode() for i, text in enumerate(STORIES)}
  for name, text in files.items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(text)
  (tmp_path / "0" / "empty.txt").touch()
  (tmp_path / "0" / "0.txt.gz").write_bytes(b"the same, packed")
  (tmp_path / ".git").mkdir()
  (tmp_path / ".git" / "a.txt").write_bytes(b"secret")
  (tmp_path / "a.png").write_bytes(b"\xff\x00")
  text = data.load({"name": f"text:{tmp_path}"})
  for split in corpus.SPLITS:
    assert documents_of(text, split) == [
      files[name]
      for name in sorted(files, key=lambda name: name.split("/"))
      if corpus.split_of(name.encode()) == split
    ]


def test_few_documents_are_cut_by_bytes(tmp_path):
  for name in ("a", "b"):
    (tmp_path / f"{name}.txt").write_bytes(TEXT)
  text = data.load({"name": f"text:{tmp_path}"})
  assert b"".join(parts(text)) == 2 * TEXT
  assert "2 documents are too few or too unequal to deal out" in text.note
  assert len(documents_of(text, "train")) == 2
  assert len(documents_of(text, "valid")) == 1
  assert abs(text.bytes_of("valid") - len(TEXT) / 10) < 5
  alone = data.load({"name": folder(tmp_path / "c", valid=None, test=None)})
  assert b"".join(parts(alone)) == TEXT and alone.note == ""


@pytest.mark.parametrize(
  "ending, content, said",
  [
    (".jsonl", b'{"text": "a"}\n{"tex', "a.jsonl, line 2 is not JSON: "),
    (".jsonl", b'{"text": "\xff"}', "a.jsonl, line 1 is not JSON: 'utf-8' "),
    (".jsonl", b'\n["a"]', "line 2 is no object with a field 'text'"),
    (".jsonl", b'{"a": 1, "b": 2}', "'text': name one as ,field=NAME (a, b)"),
    (".jsonl", b'{"text": null}', "its field 'text' is null, expected a"),
    (".jsonl", b'{"text": 3}', "its field 'text' is of type int, expected a"),
    (".jsonl", b'{"text": "\\ud800"}', "its field 'text': 'utf-8' codec can't"),
    (".jsonl", b"[" * 10**5, "line 1 is not JSON: "),
    (".jsonl", b"", "the train split is empty (0 of 0 bytes)"),
    (".jsonl.gz", b"{}", "a.jsonl.gz cannot be unpacked: Not a gzipped file"),
    (".txt.gz", gzip.compress(b"abc") + b"rest", "cannot be unpacked: Not a"),
    (".parquet", b"PAR1 no PAR1", "a.parquet cannot be read as Parquet: "),
    (".parquet", b"", "a.parquet cannot be read as Parquet: "),
    (".txt", b"", "the train split is empty (0 of 0 bytes)"),
    (".txt", "\ufeff".encode(), "the train split is empty (0 of 3 bytes)"),
    (".txt", b"\0" * 900, "900 of its 900 bytes, 100.00%, are NUL; name a"),
    (".txt", "abc".encode("utf-16-le"), "3 of its 6 bytes, 50.00%, are NUL"),
    (".txt", b"caf\xe9 " * 9, "9 of its 45 bytes, 20.00%, are not UTF-8 (the "
     "first is byte 3, 0xe9); convert it (iconv -t utf-8), or bytes:"),
    (".txt", "a ☃".encode()[:-1], "inside a symbol of UTF-8: cut it at 2 "),
  ],
  ids=lambda value: "" if isinstance(value, bytes) else value,
)  # fmt: skip
def test_files_that_cannot_be_read(tmp_path, ending, content, said):
  if ending == ".parquet":
    pytest.importorskip("pyarrow")
  file = tmp_path / f"a{ending}"
  file.write_bytes(content)
  with pytest.raises(ValueError) as error:
    data.load({"name": f"text:{file}"})
  assert said in str(error.value) and str(file) in str(error.value)
  assert "\n" not in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize(
  "column, field, said",
  [
    ([1, 2], "text", "row 1: its field 'text' is of type int, expected a"),
    (["a", None], "text", "row 2: its field 'text' is null, expected a string"),
    (["a"], "body", "has no field 'body': name one as ,field=NAME (text)"),
  ],
)
def test_rows_that_cannot_be_read(tmp_path, column, field, said):
  pyarrow = pytest.importorskip("pyarrow")
  from pyarrow import parquet

  parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
  with pytest.raises(ValueError, match=re.escape(said)):
    data.load({"name": f"text:{tmp_path}/a.parquet,field={field}"})


def test_parquet_needs_pyarrow(tmp_path, monkeypatch):
  (tmp_path / "a.parquet").touch()
  monkeypatch.setitem(sys.modules, "pyarrow", None)
  with pytest.raises(ValueError, match="a.parquet needs pyarrow: pip install"):
    data.load({"name": f"text:{tmp_path}/a.parquet"})


def test_any_bytes_where_that_is_said(tmp_path):
  raw = np.random.default_rng(0).bytes(2000)
  for name in ("a.jsonl", "b.txt"):
    (tmp_path / name).write_bytes(raw)
  text = data.load({"name": f"bytes:{tmp_path}/a.jsonl"})
  assert (
    b"".join(parts(text)) == raw and text.name == f"bytes:{tmp_path}/a.jsonl"
  )
  assert b"".join(parts(data.load({"name": f"bytes:{tmp_path}"}))) == 2 * raw
  with pytest.raises(ValueError, match="not UTF-8.*'bytes' takes any"):
    data.load({"name": text.name, "tokenizer": "bpe"})
  packed = tmp_path / "c.gz"
  packed.write_bytes(gzip.compress(raw))
  assert data.load({"name": f"bytes:{packed}"}).hash == text.hash


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
    ({"name": "text:~nobody's/a.txt"}, ["~nobody's/a.txt: no such file"]),
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
  with pytest.raises(ValueError, match="holds no .txt, .jsonl, .parquet"):
    data.load({"name": f"text:{tmp_path}"})
  name = folder(tmp_path / "none", train=None)
  with pytest.raises(ValueError, match="no train.txt.*valid.txt, test.txt"):
    data.load({"name": name})
  name = folder(tmp_path / "two", valid=None)
  for other in ("train.jsonl", "train.old.txt", "valid.jsonl", "valid.parquet"):
    (tmp_path / "two" / other).touch()  # beside train.txt of no account
  with pytest.raises(
    ValueError, match="several .* valid: valid.jsonl, valid.p"
  ):
    data.load({"name": name})
  for other in ("valid.jsonl", "valid.parquet"):
    (tmp_path / "two" / other).unlink()
  assert data.load({"name": name}).bytes_of("train") == len(TEXT)


def test_odd_paths(tmp_path, monkeypatch):
  os.mkfifo(tmp_path / "pipe.txt")  # would wait for ever
  with pytest.raises(ValueError, match="pipe.txt is no regular file"):
    data.load({"name": f"text:{tmp_path}/pipe.txt"})
  (tmp_path / "a.txt").write_bytes(TEXT)
  assert data.load({"name": f"text:{tmp_path}"}).bytes_of("train") > 0
  for option, said in (
    ("valid=train", "only valid=test"),
    ("field=a", "has no field 'a'"),
    ("feild=a", "after a comma field=NAME or valid=test"),
  ):
    with pytest.raises(ValueError, match=said):
      data.load({"name": f"text:{tmp_path}/a.txt,{option}"})
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match="'a.txt': text in a file is text:a.txt"):
    data.load({"name": "a.txt"})

  def closed(path):
    raise PermissionError(13, "Permission denied", str(path))

  monkeypatch.setattr(os, "scandir", closed)
  with pytest.raises(OSError, match="Permission denied"):
    data.load({"name": f"text:{tmp_path}"})


def test_an_empty_split(tmp_path):
  with pytest.raises(ValueError, match="the test split is empty"):
    data.load({"name": folder(tmp_path / "three", test=b"")})


def test_fewer_bytes_than_a_symbol(tmp_path):
  name = folder(tmp_path / "a", valid="☃ snow".encode())
  text = data.load({"name": name})
  for size in (2, 1, 0, -5):
    said = f"first {size} bytes of its valid split hold no whole symbol"
    with pytest.raises(ValueError, match=said):
      text.windows("valid", 8, size)
  assert text.windows("valid", 8, 3).bytes == 3


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
  name = folder(tmp_path / "other", train=TEXT.decode()[::-1].encode())
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
    documents = list(split.documents())
    found += documents
    assert sorted(documents) == sorted(
      content
      for name, content in builders.stdlib_files().items()
      if corpus.split_of(name.encode()) == key
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
  splits = [corpus.split_of(name.encode()) for name in names]
  assert splits.count("train") == 1791 and splits.count("test") == 99
  assert corpus.split_of(b"json/decoder.py") == "valid"


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


@pytest.mark.parametrize("harm", [b"", bytes(1 << 17)])
def test_a_prepared_set_that_is_damaged(tfds_folder, small_shakespeare, harm):
  data.load({"name": "tfds:tiny_shakespeare"})
  (file,) = tfds_folder.glob("*/*/*train*")
  file.write_bytes(harm)
  with pytest.raises(ValueError, match="1.0.0 cannot be read; remove it if da"):
    data.load({"name": "tfds:tiny_shakespeare"})
  (file.parent / "dataset_info.json").write_text("{")
  with pytest.raises(ValueError, match="tfds:tiny_shakespeare: Failed to load"):
    data.load({"name": "tfds:tiny_shakespeare"})


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
  "known, slices",
  [
    (["train", "validation", "test"], ["train", "validation", "test"]),
    (["train", "test"], ["train", None, "test"]),
    (["valid", "train"], ["train", "valid", None]),
    (["train", "all"], ["train", None, None]),
  ],
)
def test_tfds_splits(known, slices):
  found = sources._slices("tfds:a", known)
  assert [found.get(split) for split in corpus.SPLITS] == slices


def test_tfds_without_train():
  with pytest.raises(ValueError, match="no split 'train'; it has all"):
    sources._slices("tfds:a", ["all"])


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
