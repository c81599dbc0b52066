"""What each part of a model was checked against, and whether that still holds.

docs/provenance.json is written by `pytest --provenance` (cases: values, and of
mixers and channel mixers gradients and decoding, beside the authors' code or
their equations; start: the first two moments of both initialisations; tpu: the
topologies that a config with it was compiled for) and by `launch.architectures
--measure` (time and memory at 2,048 tokens):

  {"format": 1,
   "mixers": {NAME: {SECTION: {"hash", "date", "versions", "found"}}},
   "channels": ..., "vocab": ..., "weights": ..., "wiring": ...,
   "body": ..., "conversions": ..., "configs": ..., "suites": ...}

A section whose hash is not that of the part's file, of what it imports from
arch, and of what checked it, is stale; a part without one is unverified in it.
A conversion's hash is of all of arch. A config's properties, that it meets a
budget, and suites, files of tests of arch alone, are there to save time alone:
what a section holds of this very code, found with these versions, is not
checked again, but for one case of each test of a suite.
"""

import ast
import datetime
import functools
import hashlib
import importlib.util
import inspect
import json
import pkgutil
import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import arch
import configs
from arch import pattern, registry
from arch import recurrence as recurrences
from arch.count import decoding
from arch.vocabulary import files
from train import workdir
from train.platform import ROOT

FILE = ROOT / "docs" / "provenance.json"
FORMAT = 1
AXES = ("channels", "vocab", "weights", "wiring", "body")  # beside the mixers
KINDS = ("mixers", *AXES, "conversions", "configs", "suites")
# what a part must have
CHECKS = {kind: ("cases", "tpu") for kind in AXES}
CHECKS |= {"mixers": ("cases", "start", "tpu"), "conversions": ("cases",)}
PARITY = ("tests/test_parity.py", "tests/parity/{kind}/{name}.py")
CASES = {  # where those of these kinds are, in the place of PARITY
  "vocab": ("tests/test_vocab.py",),
  "weights": ("tests/test_weights.py",),
  "wiring": ("tests/test_loops.py", "tests/test_shell.py"),
  "body": ("tests/test_body.py",),
}
PROOFS = {  # the files that check a section
  "cases": PARITY,
  "start": (*PARITY, "tests/parity/starts.py"),
  "tpu": ("tests/test_tpu.py",),
  "measured": (),
}

CONFIGS = {  # what checks a config, beside its own code
  "properties": (
    "arch/count.py",
    "configs/__init__.py",
    "tests/conftest.py",
    "tests/models.py",
    "tests/programs.py",
    "tests/test_properties.py",
    "train/sharding.py",
  ),
  "sizes": ("configs/__init__.py", "tests/test_sizes.py", "train/sizes.py"),
}
TRAINING = (  # what trains and scores any model
  "train.data",
  "train.evaluate",
  "train.optimizer",
  "train.step",
  "train.tokenizer",
)
PACKAGES = ("jax", "flax", "torch", "transformers", "fla-core", "libtpu")

RECURRENCES = [m.name for m in pkgutil.iter_modules(recurrences.__path__)]


@functools.cache
def digest(kind: str, name: str, section: str) -> str:
  """Of the mixer's code and of what checks it, as a section keeps it."""
  if kind == "conversions":
    return _hash(conversion(name))
  if kind == "suites":
    return _hash(suite(name))
  if kind == "configs":
    model = configs.load(name, "tiny").copy_and_resolve_references().model
    own = {f"configs/{name}.py", *CONFIGS[section]}
    return _hash(dependencies(model.to_dict()) | own)
  files_ = PROOFS[section]
  if section == "cases":
    files_ = CASES.get(kind, files_)
  proofs = (file.format(kind=kind, name=name) for file in files_)
  found = {file for file in proofs if (ROOT / file).exists()}
  return _hash(sources(f"arch.{kind}.{name}") | found)


def conversion(name: str) -> set[str]:
  """The files on which what is read from folders of a type depends."""
  parts = ROOT.glob("arch/**/*.py"), ROOT.glob("train/convert/*.py")
  found = {str(file.relative_to(ROOT)) for part in parts for file in part}
  return found | {
    "configs/__init__.py",
    "train/checkpoint.py",
    "train/models.py",
    f"train/convert/types/{name}.py",
    "tests/test_convert.py",
    "tests/convert/__init__.py",
    f"tests/convert/{name}.py",
  }


