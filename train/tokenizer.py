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
from train.corpus import Split

KINDS = ("bytes", "bpe")
FILE = "tokenizer.json"  # in a run's workdir
# The BPE takes BATCH pieces of about PIECE characters at once: it needs some
# 200 bytes of memory a character.
PIECE, BATCH = 1 << 13, 256
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
    return split.bytes, split.first

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
      for piece in _cut(_text(document), seam)
      for part in _parts(piece, level)
    )
    # in a thread: a signal is not heard in a call of minutes
    with concurrent.futures.ThreadPoolExecutor(1) as one:
      one.submit(bpe.train_from_iterator, texts, trainer).result()
    return cls(bpe.to_str())

  def by_frequency(self, split: Split) -> "BPE":
    """The same symbols, numbered by how often a split has them, most first."""
    counts = np.bincount(self.encode_all(split)[0], minlength=self.vocab)
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
    """The symbols of a split, and True where one begins a document.

    Raises:
      ValueError: the text is not UTF-8, or the symbols do not spell it.
    """
    pieces = _pieces(split, self.seam)
    ids, first = [np.zeros(0, self.dtype)], [np.zeros(0, bool)]
    at = 0
    while batch := list(itertools.islice(pieces, BATCH)):
      with _library():
        made = self.bpe.encode_batch_fast(
          [piece for piece, _ in batch], add_special_tokens=False
        )
      for encoding, (piece, begins) in zip(made, batch, strict=True):
        found, text = encoding.ids, piece.encode()
        spelt = self.decode(found)
        if spelt != text:
          raise ValueError(self._difference(text, spelt, at))
        at += len(text)
        ids.append(np.array(found, self.dtype))
        first.append((np.arange(len(found)) == 0) & begins)
    return np.concatenate(ids), np.concatenate(first)

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
    return b"".join(self.pieces[i] for i in ids)

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


def _pieces(split: Split, seam: re.Pattern) -> Iterator[tuple[str, bool]]:
  """What documents are encoded in, and whether each begins one."""
  at = 0
  for document in split.documents():
    for i, piece in enumerate(_cut(_text(document, at), seam)):
      yield piece, i == 0
    at += len(document)


def _text(text: bytes, at: int = 0) -> str:
  """The text that stands `at` bytes after the start."""
  try:
    return text.decode()
  except UnicodeDecodeError as error:
    raise ValueError(
      f"byte {at + error.start} of the text is not UTF-8 ({error.reason}), "
      "which a BPE needs; the tokenizer 'bytes' takes any text"
    ) from error


def _cut(text: str, seam: re.Pattern) -> Iterator[str]:
  """Pieces of about PIECE characters that encode as the whole would."""
  start = 0
  while start < len(text):
    found = seam.search(text, start + PIECE)
    end = found.start() if found else len(text)
    yield text[start:end]
    start = end


def _parts(text: str, level) -> Iterator[str]:
  """The text, or its words in parts where one may be too long to learn from."""
  if not LONG.search(text):
    yield text
    return
  for _, (start, end) in level.pre_tokenize_str(text):
    for at in range(start, end, LONGEST):
      yield text[at : min(at + LONGEST, end)]
