"""A progress bar: on a terminal, one that moves; in a file, a line a minute."""

import sys

from tqdm import tqdm

EVERY = 60.0  # seconds between the lines of a file


class Lines:
  """A stream in which what would overwrite a line begins a new one."""

  def __init__(self, stream):
    self.stream = stream

  def write(self, text: str):
    text = text.strip("\r\n ")
    if text:
      self.stream.write(text + "\n")

  def flush(self):
    self.stream.flush()


def bar(*args, **kwargs) -> tqdm:
  """tqdm(...) on stderr."""
  if sys.stderr.isatty():
    return tqdm(*args, **kwargs, dynamic_ncols=True, mininterval=0.5)
  return tqdm(
    *args, **kwargs, file=Lines(sys.stderr), ncols=80, mininterval=EVERY
  )
