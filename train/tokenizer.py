"""Bytes to symbols and back, without loss: bytes, or a byte-level BPE.

Both are exact: decode(encode(text)) == text, so that bits per byte can count
the bytes of the raw text. The BPE needs UTF-8; bytes need nothing. What a BPE
answers is compared with the text, always.
"""

import concurrent.futures
import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import re
import textwrap
from collections.abc import Iterable, Iterator

import numpy as np

from train import exactness, workdir
from train.corpus import START, Split, cut

KINDS = ("bytes", "bpe")
FILE = "tokenizer.json"  # in a run's workdir
# The BPE takes BATCH pieces of about PIECE characters at once: it needs some
# 200 bytes of memory a character.
PIECE, BATCH = 1 << 13, 256
WINDOW = 1 << 20  # bytes that are decoded at once
MOST = 1 << 26  # characters of a piece where a text has no place to cut it
# A BPE is learnt in time that grows with the square of a word's length.
LONGEST = 1 << 10
LONG = re.compile(rf"(?<!\S)\S{{{LONGEST}}}|(?<!\s)\s{{{LONGEST}}}")


class Bytes:
  """A symbol a byte."""

  vocab = 256
  blank = ()

  def encode(self, text: bytes) -> np.ndarray:
    return np.frombuffer(text, np.uint8)

  def encode_all(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
    return split.bytes, split.starts

  def decode(self, ids: Iterable[int]) -> bytes:
    return bytes(map(int, ids))

  def save(self, path: pathlib.Path):
    """ValueError where a trained run has another."""
    _save(path, json.dumps({"model": {"type": "bytes"}}))


class BPE:
  """A byte-level BPE of the `tokenizers` library, from that library's JSON.

  Symbols that stand for a text of their own, such as <|endoftext|>, are read
  where that text stands and never added. What would change the text, such as a
  normaliser to NFC, is left out or refused: see train.exactness. A byte without
  a symbol is refused in the text that holds it.

  Args:
    text: the JSON.
    size: pads the vocabulary to so many symbols; those beyond its own, and ids
      that it leaves out, spell nothing.

  Raises:
    ValueError: it is of another kind, or not exact.
  """

  def __init__(self, text: str, size: int = 0):
    import tokenizers

    spec = exactness.parsed(text)
    steps, exact = exactness.steps(spec), exactness.exact(spec)
    with _library():
      self.bpe = tokenizers.Tokenizer.from_str(json.dumps(exact))
    self.text = text
    self.pieces = exactness.pieces(spec, self.bpe.get_vocab(), size)
    self.dtype = np.min_scalar_type(len(self.pieces) - 1)
    self.seam = re.compile(exactness.seam(spec, steps))

  @classmethod
  def train(cls, documents: Iterable[bytes], vocab: int) -> "BPE":
    """Learns at most `vocab` symbols; short text may yield fewer.

    A word of more than LONGEST characters is learnt from in parts.
    """
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    bpe = tokenizers.Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.pre_tokenizer = level
    trainer = trainers.BpeTrainer(
      vocab_size=vocab,
      show_progress=False,
      initial_alphabet=sorted(exactness.letters()),
    )
    seam = re.compile(exactness.SEAM)
    texts = (
      part
      for document in documents
      for piece, _, _ in _pieces(Split.of([document]), seam)
      for part in _parts(piece, level)
    )
    # in a thread: a signal is not heard in a call of minutes
    with concurrent.futures.ThreadPoolExecutor(1) as one:
      one.submit(bpe.train_from_iterator, texts, trainer).result()
    return cls(bpe.to_str())

  def by_frequency(self, split: Split) -> "BPE":
    """The same symbols, numbered by how often a split has them, most first."""
    counts = np.zeros(self.vocab, np.int64)
    for ids, _, _ in self.encoded(split):
      counts += np.bincount(ids, minlength=self.vocab)
    order = np.argsort(-counts, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    spec = json.loads(self.text)
    named = spec["model"]["vocab"]
    spec["model"]["vocab"] = {k: int(place[i]) for k, i in named.items()}
    return type(self)(json.dumps(spec, ensure_ascii=False))

  @property
  def vocab(self) -> int:
    return len(self.pieces)

  @property
  def blank(self) -> list[int]:
    """Symbols that spell nothing."""
    return [i for i, piece in enumerate(self.pieces) if not piece]

  @property
  def hash(self) -> str:
    return hashlib.sha256(self.text.encode()).hexdigest()

  def encode(self, text: bytes) -> np.ndarray:
    return self.encode_all(Split.of([text]))[0]

  def encode_all(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """The symbols of a split, and where in them documents begin.

    Raises:
      ValueError: the text is not UTF-8, or the symbols do not spell it.
    """
    ids, starts, count = [np.zeros(0, self.dtype)], [np.zeros(0, START)], 0
    for found, begin, _ in self.encoded(split):
      ids.append(found)
      starts.append(begin + count)
      count += len(found)
    return np.concatenate(ids), np.concatenate(starts)

  def encoded(
    self, split: Split, at: int = 0
  ) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """The same in parts: symbols, where among them documents begin, and the
    byte up to which they are.

    Args:
      at: the byte that an earlier call came up to.
    """
    pieces = _pieces(split, self.seam, at)
    while batch := list(itertools.islice(pieces, BATCH)):
      with _library():
        made = self.bpe.encode_batch_fast(
          [piece for piece, _, _ in batch], add_special_tokens=False
        )
      parts, starts, count = [], [], 0
      for encoding, (piece, begins, end) in zip(made, batch, strict=True):
        found, text = encoding.ids, piece.encode()
        spelt = self.decode(found)
        if spelt != text:
          raise ValueError(self._difference(text, spelt, end - len(text)))
        if begins:
          starts.append(count)
        count += len(found)
        parts.append(np.array(found, self.dtype))
      yield np.concatenate(parts), np.array(starts, START), end
      split.leave()

  def _difference(self, text: bytes, spelt: bytes, at: int) -> str:
    same = len(os.path.commonprefix([text, spelt]))
    where = f"byte {at + same} of the text"
    if same < len(text) and text[same : same + 1] not in self.pieces:
      why = f"has no symbol for 0x{text[same]:02x}, which is {where}"
    else:
      why = (
        f"is not exact: at {where} its symbols spell "
        f"{spelt[same : same + 9]!r} for {text[same : same + 9]!r}"
      )
    return f"the BPE {why}; the tokenizer 'bytes' takes any text"

  def decode(self, ids: Iterable[int]) -> bytes:
    return b"".join(map(self.pieces.__getitem__, ids))

  def save(self, path: pathlib.Path):
    """ValueError where a trained run has another."""
    _save(path, self.text)


def _save(path, text: str):
  """A run that goes on leaves the file as it is."""
  path = pathlib.Path(path)
  if path.exists() and path.read_text(encoding="utf-8") == text:
    return
  if path.exists() and workdir.holds(path.parent):
    raise ValueError(
      f"{path} is another tokeniser than the data have here, as other versions "
      "learn it: go on with the version that began the run, or give another "
      "--workdir; nothing was changed"
    )
  workdir.replace(path, text)


def load(path: pathlib.Path, size: int = 0) -> Bytes | BPE:
  """What `save` wrote; a BPE padded to so many symbols.

  Raises:
    ValueError: the file is torn, of another kind, or not exact.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise ValueError(f"there is no file {path}")
  text = path.read_text(encoding="utf-8")
  kind = exactness.field(exactness.parsed(text), "model", dict).get("type")
  return Bytes() if kind == "bytes" else BPE(text, size)


@contextlib.contextmanager
def _library():
  """Turns what `tokenizers` raises, a plain Exception, into a ValueError."""
  try:
    yield
  except Exception as error:
    why = textwrap.shorten(str(error), 300)
    raise ValueError(f"the library tokenizers refuses it: {why}") from None


def of_run(run) -> Bytes | BPE:
  """The tokeniser that a run was trained with.

  Raises:
    ValueError: the run has none: it is no run, or one on a task.
  """
  size = workdir.of_run(run)["model"]["vocab"]["size"]
  path = pathlib.Path(run) / FILE
  if not path.exists():
    raise ValueError(
      f"no {path}: {run} is no run on text (a task has no tokeniser)"
    )
  try:
    tokens = load(path, size)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None
  if tokens.vocab != size:
    raise ValueError(f"{path} has {tokens.vocab} symbols, its model {size}")
  return tokens


def _pieces(
  split: Split, seam: re.Pattern, at: int = 0
) -> Iterator[tuple[str, bool, int]]:
  """What documents are encoded in, whether each begins one, and the byte up to
  which they are.

  Args:
    at: the byte that an earlier call came up to.
  """
  number = int(np.searchsorted(split.starts, at, "right")) - 1
  for start, end in split.spans(max(number, 0)):
    begins, at = at <= start, max(at, start)
    for piece in _cut(_decoded(split, at, end), seam):
      at += len(piece.encode())
      yield piece, begins, at
      begins = False


def _decoded(split: Split, start: int, end: int) -> Iterator[str]:
  """The text of these bytes, in parts."""
  while start < end:
    size = cut(split.bytes[start:end], WINDOW)
    yield _text(split.bytes[start : start + size].tobytes(), start)
    start += size


def _text(text: bytes, at: int = 0) -> str:
  """The text that stands `at` bytes after the start."""
  try:
    return text.decode()
  except UnicodeDecodeError as error:
    raise ValueError(
      f"byte {at + error.start} of the text is not UTF-8 ({error.reason}), "
      "which a BPE needs; the tokenizer 'bytes' takes any text"
    ) from error


def _cut(parts: Iterable[str], seam: re.Pattern) -> Iterator[str]:
  """Pieces of about PIECE characters that encode as the parts at once would."""
  rest = ""
  for part in parts:
    start, seen = 0, len(rest) - 1  # whether the last is a seam the next tells
    rest += part
    while found := seam.search(rest, max(start + PIECE, seen)):
      yield rest[start : found.start()]
      start = found.start()
    rest = rest[start:]
    if len(rest) > MOST:
      raise ValueError(
        f"{len(rest):,} characters without a place to cut them, such as a "
        "space between words, are more than a BPE is given at once; the "
        "tokenizer 'bytes' takes any text"
      )
  if rest:
    yield rest


def _parts(text: str, level) -> Iterator[str]:
  """The text, or its words in parts where one may be too long to learn from."""
  if not LONG.search(text):
    yield text
    return
  for _, (start, end) in level.pre_tokenize_str(text):
    for at in range(start, end, LONGEST):
      yield text[at : min(at + LONGEST, end)]
