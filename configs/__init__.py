"""What every config starts from. `tiny` is for tests, `small` for
comparisons, `full` as published."""

import ast
import dataclasses
import importlib
import pkgutil
from collections.abc import Iterable

import ml_collections
from flax.traverse_util import flatten_dict
from ml_collections import config_dict

from arch import config, lm, pattern, registry, vocabulary
from arch.config import closest

SIZES = ("tiny", "small", "full")

VOCAB = "model.vocab."

# fields of `train` that a comparison sets, and how
FLAGS = {
  "steps": "--tokens",
  "batch": "--batch",
  "length": "--length",
  "lr": "--lrs",
  "seed": "--seeds",
  "optimizer": "--optimizer",
  "eval_bytes": "--eval_bytes",
  **dict.fromkeys(("log_every", "eval_every", "save_every"), "--tokens"),
}


def base_config(size: str = "small") -> ml_collections.ConfigDict:
  """Everything but the pattern and the mixers' own fields.

  Raises:
    ValueError: for a size that is none of tiny, small, full.
  """
  if size not in SIZES:
    raise ValueError(f"unknown size {size!r}: {', '.join(SIZES)}")
  dim, depth, length = {
    "tiny": (24, 3, 13),
    "small": (128, 4, 256),
    "full": (768, 12, 2048),
  }[size]
  c = ml_collections.ConfigDict()

  c.train = ml_collections.ConfigDict()
  c.train.steps = 1000
  c.train.batch = 3 if size == "tiny" else 16
  c.train.length = length
  c.train.lr = 3e-3
  c.train.seed = 0
  c.train.optimizer = "adamw"
  c.train.beta1 = 0.9
  # small batches want a longer memory: https://arxiv.org/abs/2507.07101
  c.train.beta2 = 0.99
  c.train.epsilon = 1e-8
  c.train.momentum = 0.95  # Muon's
  c.train.decay = 0.1  # of matrices
  c.train.decay_final = 1.0  # share of it at the last step, in a straight line
  c.train.teacher = ""  # a run or an artefact whose answers it learns, too
  c.train.teacher_weight = 0.5  # of them, and 1 less it of the text
  c.train.teacher_temperature = 1.0
  c.train.noise_bits = 0  # noise of as few bits' rounding on weights; 0: none
  c.train.ema = 0.0  # of the averaged weights, the share kept a step; 0: none
  c.train.clip = 1.0  # global gradient norm; 0 for none
  c.train.schedule = "cosine"
  c.train.warmup = 50  # steps
  c.train.final = 0.1  # share of the peak rate at the last step
  c.train.cooldown = 0.2  # share of steps that wsd falls over
  c.train.accumulate = 1  # microbatches a step
  c.train.model_devices = 1  # that share one copy of the parameters
  c.train.log_every = 10
  c.train.eval_every = 250
  c.train.eval_bytes = 65_536
  c.train.save_every = 250
  c.train.keep = 2  # last checkpoints kept, beside the best

  c.model = ml_collections.ConfigDict()
  c.model.dim = dim
  c.model.depth = depth
  c.model.length = c.train.get_ref("length")
  c.model.pattern = ()
  c.model.channel = "swiglu"
  c.model.mixers = ml_collections.ConfigDict()
  c.model.channels = ml_collections.ConfigDict()
  c.model.wiring = "residual"
  c.model.loop = ml_collections.ConfigDict(dataclasses.asdict(pattern.Loop()))
  c.model.body = "flat"  # at which resolution the blocks see the text
  c.model.bodies = ml_collections.ConfigDict()
  c.model.linear = "dense"  # how maps store their weights
  c.model.weights = ml_collections.ConfigDict()
  c.model.vocab = ml_collections.ConfigDict()
  c.model.vocab.name = "full"
  c.model.vocab.size = 0  # 0: the data's own
  c.model.vocab.tied = False
  c.model.norm = "rms"
  c.model.norm_eps = 1e-6
  c.model.embed_norm = False
  c.model.positions = 0  # learned ones; 0 for none
  c.model.dtype = "float32"
  c.model.remat = "none"
  c.model.dropout = 0.0

  c.data = ml_collections.ConfigDict()
  c.data.name = "stdlib"
  c.data.tokenizer = "bytes"
  c.data.vocab = 4096  # of the BPE
  c.data.documents = True  # whether text begins anew at each

  # parameters of `full` in the release that it is, None where it is none
  c.published = config_dict.placeholder(int)

  # the second size that launch.compare solves beside model.dim, and whether
  # it grows with it
  c.match = ml_collections.ConfigDict()
  c.match.size = "model.channels.swiglu.width"
  c.match.grows = True
  return c


