"""What every command does around its one call into the library."""

import datetime
import inspect
import math
import os
import re
import runpy
import signal
import sys
import textwrap
from decimal import Decimal
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict
from tqdm import tqdm

from train import platform, signals

PLATFORM = flags.DEFINE_enum(
  "platform",
  None,
  ["cpu", "gpu", "tpu"],
  "Where to run; by default the best that JAX finds.",
)
TRACEBACK = flags.DEFINE_bool(
  "traceback", False, "Show where an error was raised, not only what it is."
)
flags.disclaim_key_flags()  # those that are made below are their callers'

UNITS = {"K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}
HELP = ("-h", "-help", "--help", "-?", "--?", "--helpshort", "--helpfull")


def whole(text: str, least: int | None = None) -> int:
  """500K -> 500000; ValueError for what is no whole number from `least` on."""
  number = text.strip()
  unit = UNITS.get(number[-1:].upper(), 1)
  try:
    value = Decimal(number if unit == 1 else number[:-1]) * unit
    exact = value == value.to_integral_value()
  except ArithmeticError:
    exact = False
  if not exact or not value.is_finite():
    raise ValueError(
      f"{text!r} is not a whole number such as 20000, 500_000, 1e6, 500K, 1.5M "
      "or 7B"
    )
  if value >= 2**63:
    raise ValueError(f"{text!r} must be below 2**63")
  if least is not None and value < least:
    raise ValueError(f"{text} must be at least {least}")
  return int(value)


class Count(flags.ArgumentParser):
  """Of a flag that is a whole number; 0 for the word none, where that is one.

  absl's flags with a default can't be None.
  """

  def __init__(self, least: int, none: bool):
    self.least, self.none = least, none

  def parse(self, argument):
    if self.none and str(argument).lower() == "none":
      return 0
    return whole(str(argument), self.least)


class Real(flags.ArgumentParser):
  """Of a flag that is a number above 0."""

  def parse(self, argument):
    try:
      value = float(argument)
    except ValueError:
      value = math.nan
    if not 0 < value < math.inf:
      raise ValueError(f"{argument} is not a number above 0")
    return value


def define_count(name, default, text, least=1, none=False):
  return flags.DEFINE(Count(least, none), name, default, text)


def define_real(name, default, text):
  return flags.DEFINE(Real(), name, default, text)


class Until(flags.ArgumentParser):
  """Seconds until a time: 8h, 90min, 30s, or a clock's next 23:30."""

  syntactic_help = "such as 8h, 90min, or 23:30 of the clock"
  UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86_400}

  def parse(self, argument) -> float:
    text = str(argument).strip()
    given = re.fullmatch(r"(\d+\.?\d*) ?(s|min|h|d)", text)
    if given and float(given[1]):
      return float(given[1]) * self.UNITS[given[2]]
    try:
      clock = datetime.datetime.strptime(text, "%H:%M").time()
    except ValueError:
      raise ValueError(f"{text!r} is no time {self.syntactic_help}") from None
    now = datetime.datetime.now()
    left = (datetime.datetime.combine(now, clock) - now).total_seconds()
    return left % self.UNITS["d"]


def define_until():
  return flags.DEFINE(
    Until(),
    "until",
    None,
    "Stop at the first step after that and save, such that the same command "
    "goes on: 8h or 90min from now, or 23:30 of the clock. Leave some minutes.",
  )


def say(text: str):
  """One line, above a progress bar if there is one."""
  tqdm.write(text, file=sys.stdout)
  sys.stdout.flush()


def no_more(argv):
  """Refuses words that are no flags."""
  if argv[1:]:
    raise ValueError(f"not flags: {' '.join(argv[1:])}")


def is_config(word: str) -> bool:
  return word[:1] == "-" and word.lstrip("-").split(".")[0] == "config"


def split(argv) -> list[list[str]]:
  """argv, where --config and its fields are [name, value]."""
  found = []
  for word in argv:
    name, given, value = word.partition("=")
    last = found[-1] if found else [""]
    if is_config(name):
      found.append([name, value] if given else [name])
    elif len(last) == 1 and is_config(last[0]) and not word.startswith("--"):
      last.append(word)
    else:
      found.append([word])
  return found