def suite(name: str) -> set[str]:
  """The files on which tests/test_NAME.py depends. Of arch and configs that is
  every one, since there what is named in a config is found."""
  found = ROOT.glob("arch/**/*.py"), ROOT.glob("configs/*.py")
  found = {str(file.relative_to(ROOT)) for part in found for file in part}
  own = sources(f"tests.test_{name}", ("tests", "train"))
  return found | own | {"tests/conftest.py"}


def known(kind: str) -> list[str]:
  """The names that a kind may have records of."""
  if kind == "conversions":
    files = (ROOT / "train/convert/types").glob("[a-z]*.py")
    return sorted(file.stem for file in files)
  if kind == "suites":
    return sorted(f.stem[5:] for f in (ROOT / "tests").glob("test_*.py"))
  return configs.names() if kind == "configs" else registry.names(kind)


def versions() -> dict[str, str]:
  """Of the packages that are here and matter to what is found."""
  return {
    name: metadata.version(name)
    for name in PACKAGES
    if importlib.util.find_spec(name.removesuffix("-core"))
  }


def holds(record: dict, kind: str, name: str, section: str, case) -> bool:
  """Whether a section has this case, of this very code and these versions.

  Args:
    case: the `fields` of what was found, or all of it where it has none.
  """
  entry = record.get(kind, {}).get(name, {}).get(section)
  if not entry:
    return False
  cases = [f["fields"] if isinstance(f, dict) else f for f in entry["found"]]
  if json.loads(json.dumps(case)) not in cases:
    return False
  right = entry["hash"] == digest(kind, name, section)
  return right and entry["versions"] == versions()


def _hash(files: Iterable[str]) -> str:
  text = b"".join((ROOT / file).read_bytes() for file in sorted(files))
  return hashlib.sha256(text).hexdigest()[:16]


def code(model) -> str:
  """Of all code that a config's `model`, its training and its score depend on.

  Comments count: what a file means is not looked into.
  """
  return _hash(dependencies(model))


def dependencies(model) -> set[str]:
  """The files of that code, paths from ROOT."""
  modules = {"arch.lm", *TRAINING}
  modules |= {f"arch.vocab.{n}" for n in files(model["vocab"]).values()}
  modules.add(f"arch.weights.{model['linear']}")
  modules.add(f"arch.body.{model['body']}")
  loop = pattern.Loop(**model["loop"])
  common = model["channel"], model["wiring"]
  places = pattern.places(model["pattern"], model["depth"], *common, loop)
  outer = model["bodies"].get(model["body"], {}).get("outer")
  if outer:  # blocks around a body's chunks
    places += pattern.places(outer, len(outer), *common)
  for place in places:
    modules.add(f"arch.wiring.{place.wiring}")
    modules |= {f"arch.mixers.{name}" for name in place.mixers}
    modules |= {f"arch.channels.{place.channel}"}
  return set().union(*map(sources, modules))


def sources(module: str, packages=("arch",)) -> set[str]:
  """The file of a module, and of what it imports from these packages, and so
  on.

  Paths from ROOT.
  """
  found, left = set(), [module]
  while left:
    name = left.pop()
    path = name.replace(".", "/")
    file = f"{path}.py" if (ROOT / f"{path}.py").exists() else ""
    if (ROOT / path / "__init__.py").exists():
      file = f"{path}/__init__.py"
    if file in found or not file:
      continue
    found.add(file)
    left += imported((ROOT / file).read_text("utf-8"), packages)
  return found


@functools.cache
def imported(text: str, packages: tuple[str, ...]) -> tuple[str, ...]:
  """What of these packages a file's text imports: modules, and names that may
  be some. Tests name those beside them alone."""
  names = []
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.ImportFrom):
      names += [node.module, *(f"{node.module}.{n.name}" for n in node.names)]
    elif isinstance(node, ast.Import):
      names += [n.name for n in node.names]
  if "tests" in packages:
    names += [f"tests.{name}" for name in names]
  known = tuple(f"{package}." for package in packages)
  return tuple(name for name in names if name.startswith(known))


def read(path=FILE) -> dict:
  """The record; ValueError for one that this version does not understand."""
  path = Path(path)
  if not path.exists():
    return {"format": FORMAT} | {kind: {} for kind in KINDS}
  saved = json.loads(path.read_text("utf-8"))
  if saved.get("format") != FORMAT:
    raise ValueError(
      f"{path} has format {saved.get('format')}, this version reads {FORMAT}"
    )
  return saved


