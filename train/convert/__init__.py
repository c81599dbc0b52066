"""Published checkpoints in Hugging Face's format, in and out, without torch.

A folder holds config.json and *.safetensors, in shards or not. What its
model_type means is written in train/convert/types, in the rules of
train/convert/rules.py. The shapes that a folder must have follow from the rules
read backwards, so that what does not fit is named in the folder's own terms.

Raises ValueError, before anything is written, for a type that is not known, a
field of config.json that is of another kind or asks for what we do not have, a
tensor that is missing, left over or of another shape or dtype, a tensor that
repeats another one and differs from it, a number that is not finite, a file
that is cut short, and for weights that are pickled.
"""

import dataclasses
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from arch import arrays
from train import models, schema, tokenizer, workdir
from train.checkpoint import Checkpoints
from train.convert import fields, types
from train.convert.rules import Absent, backwards, forwards
from train.schema import any_, text

SOURCE = "source.json"  # in a workdir: the folder's config, dtypes and shards
KEPT = "kept.safetensors"  # in a workdir: tensors that no parameter is made of
CONFIG, INDEX = "config.json", "model.safetensors.index.json"
WHOLE = "model.safetensors"
# other libraries' and other models' weights, which may lie beside
OTHERS = ("adapter_", "consolidated")
FLOATS = ("float32", "bfloat16", "float16")
# of safetensors, those that numpy can hold: theirs -> numpy's
DTYPES = {"BOOL": "bool", "BF16": "bfloat16"} | {
  f"{kind[0].upper()}{bits}": f"{kind}{bits}"
  for kind in ("float", "int", "uint")
  for bits in (8, 16, 32, 64)
  if (kind, bits) != ("float", 8)
}
SAYS = 3  # how many of the tensors that do not fit are named
MARGIN = 1 << 24  # numbers for which memory is there, whatever a config says


@dataclasses.dataclass(frozen=True)
class Folder:
  """What a checkpoint's folder holds."""

  hf: dict
  tensors: dict[str, np.ndarray]
  shards: dict[str, str]  # tensor -> its file


@dataclasses.dataclass(frozen=True)
class Read:
  """A folder as a model of ours."""

  model: dict  # a config's
  state: dict  # params and buffers
  source: dict  # what `out_of` needs to write the folder again
  kept: dict[str, np.ndarray]  # tensors that no parameter is made of
  notes: list[str]  # what is to be said about it


def read(path) -> Folder:
  """Reads config.json and every tensor of a folder."""
  path = Path(path)
  try:
    hf = schema.load(path / CONFIG, {str: any_})
  except FileNotFoundError:
    raise ValueError(f"{path} holds no {CONFIG}: name a checkpoint") from None
  tensors, shards = {}, {}
  for file, names in listed(path).items():
    found = load(path / file)
    if names is not None and names != found.keys():
      name = min(names ^ found.keys())
      raise ValueError(
        f"{path}: {INDEX} lists {name} in {file}, which is not there"
        if name in names
        else f"{path}: {file} holds {name}, which {INDEX} does not list there"
      )
    for name in found.keys() & tensors.keys():
      raise ValueError(
        f"{path}: {name} is in {shards[name]} and in {file}: keep one of them"
      )
    tensors |= found
    shards |= dict.fromkeys(found, file)
  return Folder(hf, tensors, shards)


def listed(path: Path) -> dict[str, set | None]:
  """The files of a folder's tensors, and whose they are where an index says."""
  files = sorted(
    p.name for p in path.glob("*.safetensors") if not p.name.startswith(OTHERS)
  )
  index = path / INDEX
  if index.exists():
    where = schema.load(index, {"weight_map": {str: text}})["weight_map"]
    for file in where.values():
      plain(file, index)
    found = {
      file: {name for name, at in where.items() if at == file}
      for file in sorted(set(where.values()))
    }
    for file, names in found.items():
      if file not in files:
        raise ValueError(
          f"{path}: {INDEX} lists {min(names)} in {file}, which is not there "
          f"({len(names)} such tensors)"
        )
    if WHOLE in files and WHOLE not in found:
      raise ValueError(
        f"{path} holds {WHOLE}, which {INDEX} does not list: delete one of them"
      )
    return found
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
  return dict.fromkeys(files)