def config_file(given: str) -> str:
  """FILE:SIZE of what --config names: a file or, as --archs, its bare name."""
  platform.own_arch()
  import configs
  from arch.config import closest

  path, _, size = given.partition(":")
  if path in configs.names() and not Path(path).is_file():
    path = f"configs/{path}.py"
    if not Path(path).is_file():
      path = str(platform.ROOT / path)
  if not Path(path).is_file():
    if path and (platform.ROOT / path).is_file():
      raise ValueError(
        f"there is no {path} in {Path.cwd()}: run from {platform.ROOT}"
      )
    raise ValueError(
      f"unknown architecture {Path(path).stem!r}: there is no file "
      f"{path or chr(39) * 2}; {closest(Path(path).stem, configs.names())}"
    )
  return f"{path}:{size}" if size else path


def get_config(given: str):
  """The config of FILE or FILE:SIZE; ValueError where there is none in it."""
  path, _, size = given.partition(":")
  try:
    found = runpy.run_path(path)
    if "get_config" not in found:
      raise ValueError(f"{path} has no get_config, as a config has")
    cfg = found["get_config"](*filter(None, [size]))
    if not isinstance(cfg, ConfigDict):
      raise ValueError(f"{path}: its get_config gives a {type(cfg).__name__}")
  except ValueError:
    raise
  except Exception as error:  # whatever the code of a file may raise
    raise ValueError(
      f"{path} is no config: {type(error).__name__}: {error}"
    ) from None
  return cfg


def plain(argv) -> list[str]:
  """argv with --config as a path and its whole numbers in digits.

  Raises:
    ValueError: a config or a field of it that is not there. ml_collections
      would say so too, in a traceback and without the names that there are.
  """
  words = split(argv)
  named = [w for w in words if w[0].lstrip("-") == "config" and len(w) == 2]
  if not named:
    return argv
  from arch.config import closest
  from train.workdir import flat

  if len(named) > 1:
    raise ValueError("--config is given twice")
  path = named[0][1] = config_file(named[0][1])
  import configs

  cfg = get_config(path)
  fields = flat(cfg.to_dict())
  for word in words:
    if not word[0].startswith(("-config.", "--config.")):
      continue
    name = word[0].lstrip("-").removeprefix("config.")
    if name in fields:
      if len(word) == 2 and type(fields[name]) is int:
        word[1] = str(named_whole(f"--config.{name}", word[1]))
    elif any(k.startswith(f"{name}.") for k in fields):
      raise ValueError(f"--config.{name} has fields: name one of them")
    elif configs.may_have(name):
      value = word[1] if len(word) == 2 else "VALUE"
      known = name.startswith(configs.VOCAB) or name in configs.fields(cfg)
      instead = f"give --set={name}={value}" if known else "set it there"
      raise ValueError(
        f"--config.{name}: only a field that {path} sets can be such a flag; "
        f"{instead}"
      )
    else:
      raise ValueError(f"no field --config.{name}: {closest(name, fields)}")
  return ["=".join(word) for word in words]


def named_whole(name: str, text: str, least: int | None = None) -> int:
  try:
    return whole(text, least)
  except ValueError as error:
    raise ValueError(f"{name}: {error}") from None


def parse(argv, main) -> list[str]:
  """argv without its flags, which are set; what is wrong with them is raised.

  Words after -- are another command's, and stay as they are.

  Args:
    main: the command's, beside which its flags are defined.

  Raises:
    ValueError: one line.
    SystemExit: 0, where help was asked for, and printed.
  """
  end = argv.index("--") if "--" in argv else len(argv)
  asked = any(word in HELP for word in argv[1:end])
  rest = [argv[0], *(word for word in argv[1:end] if word not in HELP)]
  try:
    rest = plain(rest)
    if asked:
      print(usage(rest, sys.modules[main.__module__]))
      sys.exit(0)
    left = flags.FLAGS(rest)
  except flags.Error as error:
    raise ValueError(mended(str(error))) from None
  for name, flag in flags.FLAGS.flag_values_dict().items():
    if flag == "" and flags.FLAGS[name].default != "":
      raise ValueError(f"--{name}= is empty: {flags.FLAGS[name].help}")
  return [*left, *argv[end + 1 :]]


