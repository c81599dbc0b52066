"""A trained model as one file: config, tokeniser and entropy-coded weights.

  magic, version   7 bytes and 1
  checksum         SHA-256 of all that follows, 32 bytes
  size             of the header, 4 bytes
  header           LZMA of JSON: config, tokeniser, bits, and of each array its
                   path, kind, shape, and how many bytes each part has
  arrays           one after another

An array of role Matrix, Embedding or Table is symbols of few bits and steps
(train/rounding.py), but for what ternary maps learn, which are -1, 0 and 1 with
a scale a part; with --bits=16, as everything else, it is float16. Buffers, and
what float16 would overflow, are as they are. Symbols and the bytes of numbers
are coded by `constriction` (range asymmetric numeral systems) with a histogram
an array, to about a hundredth of a bit of their entropy.

What is read is what was scored: launch.evaluate of the file gives the bits per
byte of the rounded weights exactly.

ValueErrors name a file that is truncated, of a newer format, or damaged.
"""

import hashlib
import json
import lzma
import math
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from arch import arrays, layers, lm
from arch.weights import ternary
from train import rounding, tokenizer, workdir

MAGIC, VERSION = b"SMALLLM", 1
BITS = ("16", "8", "6", "4", "ternary")
HEAD = len(MAGIC) + 1 + 32 + 4


class Artefact(NamedTuple):
  """
  Attributes:
    config: the run's.
    tokens: its tokeniser.
    model: with the weights that the file holds.
    bits: as given to `write`.
  """

  config: dict
  tokens: object
  model: lm.LM
  bits: str


def coder():
  try:
    import constriction
  except ImportError:
    raise ValueError(
      "artefacts need the package constriction: pip install constriction"
    ) from None
  return constriction.stream


