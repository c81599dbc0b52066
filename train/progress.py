"""A progress bar: on a terminal, one that moves; in a file, a line a minute.

A notebook, which gives its commands a terminal but keeps all that they write
there, is a file.
"""

import os
import sys

from tqdm import tqdm

from train import hosts

EVERY = 60.0  # seconds between the lines of a file
NOTEBOOK = "JPY_PARENT_PID"  # which a kernel has, and what it starts
DESCRIPTION = 28  # characters, which leave room for the rest in 80
FORMAT = "{desc}: {n_fmt}/{total_fmt}, {remaining} left, {rate_fmt}{postfix}"


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


def short(text: str, size: int) -> str:
  """Both ends of a long text: names of variants differ in the last."""
  if len(text) <= size:
    return text
  head = size // 3
  return f"{text[:head]}…{text[head + 1 - size :]}"


def bar(iterable=None, desc: str = "", **kwargs) -> tqdm:
  """tqdm(...) on stderr, readable in 80 columns, of the first process alone."""
  kwargs |= {"iterable": iterable, "desc": short(desc, DESCRIPTION)}
  kwargs["disable"] = kwargs.get("disable", False) or not hosts.first()
  if sys.stderr.isatty() and NOTEBOOK not in os.environ:
    return tqdm(
      **kwargs,
      bar_format=FORMAT + " {bar}",
      dynamic_ncols=True,
      mininterval=0.5,
    )
  return tqdm(
    **kwargs,
    bar_format=FORMAT,
    file=Lines(sys.stderr),
    ncols=80,
    mininterval=EVERY,
  )