def plain(file: str, where):
  """ValueError for a name that may lead out of a folder, or is another file's.

  Args:
    where: the file that has this name in it.
  """
  if Path(file).name != file or not file.endswith(".safetensors"):
    raise ValueError(
      f"{where} names the file {file!r}: it must be a *.safetensors, and lie "
      "in the same folder"
    )


def load(file: Path) -> dict[str, np.ndarray]:
  """A file's tensors."""
  from safetensors import SafetensorError, safe_open
  from safetensors.numpy import load_file

  try:
    with safe_open(file, framework="numpy"):
      pass  # checks the header
    with open(file, "rb") as f:
      header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
    for name, about in header.items():
      dtype = about.get("dtype")
      if name != "__metadata__" and dtype not in DTYPES:
        raise ValueError(
          f"{file}: {name} is {dtype}, expected {', '.join(FLOATS)}; quantised "
          "weights are not read"
        )
    return load_file(file)
  except SafetensorError as e:
    raise ValueError(f"{file} is cut short or damaged: {e}") from None


def spelt(names, prefix: str) -> dict[str, str]:
  """A tensor's full name -> the name that the folder has.

  What is saved from a model without a readout lacks the prefix of its parts.
  """
  bare = not any(name.startswith(f"{prefix}.") for name in names)
  return {
    name if not bare or name.startswith("lm_head.") else f"{prefix}.{name}": (
      name
    )
    for name in names
  }


def understood(hf: Mapping, names, where) -> tuple:
  """A folder's type, what it is told, the spelling of its tensors, and notes.

  A type is told the fields of config.json, and which `tensors` there are.
  """
  module = types.find(hf, where)
  spelling = spelt(names, module.PREFIX)
  told, notes = fields.read(hf, module, spelling, where)
  return module, told | {"tensors": frozenset(spelling)}, spelling, notes


def shape(module, hf: Mapping, where) -> dict:
  """The fields of a config's `model`."""
  try:
    return module.model(hf)
  except ValueError as e:
    raise ValueError(f"{where}: {e}") from None


def leaves(model) -> dict:
  """Parameters and buffers by their path."""
  params, buffers = arrays.pure(model)
  return flatten_dict(params) | flatten_dict(buffers)


def every_rule(hf: Mapping, module, model) -> dict:
  """Path of every array -> its rule, or a list of one a repeat."""
  found = dict(module.top(hf))
  for layer, visit in enumerate(model.trunk.visits):
    for path, rule in module.block(hf, layer).items():
      path = ("trunk", *visit.block, *path)
      if visit.place.share:
        found.setdefault(path, rule)
      else:
        found.setdefault(path, []).append(rule)
    if visit.place.aside or visit.place.own:
      for path, rule in module.own(hf, layer).items():
        found.setdefault(("trunk", *visit.own, *path), []).append(rule)
  _, buffers = arrays.pure(model)
  for path, buffer in flatten_dict(buffers).items():
    found.setdefault(path, Absent(path, buffer.shape))
  return found


def check(where, expected: Mapping, given: Mapping, ignored: Mapping):
  """Names tensors that do not fit."""
  wrong = []
  for name in sorted(expected.keys() | given.keys()):
    tensor = given.get(name)
    if tensor is None:
      wrong.append(f"{name} is missing; expected {list(expected[name].shape)}")
    elif name not in expected and name not in ignored:
      wrong.append(f"{name} {list(tensor.shape)} has no place")
    elif name not in expected:
      same = ignored[name]
      if isinstance(same, str) and not same_as(tensor, given.get(same)):
        tied = "tie_word_embeddings=True"
        wrong.append(
          f"{name} is not equal to {same}, which {tied} reads for it"
        )
      elif isinstance(same, np.ndarray) and not close(tensor, same):
        wrong.append(f"{name} is not what a model of this config has there")
    elif tensor.shape != expected[name].shape:
      wrong.append(
        f"{name} is {list(tensor.shape)}, expected {list(expected[name].shape)}"
      )
    elif tensor.dtype.name not in FLOATS:
      wrong.append(
        f"{name} is {tensor.dtype.name}, expected {', '.join(FLOATS)}"
      )
    elif not np.isfinite(tensor).all():
      wrong.append(f"{name} holds numbers that are not finite")
  if wrong:
    more = f"; and {len(wrong) - SAYS} more" if len(wrong) > SAYS else ""
    raise ValueError(
      f"{where} does not fit its {CONFIG}: {'; '.join(wrong[:SAYS])}{more}"
    )


