"""Folders of what was prepared once, under $LAB_CACHE or ~/.cache.

Each has a seal, the size and CRC-32 of every file, which is compared whenever
the folder is asked for: about two GB are read in a second. A folder appears
whole or not at all, and one without a seal, or that differs from it, is made
anew. Two processes may make the same one at once: the first is kept.

Errors: OSError where nothing can be written.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator

SEAL, LOCK = "seal.json", "lock"
CHUNK = 1 << 20


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
  """The folder `name`, made by `fill(folder)` if it is not there unharmed."""
  folder = root() / name
  fault = _fault(folder)
  if fault is None:
    return folder
  if folder.exists():
    progress(f"{folder} {fault}: made anew")
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = pathlib.Path(tempfile.mkdtemp(dir=folder.parent, prefix="making-"))
  except OSError as error:
    raise _unwritable(folder.parent, error) from error
  try:
    fill(made)
    _seal(made)
    with _alone(folder.parent):
      if _fault(folder):  # else another process was first
        if folder.exists():
          shutil.rmtree(folder)
        made.rename(folder)
        _sync(folder.parent)
  except OSError as error:
    raise _unwritable(folder.parent, error) from error
  finally:
    shutil.rmtree(made, ignore_errors=True)
  return folder


def _unwritable(folder: pathlib.Path, error: OSError) -> OSError:
  return OSError(
    f"cannot write the data cache {folder}: {error}. Set LAB_CACHE to a folder "
    "that can be written"
  )


@contextlib.contextmanager
def _alone(folder: pathlib.Path):
  """No other process replaces a folder meanwhile."""
  with open(folder / LOCK, "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


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


def _seal(folder: pathlib.Path):
  """Writes the seal once all that it is of is on the disk."""
  sealed = {name: _measured(path) for name, path in _files(folder)}
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
      path = folder / name
      if path.stat().st_size != measured[0] or _measured(path) != measured:
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
