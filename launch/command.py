"""What every command does around its one call into the library."""

import os
import re
import runpy
import signal
import sys
from pathlib import Path

from absl import app, flags, logging
from tqdm import tqdm

from train import platform

PLATFORM = flags.DEFINE_enum(
  "platform",
  None,
  ["cpu", "gpu", "tpu"],
  "Where to run; by default the best that JAX finds.",
)
TRACEBACK = flags.DEFINE_bool(
  "traceback", False, "Show where an error was raised, not only what it is."
)


UNITS = {"": 1, "K": 1_000, "M": 1_000_000, "G": 1_000_000_000}


def number(flag) -> int:
  """500K -> 500000."""
  found = re.fullmatch(
    r"(\d+\.?\d*|\.\d+)([KMG]?)", flag.value.strip(), re.IGNORECASE
  )
  if not found:
    raise ValueError(
      f"--{flag.name}={flag.value} is not a number such as 500K, 1.5M or 20000"
    )
  return round(float(found[1]) * UNITS[found[2].upper()])


def say(text: str):
  """One line, above a progress bar if there is one."""
  tqdm.write(text, file=sys.stdout)
  sys.stdout.flush()


def no_more(argv):
  """Refuses words that are no flags."""
  if argv[1:]:
    raise ValueError(f"not flags: {' '.join(argv[1:])}")


def config_file(argv) -> str | None:
  """What --config names, as `--config=FILE` or `--config FILE`."""
  for word, after in zip(argv[1:], [*argv[2:], None], strict=False):
    flag, given, value = word.partition("=")
    if flag.lstrip("-") == "config" and flag != "config":
      return value if given else after
  return None


def check_config(argv):
  """ValueError for a config or a field of it that is not there.

  ml_collections would say so too, in a traceback and without the names that
  there are.
  """
  given = config_file(argv)
  if given is None:
    return
  platform.own_arch()
  import configs
  from arch.layers import closest
  from train.workdir import flat

  path, _, size = given.partition(":")
  if not Path(path).is_file():
    if (platform.ROOT / path).is_file():
      raise ValueError(
        f"there is no {path} in {Path.cwd()}: run from {platform.ROOT}"
      )
    raise ValueError(
      f"unknown architecture {Path(path).stem!r}: there is no {path}; "
      f"{closest(Path(path).stem, configs.names())}"
    )
  found = runpy.run_path(path)
  if "get_config" not in found:
    raise ValueError(f"{path} has no get_config, as a config has")
  cfg = found["get_config"](*filter(None, [size]))
  known = {f"config.{name}" for name in flat(cfg.to_dict())}
  for word in argv[1:]:
    name = word.lstrip("-").partition("=")[0]
    inner = any(k.startswith(f"{name}.") for k in known)
    if not name.startswith("config.") or name in known or inner:
      continue
    if configs.may_have(name.removeprefix("config.")):
      raise ValueError(
        f"--{name}: only a field that {path} sets can be a flag; set it there"
      )
    raise ValueError(f"no field --{name}: {closest(name, known)}")


def interrupt(*_):
  """Ctrl-C where no loop catches it to save first: one line, and the end.

  A KeyboardInterrupt would be dropped by XLA's callbacks, and a library that
  is being imported makes an ImportError of it.
  """
  os.write(sys.stderr.fileno(), b"interrupted\n")
  os._exit(128 + signal.SIGINT)


def run(main, cores: bool = False):
  """main under absl; an error that a user can mend is one line and exit 1.

  Args:
    cores: for what trains: see train.platform.setup.
  """

  def parse(argv):
    try:
      check_config(argv)
      return flags.FLAGS(argv)
    except (ValueError, flags.Error) as error:
      sys.exit(f"error: {error}")

  def guarded(argv):
    logging.set_verbosity(logging.WARNING)  # libraries say much at INFO
    try:
      print(f"{platform.command()}: starting", file=sys.stderr, flush=True)
      platform.setup(PLATFORM.value, cores)
      main(argv)
      sys.stdout.flush()
    except BrokenPipeError:  # what read our output, such as head, has enough
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
      return 128 + signal.SIGPIPE
    except (ValueError, OSError, RuntimeError) as error:
      full = "RESOURCE_EXHAUSTED" in str(error)  # XLA's
      if TRACEBACK.value or (isinstance(error, RuntimeError) and not full):
        raise
      advice = "out of memory, name a smaller model, batch or length: "
      why = advice + str(error).splitlines()[0] if full else error
      print(f"error: {why}", file=sys.stderr)
      return 1

  signal.signal(signal.SIGINT, interrupt)
  app.run(guarded, flags_parser=parse)