def update(found, path=FILE):
  """Replaces sections of the record.

  Args:
    found: (kind, name, section) -> a list of what was found.
  """
  saved = read(path)
  stamp = {
    "date": datetime.date.today().isoformat(),
    "versions": versions(),
  }
  for (kind, name, section), value in found.items():
    entry = saved.setdefault(kind, {}).setdefault(name, {})
    now = {"hash": digest(kind, name, section), **stamp}
    if kind == "suites" and entry.get(section, {}) | now == entry.get(section):
      value = {*value, *entry[section]["found"]}  # of several runs
    value = sorted(value, key=json.dumps)  # workers end in any order
    entry[section] = now | {"found": value}
  for kind in KINDS:  # a mixer that is gone takes its record along
    own, names = saved.get(kind, {}), set(known(kind))
    saved[kind] = {k: own[k] for k in sorted(own) if k in names}
  workdir.replace(path, json.dumps(saved, indent=1) + "\n")


def status(kind: str, name: str, record: dict) -> list[str]:
  """What is wrong with a part's record: nothing, for one that holds."""
  entry, wrong = record.get(kind, {}).get(name, {}), []
  for section in CHECKS[kind]:
    if section not in entry or not entry[section]["found"]:
      wrong.append(f"{section} unverified")
    elif entry[section]["hash"] != digest(kind, name, section):
      wrong.append(f"{section} stale")
  return wrong


def described(module) -> dict:
  """Title, formula and papers of a mixer's docstring."""
  title, _, rest = inspect.getdoc(module).partition("\n")
  blocks = re.findall(r"(?:^ {2}.*\n?)+", rest, re.MULTILINE)
  return {
    "title": title.rstrip("."),
    "formula": inspect.cleandoc(blocks[0]) if blocks else "",
    "papers": [
      url.rstrip(".") for url in re.findall(r"https?://[^\s,;)]+", rest)
    ],
  }


def recurrence(module) -> str:
  """Which recurrence a mixer is over, by what it calls: its own, that of the
  mixer whose code it shares, attention, or none."""
  calls = re.findall(
    r"\b(\w+)\.(?:scan|scan_pair|selective|convolve|chunked)\(",
    inspect.getsource(module),
  )
  used = [name for name in dict.fromkeys(calls) if name in RECURRENCES]
  if used:
    return ", ".join(used)
  if hasattr(module, "attend"):
    return "attention"
  for base in module.Mixer.__mro__[1:]:
    if base.__module__.startswith("arch.mixers."):
      return recurrence(importlib.import_module(base.__module__))
  return "none"


def rows(
  record: dict | None = None, names: Iterable[str] | None = None
) -> list[dict]:
  """One mixer a row, all of them by default.

  State and FLOPs are those of the config of the mixer's name, `small`.
  """
  record = read() if record is None else record
  table = []
  for name in registry.names("mixers") if names is None else names:
    module = importlib.import_module(f"arch.mixers.{name}")
    cfg = configs.load(name).copy_and_resolve_references().unlock()
    cfg.model.vocab.size = cfg.model.vocab.size or 256
    model = arch.abstract(cfg.model)
    entry = record["mixers"].get(name, {})
    found = {k: entry[k]["found"] for k in entry}
    if entry.get("measured", {}).get("hash") != digest(
      "mixers", name, "measured"
    ):
      found.pop("measured", None)
    cases = found.get("cases", [])
    errors = {}
    for case in cases:
      for what, error in case["errors"].items():
        errors[what] = max(error, errors.get(what, 0))
    table.append(
      {
        "name": name,
        **described(module),
        "recurrence": recurrence(module),
        "flops": arch.count(model, 2048).forward.total,
        "state": {n: decoding(model, n).bytes for n in (1024, 65_536)},
        "sources": list(dict.fromkeys(case["source"] for case in cases)),
        "cases": len(cases),
        "errors": errors,
        "start": found.get("start", []),
        "tpu": found.get("tpu", []),
        "measured": found.get("measured", [None])[0],
        "wrong": status("mixers", name, record),
      }
    )
  return table


def parts(record: dict | None = None) -> list[dict]:
  """One file of the axes beside the mixers a row."""
  record = read() if record is None else record
  table = []
  for kind in AXES:
    for name in registry.names(kind):
      module = importlib.import_module(f"arch.{kind}.{name}")
      entry = record.get(kind, {}).get(name, {})
      cases = entry.get("cases", {}).get("found", [])
      errors = [error for case in cases for error in case["errors"].values()]
      table.append(
        {
          "kind": kind,
          "name": name,
          **described(module),
          "sources": list(dict.fromkeys(case["source"] for case in cases)),
          "cases": len(cases),
          "error": max(errors, default=None),
          "tpu": entry.get("tpu", {}).get("found", []),
          "wrong": status(kind, name, record),
        }
      )
  return table
