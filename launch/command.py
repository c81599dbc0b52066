"""What every command does around its one call into the library."""

import sys

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
    raise app.UsageError(f"not flags: {' '.join(argv[1:])}")


def run(main):
  """main under absl; an error that a user can mend is one line and exit 1."""

  def guarded(argv):
    logging.set_verbosity(logging.WARNING)  # libraries say much at INFO
    from train import platform

    say(f"{platform.command()}: starting")
    try:
      platform.setup(PLATFORM.value)
      return main(argv)
    except (ValueError, OSError) as error:
      if TRACEBACK.value:
        raise
      print(f"error: {error}", file=sys.stderr)
      return 1

  app.run(guarded)
