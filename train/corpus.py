"""Text by name: the bytes of three splits, and where each document begins.

  stdlib              source text of the running Python's standard library
  text:PATH           a file, or a folder of train.txt, valid.txt, test.txt
  tfds:NAME[/CONFIG]  a text set of TFDS

What is prepared is kept in `cache()`; `tfds:` sets live where TFDS keeps them
($TFDS_DATA_DIR or ~/tensorflow_datasets). A folder of the cache appears whole
or not at all, so two processes may prepare the same set at once.

Errors: ValueError for a name, file or set that cannot be used, OSError where
the cache cannot be written.
"""

import contextlib
import dataclasses
import gzip
import hashlib
import io
import lzma
import os
import pathlib
import shutil
import tempfile
import textwrap
import zlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from arch.layers import closest

SPLITS = ("train", "valid", "test")
FORMAT = "array_record"  # of TFDS's, the one that needs no TensorFlow
OPEN = {".gz": gzip.open, ".xz": lzma.open}

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
    for key in SPLITS:
      split = splits[key]
      if not len(split.bytes):
        raise ValueError(f"{name}: the {key} split is empty (0 bytes)")
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
  for back in range(min(4, end)):
    # a byte 10xxxxxx continues a symbol; text that is not UTF-8 is cut at size
    if end == len(text) or text[end - back] >> 6 != 0b10:
      return end - back
  return end


def cache() -> pathlib.Path:
  """$LAB_CACHE, else small-lm-lab/ in $XDG_CACHE_HOME or ~/.cache."""
  if folder := os.environ.get("LAB_CACHE"):
    return pathlib.Path(folder).expanduser()
  base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return pathlib.Path(base).expanduser() / "small-lm-lab"


def cached(name: str, fill: Callable[[pathlib.Path], None]) -> pathlib.Path:
  """The cache's folder `name`, made whole by `fill(folder)` if not there."""
  folder = cache() / name
  if folder.exists():
    return folder
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = pathlib.Path(tempfile.mkdtemp(dir=folder.parent, prefix="making-"))
  except OSError as error:
    raise OSError(
      f"cannot write the data cache {folder.parent}: {error}. Set LAB_CACHE to "
      "a folder that can be written"
    ) from error
  try:
    fill(made)
    made.rename(folder)
  except OSError:
    if not folder.exists():  # else another process was first
      raise
  finally:
    shutil.rmtree(made, ignore_errors=True)
  return folder


def from_stdlib(progress: Progress) -> Corpus:
  """The .py text of the running Python's standard library."""
  progress("reading the standard library's source text")
  from train import builders

  files = builders.stdlib_files()
  digest = hashlib.sha256()
  for file, source in files.items():
    digest.update(f"{file} {len(source)}\n".encode())
    digest.update(source)

  def fill(folder):
    size = sum(map(len, files.values()))
    progress(f"preparing stdlib, once: {len(files)} files, {size / 1e6:.1f} MB")
    _prepare(builders.Stdlib(data_dir=folder))

  folder = cached(f"stdlib-{digest.hexdigest()[:32]}", fill)
  builder = builders.Stdlib(data_dir=folder)
  names = {"train": "train", "valid": "validation", "test": "test"}
  return Corpus.of("stdlib", _records(builder, "text", names), "")


