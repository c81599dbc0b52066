"""A run's numbers: metrics.jsonl, and TensorBoard's event files beside it.

A line is one object, {"step": 10, "loss": 2.5, ...}; a number that is not
finite is null, so that every line is JSON. Each line and each event is one
unbuffered write, so kill -9 loses none and tears at most the last. The next
start cuts that off, together with all lines after the restored step: what
belongs to a step must therefore be written before its checkpoint is saved.

Raises OSError where the disk does not take a line; those before it stay whole.
"""

import json
import math
import os
import socket
import struct
import time
from pathlib import Path

from train import hosts, schema, workdir

LINE = {"step": schema.natural, str: (schema.number, None)}
LINES = "metrics.jsonl"


def read(path) -> list[dict]:
  """The lines of a run's metrics.jsonl, but for a torn last one.

  Raises:
    ValueError: a line that is no object with a step, and numbers.
  """
  file = Path(path) / LINES
  if not file.exists():
    return []
  lines = []
  for number, text in enumerate(file.read_bytes().split(b"\n")[:-1], 1):
    try:
      line = schema.parse(text, LINE, "it")
    except ValueError as e:
      raise ValueError(
        f"{file}, line {number} is no JSON object with a step: {text[:80]!r}; "
        f"delete that line ({e})"
      ) from None
    lines.append(line)
  return lines


class Metrics:
  """Appends to a run's metrics, in the first of several processes.

  Args:
    path: the run's folder.
    restored: the step that the run goes on from, None for its start; what
      was written for later steps is removed, from TensorBoard too.
  """

  def __init__(self, path, restored: int | None = None):
    self.folder = Path(path)
    self._first = 0 if restored is None else restored + 1
    self._lines = None
    hosts.decided(self._begin)
    now, host = int(time.time()), socket.gethostname()
    self._name = f"events.out.tfevents.{now:010d}.{host}.{os.getpid()}"
    self._events = None

  def _begin(self):
    kept = [line for line in read(self.folder) if line["step"] < self._first]
    text = "".join(json.dumps(line) + "\n" for line in kept)
    workdir.replace(self.folder / LINES, text)
    self._lines = self._open(LINES)

  def write(self, step: int, **values: float):
    """One line, and one event of TensorBoard.

    Raises:
      TypeError: a value is no Python number but, say, an array that the loop
        would have to wait for.
    """
    line = {"step": step, **values}
    for name, value in line.items():
      if not isinstance(value, int | float):
        raise TypeError(
          f"{name} is a {type(value).__name__}, not a Python number: fetch "
          "metrics with jax.device_get and convert them"
        )
      if not math.isfinite(value):
        line[name] = None
    if self._lines is None:  # another process writes
      return
    self._append(self._lines, LINES, json.dumps(line).encode() + b"\n")
    self._event(step, values)

  def close(self):
    """Closes the files; nothing waits in a buffer."""
    for file in (self._lines, self._events):
      if file is not None:
        os.close(file)

  def _open(self, name):
    with workdir.writing(self.folder / name):
      flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
      return os.open(self.folder / name, flags, 0o644)

  def _append(self, file, name, record):
    """All of a record or, where the disk is full, nothing of it."""
    with workdir.writing(self.folder / name):
      size = os.fstat(file).st_size
      try:
        done = os.write(file, record)
        if done < len(record):  # the rest raises what is the matter
          os.write(file, record[done:])
      except OSError:
        os.ftruncate(file, size)
        raise

  def _event(self, step, values):
    # tensorboardX's own writer hands events to a thread through a queue of
    # ten: once a full disk has killed the thread, the loop waits for ever
    from tensorboardX.proto import event_pb2, summary_pb2
    from tensorboardX.record_writer import masked_crc32c

    def put(**fields):
      data = event_pb2.Event(wall_time=time.time(), **fields)
      data = data.SerializeToString()
      size = struct.pack("<Q", len(data))
      crc = [struct.pack("<I", masked_crc32c(x)) for x in (size, data)]
      self._append(self._events, self._name, size + crc[0] + data + crc[1])

    if self._events is None:
      self._events = self._open(self._name)
      put(file_version="brain.Event:2")
      # tells TensorBoard to forget these steps of earlier files
      start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      put(step=self._first, session_log=start)
    Value = summary_pb2.Summary.Value
    scalars = [Value(tag=k, simple_value=v) for k, v in values.items()]
    put(step=step, summary=summary_pb2.Summary(value=scalars))
