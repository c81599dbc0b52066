"""Published checkpoints in Hugging Face's format, in and out, without torch.

A folder holds config.json and *.safetensors, in shards or not. Its model_type
is the name of a file in this package, which exports, for that config `hf`, with
the names of the folder's tensors as `tensors`:

  model(hf)        the fields of a config's `model`
  top(hf)          our parameters outside of the blocks, and what they are made
                   of: path -> rule
  block(hf, i)     those of block i, which may name buffers, too; of one that
                   is shared, those of its first place
  own(hf, i)       where blocks are shared: what block i has to itself
  ignored(hf)      names of tensors that hold nothing of the model's own, or
                   patterns of names, as fnmatch has them

A rule is one array of ours, made of one tensor or more, and back: see Same.
The shapes that a folder must have follow from the rules read backwards, so that
what does not fit is named in the folder's own terms.

Raises ValueError, before anything is written, for a type that is not known, a
tensor that is missing, left over or of another shape or dtype, a file that is
cut short, and for weights that are pickled.
"""

import dataclasses
import fnmatch
import importlib
import json
import pkgutil
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from arch import lm
from arch.layers import closest
from train import tokenizer, workdir
from train.checkpoint import Checkpoints, load_model

SOURCE = "source.json"  # in a workdir: the folder's config, dtypes and shards
CONFIG, INDEX = "config.json", "model.safetensors.index.json"


@dataclasses.dataclass(frozen=True)
class Same:
  """One tensor as it is."""

  name: str

  def ours(self, tensors):
    return tensors[self.name]

  def theirs(self, array) -> dict:
    return {self.name: array}


class Transposed(Same):
  """torch.nn.Linear's weight: d_out x d_in."""

  def ours(self, tensors):
    return tensors[self.name].T

  def theirs(self, array):
    return {self.name: array.T}


class Taps(Same):
  """A depthwise torch.nn.Conv1d's weight: D x 1 x W, ours W x D."""

  def ours(self, tensors):
    return tensors[self.name][:, 0].T

  def theirs(self, array):
    return {self.name: array.T[:, None]}


@dataclasses.dataclass(frozen=True)
class Flat(Same):
  """A tensor of this shape; ours has one axis."""

  shape: tuple[int, ...]

  def ours(self, tensors):
    return tensors[self.name].ravel()

  def theirs(self, array):
    return {self.name: array.reshape(self.shape)}


@dataclasses.dataclass(frozen=True)
class Heads(Same):
  """A tensor of one axis; ours has a row for each of so many heads."""

  heads: int

  def ours(self, tensors):
    return tensors[self.name].reshape(self.heads, -1)

  def theirs(self, array):
    return {self.name: array.ravel()}


@dataclasses.dataclass(frozen=True)
class Rows(Same):
  """A row per symbol; ours has one more, the start symbol's.

  Attributes:
    start: the symbol that begins a document there, whose row becomes ours too;
      None for a row of zeros.
  """

  start: int | None = None

  def ours(self, tensors):
    rows = super().ours(tensors)
    first = rows[self.start] if self.start is not None else 0 * rows[0]
    return np.concatenate([rows, first[None]])

  def theirs(self, array):
    return {self.name: array[:-1]}


@dataclasses.dataclass(frozen=True)
class Part(Same):
  """Rows from `start` to `stop` of a torch.nn.Linear's weight, transposed.

  Of such parts `backwards` makes the whole.
  """

  start: int
  stop: int

  def ours(self, tensors):
    return tensors[self.name][self.start : self.stop].T

  def theirs(self, array):
    return {self.name: {self.start: array.T}}


@dataclasses.dataclass(frozen=True)
class Joined:
  """Several rules' arrays side by side on the last axis, of these widths."""

  rules: tuple
  widths: tuple[int, ...]

  def ours(self, tensors):
    return np.concatenate([rule.ours(tensors) for rule in self.rules], -1)

  def theirs(self, array):
    found, start = {}, 0
    for rule, width in zip(self.rules, self.widths, strict=True):
      found |= rule.theirs(array[..., start : start + width])
      start += width
    return found