def coded(symbols) -> tuple[bytes, dict]:
  """Whole numbers as bytes, histogram first, and what `decoded` is told."""
  flat = np.asarray(symbols, np.int32).ravel()
  low = int(flat.min())
  counts = np.bincount(flat - low)
  # whole numbers: a float that is above the largest would be taken for 0
  table = (-(-counts * 65_535 // counts.max())).astype("<u2")
  if len(table) == 1:  # one symbol needs no code
    return b"", {"low": low, "symbols": 1, "bytes": 0}
  stream = coder()
  ans = stream.stack.AnsCoder()
  ans.encode_reverse(flat - low, histogram(stream, table))
  words = ans.get_compressed().astype("<u4").tobytes()
  about = {"low": low, "symbols": len(table), "bytes": len(words)}
  return table.tobytes() + words, about


def histogram(stream, table):
  chances = table.astype(np.float64)
  return stream.model.Categorical(chances / chances.sum(), perfect=False)


def decoded(data: "Reader", about: dict, count: int):
  """The numbers that `coded` was given, int32, and so many."""
  n = about["symbols"]
  if n == 1:
    return np.full(count, about["low"], np.int32)
  stream = coder()
  table = np.frombuffer(data.take(2 * n), "<u2")
  words = np.frombuffer(data.take(about["bytes"]), "<u4").astype(np.uint32)
  ans = stream.stack.AnsCoder(words)
  return ans.decode(histogram(stream, table), count) + np.int32(about["low"])


def halves(x) -> tuple[bytes, dict]:
  """Float16, its high bytes and its low ones coded apart."""
  both = np.ascontiguousarray(x, "<f2").view(np.uint8).reshape(-1, 2)
  parts = [coded(both[:, i]) for i in (0, 1)]
  return b"".join(p for p, _ in parts), {"halves": [a for _, a in parts]}


def unhalved(data: "Reader", about: dict, shape):
  count = math.prod(shape)
  both = [decoded(data, part, count) for part in about["halves"]]
  found = np.stack(both, -1).astype(np.uint8)
  return found.view("<f2").reshape(shape).astype(np.float32)


class Reader:
  def __init__(self, data: bytes):
    self.data, self.at = data, 0

  def take(self, size: int) -> bytes:
    self.at += size
    return self.data[self.at - size : self.at]


def ternaries(model) -> dict[tuple, tuple[int, ...]]:
  """Widths of the parts of every ternary weight, by its path."""
  found = {}
  for path, node in nnx.iter_graph(model):
    if isinstance(node, layers.Linear | layers.Linears):
      if isinstance(node.kind, ternary.Weight):
        widths = getattr(node, "widths", None) or (node.d_out,)
        found[(*path, "weight")] = widths
  return found


def put(x, role: str | None, bits: str, parts) -> tuple[bytes, dict]:
  """An array as bytes, and how to read it."""
  x = np.asarray(x)
  about = {"shape": list(x.shape)}
  if x.size and (parts or (bits == "ternary" and role == "Matrix")):
    q, scales = three(x, parts or (x.shape[-1],))
    data, more = coded(q)
    about |= {"kind": "ternary", "parts": list(parts or (x.shape[-1],))}
    return data + scales.astype("<f4").tobytes(), about | {"q": more}
  few = "8" if bits == "ternary" else bits
  if few != "16" and rounding.axes(x.shape, role):
    q, steps = rounding.rounded(jnp.asarray(x), role, int(few))
    data, more = coded(q)
    scales, size = halves(steps)
    shape = list(np.shape(steps))
    return data + scales, about | {
      "kind": "rounded",
      "q": more,
      "steps": size,
      "of": shape,
    }
  small = role and x.size and x.dtype == np.float32
  if small and np.abs(x).max() < np.finfo(np.float16).max:
    data, more = halves(x)
    return data, about | {"kind": "float16"} | more
  data = np.ascontiguousarray(x).tobytes()
  dtype = x.dtype.name
  return data, about | {"kind": "whole", "dtype": dtype, "bytes": len(data)}


def three(w, parts):
  """-1, 0 and 1, and the scale of each part of each matrix, with which these
  are what a ternary map makes of w: leading axes are others'."""
  q, scales = [], []
  for part in np.split(w, np.cumsum(parts)[:-1], -1):
    s = np.mean(np.abs(part), (-1, -2), keepdims=True)
    s = np.maximum(s, ternary.TINY)
    q.append(np.clip(np.round(part / s), -1, 1))
    scales.append(s)
  return np.concatenate(q, -1).astype(np.int8), np.concatenate(scales, -1)


def unthree(q, scales, parts):
  """A matrix of which a ternary map makes q times its scales: divided by the
  share of what is not 0, which is what the mean of |w| then has."""
  found = []
  for i, part in enumerate(np.split(q, np.cumsum(parts)[:-1], -1)):
    share = np.mean(np.abs(part), (-1, -2), keepdims=True, dtype=np.float32)
    s = scales[..., i : i + 1] / np.maximum(share, 1e-12)
    found.append(part.astype(np.float32) * s)
  return np.concatenate(found, -1)


def get(data: Reader, about: dict, learnt: bool):
  """What `put` was given, rounded. learnt: whether a ternary map reads it."""
  shape = tuple(about["shape"])
  count = math.prod(shape)
  match about["kind"]:
    case "rounded":
      q = decoded(data, about["q"], count).reshape(shape)
      return q * unhalved(data, about["steps"], about["of"])
    case "ternary":
      parts = about["parts"]
      q = decoded(data, about["q"], count).reshape(shape)
      leads = (*shape[:-2], 1, len(parts))
      scales = np.frombuffer(data.take(4 * math.prod(leads)), "<f4")
      scales = scales.reshape(leads)
      if learnt:
        return unthree(q, scales, parts)
      return q * np.repeat(scales, parts, -1)
    case "float16":
      return unhalved(data, about, shape)
    case "whole":
      found = np.frombuffer(data.take(about["bytes"]), about["dtype"])
      return found.reshape(shape)
  raise ValueError(f"an array of unknown kind {about['kind']!r}")


def packed(model, bits: str) -> tuple[dict, list[bytes]]:
  """A model's arrays as bytes, and how to read them."""
  params, buffers = (flatten_dict(tree) for tree in arrays.pure(model))
  roles, parts = flatten_dict(arrays.roles(model)), ternaries(model)
  about, blobs = {}, []
  for tree, leaves in (("params", params), ("buffers", buffers)):
    about[tree] = []
    for name in sorted(leaves):
      data, how = put(leaves[name], roles.get(name), bits, parts.get(name))
      about[tree].append({"path": list(name)} | how)
      blobs.append(data)
  return about, blobs


def unpacked(about: dict, data: bytes, model):
  """The model, which may be abstract, with the arrays of these bytes."""
  learnt, blobs, trees = ternaries(model), Reader(data), []
  for tree in ("params", "buffers"):
    found = {}
    for how in about[tree]:
      name = tuple(how["path"])
      found[name] = jnp.asarray(get(blobs, how, name in learnt))
    trees.append(unflatten_dict(found))
  return arrays.fill(model, *trees)


def rounded(model, bits: str):
  """The model that a file of these bits holds, and the bytes of its arrays."""
  about, blobs = packed(model, bits)
  data = b"".join(blobs)
  return unpacked(about, data, model), len(data)


def write(path, config, tokens, model, bits: str = "16") -> int:
  """Writes a model; its size in bytes.

  Args:
    config: the run's, nested dicts of what JSON can hold.
    tokens: its tokeniser.
    bits: one of BITS, of matrices and tables; of ternary ones 8 are tables'.

  Raises:
    ValueError: other bits.
  """
  if bits not in BITS:
    raise ValueError(f"--bits={bits}: one of {', '.join(BITS)}")
  about, blobs = packed(model, bits)
  with tempfile.TemporaryDirectory() as folder:
    tokens.save(Path(folder) / tokenizer.FILE)
    text = (Path(folder) / tokenizer.FILE).read_text(encoding="utf-8")
  header = {"config": config, "tokenizer": text, "bits": bits, **about}
  text = lzma.compress(json.dumps(header).encode(), preset=9)
  rest = len(text).to_bytes(4, "little") + text + b"".join(blobs)
  checksum = hashlib.sha256(rest).digest()
  whole = MAGIC + bytes([VERSION]) + checksum + rest
  workdir.replace(path, whole)
  return len(whole)


def read(path) -> Artefact:
  """What `write` wrote."""
  data = Path(path).read_bytes()
  if not data.startswith(MAGIC):
    raise ValueError(f"{path} is no artefact of launch.export")
  version = data[len(MAGIC)] if len(data) > len(MAGIC) else 0
  if version > VERSION:
    raise ValueError(
      f"{path} has format {version}, this version reads up to {VERSION}"
    )
  body = len(MAGIC) + 1
  checksum, rest = data[body : body + 32], data[body + 32 :]
  if len(data) < HEAD or hashlib.sha256(rest).digest() != checksum:
    raise ValueError(f"{path} is truncated or damaged: its checksum is wrong")
  size = int.from_bytes(rest[:4], "little")
  header = json.loads(lzma.decompress(rest[4 : 4 + size]))
  config = workdir.tuples(header["config"])
  with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / tokenizer.FILE
    file.write_text(header["tokenizer"], encoding="utf-8")
    tokens = tokenizer.load(file, config["model"]["vocab"]["size"])
  model = lm.abstract(config["model"])
  model = unpacked(header, rest[4 + size :], model)
  return Artefact(config, tokens, model, header["bits"])
