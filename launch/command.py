"""What every command does around its one call into the library."""

import re
import runpy
import sys
from pathlib import Path

from absl import app, flags, logging
from tqdm import tqdm

PLATFORM = flags.DEFINE_enum(
  "platform",
  None,
  ["cpu", "gpu", "tpu"],
  "Where to run; by default the best that JAX finds.",
)
TRACEBACK = flags.DEFINE_bool(
  "traceback", False, "Show where an error was raised, not only what it is."
)


def say(text: str):
  """One line, above a progress bar if there is one."""
  tqdm.write(text, file=sys.stdout)
  sys.stdout.flush()


def no_more(argv):
  """Refuses words that are no flags."""
  if argv[1:]:
    raise ValueError(f"not flags: {' '.join(argv[1:])}")


def check_config(argv):
  """ValueError for a config or a field of it that is not there.

  ml_collections would say so too, in a traceback and without the names that
  there are.
  """
  files = [re.fullmatch(r"--?config=([^:]+):?(.*)", word) for word in argv]
  for path, size in (m.groups() for m in files if m):
    import configs
    from arch.layers import closest
    from train.workdir import flat

    if not Path(path).exists():
      raise ValueError(
        f"unknown architecture {Path(path).stem!r}: there is no {path}; "
        f"{closest(Path(path).stem, configs.names())}"
      )
    cfg = runpy.run_path(path)["get_config"](*filter(None, [size]))
    known = {f"config.{name}" for name in flat(cfg.to_dict())}
    for word in argv[1:]:
      name = word.lstrip("-").partition("=")[0]
      inner = any(k.startswith(f"{name}.") for k in known)
      if name.startswith("config.") and name not in known and not inner:
        raise ValueError(f"no field --{name}: {closest(name, known)}")


def run(main, cores: bool = False):
  """main under absl; an error that a user can mend is one line and exit 1.

  Args:
    cores: for what trains: see train.platform.setup.
  """

  def parse(argv):
    try:
      check_config(argv)
    except ValueError as error:
      sys.exit(f"error: {error}")
    return app.parse_flags_with_usage(argv)

  def guarded(argv):
    logging.set_verbosity(logging.WARNING)  # libraries say much at INFO
    from train import platform

    say(f"{platform.command()}: starting")
    try:
      platform.setup(PLATFORM.value, cores)
      return main(argv)
    except (ValueError, OSError) as error:
      if TRACEBACK.value:
        raise
      print(f"error: {error}", file=sys.stderr)
      return 1

  app.run(guarded, flags_parser=parse)