@dataclasses.dataclass(frozen=True)
class Permuted:
  """A rule's array with the numbers of its last axis in another order."""

  rule: object
  order: np.ndarray  # which of theirs each of ours is

  def ours(self, tensors):
    return self.rule.ours(tensors)[..., self.order]

  def theirs(self, array):
    return self.rule.theirs(array[..., np.argsort(self.order)])


@dataclasses.dataclass(frozen=True)
class Stacked:
  """Several rules' arrays on a new first axis, as those of experts."""

  rules: tuple

  def ours(self, tensors):
    return np.stack([rule.ours(tensors) for rule in self.rules])

  def theirs(self, array):
    found = {}
    for rule, part in zip(self.rules, array, strict=True):
      found |= rule.theirs(part)
    return found


@dataclasses.dataclass(frozen=True)
class Absent:
  """A buffer of ours that the format has no place for, 0 where one starts."""

  path: tuple[str, ...]
  shape: tuple[int, ...]

  def ours(self, tensors):
    return np.zeros(self.shape)

  def theirs(self, array):
    if np.any(array):
      raise ValueError(
        f"the format has no place for {'.'.join(self.path)}, which training "
        "has changed"
      )
    return {}


def names() -> list[str]:
  return sorted(m.name for m in pkgutil.iter_modules(__path__))


def find(hf: Mapping, where):
  """The file of this package for a config.json."""
  kind = hf.get("model_type")
  if kind not in names():
    raise ValueError(
      f"{where}: unknown model_type {kind!r}: {closest(str(kind), names())}"
    )
  return importlib.import_module(f"train.convert.{kind}")


def told(hf: Mapping, tensors) -> dict:
  """What a type is told: config.json, and which tensors the folder has."""
  return {**hf, "tensors": frozenset(tensors)}


def under(name: str, parts: Mapping) -> dict:
  """Path -> rule of a part of a block, from its own."""
  return {(name, *path): rule for path, rule in parts.items()}


def demand(hf: Mapping, **expected):
  """ValueError where a field of config.json is set to what we do not have."""
  for name, value in expected.items():
    if hf.get(name, value) != value:
      raise ValueError(
        f"{hf['model_type']}: {name}={hf[name]!r} is not supported, only "
        f"{value!r}"
      )


@dataclasses.dataclass(frozen=True)
class Folder:
  """What a checkpoint's folder holds."""

  hf: dict
  tensors: dict[str, np.ndarray]
  shards: dict[str, str]  # tensor -> its file


def read(path) -> Folder:
  """Reads config.json and every tensor of a folder."""
  from safetensors import SafetensorError
  from safetensors.numpy import load_file

  path = Path(path)
  try:
    hf = json.loads((path / CONFIG).read_text(encoding="utf-8"))
  except FileNotFoundError:
    raise ValueError(f"{path} holds no {CONFIG}: name a checkpoint") from None
  except ValueError as e:
    raise ValueError(f"{path / CONFIG} is not JSON: {e}") from None
  files = sorted(path.glob("*.safetensors"))
  if not files:
    pickled = sorted(p.name for p in path.glob("*.bin"))
    raise ValueError(
      f"{path} has no *.safetensors"
      + (
        f", only {', '.join(pickled)}: pickled weights run code when they are "
        "read; save them as safetensors where they come from"
        if pickled
        else ""
      )
    )
  tensors, shards = {}, {}
  for file in files:
    try:
      found = load_file(file)
    except SafetensorError as e:
      raise ValueError(f"{file} is cut short or damaged: {e}") from None
    tensors |= found
    shards |= dict.fromkeys(found, file.name)
  index = path / INDEX
  if index.exists():
    listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    missing = sorted(set(listed) - set(tensors))
    if missing:
      raise ValueError(
        f"{path}: {INDEX} lists {missing[0]} in {listed[missing[0]]}, which is "
        f"not there ({len(missing)} such tensors)"
      )
  return Folder(hf, tensors, shards)


