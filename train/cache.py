"""Folders of what was prepared once, under $LAB_CACHE or ~/.cache.

Each has a seal, the size, CRC-32 and time of change of every file, which is
compared whenever the folder is asked for. A file of more than LARGE bytes is
read for it only where its time is another; of others about two GB are read in a
second. A folder appears whole or not at all, and one without a seal, or that
differs from it, is made anew. Of processes that want the same one the first
makes it, and the others wait; what a killed one had written, in a folder
making-NAME, the next goes on from.

Errors: OSError where nothing can be written.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import zlib
from collections.abc import Callable, Iterator

SEAL = "seal.json"
CHUNK = 1 << 20
LARGE = 1 << 26


def root() -> pathlib.Path:
  """$LAB_CACHE, else small-lm-lab/ in $XDG_CACHE_HOME or ~/.cache."""
  if folder := os.environ.get("LAB_CACHE"):
    return pathlib.Path(os.path.expanduser(folder))
  base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return pathlib.Path(os.path.expanduser(base)) / "small-lm-lab"


def kept(
  name: str,
  fill: Callable[[pathlib.Path], None],
  progress: Callable[[str], None],
) -> pathlib.Path:
  """The folder `name`, made by `fill(folder)` if it is not there unharmed.

  Args:
    fill: is given an empty folder, or one that it was killed in. What it wrote
      is left there for the next, but where it raises a ValueError.
  """
  folder = root() / name
  fault = _fault(folder)
  if fault is None:
    return folder
  if folder.exists():
    progress(f"{folder} {fault}: made anew")
  made = folder.with_name(f"making-{name}")
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(made, progress):
      if _fault(folder):  # else another process was first
        _make(made, fill)
        if folder.exists():
          shutil.rmtree(folder)
        made.rename(folder)
        _sync(folder.parent)
  except OSError as error:
    if error.errno is None:  # it says what to do
      raise
    raise OSError(
      f"cannot write the data cache {folder.parent}: {error}. Set LAB_CACHE to "
      "a folder that can be written, or free some space: the same command goes "
      "on from what is there"
    ) from error
  return folder


def _make(folder: pathlib.Path, fill: Callable[[pathlib.Path], None]):
  folder.mkdir(exist_ok=True)
  try:
    fill(folder)
  except ValueError:
    shutil.rmtree(folder)
    raise
  _seal(folder)


@contextlib.contextmanager
def _alone(folder: pathlib.Path, progress: Callable[[str], None]):
  """No other process makes the folder meanwhile."""
  lock = folder.with_name(f"{folder.name}.lock")
  with contextlib.ExitStack() as stack:
    while True:
      file = stack.enter_context(open(lock, "w"))
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        progress(f"waiting for another process, which writes {folder}")
        fcntl.flock(file, fcntl.LOCK_EX)
      # it was done, and removed the lock
      with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
          break
    try:
      yield
    finally:
      lock.unlink()


def _files(folder: pathlib.Path) -> Iterator[tuple[str, pathlib.Path]]:
  for path in sorted(folder.rglob("*")):
    if path.is_file() and path != folder / SEAL:
      yield path.relative_to(folder).as_posix(), path


def _measured(path: pathlib.Path) -> list[int]:
  """Size and CRC-32."""
  checksum = 0
  with open(path, "rb") as file:
    while chunk := file.read(CHUNK):
      checksum = zlib.crc32(chunk, checksum)
    return [file.tell(), checksum]


def _as_sealed(path: pathlib.Path, sealed: list[int]) -> bool:
  size, checksum, *time = sealed
  found = path.stat()
  if found.st_size != size:
    return False
  if size > LARGE and time == [found.st_mtime_ns]:
    return True
  return _measured(path) == [size, checksum]


def _seal(folder: pathlib.Path):
  """Writes the seal once all that it is of is on the disk."""
  sealed = {
    name: [*_measured(path), path.stat().st_mtime_ns]
    for name, path in _files(folder)
  }
  (folder / SEAL).write_text(json.dumps(sealed, indent=1))
  for path in [*folder.rglob("*"), folder]:
    _sync(path)


def _sync(path: pathlib.Path):
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _fault(folder: pathlib.Path) -> str | None:
  """What is wrong with a folder; None if it is as it was sealed."""
  try:
    sealed = json.loads((folder / SEAL).read_text())
    if not sealed:
      return "has an empty seal"
    for name, measured in sealed.items():
      if not _as_sealed(folder / name, measured):
        return f"is damaged ({name} is not as it was written)"
  except FileNotFoundError as error:
    return f"has no {pathlib.Path(error.filename).name}"
  except (
    OSError,
    ValueError,
    AttributeError,
    TypeError,
    LookupError,
    RecursionError,
  ) as error:
    return f"cannot be read ({error})"
  return None