def names() -> list[str]:
  """The config files beside this one."""
  return sorted(m.name for m in pkgutil.iter_modules(__path__))


def load(name: str, size: str = "small") -> ml_collections.ConfigDict:
  """The config of configs/<name>.py; ValueError names the closest ones."""
  if name not in names():
    raise ValueError(f"unknown architecture {name!r}: {closest(name, names())}")
  return importlib.import_module(f"configs.{name}").get_config(size)


def several(given: Iterable[str], settings: Iterable[str] = ()) -> dict:
  """NAME[:FIELD=VALUE]... -> its config; `all` is every config's name.

  Args:
    settings: FIELD=VALUE of all of them, before their own.

  Raises:
    ValueError: for none, or one twice.
  """
  given = list(given)
  if given == ["all"]:
    given = names()
  if not given:
    raise ValueError(f"--archs names no config: {closest('', names())}")
  for name in given:
    if given.count(name) > 1:
      raise ValueError(f"--archs names {name!r} twice")
  return {name: variant(name, settings) for name in given}


def variant(
  given: str, settings: Iterable[str] = ()
) -> ml_collections.ConfigDict:
  """The config of NAME[:FIELD=VALUE]..., `small` but for these fields.

  A FIELD is a path below `model`, as --config has it, data.tokenizer or
  data.vocab, `vocab` for the file of both its ways, or the name of a field of
  the model, its mixers, channel mixers, weights or body, where only one of them
  has it, or else of its vocabulary. What launch.compare solves beside the width
  is the channel mixer's, where a setting took away what the config names.

  Args:
    settings: FIELD=VALUE, before its own; may be of `train`, too.

  Raises:
    ValueError: for an unknown or ambiguous field, or a value of another type.
  """
  name, *own = given.split(":")
  c = told(load(name), name, settings, ("model", "train", "data"))
  return told(c, name, own)


def told(
  c, name: str, settings: Iterable[str], parts=("model", "data")
) -> ml_collections.ConfigDict:
  """A config with FIELD=VALUE of these settings, as `variant` has them."""
  c.unlock()
  for setting in settings:
    put(c, name, setting, parts)
  if settings:
    rematch(c)
  return c.lock()


def put(c, name: str, setting: str, parts: tuple[str, ...]):
  """FIELD=VALUE in the config of this name, of these parts of it."""
  field, equals, text = setting.partition("=")
  if not equals:
    raise ValueError(
      f"{name}: {setting!r} sets no field: write {name}:FIELD=VALUE, or of all "
      "--set=FIELD=VALUE"
    )
  path = path_of(c, field, name)
  part, _, rest = path.partition(".")
  if part == "train" and part in parts and rest in FLAGS:
    raise ValueError(f"{path} is set by {FLAGS[rest]}")
  if part == "data" and rest not in ("tokenizer", "vocab"):
    raise ValueError(f"{path} is set by --data")
  if path == "model.length":
    raise ValueError(f"{path} is set by {FLAGS['length']}")
  if path == "model.vocab.size":
    raise ValueError(f"{path} is that of the data")
  own = flatten_dict({part: c[part].to_dict() for part in parts}, sep=".")
  known = set(own) | set(fields(c))
  if path not in known:
    raise ValueError(f"{name} has no field {path!r}: {closest(path, known)}")
  try:
    value = ast.literal_eval(text)
  except (SyntaxError, ValueError):
    value = text
  inner = c
  for part in path.split(".")[:-1]:
    if part not in inner:
      inner[part] = ml_collections.ConfigDict()
    inner = inner[part]
  whole_number = isinstance(value, float) and value.is_integer()
  if whole_number and type(own.get(path)) is int:
    value = int(value)  # 1e3
  try:
    c.update_from_flattened_dict({path: value})
  except (TypeError, ValueError) as error:
    raise ValueError(f"{name}: {path}={text}: {error}") from None