def arrays(model) -> dict:
  """Parameters and buffers by their path."""
  params, buffers = lm.pure(model)
  return flatten_dict(params) | flatten_dict(buffers)


def rules(hf: Mapping, module, model) -> dict:
  """Path of every array -> its rule, or a list of one a repeat."""
  found = dict(module.top(hf))
  layer = 0
  for i, n in enumerate(model.repeats):
    stack = f"stack_{i}"
    places = getattr(model, stack).places
    for _ in range(n):
      for j, place in enumerate(places):
        for path, rule in module.block(hf, layer).items():
          if place.share:
            found.setdefault((f"shared_{place.share}", *path), rule)
          else:
            found.setdefault((stack, f"block_{j}", *path), []).append(rule)
        if place.aside or place.own:
          for path, rule in module.own(hf, layer).items():
            found.setdefault((stack, f"own_{j}", *path), []).append(rule)
        layer += 1
  _, buffers = lm.pure(model)
  for path, buffer in flatten_dict(buffers).items():
    found.setdefault(path, Absent(path, buffer.shape))
  return found


def backwards(found: Mapping, ours: Mapping) -> dict[str, np.ndarray]:
  """The folder's tensors, from our flat arrays."""
  if found.keys() != ours.keys():
    raise ValueError(
      "the rules and the model differ in "
      + ", ".join(".".join(p) for p in sorted(found.keys() ^ ours.keys()))
    )
  tensors = {}
  for path, rule in found.items():
    several = rule if isinstance(rule, list) else [rule]
    parts = ours[path] if isinstance(rule, list) else [ours[path]]
    for one, array in zip(several, parts, strict=True):
      for name, tensor in one.theirs(array).items():
        if isinstance(tensor, dict):
          tensors.setdefault(name, {}).update(tensor)
        else:
          tensors[name] = tensor
  for name, tensor in tensors.items():
    if isinstance(tensor, dict):
      tensors[name] = np.concatenate([tensor[i] for i in sorted(tensor)])
  return tensors


def forwards(found: Mapping, tensors: Mapping) -> dict:
  """Our flat arrays in float32, from the folder's tensors."""

  def one(rule):
    return np.asarray(rule.ours(tensors), np.float32)

  return {
    path: np.stack([one(r) for r in rule])
    if isinstance(rule, list)
    else one(rule)
    for path, rule in found.items()
  }


def check(where, expected: Mapping, given: Mapping, ignored):
  """Names every tensor that does not fit."""
  wrong = []
  for name in sorted(expected.keys() | given.keys()):
    if name not in given:
      wrong.append(f"{name} is missing; expected {list(expected[name].shape)}")
    elif name not in expected:
      if not any(fnmatch.fnmatchcase(name, own) for own in ignored):
        wrong.append(f"{name} {list(given[name].shape)} has no place")
    elif given[name].shape != expected[name].shape:
      wrong.append(
        f"{name} is {list(given[name].shape)}, expected "
        f"{list(expected[name].shape)}"
      )
    elif given[name].dtype.name not in ("float32", "bfloat16", "float16"):
      wrong.append(
        f"{name} is {given[name].dtype.name}, expected float32, bfloat16 or "
        "float16"
      )
  if wrong:
    raise ValueError(
      f"{where} does not fit its {CONFIG}:\n  " + "\n  ".join(wrong)
    )


