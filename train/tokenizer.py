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
# Where a text may be cut without changing a symbol. GPT-2's split into words
# never joins a line feed that is followed by no white space to what precedes
# it; those of later models join it to punctuation.
SEAM, NARROW_SEAM = r"\n(?=\S)", r"(?<=[^\W_])\n(?=\S)"


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
    _save(path, json.dumps({"model": {"type": "bytes"}}))


class BPE:
  """A byte-level BPE of the `tokenizers` library, from that library's JSON.

  Symbols that stand for a text of their own, such as <|endoftext|>, are read
  where that text stands and never added. A normaliser to Unicode's NFC is left
  out: it would change the text whose bytes are counted.

  Args:
    text: the JSON.
    size: pads the vocabulary to so many symbols; those beyond its own, and ids
      that it leaves out, spell nothing.

  Raises:
    ValueError: it is of another kind, or not exact.
  """

  def __init__(self, text: str, size: int = 0):
    import tokenizers

    spec = json.loads(text)
    _check(spec)
    self.text = text
    self.bpe = tokenizers.Tokenizer.from_str(
      json.dumps(spec | {"normalizer": None})
    )
    added = {token["content"] for token in spec["added_tokens"]}
    letters = _letters()
    ids = self.bpe.get_vocab()
    self.pieces = [b""] * max(size, 1 + max(ids.values()))
    for token, i in ids.items():
      if token in added:
        self.pieces[i] = token.encode()
      elif letters.keys() >= set(token):
        self.pieces[i] = bytes(letters[c] for c in token)
      else:
        raise ValueError(f"its symbol {token!r} is not spelt in bytes")
    self.dtype = np.min_scalar_type(len(self.pieces) - 1)
    plain = spec["pre_tokenizer"]["type"] == "ByteLevel"
    self.seam = re.compile(SEAM if plain else NARROW_SEAM)

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
    seam = re.compile(SEAM)
    texts = (piece for d in documents for piece in _cut(_text(d), seam))
    # in a thread: a signal is not heard in a call of minutes
    with concurrent.futures.ThreadPoolExecutor(1) as one:
      one.submit(bpe.train_from_iterator, texts, trainer).result()
    return cls(bpe.to_str())

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
    """The symbols of a split, and True where one begins a document."""
    pieces = (
      (piece, i == 0)
      for document in split.documents()
      for i, piece in enumerate(_cut(_text(document), self.seam))
    )
    ids, first = [np.zeros(0, self.dtype)], [np.zeros(0, bool)]
    while batch := list(itertools.islice(pieces, BATCH)):
      found = self.bpe.encode_batch_fast(
        [piece for piece, _ in batch], add_special_tokens=False
      )
      for encoding, (_, begins) in zip(found, batch, strict=True):
        ids.append(np.array(encoding.ids, self.dtype))
        first.append((np.arange(len(encoding.ids)) == 0) & begins)
    return np.concatenate(ids), np.concatenate(first)

  def decode(self, ids: Iterable[int]) -> bytes:
    return b"".join(self.pieces[i] for i in ids)

  def save(self, path: pathlib.Path):
    _save(path, self.text)


def _save(path, text: str):
  """A run that goes on leaves the file as it is."""
  path = pathlib.Path(path)
  if not path.exists() or path.read_text(encoding="utf-8") != text:
    workdir.replace(path, text)


def load(path: pathlib.Path, size: int = 0) -> Bytes | BPE:
  """What `save` wrote; a BPE padded to so many symbols."""
  text = pathlib.Path(path).read_text(encoding="utf-8")
  kind = json.loads(text)["model"]["type"]
  return Bytes() if kind == "bytes" else BPE(text, size)


def _check(spec):
  """ValueError unless a tokenizer's JSON is of an exact byte-level BPE."""

  def parts(name, inner):
    one = spec[name]
    return (one or {}).get(inner, [one] if one else [])

  kind = spec["model"]["type"]
  if kind != "BPE":
    raise ValueError(f"it is a {kind}, no BPE")
  for part in parts("normalizer", "normalizers"):
    if part["type"] != "NFC":
      raise ValueError(f"its normaliser {part['type']} changes the text")
  splits = parts("pre_tokenizer", "pretokenizers")
  levels = [part for part in splits if part["type"] == "ByteLevel"]
  if not levels:
    raise ValueError("it splits text without the step ByteLevel")
  if any(level["add_prefix_space"] for level in levels):
    raise ValueError("it adds a space before a text")


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
  return load(path, size)


def _text(text: bytes) -> str:
  try:
    return text.decode()
  except UnicodeDecodeError as error:
    raise ValueError(
      f"byte {error.start} of the text is not UTF-8 ({error.reason}), which a "
      "BPE needs; the tokenizer 'bytes' takes any text"
    ) from error


def _cut(text: str, seam: re.Pattern) -> Iterator[str]:
  """Pieces of about PIECE characters that encode as the whole would."""
  start = 0
  while start < len(text):
    found = seam.search(text, start + PIECE)
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