def mended(error: str) -> str:
  """absl's words for a flag's error in ours."""
  missing = re.search(r"Flag --(\w+) must have a value other than None", error)
  if missing:
    return f"--{missing[1]} is missing: {flags.FLAGS[missing[1]].help}"
  error = re.sub(r"could not convert string to float.*", "no number", error)
  return " ".join(error.removeprefix("flag ").split())


def usage(argv, module) -> str:
  """What --help prints: the command's words, its flags, a config's fields."""
  known = flags.FLAGS
  own = {flag.name: flag for flag in known.get_key_flags_for_module(module)}
  for holder in (PLATFORM, TRACEBACK):
    own[holder.name] = known[holder.name]
  lines = [inspect.cleandoc(module.__doc__ or ""), ""]
  for name, flag in sorted(own.items()):
    values = "|".join(getattr(flag.parser, "enum_values", ()))
    default = (flag.default_as_str or "").strip("'")
    if default in ("None", "[]") or isinstance(flag.default, bool):
      default = ""
    lines.append(
      f"--{name}"
      + (f"={values}" if values else "")
      + (f" (by default {default})" if default else "")
    )
    text = flag.help.removeprefix(f"<{values}>: ")
    lines += textwrap.wrap(
      re.sub(r";\s+repeat this option.*", "", text),
      76,
      initial_indent="  ",
      subsequent_indent="  ",
    )
  if "config" in own:
    lines += ["", *fields(argv)]
  return "\n".join(lines)


def fields(argv) -> list[str]:
  """The fields that can be flags, with the config's own values."""
  import configs
  from train.workdir import flat

  named = [w[1] for w in split(argv) if w[0].lstrip("-") == "config" and w[1:]]
  cfg = get_config(named[-1]) if named else configs.base_config()
  every = flat(cfg.to_dict())
  more = "" if named else "; --config=NAME --help has a model's own, too"
  return [
    f"Fields of {named[-1] if named else 'every config'}{more}:",
    *(f"  --config.{name}={value}" for name, value in every.items()),
  ]


def run(main, cores: bool = False, memory: str = "", prepared: bool = True):
  """main under absl; an error that a user can mend is one line and exit 1.

  Args:
    cores: for what trains: see train.platform.setup.
    memory: the flags that make it want less.
    prepared: whether the platform is set up before main, or by it.
  """

  def parsed(argv):
    try:
      return parse(argv, main)
    except ValueError as error:
      sys.exit(f"error: {error}")

  signals.watch()
  app.run(guard(main, cores, memory, prepared), flags_parser=parsed)


def guard(main, cores: bool = False, memory: str = "", prepared: bool = True):
  """main, such that its errors are one line, and an exit code."""

  def guarded(argv):
    logging.set_verbosity(logging.WARNING)  # libraries say much at INFO
    try:
      print(f"{platform.command()}: starting", file=sys.stderr, flush=True)
      if prepared:
        platform.setup(PLATFORM.value, cores)
      code = main(argv)
      sys.stdout.flush()
      return code
    except BrokenPipeError:  # what read our output, such as head, has enough
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
      return 128 + signal.SIGPIPE
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
      full = "RESOURCE_EXHAUSTED" in str(error)  # XLA's
      full |= isinstance(error, MemoryError)
      if TRACEBACK.value or (isinstance(error, RuntimeError) and not full):
        raise
      why = str(error)
      if full:
        first = (why.splitlines() or ["on the host"])[0]
        why = f"out of memory, try {memory or 'smaller sizes'}: {first}"
      print(f"error: {why}", file=sys.stderr)
      return 1

  return guarded


def stopped(by: str) -> int:
  """The exit code of what a signal stopped, saved and can go on."""
  return 128 + signal.SIGINT if by == "SIGINT" else 0
