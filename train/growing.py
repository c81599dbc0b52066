"""Files of one folder that grow together, and go on after a kill.

What was kept is on the disk, and a journal says how long each file was then and
where in its source the writer stood. What came after is cut off when the files
are opened again: a writer that depends on its source alone goes on from there
as if nothing had been.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterable

from train import workdir

EVERY = 1 << 26  # bytes after which they are kept


class Growing(contextlib.ExitStack):
  """The files, from what was kept on.

  Attributes:
    at: where in its source the writer stands, what JSON can hold.
  """

  def __init__(
    self, folder: pathlib.Path, name: str, files: Iterable[str], start
  ):
    """
    Args:
      name: of the journal, less .json.
      start: what `at` is before anything was kept.
    """
    super().__init__()
    self.journal = folder / f"{name}.json"
    self.at, sizes = start, {}
    if self.journal.exists():
      self.at, sizes = json.loads(self.journal.read_text())
    self.files = {}
    for file in files:
      self.files[file] = self.enter_context(open(folder / file, "ab"))
      self.files[file].truncate(sizes.get(file, 0))
    self.since = 0

  def append(self, file: str, content):
    self.since += self.files[file].write(content)

  def stand(self, at) -> bool:
    """The writer stands at `at`; whether that was kept, as it is at times."""
    self.at = at
    due = self.since >= EVERY
    if due:
      self.keep()
    return due

  def rest(self):
    """Nothing more comes: keeps the end of what is long."""
    if self.journal.exists():
      self.keep()

  def keep(self):
    for file in self.files.values():
      file.flush()
      os.fsync(file.fileno())
    sizes = {name: file.tell() for name, file in self.files.items()}
    workdir.replace(self.journal, json.dumps([self.at, sizes]))
    self.since = 0
