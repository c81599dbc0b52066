"""A text in three splits, and where each document begins.

Of one text 90, 5 and 5 % of the documents are the splits, by a hash, or of the
bytes where documents are few; of one held-out text the halves are valid and
test.

A text passes through memory in pieces: it is written end to end, dealt out from
there, and hashed, and then mapped from the disk. A text of more than LARGE
bytes is kept by train.cache under a fingerprint of its sources, which of files
is their path, size, time of change and inode: where that is as it was nothing
is read again. A smaller one is prepared whenever it is asked for. See
train.growing for what happens after a kill.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import mmap
import pathlib
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from train import cache, workdir
from train import progress as progress_lib
from train.files import PIECE, Piece
from train.growing import Growing

SPLITS = ("train", "valid", "test")
# Documents are dealt out by a hash, 90/5/5 of them; of the bytes valid and test
# get at least so much, and train.
LEAST, MOST = 0.02, 0.8
LARGE = 1 << 24  # bytes that take more than a moment to read
FORMAT = 1  # of what is kept: another makes it anew
START = np.dtype("<i8")  # where a document begins
CHUNK = 1 << 16  # documents at once
SPREAD = 1 << 20  # bytes of a piece of a sample
# files of what is kept: texts, of which source a document of ALL is, the index
ALL, HELD, OWNERS, INDEX = "all", "held", "owners", "corpus.json"
NUMBER = struct.Struct("<q").pack

Progress = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Split:
  """Documents end to end.

  Attributes:
    bytes: uint8.
    starts: where each document begins.
  """

  bytes: np.ndarray
  starts: np.ndarray

  @classmethod
  def of(cls, documents: Iterable[bytes]) -> "Split":
    documents = [d for d in documents if d]
    text = np.frombuffer(b"".join(documents), np.uint8)
    ends = np.cumsum([0, *map(len, documents)], dtype=START)
    return cls(text, ends[:-1])

  def spans(self, number: int = 0) -> Iterator[tuple[int, int]]:
    """Start and end of each document, from that number on."""
    for at in range(number, len(self.starts), CHUNK):
      ends = self.starts[at : at + CHUNK + 1].tolist()
      if len(ends) <= CHUNK:
        ends.append(len(self.bytes))
      yield from itertools.pairwise(ends)

  def documents(self) -> Iterator[bytes]:
    for start, end in self.spans():
      yield self.bytes[start:end].tobytes()

  def pieces(self, start: int, end: int) -> Iterator[memoryview]:
    """These bytes, of which a map leaves few in memory."""
    view = memoryview(self.bytes)
    for at in range(start, end, PIECE):
      yield view[at : min(at + PIECE, end)]
      if end - at >= PIECE:
        self.leave()

  def leave(self):
    """Lets what was read of a map go from memory: the disk has it."""
    for array in (self.bytes, self.starts):
      if isinstance(array, np.memmap):
        array._mmap.madvise(mmap.MADV_DONTNEED)

  def head(self, size: int) -> "Split":
    """The first `size` bytes, less a UTF-8 symbol that they would cut."""
    return self.between(0, cut(self.bytes, size))

  def between(self, start: int, end: int) -> "Split":
    """These bytes, of which the first begins a document."""
    a, b = np.searchsorted(self.starts, (start, end))
    starts = self.starts[a:b]
    if start:
      starts = starts - start
    if start < end and not (len(starts) and starts[0] == 0):
      starts = np.concatenate([np.zeros(1, START), starts])
    return Split(self.bytes[start:end], starts)

  def sample(self, size: int) -> "Split":
    """About `size` of the bytes, evenly spread; all where there are no more."""
    if len(self.bytes) <= size:
      return self
    count = max(size // SPREAD, 1)
    parts = []
    for i in range(count):
      at = i * len(self.bytes) // count
      ends = (cut(self.bytes, end) for end in (at, at + SPREAD))
      parts.append(self.between(*ends))
    ends = np.cumsum([0, *(len(part.bytes) for part in parts)])
    starts = [p.starts + at for p, at in zip(parts, ends[:-1], strict=True)]
    return Split(
      np.concatenate([part.bytes for part in parts]), np.concatenate(starts)
    )

  def joined(self) -> "Split":
    """The same bytes as one document."""
    return Split(self.bytes, self.starts[:1])


@dataclasses.dataclass(frozen=True)
class Corpus:
  """A named text.

  Attributes:
    splits: train, valid and test.
    hash: SHA-256 (hex) of all bytes and of where documents begin.
    joined_hash: that of `joined`.
    note: what a reader of a result on it has to know, or "".
  """

  name: str
  splits: dict[str, Split]
  hash: str
  joined_hash: str
  note: str

  @classmethod
  def of(
    cls,
    name: str,
    splits: dict[str, Split],
    note: str,
    told: Callable[[int], None] = lambda size: None,
  ) -> "Corpus":
    """Hashes the splits; `told` of how many bytes, as it does."""
    digest, joined = hashlib.sha256(), hashlib.sha256()
    total = sum(len(splits[key].bytes) for key in SPLITS)
    for key in SPLITS:
      split = splits[key]
      size = len(split.bytes)
      if not size:
        raise ValueError(
          f"{name}: the {key} split is empty (0 of {total} bytes)"
        )
      digest.update(f"{key} {size} {len(split.starts)}".encode())
      for at in range(0, len(split.starts), CHUNK):
        digest.update(split.starts[at : at + CHUNK].astype(START))
      joined.update(f"{key} {size} 1".encode() + bytes(START.itemsize))
      for piece in split.pieces(0, size):
        digest.update(piece)
        joined.update(piece)
        told(len(piece))
    return cls(name, splits, digest.hexdigest(), joined.hexdigest(), note)

  def joined(self) -> "Corpus":
    return dataclasses.replace(
      self,
      splits={key: split.joined() for key, split in self.splits.items()},
      hash=self.joined_hash,
    )


def cut(text: np.ndarray, size: int) -> int:
  """The largest end <= size that is not inside a UTF-8 symbol."""
  end = min(size, len(text))
  for back in range(min(4, end + 1)):
    # a byte 10xxxxxx continues a symbol; text that is not UTF-8 is cut at size
    if end == len(text) or text[end - back] >> 6 != 0b10:
      return end - back
  return end


def split_of(name: bytes | Iterable[bytes]) -> str:
  """90 % train, 5 % valid, 5 % test, by a hash of the name alone.

  Args:
    name: whole or in pieces.
  """
  digest = hashlib.sha256()
  for piece in [name] if isinstance(name, bytes) else name:
    digest.update(piece)
  part = int.from_bytes(digest.digest()[:8], "big") % 100
  return "train" if part < 90 else "valid" if part < 95 else "test"


@dataclasses.dataclass(frozen=True)
class Source:
  """What documents are read from.

  Attributes:
    name: by which its documents are dealt out, where each source is one.
    size: about how many bytes it has.
    stamp: its fingerprint, which it has while it is as it was.
    read: its pieces from a place on, (0, 0) or that of one of them.
  """

  name: str
  size: int
  stamp: Callable[[], str]
  read: Callable[[tuple[int, int]], Iterator[Piece]]


def prepared(
  name: str,
  parts: dict[str, Sequence[Source]],
  one: bool,
  progress: Progress,
  by_name: bool = False,
) -> Corpus:
  """Train, valid and test of what the sources hold.

  Args:
    parts: train, and none, one or both of the others.
    one: whether valid and test are the same text.
    by_name: whether documents are dealt out by the names of their sources,
      where each is one; else by their bytes.
  """
  if len(parts) == len(SPLITS) and one:
    raise ValueError(
      f"{name}: it has a valid and a test text: valid=test is for one"
    )
  if len(parts) == 1:
    parts = {ALL: parts["train"]}
  stamps = {k: [s.stamp() for s in those] for k, those in parts.items()}
  size = sum(s.size for those in parts.values() for s in those)

  def fill(folder):
    if size > LARGE:
      progress(f"preparing {name}, once: {size / 1e6:.0f} MB")
    if not (folder / INDEX).exists():
      _fill(folder, name, parts, one, by_name, size)
    _tidy(folder)
    for key, those in parts.items():
      for source, stamp in zip(those, stamps[key], strict=True):
        if source.stamp() != stamp:
          raise ValueError(
            f"{source.name} of {name} was changed while it was read: run the "
            "same command again"
          )

  if size <= LARGE:
    with tempfile.TemporaryDirectory() as path, workdir.writing(path):
      fill(folder := pathlib.Path(path))
      return _load(name, folder, np.fromfile)
  key = hashlib.sha256(json.dumps([FORMAT, stamps, one, by_name]).encode())
  folder = cache.kept(f"text-{key.hexdigest()[:32]}", fill, progress)
  return _load(name, folder, mapped)


def mapped(path: pathlib.Path, dtype: np.dtype) -> np.ndarray:
  """A file as an array that stays on the disk; memory has no empty map."""
  if not path.stat().st_size:
    return np.zeros(0, dtype)
  return np.memmap(path, dtype, "r")


def bar(name: str, what: str, size: int, at: int = 0):
  """A progress bar of bytes, for what takes more than a moment."""
  return progress_lib.bar(
    total=size,
    initial=at,
    desc=f"{what} {name}",
    unit="B",
    unit_scale=True,
    disable=size <= LARGE,
  )


def _text(folder: pathlib.Path, name: str, read=mapped) -> Split:
  return Split(
    read(folder / f"{name}.bytes", np.uint8),
    read(folder / f"{name}.starts", START),
  )


def _splits(
  folder: pathlib.Path, places: dict[str, list], read=mapped
) -> dict[str, Split]:
  """Splits, from the text that each is of, its start and its end there."""

  @functools.cache
  def split(text, start, end):
    return _text(folder, text, read).between(start, end)

  return {key: split(*place) for key, place in places.items()}


def _load(name: str, folder: pathlib.Path, read) -> Corpus:
  found = json.loads((folder / INDEX).read_text())
  splits = _splits(folder, found.pop("places"), read)
  return Corpus(name=name, splits=splits, **found)


def _fill(folder, name, parts, one, by_name, size):
  """Writes the texts of a corpus, and their index when they are whole."""
  with bar(name, "reading", size) as read:
    count = {k: _write(folder, k, v, read) for k, v in parts.items()}
  if ALL not in parts:
    places, note = _held(folder, list(parts), one)
  else:
    names = None
    if by_name and count[ALL] == len(parts[ALL]):
      names = [source.name.encode() for source in parts[ALL]]
    places, note = _apart(folder, name, names, one)
  total = sum(end - start for _, start, end in places.values())
  with bar(name, "hashing", total) as hashed:
    made = Corpus.of(name, _splits(folder, places), note, hashed.update)
  found = {k: getattr(made, k) for k in ("hash", "joined_hash", "note")}
  workdir.replace(folder / INDEX, json.dumps(found | {"places": places}))


def _tidy(folder: pathlib.Path):
  """Leaves the index and the texts that it names."""
  places = json.loads((folder / INDEX).read_text())["places"]
  texts = {text for text, _, _ in places.values()}
  kept = {f"{text}.{kind}" for text in texts for kind in ("bytes", "starts")}
  for path in folder.iterdir():
    if path.name not in kept | {INDEX}:
      path.unlink()


def _write(folder, text: str, sources: Sequence[Source], bar) -> int:
  """Writes documents end to end; how many there are, empty ones too."""
  content, starts, owners = (f"{text}.{k}" for k in ("bytes", "starts", OWNERS))
  start = 0, (0, 0), 0, 0, 0
  with Growing(folder, text, (content, starts, owners), start) as files:
    first, place, begin, end, count = files.at
    bar.update(sum(source.size for source in sources[:first]))
    for number in range(first, len(sources)):
      done = 0
      for piece in sources[number].read(tuple(place)):
        files.append(content, piece.text)
        end += len(piece.text)
        if piece.last:
          if begin < end:
            files.append(starts, NUMBER(begin))
            files.append(owners, NUMBER(number))
          begin, count = end, count + 1
        files.stand((number, piece.place, begin, end, count))
        bar.update(piece.done - done)
        done = piece.done
      place = 0, 0
    files.rest()
  return count


def _held(folder, parts: list[str], one: bool) -> tuple[dict, str]:
  """The splits of a text with one or both held out, and a note."""
  places = {k: (k, 0, len(_text(folder, k).bytes)) for k in parts}
  if len(parts) == len(SPLITS):
    return places, ""
  (key,) = set(parts) - {"train"}
  last, size = _text(folder, key).bytes, places[key][2]
  half, source = cut(last, size // 2), "the held-out text"
  if one:
    return _one(places["train"], places[key], source)
  places |= {"valid": (key, 0, half), "test": (key, half, size)}
  return places, f"valid and test are halves of {source}"


def _one(train: tuple, held: tuple, source: str) -> tuple[dict, str]:
  places = {"train": train, "valid": held, "test": held}
  return places, f"valid and test are one: {source}"


def _apart(
  folder, name: str, names: list[bytes] | None, one: bool
) -> tuple[dict, str]:
  """The splits of one text, and a note.

  Args:
    names: of sources, by which their documents are dealt out; the documents'
      bytes without.
  """
  whole = _text(folder, ALL)
  count, size = len(whole.starts), len(whole.bytes)
  if count >= len(SPLITS):
    sizes = _deal(folder, name, whole, names)
    share = {key: part / size for key, part in sizes.items()}
    if min(share.values()) >= LEAST and share["train"] >= MOST:
      places = {key: (key, 0, part) for key, part in sizes.items()}
      if not one:
        return places, ""
      held = HELD, 0, _join(folder, ("valid", "test"), HELD)
      return _one(places["train"], held, "10 % of the documents")
  a, b = (cut(whole.bytes, size * share // 100) for share in (90, 95))
  if one:
    source = "the last 10 % of the file"
    return _one((ALL, 0, a), (ALL, a, size), source)
  places = {"train": (ALL, 0, a), "valid": (ALL, a, b), "test": (ALL, b, size)}
  note = (
    ""
    if count == 1
    else (
      f"{count} documents are too few or too unequal to deal out: valid and "
      "test are the last 5 and 5 % of the bytes"
    )
  )
  return places, note


def _deal(
  folder, name: str, whole: Split, names: list[bytes] | None
) -> dict[str, int]:
  """Writes each document to the text of its split; the sizes of these."""
  owners = mapped(folder / f"{ALL}.{OWNERS}", START)
  texts = [f"{key}.{kind}" for key in SPLITS for kind in ("bytes", "starts")]
  start = 0, 0, dict.fromkeys(SPLITS, 0)
  with Growing(folder, "dealt", texts, start) as files:
    first, at, sizes = files.at
    with bar(name, "dealing out", len(whole.bytes), at) as dealt:
      for number, (start, end) in enumerate(whole.spans(first), first):
        by = names[owners[number]] if names else whole.pieces(start, end)
        key = split_of(by)
        files.append(f"{key}.starts", NUMBER(sizes[key]))
        for piece in whole.pieces(start, end):
          files.append(f"{key}.bytes", piece)
        sizes[key] += end - start
        if files.stand((number + 1, end, sizes)):
          whole.leave()
        dealt.update(end - start)
    files.rest()
  return sizes


def _join(folder, texts: Iterable[str], name: str) -> int:
  """Writes texts end to end as another; its size."""
  at = 0
  with (
    open(folder / f"{name}.bytes", "wb") as content,
    open(folder / f"{name}.starts", "wb") as starts,
  ):
    for text in texts:
      part = _text(folder, text)
      starts.write(part.starts + at)
      for piece in part.pieces(0, len(part.bytes)):
        content.write(piece)
      at += len(part.bytes)
  return at