def into(path, run, cfg) -> dict:
  """A folder's checkpoint as a run's, at step 0.

  Args:
    path: the folder.
    run: a workdir that is made; it must not hold a run.
    cfg: a config whose `model` is replaced, and `data` kept.

  Returns:
    What was read: `type`, `params`, and `tokenizer`: its file, or why not.
  """
  folder = read(path)
  module = find(folder.hf, path)
  cfg = cfg.copy_and_resolve_references().unlock()
  cfg.model = module.model(folder.hf)
  model = lm.abstract(cfg.model)
  empty = {
    path: np.broadcast_to(np.float32(0), leaf.shape)
    for path, leaf in arrays(model).items()
  }
  hf = told(folder.hf, folder.tensors)
  found = rules(hf, module, model)
  expected = backwards(found, empty)
  check(path, expected, folder.tensors, module.ignored(hf))
  if (Path(run) / CONFIG).exists():
    raise ValueError(f"{run} holds a run already: name another --workdir")
  words, why = own_tokenizer(path, cfg.model.vocab.size)
  source = {
    "config": folder.hf,
    "tensors": {
      name: [folder.shards[name], folder.tensors[name].dtype.name]
      for name in expected
    },
  }
  made, kinds = forwards(found, folder.tensors), lm.pure(model)
  state = {
    name: unflatten_dict({path: made[path] for path in flatten_dict(kind)})
    for name, kind in zip(("params", "buffers"), kinds, strict=True)
  }
  with workdir.Workdir(run) as held:
    with Checkpoints(held) as checkpoints:
      checkpoints.save(0, state)
    if words is not None:
      cfg.data.tokenizer = "bpe"
      words.save(Path(run) / tokenizer.FILE)
    workdir.replace(Path(run) / SOURCE, json.dumps(source, indent=2))
    held.record(cfg)
  return {
    "type": folder.hf["model_type"],
    "params": sum(p.size for p in flatten_dict(kinds[0]).values()),
    "tokenizer": why,
  }


def own_tokenizer(path, size: int):
  """The folder's tokeniser if it is a byte-level BPE of so many symbols."""
  file = Path(path) / tokenizer.FILE
  if not file.exists():
    return None, f"none: there is no {tokenizer.FILE}"
  try:
    words = tokenizer.load(file)
  except (KeyError, ValueError) as e:
    return None, f"none: {file} is no byte-level BPE ({e})"
  if words.vocab != size:
    return None, f"none: {file} has {words.vocab} symbols, the model {size}"
  return words, str(file)


def out_of(run, path, which: str = "best") -> int:
  """Writes a run that came from a folder as such a folder again.

  The start symbol's row is left out: the format has no place for it.

  Returns:
    How many tensors were written.
  """
  from safetensors.numpy import save_file

  file, path = Path(run) / SOURCE, Path(path)
  if not file.exists():
    raise ValueError(f"{run} was not made by launch.convert: no {SOURCE}")
  source = json.loads(file.read_text(encoding="utf-8"))
  hf = source["config"]
  model = load_model(run, which)
  found = rules(told(hf, source["tensors"]), find(hf, file), model)
  ours = {path: np.asarray(a) for path, a in arrays(model).items()}
  tensors = backwards(found, ours)
  if path.exists() and any(path.iterdir()):
    raise ValueError(f"{path} is not empty: name another --to")
  with workdir.writing(path):
    path.mkdir(parents=True, exist_ok=True)
    shards = {}
    for name, array in tensors.items():
      shard, dtype = source["tensors"][name]
      array = np.ascontiguousarray(array.astype(np.dtype(dtype)))
      shards.setdefault(shard, {})[name] = array
    for shard, part in shards.items():
      save_file(part, path / shard, metadata={"format": "pt"})
    if len(shards) > 1:
      index = {
        "metadata": {"total_size": sum(a.nbytes for a in tensors.values())},
        "weight_map": {n: source["tensors"][n][0] for n in tensors},
      }
      workdir.replace(path / INDEX, json.dumps(index, indent=2))
    words = Path(run) / tokenizer.FILE
    if words.exists():
      shutil.copyfile(words, path / tokenizer.FILE)
    workdir.replace(path / CONFIG, json.dumps(hf, indent=2))
  return len(tensors)