def standing(c) -> set[tuple[str, str]]:
  """The mixers and channel mixers of a config, as (axis, name)."""
  found = pattern.places(c.model.pattern, c.model.depth, c.model.channel)
  used = {("mixers", name) for place in found for name in place.mixers}
  return used | {("channels", p.channel) for p in found if p.channel != "none"}


def rematch(c):
  """Has `match` name a size of what stands there."""
  _, *owner, _ = c.match.size.split(".")
  used = standing(c)
  channels = sorted(name for axis, name in used if axis == "channels")
  if tuple(owner) in used or not channels:
    return
  name = channels[0]
  module = registry.find("channels", name)
  size, grows = getattr(module, "MATCH", ("width", True))
  told = {k: c.model[k] for k in ("dim", "depth", "length")}
  own = module.Config(**told, **dict(c.model.channels.get(name, {})))
  if name not in c.model.channels:
    c.model.channels[name] = ml_collections.ConfigDict()
  value = own.W if size == "width" else getattr(own, size)
  c.model.channels[name][size] = value
  c.match.size = f"model.channels.{name}.{size}"
  c.match.grows = grows


def fields(c) -> list[str]:
  """Paths of what the model, its mixers, channel mixers, weights, body and
  vocabulary can be told."""
  used = {*standing(c), ("weights", c.model.linear)}
  common = {f.name for f in dataclasses.fields(config.Config)}
  found = [f"model.{f.name}" for f in dataclasses.fields(lm.Config)]
  found += [f"model.loop.{f.name}" for f in dataclasses.fields(pattern.Loop)]
  for axis, name in sorted(used):
    module = registry.find(axis, name)
    own = dataclasses.fields(getattr(module, "Config", None) or module.Weight)
    found += [
      f"model.{axis}.{name}.{f.name}" for f in own if f.name not in common
    ]
  told = common | {"size"}
  own = dataclasses.fields(registry.find("body", c.model.body).Config)
  found += [
    f"model.bodies.{c.model.body}.{f.name}" for f in own if f.name not in told
  ]
  ways = {*vocabulary.WAYS}
  for name in vocabulary.files(c.model.vocab).values():
    ways |= {
      f.name for f in dataclasses.fields(registry.find("vocab", name).Config)
    }
  return found + [f"{VOCAB}{name}" for name in sorted(ways - told)]


def path_of(c, field: str, name: str) -> str:
  """A field's path, where its own name may be enough."""
  if field == "vocab":
    return f"{VOCAB}name"
  return field if "." in field else whole(c, field, name)


def whole(c, field: str, name: str) -> str:
  """The one path that ends in this field; a vocabulary's, if no other does."""
  paths = fields(c)
  found = [path for path in paths if path.rpartition(".")[2] == field]
  found = [path for path in found if not path.startswith(VOCAB)] or found
  if not found:
    known = {path.rpartition(".")[2] for path in paths}
    raise ValueError(f"{name} has no field {field!r}: {closest(field, known)}")
  if len(found) > 1:
    raise ValueError(f"{name} has several {field!r}: {', '.join(found)}")
  return found[0]


def may_have(field: str) -> bool:
  """Whether a config may set a.b.c, be it that this one does not."""
  *where, last = field.split(".")
  match where:
    case ["model"]:
      known = [lm.Config]
    case ["model", "loop"]:
      known = [pattern.Loop]
    case ["model", "vocab"]:
      if last in ("name", *vocabulary.WAYS):
        return True
      known = [
        registry.find("vocab", name).Config for name in registry.names("vocab")
      ]
    case ["model", ("mixers" | "channels") as axis, name] if (
      name in registry.names(axis)
    ):
      known = [registry.find(axis, name).Config]
    case ["model", "weights", name] if name in registry.names("weights"):
      known = [registry.find("weights", name).Weight]
    case ["model", "bodies", name] if name in registry.names("body"):
      known = [registry.find("body", name).Config]
    case _:
      known = []
  return last in {f.name for k in known for f in dataclasses.fields(k)}
