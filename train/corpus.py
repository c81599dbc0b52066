"""Text by name: the bytes of three splits, and where each document begins.

  stdlib              source text of the running Python's standard library
  text:PATH           a file, or a folder; see train.files for what they hold
  bytes:PATH          the same, of any bytes
  tfds:NAME[/CONFIG]  a text set of TFDS

A folder's files are its splits where they are called train, valid and test
(train.txt before others, test.jsonl.gz, train-00000-of-00004.parquet), else
documents. Of one text 90, 5 and 5 % of the documents are the splits, by a hash,
or of the bytes where documents are few; of one held-out text the halves are
valid and test. text:PATH,valid=test keeps both one: 90 and 10 %, as char-rnn
has it, or the whole held-out text twice. text:PATH,field=NAME names the field
of .jsonl or .parquet that is read, "text" without.

What is prepared is kept by train.cache; `tfds:` sets live where TFDS keeps them
($TFDS_DATA_DIR or ~/tensorflow_datasets).

Errors: ValueError for a name, file or set that cannot be used, OSError where
the cache cannot be written.
"""

import contextlib
import dataclasses
import hashlib
import io
import os
import pathlib
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from arch.config import closest
from train import cache, files

SPLITS = ("train", "valid", "test")
FORMAT = "array_record"  # of TFDS's, the one that needs no TensorFlow
TFDS = {"train": "train", "valid": "validation", "test": "test"}
# What a file of a split is called, less its ending.
CALLED = {
  "train": "train",
  "valid": "valid|validation|val|dev",
  "test": "test",
}
SHARD = r"(-\d+-of-\d+)?"
OPTION = re.compile(r"(.*),(field|valid)=([^,]+)", re.DOTALL)
# Documents are dealt out by a hash, 90/5/5 of them; of the bytes valid and test
# get at least so much, and train.
LEAST, MOST = 0.02, 0.8
LARGE = 1 << 26  # bytes that take more than a moment to read

Progress = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Split:
  """Documents end to end.

  Attributes:
    bytes: uint8.
    first: bool, True at the first byte of a document.
  """

  bytes: np.ndarray
  first: np.ndarray

  @classmethod
  def of(cls, documents: Iterable[bytes]) -> "Split":
    documents = [d for d in documents if d]
    text = np.frombuffer(b"".join(documents), np.uint8)
    first = np.zeros(len(text), bool)
    first[np.cumsum([0, *map(len, documents)])[:-1]] = True
    return cls(text, first)

  def documents(self) -> Iterator[bytes]:
    ends = [*np.flatnonzero(self.first)[1:], len(self.bytes)]
    start = 0
    for end in ends:
      yield self.bytes[start:end].tobytes()
      start = end

  def head(self, size: int) -> "Split":
    """The first `size` bytes, less a UTF-8 symbol that they would cut."""
    end = cut(self.bytes, size)
    return Split(self.bytes[:end], self.first[:end])

  def between(self, start: int, end: int) -> "Split":
    """These bytes, of which the first begins a document."""
    first = self.first[start:end]
    if not first[:1].all():
      first = np.array(first)
      first[0] = True
    return Split(self.bytes[start:end], first)

  def joined(self) -> "Split":
    """The same bytes as one document."""
    return Split(self.bytes, np.arange(len(self.bytes)) == 0)


@dataclasses.dataclass(frozen=True)
class Corpus:
  """A named text.

  Attributes:
    splits: train, valid and test.
    hash: SHA-256 (hex) of all bytes and of where documents begin.
    note: what a reader of a result on it has to know, or "".
  """

  name: str
  splits: dict[str, Split]
  hash: str
  note: str

  @classmethod
  def of(cls, name: str, splits: dict[str, Split], note: str) -> "Corpus":
    digest = hashlib.sha256()
    total = sum(len(splits[key].bytes) for key in SPLITS)
    for key in SPLITS:
      split = splits[key]
      if not len(split.bytes):
        raise ValueError(
          f"{name}: the {key} split is empty (0 of {total} bytes)"
        )
      starts = np.flatnonzero(split.first).astype("<i8")
      digest.update(f"{key} {len(split.bytes)} {len(starts)}".encode())
      digest.update(starts)
      digest.update(split.bytes)
    return cls(name, splits, digest.hexdigest(), note)

  def joined(self) -> "Corpus":
    splits = {key: split.joined() for key, split in self.splits.items()}
    return Corpus.of(self.name, splits, self.note)


