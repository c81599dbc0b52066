"""Published checkpoints in Hugging Face's format, in and out, without torch.

A folder holds config.json and *.safetensors, in shards or not. What its
model_type means is written in train/convert/types, in the rules of
train/convert/rules.py. The shapes that a folder must have follow from the rules
read backwards, so that what does not fit is named in the folder's own terms.

Raises ValueError, before anything is written, for a type that is not known, a
tensor that is missing, left over or of another shape or dtype, a file that is
cut short, and for weights that are pickled.
"""

import dataclasses
import fnmatch
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from arch import lm
from train import tokenizer, workdir
from train.checkpoint import Checkpoints, load_model
from train.convert import types
from train.convert.rules import Absent, backwards, forwards

SOURCE = "source.json"  # in a workdir: the folder's config, dtypes and shards
CONFIG, INDEX = "config.json", "model.safetensors.index.json"


def told(hf: Mapping, tensors) -> dict:
  """What a type is told: config.json, and which tensors the folder has."""
  return {**hf, "tensors": frozenset(tensors)}


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


def every_rule(hf: Mapping, module, model) -> dict:
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
  module = types.find(folder.hf, path)
  cfg = cfg.copy_and_resolve_references().unlock()
  cfg.model = module.model(folder.hf)
  model = lm.abstract(cfg.model)
  empty = {
    path: np.broadcast_to(np.float32(0), leaf.shape)
    for path, leaf in arrays(model).items()
  }
  hf = told(folder.hf, folder.tensors)
  found = every_rule(hf, module, model)
  expected = backwards(found, empty)
  check(path, expected, folder.tensors, module.ignored(hf))
  if workdir.holds(run):
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
  if words is not None:
    cfg.data.tokenizer = "bpe"
  with workdir.Workdir(run) as held:
    held.record(cfg)
    (Path(run) / tokenizer.FILE).unlink(missing_ok=True)
    if words is not None:
      words.save(Path(run) / tokenizer.FILE)
    workdir.replace(Path(run) / SOURCE, json.dumps(source, indent=2))
    # last: with a checkpoint the folder is a run's
    with Checkpoints(held) as checkpoints:
      checkpoints.save(0, state)
  return {
    "type": folder.hf["model_type"],
    "params": sum(p.size for p in flatten_dict(kinds[0]).values()),
    "tokenizer": why,
  }


def own_tokenizer(path, size: int):
  """The folder's tokeniser if it is a byte-level BPE of so many symbols, or of
  fewer, with rows of the model to spare."""
  file = Path(path) / tokenizer.FILE
  if not file.exists():
    return None, f"none: there is no {tokenizer.FILE}"
  try:
    words = tokenizer.load(file)
  except (KeyError, TypeError, ValueError) as e:
    return None, f"none: {file} is no exact byte-level BPE ({e})"
  if words.vocab > size:
    return None, f"none: {file} has {words.vocab} symbols, the model {size}"
  return words, str(file)


def out_of(run, path, which: str = "best") -> int:
  """Writes a run that came from a folder as such a folder again.

  The start symbol's row is left out: the format has no place for it.

  Returns:
    How many tensors were written.
  """
  from safetensors import SafetensorError
  from safetensors.numpy import save_file

  file, path = Path(run) / SOURCE, Path(path)
  if not file.exists():
    raise ValueError(f"{run} was not made by launch.convert: no {SOURCE}")
  source = json.loads(file.read_text(encoding="utf-8"))
  hf = source["config"]
  model = load_model(run, which)
  found = every_rule(told(hf, source["tensors"]), types.find(hf, file), model)
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
      try:
        save_file(part, path / shard, metadata={"format": "pt"})
      except SafetensorError as e:  # of a full disk, too
        raise workdir.unwritable(path / shard, None, str(e)) from e
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
