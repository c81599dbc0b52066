"""A text in three splits, and where each document begins.

Of one text 90, 5 and 5 % of the documents are the splits, by a hash, or of the
bytes where documents are few; of one held-out text the halves are valid and
test.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np

SPLITS = ("train", "valid", "test")
# Documents are dealt out by a hash, 90/5/5 of them; of the bytes valid and test
# get at least so much, and train.
LEAST, MOST = 0.02, 0.8

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


def complete(
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
