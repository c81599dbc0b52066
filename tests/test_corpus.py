"""A text that is prepared in pieces is that which was prepared in memory."""

import gzip
import itertools
import json
import os
import shutil

import numpy as np
import pytest

from train import cache, corpus, data, files, growing, tokenizer

TEXT = "".join(f"x{i} = {i * i} # line ☃ {i}\n" for i in range(400)).encode()
STORIES = [f"A story of {i} é.\r\n" * (1 + i % 3) for i in range(80)]
ONE = ",valid=test"


def lines(texts):
  return "\n\n".join(json.dumps({"text": t}) for t in texts).encode()


def rows(texts):
  pyarrow = pytest.importorskip("pyarrow")
  from pyarrow import parquet

  sink = pyarrow.BufferOutputStream()
  parquet.write_table(pyarrow.table({"text": texts}), sink, row_group_size=9)
  return sink.getvalue().to_pybytes()


def make(place, content):
  for name, text in content.items():
    file = place / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text() if callable(text) else text)


DOCS = {f"{i % 2}/{i}.txt": s.encode() for i, s in enumerate(STORIES)}
DOCS["0/empty.txt"] = b""
MIXED = {f"{i}.txt": s.encode() for i, s in enumerate(STORIES[:60])}
MIXED["z.jsonl"] = lines(STORIES[60:])
LINES = lines([*STORIES, "", *STORIES])
SHARDS = {
  "train-00000-of-00002.jsonl": lines(STORIES[:30]),
  "train-00001-of-00002.jsonl": lines(STORIES[30:]),
  "validation.jsonl": lines(STORIES[:3]),
  "test.jsonl": lines(STORIES[3:9]),
}
HELD = {"train.txt": TEXT, "dev.txt": TEXT[:5000]}
FEW = {"a.txt": TEXT, "b.txt": TEXT}
UNEQUAL = lines(["a☃" * 50, "b" * 6, "c" * 900])
# The files, options, and the hash of the corpus, and of it joined, as they were
# when all of it was in memory. Runs are compared with them: none may change.
FORMER = {
  "text": ({"a.txt": TEXT}, "", "4dc075dc55051ac8", "4dc075dc55051ac8"),
  "one": ({"a.txt": TEXT}, ONE, "5d67ee2af70633b6", "5d67ee2af70633b6"),
  "packed": (
    {"a.txt.gz": gzip.compress(TEXT)},
    *("", "4dc075dc55051ac8", "4dc075dc55051ac8"),
  ),
  "lines": ({"a.jsonl": LINES}, "", "cbad7f88e461c900", "b4402a5717d56730"),
  "lines, one": (
    {"a.jsonl": LINES},
    *(ONE, "8b1ec5929bec03fe", "9b156a32c15f71c0"),
  ),
  "packed lines": (
    {"a.jsonl.gz": gzip.compress(lines(STORIES))},
    *("", "bfaa99da07db4c9a", "382b3e0ba2a84621"),
  ),
  "rows": (
    {"a.parquet": lambda: rows(STORIES)},
    *("", "bfaa99da07db4c9a", "382b3e0ba2a84621"),
  ),
  "unequal": ({"a.jsonl": UNEQUAL}, "", "cf5631f4eec24763", "dc1a4b1765d345af"),
  "unequal, one": (
    {"a.jsonl": UNEQUAL},
    *(ONE, "b790a4b83b1c8628", "150d8b97a355bdd2"),
  ),
  "documents": (DOCS, "", "f6e4ff0e51230b14", "ae246dd442d354b2"),
  "documents, one": (DOCS, ONE, "3cea57b451058482", "6cb627f9a2ce7931"),
  "mixed": (MIXED, "", "5e7c041d97e306c0", "53f19e14ea1fd4a6"),
  "named, unequal": (
    {f"{i}.jsonl": lines([s]) for i, s in enumerate(STORIES[:60])},
    *("", "deb1d9fee888106a", "167d1b67620130c8"),
  ),
  "few": (FEW, "", "44704b3f5bbb7d4f", "ff22a9483cdbe798"),
  "few, one": (FEW, ONE, "e71c1ea4e5c013e7", "1e4cb6d4f8df7bdb"),
  "held": (HELD, "", "b3e95badc50e073d", "b3e95badc50e073d"),
  "held, one": (HELD, ONE, "64aa6be8a1473eb3", "64aa6be8a1473eb3"),
  "shards": (SHARDS, "", "1af2e82f013709c8", "520d83868625069f"),
}
every = pytest.mark.parametrize("name", FORMER)


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
  monkeypatch.setenv("LAB_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache"


@pytest.fixture
def tiny(monkeypatch):
  """Pieces of some bytes, and all kept."""
  for module, name, size in (
    (corpus, "LARGE", 0),
    (corpus, "PIECE", 27),
    (corpus, "CHUNK", 2),
    (files, "PIECE", 25),
    (files, "ROWS", 2),
    (growing, "EVERY", 999),
  ):
    monkeypatch.setattr(module, name, size)
  monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # it takes a while


def named(tmp_path, name):
  """Writes a case's files; its name as data."""
  content, options, *_ = FORMER[name]
  make(tmp_path / "in", content)
  (tmp_path / "in").mkdir(exist_ok=True)
  file = f"/{next(iter(content))}" * (len(content) == 1)
  return f"text:{tmp_path}/in{file}{options}"


def hashes(given):
  return [
    data.load({"name": given, "documents": apart}).hash[:16]
    for apart in (True, False)
  ]


@every
def test_hashes_are_those_of_before(tmp_path, name, root):
  assert hashes(named(tmp_path, name)) == [*FORMER[name][2:]]
  assert not root.exists()  # small texts leave nothing


@every
def test_hashes_in_pieces_are_those_of_before(tmp_path, name, tiny, root):
  assert hashes(named(tmp_path, name)) == [*FORMER[name][2:]]
  (kept,) = root.iterdir()
  assert {p.suffix for p in kept.iterdir()} == {".bytes", ".starts", ".json"}


def unchanged(folder):
  return {p: p.stat().st_mtime_ns for p in folder.rglob("*")}


def batches(text):
  it = text.train(batch=3, length=11, seed=0)
  return [next(it) for _ in range(9)] + list(text.windows("test", 7))


def same(a, b):
  for x, y in zip(a, b, strict=True):
    for key in x:
      np.testing.assert_array_equal(x[key], y[key], key)


@pytest.mark.parametrize("kind", tokenizer.KINDS)
def test_what_was_prepared_is_not_read_again(
  tmp_path, root, kind, tiny, monkeypatch
):
  """Nor what is kept of it, and it is not written."""
  given = {"name": named(tmp_path, "lines"), "tokenizer": kind, "vocab": 300}
  first = data.load(given)
  made = batches(first)
  before = unchanged(root)

  def read(*_):
    raise AssertionError("it is read")

  with monkeypatch.context() as patch:
    patch.setattr(cache, "LARGE", -1)
    patch.setattr(files, "read", read)
    patch.setattr(cache, "_measured", read)
    patch.setattr(corpus.Corpus, "of", read)
    patch.setattr(tokenizer.BPE, "encoded", read)
    again = data.load(given, progress=read)
    again._packed("train")
  assert (again.hash, again.note) == (first.hash, first.note)
  assert isinstance(again.corpus.splits["train"].bytes, np.memmap)
  assert isinstance(again._packed("train").targets, np.memmap)
  same(batches(again), made)
  assert unchanged(root) == before


def test_a_changed_file_is_prepared_anew(tmp_path, root, tiny):
  """Of the same size too, and in a place of the same name."""
  given = {"name": named(tmp_path, "text")}
  file = tmp_path / "in" / "a.txt"
  old = data.load(given)
  assert data.load(given).hash == old.hash and len([*root.iterdir()]) == 1
  file.write_bytes(TEXT.replace(b"line", b"LINE"))
  changed = data.load(given)
  assert changed.hash != old.hash
  other = tmp_path / "other"
  other.write_bytes(TEXT)
  time = file.stat().st_mtime_ns
  os.utime(other, ns=(time, time))
  os.replace(other, file)  # size and time are as they were
  assert data.load(given).hash == old.hash


def test_a_file_that_changes_meanwhile_is_refused(
  tmp_path, root, tiny, monkeypatch
):
  given = {"name": named(tmp_path, "text")}
  read = files.read

  def changed(path, *rest):
    yield from read(path, *rest)
    os.utime(path, ns=(0, 1))

  monkeypatch.setattr(files, "read", changed)
  with pytest.raises(ValueError, match="a.txt of .* was changed while it was"):
    data.load(given)
  assert not list(root.iterdir())


class Killed(BaseException):
  pass


def killed_at(monkeypatch, count):
  """Kills what writes after that many parts; how many were written."""
  written, append = [], growing.Growing.append

  def stop(self, file, content):
    if len(written) == count:
      raise Killed
    written.append(file)
    append(self, file, content)

  monkeypatch.setattr(growing.Growing, "append", stop)
  return written


@pytest.mark.parametrize("share", [0, 0.5, 1])
@pytest.mark.parametrize(
  "name", ["text", "packed lines", "rows", "unequal", "documents, one", "held"]
)
def test_a_killed_preparation_goes_on(tmp_path, name, share, tiny, monkeypatch):
  """Wherever it is killed it ends as if it had not been, and writes little
  more."""
  given = named(tmp_path, name)
  with monkeypatch.context() as patch:
    whole = killed_at(patch, -1)
    data.load({"name": given})
  (kept,) = (tmp_path / "cache").iterdir()
  expected = contents(kept)
  shutil.rmtree(kept)
  with monkeypatch.context() as patch:
    one = killed_at(patch, max(1, int(share * (len(whole) - 1))))
    with pytest.raises(Killed):
      data.load({"name": given})
    assert [p.name for p in kept.parent.iterdir()] == [f"making-{kept.name}"]
  with monkeypatch.context() as patch:
    other = killed_at(patch, -1)
    assert data.load({"name": given}).hash[:16] == FORMER[name][2]
  assert contents(kept) == expected
  assert 0 <= len(one) + len(other) - len(whole) < 170


def contents(folder):
  found = {p.name: p.read_bytes() for p in folder.iterdir()}
  del found[cache.SEAL]  # it has times
  return found


@pytest.mark.parametrize("count", [1, 20, 45])
def test_killed_encoding_goes_on(tmp_path, tiny, count, monkeypatch):
  monkeypatch.setattr(tokenizer, "PIECE", 3)
  monkeypatch.setattr(tokenizer, "BATCH", 4)
  monkeypatch.setattr(growing, "EVERY", 16)
  given = {"name": named(tmp_path, "lines"), "tokenizer": "bpe", "vocab": 300}
  text = data.load(given)
  ids, starts = text.tokenizer.encode_all(text.corpus.splits["train"])
  begun, encoded = [], tokenizer.BPE.encoded

  def note(self, split, at=0):
    begun.append(at)
    yield from encoded(self, split, at)

  monkeypatch.setattr(tokenizer.BPE, "encoded", note)
  with monkeypatch.context() as patch:
    killed_at(patch, count)
    with pytest.raises(Killed):
      text._packed("train")
  packed = text._packed("train")
  np.testing.assert_array_equal(packed.targets, ids)
  np.testing.assert_array_equal(packed.starts, starts)
  assert packed.targets.dtype == ids.dtype == np.uint16
  assert begun[0] == 0 and (begun[1] > 0) == (count > 1)


def test_a_full_disk_leaves_nothing_that_is_taken_for_whole(
  tmp_path, root, tiny, monkeypatch
):
  given = named(tmp_path, "lines")
  sync = os.fsync
  left = itertools.count(3, -1)

  def full(descriptor):
    if next(left) <= 0:
      raise OSError(28, "No space left on device")
    sync(descriptor)

  with monkeypatch.context() as patch:
    patch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left.*free some space") as e:
      data.load({"name": given})
  assert "\n" not in str(e.value) and str(e.value).count("cannot write") == 1
  assert all(p.name.startswith("making-") for p in root.iterdir())
  assert data.load({"name": given}).hash[:16] == FORMER["lines"][2]
  assert [p.name[:5] for p in root.iterdir()] == ["text-"]


def test_a_preparation_killed_at_its_end_reads_nothing_again(
  tmp_path, tiny, monkeypatch
):
  given = named(tmp_path, "documents, one")

  def stop(*_):
    raise Killed

  with monkeypatch.context() as patch:
    patch.setattr(cache, "_seal", stop)
    with pytest.raises(Killed):
      data.load({"name": given})
  monkeypatch.setattr(files, "read", stop)
  monkeypatch.setattr(corpus.Corpus, "of", stop)
  assert data.load({"name": given}).hash[:16] == FORMER["documents, one"][2]


def test_a_file_that_cannot_be_read_is_no_fault_of_the_cache(
  tmp_path, tiny, monkeypatch
):
  def closed(path, mode):
    raise PermissionError(13, "Permission denied", str(path))

  given = named(tmp_path, "text")
  monkeypatch.setattr(files, "open", closed, raising=False)
  with pytest.raises(ValueError, match="a.txt cannot be read: Permission den"):
    data.load({"name": given})


@pytest.mark.parametrize("length", [1, 3, 10, 47])
def test_windows_know_where_documents_begin(length):
  """As a bool a symbol would, over the end of the circle too."""
  rng = np.random.default_rng(length)
  for size in (1, 2, 7, 20):
    first = rng.random(size) < 0.4
    first[0] = True
    packed = data.Packed(np.arange(size), np.flatnonzero(first), size)
    places = np.arange(3 * size)
    at = places[:, None] + np.arange(length)[None]
    np.testing.assert_array_equal(
      packed.first(places, length), first.take(at, mode="wrap")
    )


def test_a_bpe_learns_from_a_sample(tmp_path, tiny, monkeypatch):
  """Evenly spread, which is said."""
  monkeypatch.setattr(data, "SAMPLE", 1000)
  monkeypatch.setattr(corpus, "SPREAD", 100)
  said = []
  given = {"name": named(tmp_path, "text"), "tokenizer": "bpe", "vocab": 280}
  text = data.load(given, progress=said.append)
  assert any("on text:" in s and "evenly spread" in s for s in said)
  assert "the BPE is learnt from 0 of its 0 MB, evenly spread" in text.note
  train = text.corpus.splits["train"]
  part = train.sample(1000)
  pieces = [*part.documents()]
  assert len(pieces) == 10 and abs(len(part.bytes) - 1000) < 20
  where = [train.bytes.tobytes().index(piece) for piece in pieces]
  assert np.ptp(np.diff(where)) < 8 and where[-1] > 0.89 * len(train.bytes)
  learnt = tokenizer.BPE.train(pieces, 280).by_frequency(part)
  assert text.tokenizer.text == learnt.text
  assert train.sample(len(train.bytes)) is train
