"""What a model is trained on: text in packed windows, or a synthetic task.

A batch is a dict of arrays, B sequences of T:
  tokens   int32    inputs; `vocab` is the start symbol, an input only
  targets  int32    the symbol that follows, 0 <= target < vocab
  weights  float32  1 where the target counts, else 0
  reset    bool     True at the first input of a document, its start symbol
n symbols of a document are n targets, b0 ... b_{n-1}, for the inputs start,
b0 ... b_{n-2}. Documents stand end to end. A training window that begins
inside a document gets the symbol before it as its first input and no reset
there: the fresh state that it meets is one.

Batches depend on the data, the tokeniser, B, T and the seed, never on a model.
Errors are ValueErrors that name what was given and what is known.
"""

import ast
import contextlib
import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from arch.config import closest
from arch.lm import configure
from train import cache, corpus, sources, tasks, tokenizer
from train.corpus import Progress, Split
from train.growing import Growing

KNOWN = ("stdlib", "text:PATH", "bytes:PATH", "tfds:NAME[/CONFIG]")
COUNTED = 20_000_000  # symbols of which co-occurrences are counted
SAMPLE = 1 << 28  # bytes that a BPE is learnt from, at most
PADDED = 4 / 3  # rows side by side hold at most so many times their symbols
VALID, TEST = 1, 2  # streams of a task's key; 0 is training's

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Which data.

  Attributes:
    name: stdlib, text:PATH, bytes:PATH, tfds:NAME[/CONFIG] (see train.sources)
      or task:NAME, which may be followed by fields of the task's own Config:
      task:mqar,vocab=128,pairs=8.
    tokenizer: of text: bytes or bpe.
    vocab: of bpe: how many symbols to learn.
    documents: whether text begins anew at each document (start symbol and
      reset), or runs on as if it were one.
  """

  name: str = "stdlib"
  tokenizer: str = "bytes"
  vocab: int = 4096
  documents: bool = True

  def __post_init__(self):
    if self.tokenizer not in tokenizer.KINDS:
      raise ValueError(
        f"unknown tokenizer {self.tokenizer!r}: "
        f"{closest(self.tokenizer, tokenizer.KINDS)}"
      )
    whole = isinstance(self.vocab, int) and not isinstance(self.vocab, bool)
    if self.tokenizer == "bpe" and not (whole and 256 <= self.vocab <= 65536):
      raise ValueError(f"vocab={self.vocab}: a byte-level BPE has 256 to 65536")


def load(
  cfg: Mapping[str, Any],
  *,
  tokens: tokenizer.Bytes | tokenizer.BPE | None = None,
  progress: Progress = logging.info,
) -> "Text | Task":
  """The data that cfg (fields of Config) names.

  Args:
    tokens: a tokeniser to use instead of cfg's, such as a trained model's.
    progress: told in a line what takes more than a moment.
  """
  cfg = configure(Config, "data", **cfg)
  kind, _, rest = cfg.name.partition(":")
  if kind == "task" and rest:
    name, _, fields = rest.partition(",")
    return Task(name, _fields(cfg.name, fields))
  if cfg.name == "stdlib":
    source = sources.from_stdlib(progress)
  elif kind in ("text", "bytes") and rest:
    source = sources.from_path(rest, kind == "bytes", progress)
  elif kind == "tfds" and rest:
    source = sources.from_tfds(rest, progress)
  else:
    if os.path.exists(os.path.expanduser(cfg.name)):
      raise ValueError(
        f"unknown data {cfg.name!r}: text in a file is text:{cfg.name}"
      )
    known = [*KNOWN, *(f"task:{name}" for name in tasks.names())]
    raise ValueError(f"unknown data {cfg.name!r}: {closest(cfg.name, known)}")
  if not cfg.documents:
    source = source.joined()
  note = source.note
  if tokens is None and cfg.tokenizer == "bytes":
    tokens = tokenizer.Bytes()
  elif tokens is None:
    tokens, sampled = _bpe(source, cfg.vocab, progress)
    short = f"its training text yields {tokens.vocab} of {cfg.vocab} symbols"
    short *= tokens.vocab < cfg.vocab
    note = "; ".join(filter(None, [note, sampled, short]))
  return Text(source, tokens, note, progress)


@dataclasses.dataclass(frozen=True)
class Batches:
  """A fixed list of batches, each made when it is asked for.

  Attributes:
    count: how many.
    bytes: how many bytes of raw text they score together; 0 for a task.
    make: batch number -> batch.
  """

  count: int
  bytes: int
  make: Callable[[int], Batch]

  def __len__(self) -> int:
    return self.count

  def __iter__(self) -> Iterator[Batch]:
    return map(self.make, range(self.count))


@dataclasses.dataclass(frozen=True)
class Packed:
  """Symbols of documents end to end, as a circle.

  Attributes:
    targets: N unsigned integers.
    starts: where documents begin among them, sorted; the first is 0.
    symbol: the start symbol.
  """

  targets: np.ndarray
  starts: np.ndarray
  symbol: int

  def __len__(self) -> int:
    return len(self.targets)

  def windows(self, places: np.ndarray, length: int, ends=None) -> Batch:
    """The `length` targets from each of `places` on; past the end: begin.

    Args:
      ends: from where on targets weigh nothing, one for all or one a window.
    """
    at = places[:, None] + np.arange(-1, length)[None]
    symbols = self.targets.take(at, mode="wrap").astype(np.int32)
    reset = self.first(places, length)
    weights = np.ones(reset.shape, np.float32)
    if ends is not None:
      weights[at[:, 1:] >= np.reshape(ends, (-1, 1))] = 0
    return {
      "tokens": np.where(reset, np.int32(self.symbol), symbols[:, :-1]),
      "targets": symbols[:, 1:],
      "weights": weights,
      "reset": reset,
    }

  def first(self, places: np.ndarray, length: int) -> np.ndarray:
    """Whether a document begins at each of the `length` from `places` on."""
    rounds, inside = np.divmod([places, places + length], len(self))
    # starts are numbered on from round to round
    begin, end = rounds * len(self.starts) + np.searchsorted(
      self.starts, inside
    )
    counts = end - begin
    row = np.arange(len(places)).repeat(counts)
    number = np.arange(counts.sum()) + (end - counts.cumsum()).repeat(counts)
    rounds, inside = np.divmod(number, len(self.starts))
    found = np.zeros((len(places), length), bool)
    at = rounds * len(self) + self.starts[inside] - places[row]
    found[row, at] = True
    return found

  def lanes(self, count: int, apart: np.ndarray) -> np.ndarray:
    """Where `count` parts of about equal size begin, and the end.

    Args:
      apart: where a part may begin, ascending from 0; what is nearest to an
        even cut is taken, for several where there are few.
    """
    edges = np.append(apart, len(self))
    even = np.arange(count + 1) * len(self) / count
    after = np.searchsorted(edges, even).clip(1, len(edges) - 1)
    below, above = edges[after - 1], edges[after]
    return np.where(even - below < above - even, below, above)


class Text:
  """Text and a tokeniser.

  Attributes:
    vocab: number of targets.
    hash: SHA-256 of the raw text, whatever the tokeniser.
    note: what a reader of a result on it has to know, or "".
  """

  is_task = False
  metric, better = "bits_per_byte", "min"

  def __init__(
    self,
    source: corpus.Corpus,
    tokens: tokenizer.Bytes | tokenizer.BPE,
    note: str,
    progress: Progress,
  ):
    self.corpus, self.tokenizer, self.note = source, tokens, note
    self.name, self.hash, self.vocab = source.name, source.hash, tokens.vocab
    self._progress = progress
    self._packed = functools.cache(self._encode)

  def encode(self, text: bytes) -> np.ndarray:
    return self.tokenizer.encode(text)

  def decode(self, ids: Iterable[int]) -> bytes:
    return self.tokenizer.decode(ids)

  def bytes_of(self, split: str) -> int:
    return len(self._split(split).bytes)

  def train(self, batch: int, length: int, seed: int | tuple[int, ...]):
    """A Grain iterator of batches without end; its state is one number.

    Several seeds give batches R B T, each replicate that of its seed alone.

    An epoch cuts the text into windows from an offset of its own, in an order
    of its own, so what a window holds differs from epoch to epoch.
    """
    import grain

    packed = self._packed("train")
    windows = len(packed) // length
    if not windows:
      raise ValueError(
        f"{self.name}: its training text has {len(packed)} tokens, less than "
        f"one window of {length=}"
      )

    def one(seed):
      @functools.lru_cache(maxsize=2)
      def offset(epoch):
        return np.random.default_rng((seed, epoch)).integers(len(packed))

      def place(index, window):
        return (offset(index // windows) + window * length) % len(packed)

      return (
        grain.MapDataset.range(windows)
        .seed(seed)
        .shuffle()
        .repeat()
        .map_with_index(place)
        .batch(batch, drop_remainder=True)
        .map(lambda starts: packed.windows(starts, length))
      )

    if isinstance(seed, int):
      batches = one(seed)
    else:
      batches = grain.experimental.ZipMapDataset([one(s) for s in seed]).map(
        lambda parts: jax.tree.map(lambda *leaves: np.stack(leaves), *parts)
      )
    return iter(
      batches.to_iter_dataset(
        # a window is a copy of memory: threads would cost more than they bring
        grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
      )
    )

  def windows(
    self, split: str, length: int, size: int | None = None, batch: int = 8
  ) -> Batches:
    """The first `size` bytes of a split (all without) in fixed windows.

    Each byte is scored once, whatever `length` and `batch`. The slice is
    chosen by bytes, so every tokeniser scores the same text. What pads the
    last batch weighs nothing.
    """
    part = self._split(split)
    if size is None or size >= len(part.bytes):
      packed = self._packed(split)
    else:
      part = part.head(max(size, 0))
      if not len(part.bytes):
        raise ValueError(
          f"{self.name}: the first {size} bytes of its {split} split hold no "
          "whole symbol of UTF-8; score more (eval_bytes)"
        )
      packed = self._pack(split, part)

    def make(index):
      starts = (index * batch + np.arange(batch)) * length
      return packed.windows(starts, length, len(packed))

    return Batches(-(-len(packed) // (batch * length)), len(part.bytes), make)

  def lanes(
    self, split: str, length: int, counts: Iterable[int], windows: bool = False
  ) -> tuple[Batches, int]:
    """A whole split in rows side by side, each of which goes on from batch to
    batch, and how many rows there are.

    Each byte is scored once, and each document is of one row: as many rows as
    are asked for, or fewer where documents are too few or too unequal. What
    pads the shorter ones weighs nothing.

    Args:
      counts: how many rows there may be, the best first; the last is 1. Taken
        is the first that pads little, see PADDED.
      windows: whether rows begin with any window, in place of a document.
    """
    packed = self._packed(split)
    apart = np.arange(0, len(packed), length) if windows else packed.starts
    alone = -(-len(packed) // length)
    for count in counts:
      edges = packed.lanes(count, apart)
      calls = -(-int(np.diff(edges).max()) // length)
      if count * calls <= PADDED * alone:
        break

    def make(index):
      return packed.windows(edges[:-1] + index * length, length, edges[1:])

    return Batches(calls, self.bytes_of(split), make), count

  def counts(self):
    """How often each symbol of the training text follows each, sparse: among
    the first COUNTED of them."""
    from arch import quantiser  # scipy, which few models want

    packed = self._packed("train")
    targets = packed.targets[:COUNTED]
    (first,) = packed.first(np.zeros(1, np.int64), len(targets))
    return quantiser.pairs(targets, first, self.vocab + 1)

  def _split(self, split: str) -> Split:
    if split not in corpus.SPLITS:
      raise ValueError(
        f"unknown split {split!r}: {closest(split, corpus.SPLITS)}"
      )
    return self.corpus.splits[split]

  def _pack(self, split: str, part: Split) -> Packed:
    with self._told(split):
      return Packed(*self.tokenizer.encode_all(part), self.vocab)

  @contextlib.contextmanager
  def _told(self, split: str):
    try:
      yield
    except ValueError as error:
      raise ValueError(f"{self.name}, {split}: {error}") from None

  def _encode(self, split: str) -> Packed:
    part = self._split(split)
    if isinstance(self.tokenizer, tokenizer.Bytes):
      return self._pack(split, part)

    def fill(folder):
      size = len(part.bytes)
      self._progress(
        f"encoding the {split} split of {self.name}, once: {size / 1e6:.1f} MB"
      )
      with (
        self._told(split),
        Growing(folder, "place", ("targets", "starts"), (0, 0)) as files,
      ):
        at, count = files.at
        with corpus.bar(self.name, "encoding", size, at) as encoded:
          for ids, starts, end in self.tokenizer.encoded(part, at):
            files.append("targets", ids)
            files.append("starts", starts + count)
            count += len(ids)
            files.stand((end, count))
            encoded.update(end - at)
            at = end

    folder = cache.kept(
      f"symbols-{self.hash[:32]}-{self.tokenizer.hash[:32]}-{split}",
      fill,
      self._progress,
    )
    return Packed(
      corpus.mapped(folder / "targets", self.tokenizer.dtype),
      corpus.mapped(folder / "starts", corpus.START),
      self.vocab,
    )


def _bpe(source: corpus.Corpus, vocab: int, progress: Progress):
  """A BPE of the training text, and what was read of that, if not all."""
  train = source.splits["train"]
  size, sampled = len(train.bytes) / 1e6, len(train.bytes) > SAMPLE
  of = f"{SAMPLE / 1e6:.0f} of its {size:.0f} MB, evenly spread"

  def fill(folder):
    progress(
      f"training a BPE of {vocab} symbols on {source.name}, once: "
      + (of if sampled else f"{size:.1f} MB")
    )
    part = train.sample(SAMPLE)
    learnt = tokenizer.BPE.train(part.documents(), vocab)
    learnt.by_frequency(part).save(folder / tokenizer.FILE)

  key = f"bpe-by-frequency-{source.hash[:32]}-{vocab}" + f"-{SAMPLE}" * sampled
  folder = cache.kept(key, fill, progress)
  tokens = tokenizer.load(folder / tokenizer.FILE)
  return tokens, f"the BPE is learnt from {of}" * sampled


def _fields(name: str, text: str) -> dict[str, Any]:
  """a=1,b=(2,3),c=word as a dict."""
  try:
    call = ast.parse(f"f({text})", mode="eval").body
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
      raise ValueError("not fields and values alone")
    if call.args or any(k.arg is None for k in call.keywords):
      raise ValueError("a value without a field's name")
    return {k.arg: _value(k) for k in call.keywords}
  except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
    raise ValueError(
      f"{name!r}: fields of a task are written as task:mqar,vocab=128,pairs=8 "
      f"({getattr(error, 'msg', error)})"
    ) from None


def _value(field: ast.keyword):
  if isinstance(field.value, ast.Name):
    return field.value.id
  try:
    return ast.literal_eval(field.value)
  except (ValueError, TypeError):
    raise ValueError(
      f"{ast.unparse(field)} is no number, word or tuple of numbers"
    ) from None


class Task:
  """A synthetic task: batches made on the device, without end.

  Attributes:
    cfg: the task's own Config.
    vocab, note, length: the Config's.
    hash: SHA-256 of the task's name and of what it trains and scores.
  """

  is_task = True
  metric, better = "accuracy", "max"

  def __init__(self, name: str, fields: Mapping[str, Any]):
    self._task = tasks.get(name)
    self.cfg = configure(self._task.Config, f"task:{name}", **fields)
    own = ",".join(f"{k}={v}" for k, v in fields.items())
    self.name = f"task:{name}" + (f",{own}" if own else "")
    self.vocab = self.cfg.vocab
    self.length, self.note = self.cfg.length, self.cfg.note
    both = f"{name} {self.cfg} {self.cfg.scored}"
    self.hash = hashlib.sha256(both.encode()).hexdigest()

  def counts(self):
    raise ValueError(f"{self.name} has no training text to count symbols in")

  def batch(self, seed, step, batch: int, length: int) -> dict[str, jax.Array]:
    """Training batch number `step`; seed and step may be traced."""
    return self._make(self.cfg, (0, seed, step), batch, length)

  def windows(
    self, split: str, length: int, size: int = 256_000, batch: int = 8
  ) -> Batches:
    """A fixed set of at least `size` tokens, apart from every training set."""
    streams = {"valid": VALID, "test": TEST}
    if split not in streams:
      raise ValueError(f"unknown split {split!r}: {closest(split, streams)}")
    if size < 1:
      raise ValueError(f"{self.name}: {size} tokens to score (eval_bytes)")
    cfg = self.cfg.scored
    make = jax.jit(
      lambda index: self._make(cfg, (streams[split], 0, index), batch, length)
    )
    return Batches(-(-size // (batch * length)), 0, make)

  def _make(self, cfg, path, batch: int, length: int) -> dict[str, jax.Array]:
    if length != self.length:
      raise ValueError(
        f"{self.name} makes sequences of {self.length}, asked for {length=}"
      )
    key = functools.reduce(jax.random.fold_in, path, jax.random.key(0))
    return self._task.batch(cfg, key, batch)