def same_as(a, b) -> bool:
  """Whether two tensors hold the same numbers."""
  return b is not None and np.array_equal(*wide(a, b))


def close(a, constant) -> bool:
  """Whether a tensor is a constant that float32 made and its dtype rounds."""
  if a.shape != constant.shape:
    return False
  if a.dtype.name not in FLOATS:
    return np.array_equal(a, constant)
  kind = jnp.finfo(a.dtype)
  relative, least = max(float(kind.eps), 1e-6), float(kind.smallest_subnormal)
  return np.allclose(*wide(a, constant), relative, least)


def wide(*tensors) -> list:
  return [t.astype(np.float64) for t in tensors]


def model_of(path) -> Read:
  """A folder's checkpoint as a model of ours."""
  folder, where = read(path), Path(path) / CONFIG
  module, hf, spelling, notes = understood(folder.hf, folder.tensors, where)
  given = {full: folder.tensors[name] for full, name in spelling.items()}
  config = shape(module, hf, where)
  model = models.abstract(config, where)
  own = leaves(model)
  size = sum(math.prod(leaf.shape) for leaf in own.values())
  held = sum(tensor.size for tensor in given.values())
  if size > 4 * held + MARGIN:
    raise ValueError(
      f"{where} is of a model of {size:,} numbers, the tensors hold {held:,}"
    )
  empty = {
    path: np.broadcast_to(np.float32(0), leaf.shape)
    for path, leaf in own.items()
  }
  found = every_rule(hf, module, model)
  expected, ignored = backwards(found, empty), module.ignored(hf)
  check(path, expected, given, ignored)
  made = forwards(found, given)
  state = {
    name: unflatten_dict({path: made[path] for path in flatten_dict(kind)})
    for name, kind in zip(
      ("params", "buffers"), arrays.pure(model), strict=True
    )
  }
  kept = {
    name: given[name]
    for name, same in ignored.items()
    if name in given and not isinstance(same, str)
  }
  unused = sorted(name for name in kept if ignored[name] is None)
  if unused:
    notes.append(f"tensors that are kept, but not used: {', '.join(unused)}")
  source = {
    "config": folder.hf,
    "tensors": {
      name: [folder.shards[name], tensor.dtype.name]
      for name, tensor in folder.tensors.items()
    },
  }
  return Read(config, state, source, kept, notes)


def into(path, run, cfg) -> dict:
  """A folder's checkpoint as a run's, at step 0.

  Args:
    path: the folder.
    run: a workdir that is made; it must not hold a run.
    cfg: a config whose `model` is replaced, and `data` kept.

  Returns:
    What was read: `type`, `params`, `tokenizer`: its file, or why not, and
    `notes`: lines on what was not read, or not given.
  """
  found = model_of(path)
  cfg = cfg.copy_and_resolve_references().unlock()
  cfg.model = found.model
  if workdir.holds(run):
    raise ValueError(f"{run} holds a run already: name another --workdir")
  words, why = own_tokenizer(path, cfg.model.vocab.size)
  if words is not None:
    cfg.data.tokenizer = "bpe"
  with workdir.Workdir(run) as held:
    held.record(cfg)
    (Path(run) / tokenizer.FILE).unlink(missing_ok=True)
    if words is not None:
      words.save(Path(run) / tokenizer.FILE)
    kept = Path(run) / KEPT
    kept.unlink(missing_ok=True)
    if found.kept:
      save(found.kept, kept)
    workdir.replace(Path(run) / SOURCE, json.dumps(found.source, indent=2))
    # last: with a checkpoint the folder is a run's
    with Checkpoints(held) as checkpoints:
      checkpoints.save(0, found.state)
  return {
    "type": found.source["config"]["model_type"],
    "params": sum(p.size for p in flatten_dict(found.state["params"]).values()),
    "tokenizer": why,
    "notes": found.notes,
  }