def from_path(given: str) -> Corpus:
  """A file (first 90 % train, the rest valid and test) or a folder of three."""
  path = pathlib.Path(given).expanduser()
  if path.is_dir():
    parts = {key: _read(path / f"{key}.txt") for key in SPLITS}
    missing = [key for key in SPLITS if parts[key] is None]
    if "train" in missing or len(missing) == 2:
      one = next(iter(sorted(path.glob("*.txt*"))), path / "FILE")
      raise ValueError(
        f"{path} has no {', no '.join(f'{key}.txt' for key in missing)} (nor "
        ".gz, .xz); needed: train.txt and at least one of valid.txt, test.txt; "
        f"one file is named as text:{one}"
      )
    note = ""
    for key in missing:
      other = "valid" if key == "test" else "test"
      parts[key] = parts[other]
      note = f"valid and test are one: {other}.txt"
  else:
    whole = _read(path)
    if whole is None:
      raise ValueError(f"{path}: no such file or folder (nor .gz, .xz)")
    end = cut(np.frombuffer(whole, np.uint8), len(whole) * 9 // 10)
    parts = {"train": whole[:end], "valid": whole[end:], "test": whole[end:]}
    note = "valid and test are one: the last 10 % of the file"
  splits = {key: Split.of([part]) for key, part in parts.items()}
  return Corpus.of(f"text:{given}", splits, note)


def _read(path: pathlib.Path) -> bytes | None:
  """The bytes of path, path.gz or path.xz; None if there is none of them."""
  for ending in ("", *OPEN):
    file = path.with_name(path.name + ending)
    if file.is_file():
      try:
        with OPEN.get(file.suffix, open)(file, "rb") as stream:
          return stream.read()
      except (gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise ValueError(f"{file} cannot be unpacked: {error}") from error
  return None


def from_tfds(given: str, progress: Progress) -> Corpus:
  """A text set of TFDS, prepared if it is not and if that can be done here."""
  name = f"tfds:{given}"
  progress(f"reading {name}")
  builder, texts = _builder(given)
  field = texts[0] if len(texts) == 1 else "text"
  if field not in texts:
    raise ValueError(
      f"{name} has no feature 'text', nor exactly one of type Text: its "
      f"features are {', '.join(builder.info.features)}"
    )
  if not builder.is_prepared():
    progress(f"preparing {name} in {builder.data_path}, once")
    _prepare(builder)
  if (found := builder.info.file_format.value) != FORMAT:
    raise ValueError(
      f"{name} is prepared in {builder.data_path} as {found}, which needs "
      f"TensorFlow; TFDS_DATA_DIR can name another folder, for {FORMAT}"
    )
  names, note = _splits(name, builder.info.splits)
  return Corpus.of(name, _records(builder, field, names), note)


def _builder(given: str):
  """The TFDS builder called `given`, and its features of type Text."""
  import tensorflow_datasets as tfds

  from train import builders

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
    except ValueError as error:  # of some lines
      why = textwrap.shorten(str(error), 400)
      raise ValueError(f"tfds:{given}: {why}") from None
  features = builder.info.features.items()
  return builder, [k for k, f in features if isinstance(f, tfds.features.Text)]


def _splits(name: str, known: Iterable[str]) -> tuple[dict[str, str], str]:
  """Which TFDS slice is train, valid and test, and what to say about it."""
  if "train" not in known:
    raise ValueError(f"{name} has no split 'train'; it has {', '.join(known)}")
  valid = next((k for k in ("validation", "valid") if k in known), None)
  test = "test" if "test" in known else None
  if valid and test:
    return dict(train="train", valid=valid, test=test), ""
  if one := valid or test:
    note = f"valid and test are one: {one}"
    return dict(train="train", valid=one, test=one), note
  note = "valid and test are one: the last 10 % of train"
  last = "train[90%:]"
  return dict(train="train[:90%]", valid=last, test=last), note


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


def _records(builder, field: str, names: dict[str, str]) -> dict[str, Split]:
  """The field of every record as splits, read once and kept as arrays."""
  info = (builder.data_path / "dataset_info.json").read_bytes()
  key = f"{builder.data_path} {field} {names}".encode() + info

  def fill(folder):
    for split, source in names.items():
      records = builder.as_data_source(source)
      made = Split.of(record[field] for record in records)
      np.save(folder / f"{split}.bytes.npy", made.bytes)
      np.save(folder / f"{split}.first.npy", made.first)

  folder = cached(f"bytes-{hashlib.sha256(key).hexdigest()[:32]}", fill)
  return {
    split: Split(
      np.load(folder / f"{split}.bytes.npy", mmap_mode="r"),
      np.load(folder / f"{split}.first.npy", mmap_mode="r"),
    )
    for split in names
  }
