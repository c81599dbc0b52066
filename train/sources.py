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

What is prepared is kept as train.corpus has it; `tfds:` sets live where TFDS
keeps them ($TFDS_DATA_DIR or ~/tensorflow_datasets).

Errors: ValueError for a name, file or set that cannot be used, OSError where
what is prepared cannot be written.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import os
import pathlib
import re
import textwrap
from collections.abc import Iterable

from arch.config import closest
from train import cache, files
from train.corpus import Corpus, Progress, Source, prepared
from train.files import Piece

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
  parts = {k: [_records(builder, "text", v)] for k, v in TFDS.items()}
  return prepared("stdlib", parts, False, progress)


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
  if not path.is_dir():
    file = files.find(path)
    parts = {"train": [_file(file, file.name, field, plain)]}
    return prepared(name, parts, one, progress)
  found = files.within(path, plain)
  if not found:
    raise ValueError(
      f"{path} holds no {', '.join(files.ENDINGS)} (nor .gz, .xz of one)"
    )
  called = _called(path, found)
  if called and "train" not in called:
    raise ValueError(
      f"{path} has no train.txt (nor .jsonl, .parquet), only "
      f"{', '.join(f.name for those in called.values() for f in those)}"
    )
  parts = {
    key: [
      _file(file, file.relative_to(path).as_posix(), field, plain)
      for file in those
    ]
    for key, those in (called or {"train": found}).items()
  }
  made = prepared(name, parts, one, progress, by_name=not called)
  used = {file for those in called.values() for file in those}
  others = [str(f.relative_to(path)) for f in found if f not in used]
  if not called or not others:
    return made
  some = textwrap.shorten(", ".join(others), 100)
  unread = f"{len(others)} other files of the folder are not read: {some}"
  note = "; ".join(filter(None, [made.note, unread]))
  return dataclasses.replace(made, note=note)


def _file(
  path: pathlib.Path, name: str, field: str | None, plain: bool
) -> Source:
  def stamp():
    now = path.stat()
    its = path.resolve(), now.st_size, now.st_mtime_ns, now.st_ino
    return repr((*map(str, its), name, field, plain))

  read = functools.partial(files.read, path, field, plain)
  return Source(name, path.stat().st_size, stamp, read)


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
  parts = {k: [_records(builder, field, v)] for k, v in slices.items()}
  return prepared(name, parts, one, progress)


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


def _records(builder, field: str, split: str) -> Source:
  """The field of every record of a split of TFDS, a document each."""
  info = (builder.data_path / "dataset_info.json").read_text()
  size = int(builder.info.splits[split].num_bytes)

  def read(place):
    with _told(f"{builder.data_path} cannot be read; remove it if damaged"):
      records = builder.as_data_source(split)
      for number in range(place[1], len(records)):
        done = size * (number + 1) // len(records)
        yield Piece(records[number][field], True, (0, number + 1), done)

  stamp = repr((str(builder.data_path), field, split, info))
  return Source(split, size, lambda: stamp, read)
