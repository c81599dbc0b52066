"""Bytes to symbols and back, without loss: bytes, or a byte-level BPE.

Both are exact: decode(encode(text)) == text, so that bits per byte can count
the bytes of the raw text. The BPE needs UTF-8; bytes need nothing.
"""

import concurrent.futures
import functools
import hashlib
import itertools
import json
import pathlib
import re
from collections.abc import Iterable, Iterator

import numpy as np

from train import workdir
from train.corpus import Split

KINDS = ("bytes", "bpe")
FILE = "tokenizer.json"  # in a run's workdir
# The BPE takes BATCH pieces of about PIECE characters at once: it needs some
# 200 bytes of memory a character.
PIECE, BATCH = 1 << 13, 256


class Bytes:
  """A symbol a byte."""

  vocab = 256

  def encode(self, text: bytes) -> np.ndarray:
    return np.frombuffer(text, np.uint8)

  def encode_all(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
    return split.bytes, split.first

  def decode(self, ids: Iterable[int]) -> bytes:
    return bytes(map(int, ids))

  def save(self, path: pathlib.Path):
    pathlib.Path(path).write_text(json.dumps({"model": {"type": "bytes"}}))


class BPE:
  """A byte-level BPE of the `tokenizers` library, from that library's JSON."""

  dtype = np.uint16

  def __init__(self, text: str):
    import tokenizers

    self.text = text
    self.bpe = tokenizers.Tokenizer.from_str(text)
    letters = _letters()
    self.pieces = [
      bytes(letters[c] for c in self.bpe.id_to_token(i))
      for i in range(self.bpe.get_vocab_size())
    ]

  @classmethod
  def train(cls, documents: Iterable[bytes], vocab: int) -> "BPE":
    """Learns at most `vocab` symbols; short text may yield fewer."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
      vocab_size=vocab,
      show_progress=False,
      initial_alphabet=sorted(_letters()),
    )
    texts = (piece for d in documents for piece in _cut(_text(d)))
    # in a thread: a signal is not heard in a call of minutes
    with concurrent.futures.ThreadPoolExecutor(1) as one:
      one.submit(bpe.train_from_iterator, texts, trainer).result()
    return cls(bpe.to_str())

  @property
  def vocab(self) -> int:
    return len(self.pieces)

  @property
  def hash(self) -> str:
    return hashlib.sha256(self.text.encode()).hexdigest()

  def encode(self, text: bytes) -> np.ndarray:
    return self.encode_all(Split.of([text]))[0]

  def encode_all(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """The symbols of a split, and True where one begins a document."""
    pieces = (
      (piece, i == 0)
      for document in split.documents()
      for i, piece in enumerate(_cut(_text(document)))
    )
    ids, first = [np.zeros(0, self.dtype)], [np.zeros(0, bool)]
    while batch := list(itertools.islice(pieces, BATCH)):
      found = self.bpe.encode_batch_fast([piece for piece, _ in batch])
      for encoding, (_, begins) in zip(found, batch, strict=True):
        ids.append(np.array(encoding.ids, self.dtype))
        first.append((np.arange(len(encoding.ids)) == 0) & begins)
    return np.concatenate(ids), np.concatenate(first)

  def decode(self, ids: Iterable[int]) -> bytes:
    return b"".join(self.pieces[i] for i in ids)

  def save(self, path: pathlib.Path):
    pathlib.Path(path).write_text(self.text, encoding="utf-8")


def load(path: pathlib.Path) -> Bytes | BPE:
  """What `save` wrote."""
  text = pathlib.Path(path).read_text(encoding="utf-8")
  kind = json.loads(text)["model"]["type"]
  return Bytes() if kind == "bytes" else BPE(text)


def of_run(run) -> Bytes | BPE:
  """The tokeniser that a run was trained with.

  Raises:
    ValueError: the run has none: it is no run, or one on a task.
  """
  workdir.of_run(run)  # or says what else it is
  path = pathlib.Path(run) / FILE
  if not path.exists():
    raise ValueError(
      f"no {path}: {run} is no run on text (a task has no tokeniser)"
    )
  return load(path)


def _text(text: bytes) -> str:
  try:
    return text.decode()
  except UnicodeDecodeError as error:
    raise ValueError(
      f"byte {error.start} of the text is not UTF-8 ({error.reason}), which a "
      "BPE needs; the tokenizer 'bytes' takes any text"
    ) from error


def _cut(text: str) -> Iterator[str]:
  """Pieces of about PIECE characters that encode as the whole would.

  The split into words never joins a line feed that is followed by no white
  space to what precedes it, so a cut there changes no symbol.
  """
  start, line = 0, re.compile(r"\n(?=\S)")
  while start < len(text):
    found = line.search(text, start + PIECE)
    end = found.start() if found else len(text)
    yield text[start:end]
    start = end


@functools.cache
def _letters() -> dict[str, int]:
  """Letter -> byte as GPT-2 writes bytes: printable ones are themselves."""
  printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
  rest = [b for b in range(256) if b not in printable]
  return {chr(b): b for b in printable} | {
    chr(256 + i): b for i, b in enumerate(rest)
  }
