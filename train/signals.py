"""Ctrl-C, SIGTERM and a time that is up: obeyed where nothing is lost by it.

Python runs a signal's handler when the main thread is back from C, which the
compiler keeps for minutes. `watch` starts a thread that is told at once: while
a `Signals` is entered it says that the loop will stop, else, and at the second
signal, it ends the process. Whatever a run has saved stands a kill.
"""

import contextlib
import os
import signal
import sys
import threading
import time

BOTH = signal.SIGINT, signal.SIGTERM
LATE = "until"  # the name of a time that is up
entered: list["Signals"] = []  # the innermost is the last
watching = False


class Signals:
  """Turns SIGTERM and SIGINT into a name that the loop reads.

  A second one acts as it would have without this.

  Args:
    seconds: from now on, after which the name is LATE; None for never.
  """

  def __init__(self, seconds: float | None = None):
    self._name, self.answered = "", False
    self.end = None if seconds is None else time.monotonic() + seconds

  @property
  def name(self) -> str:
    """Of what asked to stop; "" for nothing."""
    if not self._name and self.end is not None and time.monotonic() > self.end:
      self._name = LATE
      say(b"time is up: stopping after this step")
    return self._name

  @name.setter
  def name(self, name: str):
    self._name = name

  def __enter__(self):
    self.old = {s: signal.signal(s, self._catch) for s in BOTH}
    entered.append(self)
    return self

  def _catch(self, number, _):
    self.name = signal.Signals(number).name
    if not watching:
      self.answer()
    self._put_back()

  def answer(self):
    self.answered = True
    say(b"stopping after this step; again to stop now")

  def _put_back(self):
    for s, handler in self.old.items():
      signal.signal(s, handler)

  def __exit__(self, *_):
    entered.remove(self)
    self._put_back()


def watch():
  """From now on Ctrl-C is answered at once. Called in the main thread."""
  global watching
  if watching:
    return
  told, tell = os.pipe()
  os.set_blocking(tell, False)
  signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
  # a KeyboardInterrupt would be dropped by XLA's callbacks, and a library that
  # is being imported makes an ImportError of it
  signal.signal(signal.SIGINT, lambda *_: None)
  watching = True
  threading.Thread(target=_read, args=(told,), daemon=True).start()


def _read(told: int):
  while number := os.read(told, 1):
    if number[0] not in BOTH:
      continue
    if entered and not entered[-1].answered:
      entered[-1].answer()
    else:
      say(b"interrupted")
      os._exit(128 + number[0])


def say(line: bytes):
  """On stderr, below a progress bar; unbuffered, from any thread."""
  # a pipe's reader has gone by the same Ctrl-C, or there is no stderr
  with contextlib.suppress(OSError, ValueError, AttributeError):
    start = b"\n" if os.isatty(sys.__stderr__.fileno()) else b""
    os.write(sys.__stderr__.fileno(), start + line + b"\n")