def cut(text: np.ndarray, size: int) -> int:
  """The largest end <= size that is not inside a UTF-8 symbol."""
  end = min(size, len(text))
  for back in range(min(4, end + 1)):
    # a byte 10xxxxxx continues a symbol; text that is not UTF-8 is cut at size
    if end == len(text) or text[end - back] >> 6 != 0b10:
      return end - back
  return end


def split_of(name: bytes) -> str:
  """90 % train, 5 % valid, 5 % test, by a hash of the name alone."""
  part = int.from_bytes(hashlib.sha256(name).digest()[:8], "big") % 100
  return "train" if part < 90 else "valid" if part < 95 else "test"


def from_stdlib(progress: Progress) -> Corpus:
  """The .py text of the running Python's standard library."""
  progress("reading the standard library's source text")
  from train import builders

  sources = builders.stdlib_files()
  digest = hashlib.sha256()
  for file, source in sources.items():
    digest.update(f"{file} {len(source)}\n".encode())
    digest.update(source)

  def fill(folder):
    size = sum(map(len, sources.values())) / 1e6
    progress(f"preparing stdlib, once: {len(sources)} files, {size:.1f} MB")
    _prepare(builders.Stdlib(data_dir=folder))

  folder = cache.kept(f"stdlib-{digest.hexdigest()[:32]}", fill, progress)
  builder = builders.Stdlib(data_dir=folder)
  return Corpus.of("stdlib", _records(builder, "text", TFDS, progress), "")


def from_path(given: str, plain: bool, progress: Progress) -> Corpus:
  """A file or a folder of them.

  Args:
    given: PATH[,field=NAME][,valid=test].
    plain: any bytes: nothing is asked of them, and no ending but .gz and .xz
      means anything.
  """
  name = f"{'bytes' if plain else 'text'}:{given}"
  place, field, one = _options(given)
  if not place:
    raise ValueError(f"{name} names no file: write it after the colon")
  path = pathlib.Path(os.path.expanduser(place))

  def read(file):
    if (size := file.stat().st_size) > LARGE:
      progress(f"reading {file}: {size / 1e6:.0f} MB")
    return files.documents(file, field, plain)

  names, unread = None, ""
  if not path.is_dir():
    parts = {"train": read(files.find(path))}
  else:
    found = files.within(path, plain)
    if not found:
      raise ValueError(
        f"{path} holds no {', '.join(files.ENDINGS)} (nor .gz, .xz of one)"
      )
    called = _called(path, found)
    if not called:
      each = [
        (f.relative_to(path).as_posix(), d) for f in found for d in read(f)
      ]
      parts = {"train": [document for _, document in each]}
      if len(each) == len(found):
        names = [name.encode() for name, document in each if document]
    elif "train" not in called:
      raise ValueError(
        f"{path} has no train.txt (nor .jsonl, .parquet), only "
        f"{', '.join(f.name for those in called.values() for f in those)}"
      )
    else:
      parts = {k: [d for f in v for d in read(f)] for k, v in called.items()}
      used = {file for those in called.values() for file in those}
      others = [str(f.relative_to(path)) for f in found if f not in used]
      if others:
        some = textwrap.shorten(", ".join(others), 100)
        unread = f"{len(others)} other files of the folder are not read: {some}"
  made = {key: Split.of(documents) for key, documents in parts.items()}
  splits, note = _complete(name, made, one, names)
  return Corpus.of(name, splits, "; ".join(filter(None, [note, unread])))