def own_tokenizer(path, size: int):
  """The folder's tokeniser if it is a byte-level BPE of so many symbols, or of
  fewer, with rows of the model to spare."""
  file = Path(path) / tokenizer.FILE
  if not file.exists():
    return None, f"none: there is no {tokenizer.FILE}"
  try:
    words = tokenizer.load(file)
  except ValueError as e:
    return None, f"none: {file} is no exact byte-level BPE ({e})"
  if words.vocab > size:
    return None, f"none: {file} has {words.vocab} symbols, the model {size}"
  return words, str(file)


def save(tensors: Mapping, file: Path):
  """Writes a file of tensors."""
  from safetensors import SafetensorError
  from safetensors.numpy import save_file

  try:
    save_file(tensors, file, metadata={"format": "pt"})
  except SafetensorError as e:  # of a full disk, too
    raise workdir.unwritable(file, None, str(e)) from e


def source_of(run) -> dict:
  """What a folder was that a run was made of."""
  file = Path(run) / SOURCE
  pair = {str: [text]}
  try:
    source = schema.load(file, {"config": {str: any_}, "tensors": pair})
  except FileNotFoundError:
    raise ValueError(
      f"{run} was not made by launch.convert: no {SOURCE}"
    ) from None
  for name, about in source["tensors"].items():
    if len(about) != 2 or about[1] not in DTYPES.values():
      raise ValueError(f"{file}: {name} is {about}, not a file and a dtype")
    plain(about[0], file)
  return source


def out_of(run, path, which: str = "best") -> int:
  """Writes a run that came from a folder as such a folder again.

  The start symbol's row is left out: the format has no place for it.

  Returns:
    How many tensors were written.
  """
  file, path = Path(run) / SOURCE, Path(path)
  source = source_of(run)
  about = source["tensors"]
  module, hf, spelling, _ = understood(source["config"], about, file)
  made, saved = shape(module, hf, file), workdir.of_run(run)["model"]
  other = [k for k, v in workdir.plain(made).items() if saved.get(k) != v]
  if other:
    raise ValueError(f"{file} is of another model than the run's: {other[0]}")
  model = models.load(run, which)
  ours = {path: np.asarray(a) for path, a in leaves(model).items()}
  found = backwards(every_rule(hf, module, model), ours)
  kept = load(Path(run) / KEPT) if (Path(run) / KEPT).exists() else {}
  found |= kept
  for name, same in module.ignored(hf).items():
    if name in spelling and isinstance(same, str):
      found[name] = found[same]
  if found.keys() != spelling.keys():
    name = min(found.keys() ^ spelling.keys())
    raise ValueError(f"{file} does not fit the run's model: {name}")
  for full, name in spelling.items():
    if full not in kept and about[name][1] not in FLOATS:
      raise ValueError(f"{file}: {name} is {about[name][1]}, no float")
  if path.exists() and any(path.iterdir()):
    raise ValueError(f"{path} is not empty: name another --to")
  with workdir.writing(path):
    path.mkdir(parents=True, exist_ok=True)
    shards = {}
    for full, name in spelling.items():
      shard, dtype = about[name]
      array = found[full].astype(np.dtype(dtype))
      shards.setdefault(shard, {})[name] = np.asarray(array, order="C")
    for shard, part in shards.items():
      save(part, path / shard)
    if shards.keys() != {WHOLE}:
      size = sum(a.nbytes for part in shards.values() for a in part.values())
      index = {
        "metadata": {"total_size": size},
        "weight_map": {name: shard for name, (shard, _) in about.items()},
      }
      workdir.replace(path / INDEX, json.dumps(index, indent=2))
    words = Path(run) / tokenizer.FILE
    if words.exists():
      shutil.copyfile(words, path / tokenizer.FILE)
    workdir.replace(path / CONFIG, json.dumps(source["config"], indent=2))
  return len(spelling)