def _options(given: str) -> tuple[str, str | None, bool]:
  """Path, field and whether valid and test are one, of text:PATH,..."""
  found = {}
  while option := OPTION.fullmatch(given):
    given, name, value = option.groups()
    found.setdefault(name, value)
  if found.get("valid", "test") != "test":
    raise ValueError(f"valid={found['valid']}: only valid=test can be said")
  return given, found.get("field"), "valid" in found


def _called(
  folder: pathlib.Path, found: Iterable[pathlib.Path]
) -> dict[str, list[pathlib.Path]]:
  """The files of a folder that are called train, valid or test."""
  called = {}
  for split, names in CALLED.items():
    pattern = re.compile(rf"({names}){SHARD}")
    those = [
      path
      for path in found
      if path.parent == folder and pattern.fullmatch(files.unpacked(path).stem)
    ]
    plain = [p for p in those if files.unpacked(p).name == f"{split}.txt"]
    those = plain or those
    if len({re.sub(r"\d+", "", path.name) for path in those}) > 1:
      raise ValueError(
        f"{folder} has several texts called {split}: "
        f"{', '.join(path.name for path in those)}; leave one"
      )
    if those:
      called[split] = those
  return called


def _complete(
  name: str,
  parts: dict[str, Split],
  one: bool,
  names: list[bytes] | None = None,
) -> tuple[dict[str, Split], str]:
  """Train, valid and test, and what a reader of a result has to know.

  Args:
    parts: train, and none, one or both of the others.
    one: whether valid and test are the same text.
    names: of the documents of train, for `_apart`.
  """
  train, *held = (parts[key] for key in SPLITS if key in parts)
  if len(held) == 2:
    if one:
      raise ValueError(
        f"{name}: it has a valid and a test text: valid=test is for one"
      )
    return parts, ""
  if held:
    (last,) = held
    half, source = cut(last.bytes, len(last.bytes) // 2), "the held-out text"
    note = f"valid and test are halves of {source}"
  else:
    train, last, half, source, note = _apart(train, names)
  if one:
    note = f"valid and test are one: {source}"
    return {"train": train, "valid": last, "test": last}, note
  valid, test = last.between(0, half), last.between(half, len(last.bytes))
  return {"train": train, "valid": valid, "test": test}, note


def _apart(
  whole: Split, names: list[bytes] | None
) -> tuple[Split, Split, int, str, str]:
  """One text as train and what is held out.

  Args:
    names: by which its documents are dealt out; their bytes without.

  Returns:
    Train, the rest, how much of the rest is for validation, what the rest is,
    and a note.
  """
  count, size = int(whole.first.sum()), len(whole.bytes)
  if count >= len(SPLITS):
    documents = list(whole.documents())
    dealt = {key: [] for key in SPLITS}
    for key, document in zip(names or documents, documents, strict=True):
      dealt[split_of(key)].append(document)
    share = {k: sum(map(len, those)) / size for k, those in dealt.items()}
    if min(share.values()) >= LEAST and share["train"] >= MOST:
      held = Split.of(dealt["valid"] + dealt["test"])
      half = sum(map(len, dealt["valid"]))
      return Split.of(dealt["train"]), held, half, "10 % of the documents", ""
  a, b = (cut(whole.bytes, size * share // 100) for share in (90, 95))
  note = (
    ""
    if count == 1
    else (
      f"{count} documents are too few or too unequal to deal out: valid and "
      "test are the last 5 and 5 % of the bytes"
    )
  )
  source = "the last 10 % of the file"
  return whole.between(0, a), whole.between(a, size), b - a, source, note


def from_tfds(given: str, progress: Progress) -> Corpus:
  """A text set of TFDS, prepared if it is not and if that can be done here.

  Args:
    given: NAME[/CONFIG][,field=NAME][,valid=test].
  """
  name = f"tfds:{given}"
  progress(f"reading {name}")
  given, field, one = _options(given)
  builder, texts = _builder(given)
  if field is None:
    field = texts[0] if len(texts) == 1 else files.FIELD
  if field not in texts:
    raise ValueError(
      f"{name} has no feature {field!r} of type Text: name one as ,field=NAME; "
      f"its features are {', '.join(builder.info.features)}"
    )
  if not builder.is_prepared():
    progress(f"preparing {name} in {builder.data_path}, once")
    _prepare(builder)
  if (found := builder.info.file_format.value) != FORMAT:
    raise ValueError(
      f"{name} is prepared in {builder.data_path} as {found}, which needs "
      f"TensorFlow; TFDS_DATA_DIR can name another folder, for {FORMAT}"
    )
  slices = _slices(name, builder.info.splits)
  parts = _records(builder, field, slices, progress)
  return Corpus.of(name, *_complete(name, parts, one))


def _builder(given: str):
  """The TFDS builder called `given`, and its features of type Text."""
  import tensorflow_datasets as tfds

  from train import builders

  with _told(f"tfds:{given}"):
    if given == builders.TinyShakespeare.name:
      builder = builders.TinyShakespeare()
    else:
      try:
        builder = tfds.builder(given)
      except tfds.core.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        raise ValueError(
          f"unknown TFDS set {given!r}: {closest(given, known)}"
        ) from None
  features = builder.info.features.items()
  return builder, [k for k, f in features if isinstance(f, tfds.features.Text)]


@contextlib.contextmanager
def _told(where: str):
  """Makes one ValueError of what TFDS raises: of a file that is damaged too."""
  try:
    yield
  except Exception as error:
    why = textwrap.shorten(str(error), 400)
    raise ValueError(f"{where}: {why}") from error


def _slices(name: str, known: Iterable[str]) -> dict[str, str]:
  """Which splits of TFDS are train, valid and test, as far as it has them."""
  if "train" not in known:
    raise ValueError(f"{name} has no split 'train'; it has {', '.join(known)}")
  valid = next((k for k in ("validation", "valid") if k in known), None)
  test = "test" if "test" in known else None
  found = {"train": "train", "valid": valid, "test": test}
  return {key: source for key, source in found.items() if source}


def _prepare(builder):
  import tensorflow_datasets as tfds

  tfds.disable_progress_bar()
  gcs = tfds.download.DownloadConfig(try_download_gcs=False)
  try:
    with contextlib.redirect_stdout(io.StringIO()):  # "Unknown size", twice
      builder.download_and_prepare(file_format=FORMAT, download_config=gcs)
  except ModuleNotFoundError as error:
    raise ValueError(
      f"TFDS needs {error.name} to prepare {builder.name}: pip install "
      f"{error.name}, and run this once more; reading it then needs none"
    ) from error
  except OSError as error:
    raise ValueError(
      f"{builder.name} is not prepared in {builder.data_path}, and preparing "
      f"it failed: {error}"
    ) from error


def _records(
  builder, field: str, names: dict[str, str], progress: Progress
) -> dict[str, Split]:
  """The field of every record as splits, read once and kept as arrays."""
  info = (builder.data_path / "dataset_info.json").read_bytes()
  key = f"{builder.data_path} {field} {names}".encode() + info

  def fill(folder):
    for split, source in names.items():
      with _told(f"{builder.data_path} cannot be read; remove it if damaged"):
        records = builder.as_data_source(source)
        made = Split.of(record[field] for record in records)
      np.save(folder / f"{split}.bytes.npy", made.bytes)
      np.save(folder / f"{split}.first.npy", made.first)

  digest = hashlib.sha256(key).hexdigest()
  folder = cache.kept(f"bytes-{digest[:32]}", fill, progress)
  return {
    split: Split(
      np.load(folder / f"{split}.bytes.npy", mmap_mode="r"),
      np.load(folder / f"{split}.first.npy", mmap_mode="r"),
    )
    for split in names
  }
